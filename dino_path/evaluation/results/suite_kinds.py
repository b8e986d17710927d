"""How a suite runs each protocol: the one table from names to what reads the data, looks ahead, and evaluates.

Nothing here imports torch before it evaluates: a suite refuses what it can before that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dino_path.config import EvaluationConfig, PrimaryConfig, SuiteProtocol
from dino_path.evaluation.labelled.datasets import LabelledSet, load_labelled
from dino_path.evaluation.labelled.division import divide
from dino_path.evaluation.measures.metrics import LOWEST, Metrics, Sample
from dino_path.evaluation.results.earlier import Evaluation, Stem, refuse_to_lose

if TYPE_CHECKING:
    import torch

    from dino_path.distributed import World


@dataclass(frozen=True)
class Work:
    """What one set asks of one kind of evaluation.

    Attributes:
        data: what the kind's `load` gave.
        fractions: of the training labels, for the protocol `fractions`.
        out: the set's folder.
        baseline: folder of `dino-path baseline` of this set.
    """

    specs: Sequence[str]
    data: Any
    protocols: tuple[Any, ...]
    fractions: tuple[float, ...]
    evaluation: EvaluationConfig
    out: Path
    baseline: Path | None


@dataclass(frozen=True)
class Leading:
    """The primary metric of one set.

    Attributes:
        samples: by the model's name; the same groups and resamples for all.
        supervised: which of them is the supervised network.
        lowest: that the metric can be.
        interval: what its intervals are over, in words.
    """

    samples: Mapping[str, Sample]
    supervised: str | None
    lowest: float
    interval: str


@dataclass(frozen=True)
class Described:
    """What the suite's page says of a set's data.

    Attributes:
        num_tested: images (or slides) in all test parts, each counted once.
        num_classes: that are tested; None where there are no classes.
        has_groups: whether patients or slides are named.
        identity: changes with any image, label or part of the split.
    """

    name: str
    split_rule: str
    num_tested: int
    num_classes: int | None
    has_groups: bool
    identity: str


@dataclass(frozen=True)
class Kind:
    """One kind of evaluation.

    Attributes:
        file: its results in the set's folder; the set is not complete without it.
        load: reads and checks the data, given as --data and the set's settings.
        describe: says of them what the page needs.
        look: refuses what would be refused later, such as results that would be lost.
        extract: makes the share of the features of one process of several.
        run: evaluates and writes its files; gives the primary metric where it is asked for.
    """

    file: str
    load: Callable[[str, EvaluationConfig], Any]
    describe: Callable[[Any, EvaluationConfig], Described]
    look: Callable[[Work], None]
    extract: Callable[[Work, World, int], None]
    run: Callable[[Work, PrimaryConfig | None, torch.device, int], Leading | None]


def _describe_labelled(labelled: LabelledSet, evaluation: EvaluationConfig) -> Described:
    division = divide(labelled, evaluation)
    whole = division.labelled
    num_tested = len(np.unique(division.tested))
    identity = f"{labelled.content_digest} {whole.split_digest}"
    return Described(
        name=division.name,
        split_rule=whole.split_rule,
        num_tested=num_tested,
        num_classes=len(np.unique(division.labels)),
        has_groups=labelled.groups is not None,
        identity=identity,
    )


def _look_for(stem: Stem) -> Callable[[Work], None]:
    def look(work: Work) -> None:
        protocols = work.protocols if stem == "results" else ()
        fractions = work.fractions if stem == "fractions" else ()
        has_baseline = work.baseline is not None
        planned = Evaluation(stem, work.specs, protocols, fractions, has_baseline=has_baseline)
        refuse_to_lose(work.out, planned, work.data, work.evaluation)

    return look


def _extract(work: Work, world: World, num_workers: int) -> None:
    from dino_path.evaluation.results.table import extract_together

    extract_together(
        work.specs, work.data, work.evaluation, world=world, out=work.out, protocols=work.protocols,
        num_workers=num_workers,
    )  # fmt: skip


def _table(work: Work, primary: PrimaryConfig | None, device: torch.device, num_workers: int) -> Leading | None:
    from dino_path.evaluation.results.table import evaluate_table

    table = evaluate_table(
        work.specs, work.data, work.evaluation, device=device, out=work.out, protocols=work.protocols,
        baseline=work.baseline, num_workers=num_workers,
    )  # fmt: skip
    if primary is None:
        return None
    metrics: dict[str, Metrics] = {
        row.model: row.metrics for row in table.rows if row.protocol in (primary.protocol, "end-to-end")
    }
    return Leading(
        {name: one.samples[primary.metric] for name, one in metrics.items()},
        table.baseline,
        LOWEST.get(primary.metric, 0.0),
        next(iter(metrics.values())).interval,
    )


def _fewshot(work: Work, primary: PrimaryConfig | None, device: torch.device, num_workers: int) -> None:
    from dino_path.evaluation.results.fewshot import evaluate_fewshot

    evaluate_fewshot(
        work.specs, work.data, work.evaluation, device=device, out=work.out, baseline=work.baseline,
        num_workers=num_workers,
    )  # fmt: skip


def _fractions(work: Work, primary: PrimaryConfig | None, device: torch.device, num_workers: int) -> None:
    from dino_path.evaluation.results.fractions import evaluate_fractions

    evaluate_fractions(
        work.specs, work.data, work.evaluation, work.fractions, device=device, out=work.out, baseline=work.baseline,
        num_workers=num_workers,
    )  # fmt: skip


TABLE = Kind("results.json", load_labelled, _describe_labelled, _look_for("results"), _extract, _table)
FEWSHOT = Kind("fewshot.json", load_labelled, _describe_labelled, _look_for("fewshot"), _extract, _fewshot)
FRACTIONS = Kind("fractions.json", load_labelled, _describe_labelled, _look_for("fractions"), _extract, _fractions)

# The seam: a further protocol of `evaluate` is a `Kind` of its own and a line here.
KINDS: Mapping[SuiteProtocol, Kind] = {
    "knn": TABLE,
    "knn-uni": TABLE,
    "linear": TABLE,
    "logistic": TABLE,
    "linear-uni": TABLE,
    "linear-dino": TABLE,
    "fewshot": FEWSHOT,
    "fractions": FRACTIONS,
}


def by_kind(protocols: Sequence[SuiteProtocol]) -> dict[Kind, tuple[SuiteProtocol, ...]]:
    """The protocols that one kind of evaluation runs together, in their order."""
    kinds = dict.fromkeys(KINDS[protocol] for protocol in protocols)
    return {kind: tuple(protocol for protocol in protocols if KINDS[protocol] == kind) for kind in kinds}

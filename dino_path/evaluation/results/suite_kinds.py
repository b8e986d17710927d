"""How a suite runs each protocol: a table from names to functions that read the data, check it, and evaluate.

Nothing here imports torch before it evaluates: a suite refuses what it can before that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dino_path.config import EvaluationConfig, PrimaryConfig, SuiteProtocol
from dino_path.errors import DataError
from dino_path.evaluation.labelled.datasets import LabelledSet, check_listing, load_labelled
from dino_path.evaluation.labelled.division import divide
from dino_path.evaluation.labelled.masks import MaskedSet, MaskListing
from dino_path.evaluation.labelled.published_masks import list_masked, load_masked
from dino_path.evaluation.labelled.queries import queries_of
from dino_path.evaluation.measures.metrics import LOWEST, Metrics
from dino_path.evaluation.measures.sample import Sample, interval_in_words
from dino_path.evaluation.results.earlier import Evaluation, Stem, refuse_to_lose, refuse_to_lose_masks

if TYPE_CHECKING:
    import torch

    from dino_path.distributed import World
    from dino_path.evaluation.results.writing import Outcome


@dataclass(frozen=True)
class Work:
    """The work of one kind of evaluation for one set.

    Attributes:
        data: what the kind's `load` gave.
        fractions: of the training labels, for the protocol `fractions`.
        out: the set's folder.
        baseline: folder of `dino-path baseline` of this set.
        primary: the number that this kind gives to the suite's table; None where another kind leads the set.
    """

    specs: Sequence[str]
    data: Any
    protocols: tuple[Any, ...]
    fractions: tuple[float, ...]
    evaluation: EvaluationConfig
    out: Path
    baseline: Path | None
    primary: PrimaryConfig | None


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
    """The description of a set's data on the suite's page.

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
        list: looks at what the data list, given as --data and the set's settings; no image is opened.
        load: reads and checks the data, given so too.
        describe: says of them what the page needs.
        look: refuses what would be refused later, such as results that would be lost.
        extract: makes the share of the features of one process of several.
        run: evaluates and writes its files; gives the primary metric where the work has one.
        has_supervised: whether the supervised network can stand beside its primary metric.
    """

    file: str
    list: Callable[[str, EvaluationConfig], Any]
    load: Callable[[str, EvaluationConfig], Any]
    describe: Callable[[Any, EvaluationConfig], Described]
    look: Callable[[Work], None]
    extract: Callable[[Work, World, int], None]
    run: Callable[[Work, torch.device, int], Leading | None]
    has_supervised: bool = False


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


def _table(work: Work, device: torch.device, num_workers: int) -> Leading | None:
    from dino_path.evaluation.results.table import evaluate_table

    table = evaluate_table(
        work.specs, work.data, work.evaluation, device=device, out=work.out, protocols=work.protocols,
        baseline=work.baseline, num_workers=num_workers,
    )  # fmt: skip
    primary = work.primary
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


def _fewshot(work: Work, device: torch.device, num_workers: int) -> None:
    from dino_path.evaluation.results.fewshot import evaluate_fewshot

    evaluate_fewshot(
        work.specs, work.data, work.evaluation, device=device, out=work.out, baseline=work.baseline,
        num_workers=num_workers,
    )  # fmt: skip


def _fractions(work: Work, device: torch.device, num_workers: int) -> None:
    from dino_path.evaluation.results.fractions import evaluate_fractions

    evaluate_fractions(
        work.specs, work.data, work.evaluation, work.fractions, device=device, out=work.out, baseline=work.baseline,
        num_workers=num_workers,
    )  # fmt: skip


def _leading(outcome: Outcome, primary: PrimaryConfig | None) -> Leading | None:
    if primary is None:
        return None
    samples = outcome.samples[primary.metric]
    left_out = next(iter(samples.values())).left_out
    return Leading(samples, None, 0.0, interval_in_words(left_out.freedom, len(left_out.units), outcome.unit))


# --- retrieval ---


def _look_at_retrieval(work: Work) -> None:
    queries_of(divide(work.data, work.evaluation))
    _look_for("retrieval")(work)


def _retrieval(work: Work, device: torch.device, num_workers: int) -> Leading | None:
    from dino_path.evaluation.results.retrieval import evaluate_retrieval

    outcome = evaluate_retrieval(
        work.specs, work.data, work.evaluation, device=device, out=work.out, num_workers=num_workers
    )
    return _leading(outcome, work.primary)


# --- centres, scanners and shifts ---


def _look_at_robustness(work: Work) -> None:
    """As `evaluate robustness`: shifts are made where the data name no two centres or scanners."""
    has_makers = work.data.has_makers
    planned = Evaluation("robustness", work.specs, (), (), has_baseline=False, has_shifts=not has_makers)
    refuse_to_lose(work.out, planned, work.data, work.evaluation)
    if work.primary is None:
        return
    if (work.primary.metric == "accuracy_shifted") == has_makers:
        raise DataError(
            work.data.name,
            f"the data name {'' if has_makers else 'no two '}centres or scanners, and the primary metric is"
            f" {work.primary.metric}.",
            "accuracy_known and accuracy_new need centres or scanners; accuracy_shifted is for data without them.",
            f"Set primary.metric to {'accuracy_new' if has_makers else 'accuracy_shifted'}.",
        )
    if has_makers:
        from dino_path.evaluation.protocols.held_out import classes_at_new_makers
        from dino_path.evaluation.protocols.makers import cohorts

        classes_at_new_makers(cohorts(work.data, seed=work.evaluation.seed)[0])


def _extract_robustness(work: Work, world: World, num_workers: int) -> None:
    from dino_path.evaluation.results.robustness import extract_robustness_together

    extract_robustness_together(
        work.specs, work.data, work.evaluation, with_shifts=not work.data.has_makers, world=world, out=work.out,
        num_workers=num_workers,
    )  # fmt: skip


def _robustness(work: Work, device: torch.device, num_workers: int) -> Leading | None:
    from dino_path.evaluation.results.robustness import evaluate_robustness

    outcome = evaluate_robustness(
        work.specs, work.data, work.evaluation, with_shifts=not work.data.has_makers, device=device, out=work.out,
        num_workers=num_workers,
    )  # fmt: skip
    return _leading(outcome, work.primary)


# --- masks ---


def _list_masks(spec: str, evaluation: EvaluationConfig) -> MaskListing:
    return list_masked(spec)


def _describe_masked(masked: MaskedSet, evaluation: EvaluationConfig) -> Described:
    images = _describe_labelled(masked.labelled, evaluation)
    return replace(images, num_classes=None, identity=f"{images.identity} {masked.digest}")


def _look_at_masks(work: Work) -> None:
    division = divide(work.data.labelled, work.evaluation)
    work.data.check_splits(division.splits, seed=work.evaluation.seed)
    refuse_to_lose_masks(work.out, work.specs, division.labelled, work.data.digest, work.evaluation)


def _extract_no_masks(work: Work, world: World, num_workers: int) -> None:
    """Nothing: the first process makes all masks, as in `evaluate segmentation`."""


def _segmentation(work: Work, device: torch.device, num_workers: int) -> Leading | None:
    from dino_path.evaluation.results.segmentation import evaluate_segmentation

    outcome = evaluate_segmentation(
        work.specs, work.data, work.evaluation, device=device, out=work.out, num_workers=num_workers
    )
    return _leading(outcome, work.primary)


TABLE = Kind(
    "results.json", check_listing, load_labelled, _describe_labelled, _look_for("results"), _extract, _table, True
)
FEWSHOT = Kind(
    "fewshot.json", check_listing, load_labelled, _describe_labelled, _look_for("fewshot"), _extract, _fewshot
)
FRACTIONS = Kind(
    "fractions.json", check_listing, load_labelled, _describe_labelled, _look_for("fractions"), _extract, _fractions
)
RETRIEVAL = Kind(
    "retrieval.json", check_listing, load_labelled, _describe_labelled, _look_at_retrieval, _extract, _retrieval
)
ROBUSTNESS = Kind(
    "robustness.json",
    check_listing,
    load_labelled,
    _describe_labelled,
    _look_at_robustness,
    _extract_robustness,
    _robustness,
)
SEGMENTATION = Kind(
    "segmentation.json", _list_masks, load_masked, _describe_masked, _look_at_masks, _extract_no_masks, _segmentation
)

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
    "retrieval": RETRIEVAL,
    "robustness": ROBUSTNESS,
    "segmentation": SEGMENTATION,
}


def by_kind(protocols: Sequence[SuiteProtocol]) -> dict[Kind, tuple[SuiteProtocol, ...]]:
    """The protocols that one kind of evaluation runs together, in their order."""
    kinds = dict.fromkeys(KINDS[protocol] for protocol in protocols)
    return {kind: tuple(protocol for protocol in protocols if KINDS[protocol] == kind) for kind in kinds}

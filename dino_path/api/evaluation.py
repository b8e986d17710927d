"""`dino_path.evaluate`: models and labelled images -> results."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack, get_args

import pyarrow as pa

from dino_path.api.inputs import check_baseline, check_models, parse_fractions
from dino_path.api.settings import ConfigLike, PathLike, Settings, settled
from dino_path.api.tables import Tabular
from dino_path.config import Config, FrozenProtocol
from dino_path.disk import refuse_unwritable
from dino_path.errors import ConfigError, LaunchError
from dino_path.launch import world_shape
from dino_path.records.evaluation import AnyEvaluation, FewShotRecord, read_evaluation
from dino_path.records.labelled import ScoreRecord

if TYPE_CHECKING:
    from dino_path.evaluation.labelled.datasets import LabelledSet
    from dino_path.evaluation.results.earlier import Evaluation as Planned
    from dino_path.evaluation.results.earlier import TableStem

logger = logging.getLogger(__name__)

EXTRACTION_TIMEOUT_S = 24 * 3600.0  # a process with a small share waits for the others
Protocol = Literal["table", "fewshot", FrozenProtocol]


@dataclass(frozen=True, repr=False)
class Evaluation(Tabular):
    """The results of an evaluation.

    Attributes:
        record: all results, as in the JSON file.
        file: that file; tables as .csv and .md, the split, and examples are beside it.
        text: the tables and notes, in Markdown.
    """

    record: AnyEvaluation
    file: Path
    text: str

    def to_arrow(self) -> pa.Table:
        """One row per model, protocol and metric: value, and the 95 % interval from low to high.

        Label fractions have a column `fraction`, few-shot episodes a column `shots`.
        """
        return pa.Table.from_pylist(self._rows())

    def _rows(self) -> list[dict[str, Any]]:
        if isinstance(self.record, FewShotRecord):
            return [
                {"model": row.model, "protocol": "fewshot", "shots": row.shots, "metric": metric,
                 "value": value, "low": row.low[metric], "high": row.high[metric]}
                for row in self.record.rows for metric, value in row.mean.items()
            ]  # fmt: skip
        found = []
        for row in self.record.rows:
            shared: dict[str, Any] = {"model": row.model, "protocol": row.protocol}
            if (fraction := getattr(row, "fraction", None)) is not None:
                shared["fraction"] = fraction
            scores = row.metrics if isinstance(row.metrics, dict) else dict(row.metrics)
            for metric, score in scores.items():
                if isinstance(score, ScoreRecord):
                    found.append({**shared, "metric": metric, **score.model_dump()})
        return found

    def __str__(self) -> str:
        return self.text

    def _repr_markdown_(self) -> str:
        return self.text


def evaluate(
    protocol: Protocol,
    models: PathLike | Sequence[PathLike],
    data: PathLike,
    *,
    out: PathLike | None = None,
    config: ConfigLike = None,
    baseline: PathLike | None = None,
    fractions: str | Sequence[float] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    workers: int = 2,
    **settings: Unpack[Settings],
) -> Evaluation:
    """Evaluate frozen features on labelled images. Called again, extraction resumes.

    Args:
        protocol: `table` (all of `evaluation.protocols` side by side), or one of them.
        models: model folders, `timm:NAME`, `untrained:FOLDER`, `mean-colour`, ...; one or several.
        data: class folders, a manifest (CSV or Parquet), `store:STORE`, or a published set by name such as
            `pcam:FOLDER`.
        out: folder for the results; None: `eval/<data>-<protocol>` of the first model's run.
        config: YAML file with the section `evaluation`.
        baseline: folder of `dino-path baseline`, to compare with the supervised network.
        fractions: of the labels, such as `[1, 0.1, 0.01]`: the table at each of them; only with `table`.
        device: `auto` is CUDA if there is a GPU.
        workers: processes that read and decode images.

    Raises:
        CheckpointError: a model cannot be loaded.
        ConfigError: a setting is unknown or impossible, or a model is given twice.
        DataError: nothing is there, it is malformed, a split leaks, or results in `out` would be lost.
        TileStoreError: an image cannot be read.
        LaunchError: this is one of several processes of torchrun or srun.
    """
    if (size := world_shape(os.environ)[1]) > 1:
        raise LaunchError(
            "dino_path.evaluate()",
            f"this is one of {size} processes.",
            "From Python one process evaluates.",
            "Call it outside torchrun and srun, or use `dino-path evaluate`, where all processes extract features.",
        )
    specs = [os.fspath(models)] if isinstance(models, str | os.PathLike) else [os.fspath(model) for model in models]
    shares = fractions if fractions is None or isinstance(fractions, str) else ",".join(map(str, fractions))
    found = evaluate_together(
        protocol, specs, os.fspath(data), out=out, config=config, baseline=baseline, fractions=shares, device=device,
        workers=workers, **settings,
    )  # fmt: skip
    assert found is not None
    return found


def evaluate_together(
    protocol: Protocol,
    specs: list[str],
    data: str,
    *,
    out: PathLike | None,
    config: ConfigLike,
    baseline: PathLike | None,
    fractions: str | None,
    device: Literal["auto", "cpu", "cuda"],
    workers: int,
    **settings: Unpack[Settings],
) -> Evaluation | None:
    """As `evaluate`; of several processes all extract features, the first evaluates, and the others return None."""
    resolved = settled(config, settings)
    _refuse_unknown(protocol, fractions)
    shares = parse_fractions(fractions) if fractions is not None else []
    supervised = None if baseline is None else Path(baseline)
    folder = None if out is None else Path(out)
    labelled, folder, planned = _check(protocol, specs, data, folder, resolved, supervised, shares)
    logger.info("loading torch and timm")
    from dino_path.distributed import open_world
    from dino_path.evaluation.results.earlier import only_evaluation
    from dino_path.evaluation.results.table import extract_together

    with open_world(device, timeout_s=EXTRACTION_TIMEOUT_S) as world:
        if world.size > 1:
            needed = () if shares else _wanted(protocol, resolved)
            extract_together(
                specs, labelled, resolved.evaluation, world=world, out=folder, protocols=needed, num_workers=workers
            )
    if not world.is_first:
        return None
    stem = _stem(protocol, shares)
    common: dict[str, Any] = {
        "device": world.device, "out": folder, "baseline": supervised, "num_workers": workers,
    }  # fmt: skip
    with only_evaluation(folder, planned, labelled, resolved.evaluation):
        text = _evaluate(stem, specs, labelled, resolved, _wanted(protocol, resolved), shares, common)
    file = folder / f"{stem}.json"
    return Evaluation(read_evaluation(file), file, text)


def _refuse_unknown(protocol: str, fractions: str | None) -> None:
    known = get_args(Protocol)
    if protocol not in known:
        raise ConfigError(
            f"protocol {protocol!r}",
            "not a protocol of evaluate().",
            f"One of {', '.join(known)} is needed.",
            "The others of `dino-path evaluate` are on the command line only.",
        )
    if fractions is not None and protocol != "table":
        raise ConfigError(
            f"fractions {fractions}",
            f"the protocol is {protocol}.",
            "Fractions of the labels are for the protocol `table`.",
            "Leave fractions out, or give `table` and evaluation.protocols.",
        )


def _wanted(protocol: Protocol, config: Config) -> tuple[FrozenProtocol, ...]:
    """The protocols of a table; none for few shots, which have their own."""
    if protocol == "fewshot":
        return ()
    return tuple(config.evaluation.protocols) if protocol == "table" else (protocol,)


def _stem(protocol: Protocol, shares: Sequence[float]) -> TableStem:
    """The stem of the names of the result files."""
    return "fractions" if shares else "fewshot" if protocol == "fewshot" else "results"


def _check(
    protocol: Protocol,
    specs: list[str],
    data: str,
    out: Path | None,
    config: Config,
    baseline: Path | None,
    shares: list[float],
) -> tuple[LabelledSet, Path, Planned]:
    """The data, the folder for the results, and what they will be.

    All that can be refused is refused here, before torch is imported.
    """
    check_models(specs)
    if out is not None:
        refuse_unwritable(out)
    logger.info("reading %s", data)
    from dino_path.evaluation.labelled.datasets import load_labelled
    from dino_path.evaluation.results.earlier import Evaluation as Planned
    from dino_path.evaluation.results.earlier import refuse_to_lose, results_folder

    labelled = load_labelled(data, config.evaluation)
    out = out or results_folder(specs, labelled, "fractions" if shares else protocol)
    refuse_unwritable(out)
    if baseline is not None:
        check_baseline(baseline, labelled, config, shares)
    planned = Planned(
        _stem(protocol, shares), specs, _wanted(protocol, config), shares, has_baseline=baseline is not None
    )
    refuse_to_lose(out, planned, labelled, config.evaluation)
    return labelled, out, planned


def _evaluate(
    stem: TableStem,
    specs: list[str],
    labelled: LabelledSet,
    config: Config,
    wanted: tuple[FrozenProtocol, ...],
    shares: list[float],
    common: dict[str, Any],
) -> str:
    """The results as Markdown; they are also in their files."""
    from dino_path.evaluation.results.fewshot import evaluate_fewshot
    from dino_path.evaluation.results.fractions import evaluate_fractions
    from dino_path.evaluation.results.table import evaluate_table

    match stem:
        case "fractions":
            return evaluate_fractions(specs, labelled, config.evaluation, shares, **common)
        case "fewshot":
            return evaluate_fewshot(specs, labelled, config.evaluation, **common)
        case "results":
            return evaluate_table(specs, labelled, config.evaluation, protocols=wanted, **common).markdown()

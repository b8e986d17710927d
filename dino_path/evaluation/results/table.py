"""Frozen extractors side by side on one labelled set, beside the supervised baseline.

Shape suffixes: D features, C classes, N images of the set, M tested images.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dino_path.config import EvaluationConfig, FrozenProtocol
from dino_path.distributed import World
from dino_path.evaluation.baseline.supervised import read_supervised
from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.evaluation.labelled.division import Division, divide, pooled
from dino_path.evaluation.measures.intervals import Score
from dino_path.evaluation.measures.metrics import METRICS, measure, paired_difference
from dino_path.evaluation.protocols.by_name import TITLES, run_protocol, settings_of_splits
from dino_path.evaluation.protocols.cache import FeatureCache, Images, load_models
from dino_path.evaluation.protocols.dino_linear import dino_linear, dino_linear_images
from dino_path.evaluation.protocols.signature import Signature, slide_signature
from dino_path.evaluation.results.distilled import distilled_notes
from dino_path.evaluation.results.examples import write_examples
from dino_path.evaluation.results.row import Row, compared_pairs
from dino_path.evaluation.results.table_notes import table_notes
from dino_path.evaluation.results.writing import (
    SUPERVISED,
    baseline_missing,
    markdown_page,
    markdown_table,
    write_results,
)
from dino_path.sharing import shared_name

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """All rows; `results.json` holds them with all that is needed to repeat them.

    Attributes:
        baseline: name of the supervised row; None when no baseline was given (the texts say so).
        signatures: what each model's features tell about slides; empty where no groups are known.
        notes: what to keep in mind when reading the numbers, as sentences.
    """

    labelled_name: str
    rows: tuple[Row, ...]
    baseline: str | None
    signatures: dict[str, Signature]
    notes: tuple[str, ...]

    def markdown(self) -> str:
        """The printed table: one line per model, then differences, then notes."""
        protocols = list(dict.fromkeys(row.protocol for row in self.rows))
        header = ["model"] + [f"{TITLES[p]} {m}" for p in protocols for m in ("balanced accuracy", "accuracy")]
        rows = []
        for model in dict.fromkeys(row.model for row in self.rows):
            of_model = {row.protocol: row.metrics for row in self.rows if row.model == model}
            cells = [
                str(getattr(of_model[protocol], metric)) if protocol in of_model else ""
                for protocol in protocols
                for metric in ("balanced_accuracy", "accuracy")
            ]
            rows.append([model, *cells])
        if self.baseline is None:
            rows.append([SUPERVISED, baseline_missing(), *[""] * (len(header) - 2)])
        differences = [
            [f"{row.model} - {other}", TITLES[row.protocol], str(d["balanced_accuracy"]), str(d["accuracy"])]
            for row in self.rows
            for other, d in row.differences.items()
        ]
        lines = markdown_table(header, rows)
        if differences:
            lines += ["", *markdown_table(["difference", "protocol", "balanced accuracy", "accuracy"], differences)]
        lines += [*self._calibration(), *self._by_k(), *self._signatures()]
        return markdown_page(self.labelled_name, lines, self.notes)

    def _calibration(self) -> list[str]:
        """Whether the probabilities of the probes are true; for both numbers lower is better."""
        cells = [
            [row.model, TITLES[row.protocol], str(row.metrics.ece), f"{row.metrics.ece_if_calibrated:.3f}",
             str(row.metrics.brier)]
            for row in self.rows
        ]  # fmt: skip
        header = ["calibration", "protocol", "expected calibration error", "if calibrated", "Brier score"]
        return ["", *markdown_table(header, cells)]

    def _by_k(self) -> list[str]:
        """Balanced accuracy for every number of neighbours, so that none can be picked in silence."""
        rows = [row for row in self.rows if "by_k" in row.settings]
        if not rows:
            return []
        ks = list(rows[0].settings["by_k"])
        cells = [
            [row.model, TITLES[row.protocol], *(f"{row.settings['by_k'][k]['balanced_accuracy']:.3f}" for k in ks)]
            for row in rows
        ]
        return ["", *markdown_table(["balanced accuracy by number of neighbours", "protocol", *ks], cells)]

    def _signatures(self) -> list[str]:
        """How much features reveal about the slide (or patient): lower identity and higher robustness are better."""
        if not self.signatures:
            return []
        rows = [
            [model, "-" if one.identity is None else str(one.identity), str(one.robustness)]
            for model, one in self.signatures.items()
        ]
        any_one = next(iter(self.signatures.values()))
        unit = any_one.unit.removesuffix("s")  # patient or slide, whichever the data name
        header = [f"{unit} signature", f"{unit} found within its class", f"neighbours of the class, other {unit}"]
        identity = "-" if any_one.identity_chance is None else f"{any_one.identity_chance:.3f}"
        return ["", *markdown_table(header, [*rows, ["chance", identity, f"{any_one.robustness_chance:.3f}"]])]


def evaluate_table(
    specs: Sequence[str],
    labelled: LabelledSet,
    config: EvaluationConfig,
    *,
    device: torch.device,
    out: Path,
    protocols: Sequence[FrozenProtocol],
    baseline: Path | None,
    num_workers: int,
) -> Table:
    """Run the protocols on every model; write results.json, .csv and .md, split.csv and examples.json to `out`.

    Features are kept in `out/features` (see `cache`): called again, only what is new is computed.

    Args:
        specs: models, as `features.extractor.load_extractor` reads them.
        baseline: folder of `dino-path baseline` on the same split; None: the table says that it is missing.
        num_workers: processes that read and decode images.

    Raises:
        CheckpointError: a model cannot be loaded.
        ConfigError: a model is given twice.
        DataError: the baseline is of another split, or a class has too few training units for the linear probe.
        TileStoreError: an image cannot be read.
    """
    division = divide(labelled, config)
    supervised = None if baseline is None else read_supervised(baseline, division)
    extractors = load_models(specs, device)
    cache = FeatureCache.create(out, config, device, num_workers)
    rows = []
    signatures = {}
    scores = {}
    for name, (spec, extractor) in extractors.items():
        features_ND = cache.features(extractor, Images.of(labelled))
        for protocol in protocols:
            if protocol == "linear-dino":
                results = [dino_linear(extractor, split, division, config, cache) for split in division.splits]
            else:
                results = [run_protocol(protocol, features_ND, split, config) for split in division.splits]
            scores_MC = pooled([scores for scores, _ in results])
            settings = settings_of_splits([settings for _, settings in results])
            scores[name, protocol] = scores_MC
            rows.append(_row(name, spec, protocol, scores_MC, settings, division, config))
            logger.info("%s, %s: balanced accuracy %s", name, TITLES[protocol], rows[-1].metrics.balanced_accuracy)
        signature = slide_signature(features_ND, labelled, num_bootstrap=config.num_bootstrap, seed=config.seed)
        if signature is not None:
            signatures[name] = signature
    if baseline is not None and supervised is not None:
        rows.append(
            _row(
                supervised.title, str(baseline), "end-to-end", supervised.scores, supervised.settings, division, config
            )
        )
    rows = _with_differences(rows)
    notes = table_notes(
        division, rows, signatures, [extractor for _, extractor in extractors.values()], supervised,
        input_px=config.input_px,
    )  # fmt: skip
    notes = (*notes, *distilled_notes(extractors, rows, division, input_px=config.input_px))
    table = Table(
        labelled_name=division.name,
        rows=tuple(rows),
        baseline=rows[-1].model if supervised is not None else None,
        signatures=signatures,
        notes=notes,
    )
    write_results(
        out, "results", division, config, extractors, record=_record(table, labelled), csv_rows=_csv_rows(table),
        text=table.markdown(),
    )  # fmt: skip
    write_examples(out, division, extractors, cache, rows, scores, seed=config.seed)
    return table


def extract_together(
    specs: Sequence[str],
    labelled: LabelledSet,
    config: EvaluationConfig,
    *,
    world: World,
    out: Path,
    protocols: Sequence[FrozenProtocol],
    num_workers: int,
) -> None:
    """Extract this process's share of all features that an evaluation in `out` needs, and wait for the others.

    `out` must be one folder for all processes. Raises as `evaluate_table` does.
    """
    division = divide(labelled, config)
    cache = FeatureCache.create(out, config, world.device, num_workers)
    for _, extractor in load_models(specs, world.device).values():
        work = [(extractor, Images.of(labelled))]
        if "linear-dino" in protocols:
            tokens, of_crops, of_images = dino_linear_images(extractor, division, config)
            work += [(tokens, of_crops), (tokens, of_images)]
        for one, images in work:
            cache.extract_share(one, images, rank=world.rank, size=world.size)
    world.barrier()


def _row(
    model: str,
    spec: str,
    protocol: FrozenProtocol | Literal["end-to-end"],
    scores_MC: NDArray[np.float64],
    settings: dict[str, Any],
    division: Division,
    config: EvaluationConfig,
) -> Row:
    predicted_M = scores_MC.argmax(axis=1).astype(np.int64)
    metrics = measure(
        division.labels, predicted_M, scores_MC, division.units(), num_bootstrap=config.num_bootstrap, seed=config.seed
    )
    return Row(model, spec, protocol, metrics, settings, predicted_M)


def _with_differences(rows: Sequence[Row]) -> list[Row]:
    """Every row less the baseline; and mine less others, under the same protocol: each model of ours less every control
    and every model of ours after it. Where all are controls, the first stands for ours.
    """
    pairs = compared_pairs({row.model: row.spec for row in rows if row.protocol != "end-to-end"})

    def is_other(row: Row, other: Row) -> bool:
        if other.protocol == "end-to-end":
            return row.protocol != "end-to-end"
        return row.protocol == other.protocol and (row.model, other.model) in pairs

    return [
        replace(row, differences={
            other.model: paired_difference(row.metrics, other.metrics) for other in rows if is_other(row, other)
        })
        for row in rows
    ]  # fmt: skip


def _record(table: Table, labelled: LabelledSet) -> Mapping[str, Any]:
    """What was found, as plain values."""
    return {
        "baseline": table.baseline or f"{SUPERVISED}: {baseline_missing()}",
        "has_baseline": table.baseline is not None,
        "rows": [
            {
                "model": row.model,
                "spec": shared_name(row.spec, num_parts=2),
                "protocol": row.protocol,
                "metrics": row.metrics.record(labelled.classes),
                "settings": row.settings,
                "differences": {
                    other: {name: score.record() for name, score in scores.items()}
                    for other, scores in row.differences.items()
                },
            }
            for row in table.rows
        ],
        "slide_signature": {model: signature.record() for model, signature in table.signatures.items()},
        "notes": list(table.notes),
    }


def _csv_rows(table: Table) -> Iterator[Sequence[object]]:
    """One line per model, protocol and metric."""
    yield "model", "protocol", "metric", "value", "low", "high", "interval_over"
    for row in table.rows:
        unit = f"{row.metrics.num_units} {row.metrics.unit}"
        for metric in METRICS:
            score: Score = getattr(row.metrics, metric)
            yield row.model, row.protocol, metric, *score.decimals(), unit
    for model, one in table.signatures.items():
        for metric, known in (("slide_identity", one.identity), ("slide_robustness", one.robustness)):
            if known is not None:
                yield model, "signature", metric, *known.decimals(), one.unit
    if table.baseline is None:
        yield SUPERVISED, "end-to-end", baseline_missing(), "", "", "", ""

"""Frozen extractors side by side on one labelled set, beside the supervised baseline."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dino_path.config import EvaluationConfig, FrozenProtocol
from dino_path.errors import ConfigError
from dino_path.evaluation.baseline_files import BaselineFolder
from dino_path.evaluation.datasets import LabelledSet
from dino_path.evaluation.metrics import METRICS, Metrics, Score, measure, paired_difference
from dino_path.evaluation.protocols import TITLES, run_protocol
from dino_path.evaluation.signature import NEIGHBOURS, Signature, slide_signature
from dino_path.features.extractor import Extractor, extract_features, load_extractor
from dino_path.run import atomic_write, environment_record, write_json
from dino_path.settings import as_plain

logger = logging.getLogger(__name__)

SUPERVISED = "supervised ResNet-50"  # by default; what it is called where there is none
BASELINE_MISSING = "missing, run `dino-path baseline`"
MPP_TOLERANCE = 0.1  # relative; beyond it the row says that model and data differ in scale


@dataclass(frozen=True)
class Row:
    """One model under one protocol, measured on the test images.

    Attributes:
        spec: what the model was loaded from; the baseline's folder for the baseline.
        settings: what the protocol used or chose, as plain values.
        predicted: (N,) class numbers of the test images, in the order of the set.
        differences: name of the other model -> metric -> this model minus the other.
    """

    model: str
    spec: str
    protocol: FrozenProtocol | Literal["end-to-end"]
    metrics: Metrics
    settings: dict[str, Any]
    predicted: NDArray[np.int64]
    differences: dict[str, dict[str, Score]] = field(default_factory=dict)


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
        """The table for people: one line per model, then differences, then what to keep in mind."""
        protocols = list(dict.fromkeys(row.protocol for row in self.rows))
        header = ["model"] + [f"{TITLES[p]} {m}" for p in protocols for m in ("accuracy", "balanced accuracy")]
        lines = [markdown_line(header), markdown_line(["---"] * len(header))]
        for model in dict.fromkeys(row.model for row in self.rows):
            of_model = {row.protocol: row.metrics for row in self.rows if row.model == model}
            cells = [
                str(getattr(of_model[protocol], metric)) if protocol in of_model else ""
                for protocol in protocols
                for metric in ("accuracy", "balanced_accuracy")
            ]
            lines.append(markdown_line([model, *cells]))
        if self.baseline is None:
            lines.append(markdown_line([SUPERVISED, BASELINE_MISSING, *[""] * (len(header) - 2)]))
        differences = [
            markdown_line(
                [f"{row.model} - {other}", TITLES[row.protocol], str(d["accuracy"]), str(d["balanced_accuracy"])]
            )
            for row in self.rows
            for other, d in row.differences.items()
        ]
        if differences:
            header = ["difference", "protocol", "accuracy", "balanced accuracy"]
            lines += ["", markdown_line(header), markdown_line(["---"] * 4), *differences]
        lines += self._by_k() + self._signatures()
        return "\n".join([f"# {self.labelled_name}", "", *lines, "", *(f"- {note}" for note in self.notes), ""])

    def _by_k(self) -> list[str]:
        """Accuracy for every number of neighbours, so that none can be picked in silence."""
        rows = [row for row in self.rows if "by_k" in row.settings]
        if not rows:
            return []
        ks = list(rows[0].settings["by_k"])
        header = ["accuracy by number of neighbours", "protocol", *ks]
        lines = ["", markdown_line(header), markdown_line(["---"] * len(header))]
        return lines + [
            markdown_line(
                [row.model, TITLES[row.protocol], *(f"{row.settings['by_k'][k]['accuracy']:.3f}" for k in ks)]
            )
            for row in rows
        ]

    def _signatures(self) -> list[str]:
        """How much features tell about the slide: lower identity and higher robustness are better."""
        if not self.signatures:
            return []
        header = ["slide signature", "slide found within its class", "neighbours of the class, other slide"]
        lines = ["", markdown_line(header), markdown_line(["---"] * len(header))]
        lines += [
            markdown_line([model, "-" if one.identity is None else str(one.identity), str(one.robustness)])
            for model, one in self.signatures.items()
        ]
        any_one = next(iter(self.signatures.values()))
        identity = "-" if any_one.identity_chance is None else f"{any_one.identity_chance:.3f}"
        return [*lines, markdown_line(["chance", identity, f"{any_one.robustness_chance:.3f}"])]


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
    """Run the protocols on every model; write results.json, results.csv, results.md and split.csv to `out`.

    Features are kept in `out/features`: called again, only what is new is computed.

    Args:
        specs: models, as `features.extractor.load_extractor` reads them.
        baseline: folder of `dino-path baseline` on the same split; None: the table says that it is missing.
        num_workers: threads that decode images.

    Raises:
        CheckpointError: a model cannot be loaded.
        ConfigError: a model is given twice.
        DataError: the baseline is of another split, or a class has too few training units for the linear probe.
        TileStoreError: an image cannot be read.
    """
    baseline_scores = None if baseline is None else BaselineFolder(baseline).read_scores(labelled)
    extractors = load_models(specs, device)
    rows = []
    signatures = {}
    for name, (spec, extractor) in extractors.items():
        features_ND = cached_features(
            extractor, labelled, config, device=device, folder=out / "features", num_workers=num_workers
        )
        for protocol in protocols:
            scores_NC, settings = run_protocol(protocol, features_ND, labelled, config)
            rows.append(_row(name, spec, protocol, scores_NC, settings, labelled, config))
            logger.info("%s, %s: balanced accuracy %s", name, TITLES[protocol], rows[-1].metrics.balanced_accuracy)
        signature = slide_signature(features_ND, labelled, num_bootstrap=config.num_bootstrap, seed=config.seed)
        if signature is not None:
            signatures[name] = signature
    if baseline is not None and baseline_scores is not None:
        rows.append(_baseline_row(baseline, baseline_scores, labelled, config))
    rows = _with_differences(rows)
    table = Table(
        labelled_name=labelled.name,
        rows=tuple(rows),
        baseline=rows[-1].model if baseline is not None else None,
        signatures=signatures,
        notes=_notes(labelled, rows, signatures, [extractor for _, extractor in extractors.values()], baseline),
    )
    labelled.write_split(out / "split.csv")
    write_json(out / "results.json", _record(table, labelled, config, extractors))
    _write_csv(out / "results.csv", table)
    with atomic_write(out / "results.md") as stream:
        stream.write(table.markdown())
    return table


def cached_features(
    extractor: Extractor,
    labelled: LabelledSet,
    config: EvaluationConfig,
    *,
    device: torch.device,
    folder: Path,
    num_workers: int,
) -> NDArray[np.float32]:
    """Features (N, D) of all images, from `folder` where the same model has seen the same images before."""
    key = json.dumps([extractor.digest, labelled.content_digest, config.input_px])
    file = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"
    if file.is_file():
        try:
            kept: NDArray[np.float32] = np.load(file, allow_pickle=False)
            if kept.shape == (len(labelled.source), extractor.num_features) and kept.dtype == np.float32:
                logger.info("%s: features from %s", extractor.name, file)
                return kept
        except (OSError, ValueError, EOFError):
            pass
        logger.warning("%s: damaged, computing the features again", file)
    features_ND = extract_features(
        extractor, labelled.source, batch_size=config.batch_size, input_px=config.input_px, device=device,
        num_workers=num_workers, what=f"features of {extractor.name}",
    )  # fmt: skip
    with atomic_write(file, "wb") as stream:
        np.save(stream, features_ND)
    return features_ND


def load_models(specs: Sequence[str], device: torch.device) -> dict[str, tuple[str, Extractor]]:
    """Spec and extractor by the name that the table shows; all are loaded before the first is run."""
    repeated = sorted({spec for spec in specs if specs.count(spec) > 1})
    if repeated:
        raise ConfigError(repeated[0], "is given twice.", "Each model is one row.", "Give it once.")
    loaded = [(spec, load_extractor(spec, device=device)) for spec in specs]
    names = [extractor.name for _, extractor in loaded]
    # Two folders of one name: their full specs tell them apart.
    return {
        extractor.name if names.count(extractor.name) == 1 else spec: (spec, extractor) for spec, extractor in loaded
    }


def _row(
    model: str,
    spec: str,
    protocol: FrozenProtocol | Literal["end-to-end"],
    scores_NC: NDArray[np.float64],
    settings: dict[str, Any],
    labelled: LabelledSet,
    config: EvaluationConfig,
) -> Row:
    predicted_N = scores_NC.argmax(axis=1).astype(np.int64)
    labels_N = labelled.labels[labelled.part("test")]
    metrics = measure(
        labels_N, predicted_N, scores_NC, labelled.test_units(), num_bootstrap=config.num_bootstrap, seed=config.seed
    )
    return Row(model, spec, protocol, metrics, settings, predicted_N)


def _baseline_row(folder: Path, scores_NC: NDArray[np.float64], labelled: LabelledSet, config: EvaluationConfig) -> Row:
    record = BaselineFolder(folder).read_result()
    settings = {key: record[key] for key in ("config", "seed", "input_px", "augmentation", "best_epoch", "validation")}
    return _row(BaselineFolder(folder).title(), str(folder), "end-to-end", scores_NC, settings, labelled, config)


def _with_differences(rows: Sequence[Row]) -> list[Row]:
    """Every row compared with the baseline, and with the first model under the same protocol."""
    compared = []
    for row in rows:
        others = [
            other
            for other in rows
            if row.protocol != "end-to-end"
            and other.model != row.model
            and (other.protocol == "end-to-end" or (other.model == rows[0].model and other.protocol == row.protocol))
        ]
        differences = {other.model: paired_difference(row.metrics, other.metrics) for other in others}
        compared.append(replace(row, differences=differences))
    return compared


def _notes(
    labelled: LabelledSet,
    rows: Sequence[Row],
    signatures: dict[str, Signature],
    extractors: Sequence[Extractor],
    baseline: Path | None,
) -> tuple[str, ...]:
    metrics = rows[0].metrics
    notes = [
        f"in brackets: 95 % bootstrap interval over {metrics.num_units} test {metrics.unit} "
        f"({metrics.num_images} images); split: {labelled.split_rule}",
        *labelled.notes,
    ]
    if baseline is None:
        notes.append(f"{SUPERVISED}: {BASELINE_MISSING}; without it no number here says what labels alone give")
    for signature in list(signatures.values())[:1]:
        notes.append(
            f"slide signature: {signature.unit} of {signature.num_images} distinct images (training and test), "
            f"{NEIGHBOURS} neighbours; a found {signature.unit[:-1]} is a leak of stain and scanner: lower is better"
        )
    if not signatures:
        notes.append("slide signature: not known without patients or slides")
    data_mpp = labelled.source.mpp
    for extractor in extractors:
        if extractor.mpp and data_mpp and abs(extractor.mpp / data_mpp - 1) > MPP_TOLERANCE:
            notes.append(f"{extractor.name} was trained at {extractor.mpp:g} um/px, these images are at {data_mpp:g}")
    notes += [f"{row.model}, {TITLES[row.protocol]}: the fit stopped before it converged"
              for row in rows if row.settings.get("has_converged") is False]  # fmt: skip
    return tuple(notes)


def _record(
    table: Table, labelled: LabelledSet, config: EvaluationConfig, extractors: dict[str, tuple[str, Extractor]]
) -> dict[str, Any]:
    """All that one needs to read the numbers and to repeat them, as plain values."""
    return {
        "format": "dino_path evaluation, 1",
        "data": labelled.record(),
        "config": as_plain(config),
        "baseline": table.baseline or f"{SUPERVISED}: {BASELINE_MISSING}",
        "has_baseline": table.baseline is not None,
        "models": {
            name: {
                "spec": spec,
                "digest": extractor.digest,
                "num_features": extractor.num_features,
                "input_px": config.input_px or extractor.input_px,
                "mpp": extractor.mpp,
            }
            for name, (spec, extractor) in extractors.items()
        },
        "rows": [
            {
                "model": row.model,
                "spec": row.spec,
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
        "environment": environment_record(),
    }


def _write_csv(file: Path, table: Table) -> None:
    """One line per model, protocol and metric."""
    with atomic_write(file) as stream:
        lines = csv.writer(stream, lineterminator="\n")
        lines.writerow(["model", "protocol", "metric", "value", "low", "high", "interval_over"])
        for row in table.rows:
            unit = f"{row.metrics.num_units} {row.metrics.unit}"
            for metric in METRICS:
                score: Score = getattr(row.metrics, metric)
                numbers = [f"{number:.6f}" for number in (score.value, score.low, score.high)]
                lines.writerow([row.model, row.protocol, metric, *numbers, unit])
        for model, one in table.signatures.items():
            for metric, known in (("slide_identity", one.identity), ("slide_robustness", one.robustness)):
                if known is not None:
                    numbers = [f"{number:.6f}" for number in (known.value, known.low, known.high)]
                    lines.writerow([model, "signature", metric, *numbers, one.unit])
        if table.baseline is None:
            lines.writerow([SUPERVISED, "end-to-end", BASELINE_MISSING, "", "", "", ""])


def markdown_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"

"""Segmentation with several frozen models: predicting the class of every pixel from patch vectors.

Shape suffixes: M tested images, C classes, H and W pixels.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch

from dino_path import __version__
from dino_path.atomic import atomic_write
from dino_path.checksum import has_checksum, is_intact, seal
from dino_path.config import EvaluationConfig
from dino_path.evaluation.labelled.division import Division, divide
from dino_path.evaluation.labelled.masks import Mask, MaskedSet
from dino_path.evaluation.measures.confusion import Ints
from dino_path.evaluation.measures.intervals import Score
from dino_path.evaluation.measures.overlap import (
    MEASURES,
    Average,
    Measure,
    Overlap,
    class_overlap,
    mask_confusion,
    measure_overlap,
    overlap_difference,
)
from dino_path.evaluation.measures.sample import Sample
from dino_path.evaluation.protocols.cache import load_models
from dino_path.evaluation.protocols.dense import (
    MAX_ITERATIONS,
    PROTOCOLS,
    DenseProtocol,
    best_mask,
    fit_probe,
    mask_of,
    read_images,
)
from dino_path.evaluation.results.earlier import NOT_DECISIVE
from dino_path.evaluation.results.segmentation_sheet import write_sheet
from dino_path.evaluation.results.writing import Outcome, markdown_page, markdown_table
from dino_path.features.windows import WindowModel, is_colour_control, window_models
from dino_path.records.environment import shared_environment
from dino_path.records.feature_kinds import is_comparison
from dino_path.records.segmentation import SEGMENTATION, SegmentationRecord
from dino_path.settings import as_plain
from dino_path.sharing import shared_name

logger = logging.getLogger(__name__)

TITLES: Mapping[DenseProtocol, str] = {"linear": "linear layer", "knn": "k-NN"}
MEASURE_TITLES: Mapping[Measure, str] = {"dice": "Dice", "iou": "IoU"}
ON_SHEET = 6  # test images, evenly from all
MPP_TOLERANCE = 0.1  # relative; beyond it a note says that model and data differ in scale


@dataclass(frozen=True)
class Found:
    """The predictions of one model for the tested images.

    Attributes:
        confusion: (M, C, C) pixels of each true and predicted class, by protocol; "best" of the true shares of patches.
        settings: what was chosen, one for each split.
        shown: the linear layer's masks of the images on the sheet, by their number in the set.
    """

    confusion: Mapping[str, Ints]
    settings: Sequence[Mapping[str, Any]]
    shown: Mapping[int, Mask]
    num_features: int
    seconds: float


@dataclass(frozen=True)
class Row:
    """One model under one protocol; `differences` are this one minus the other, by the other's name."""

    model: str
    protocol: DenseProtocol
    overlap: Overlap
    differences: Mapping[str, Mapping[Average, Mapping[Measure, Score]]] = field(default_factory=dict)


def evaluate_segmentation(
    specs: Sequence[str],
    masked: MaskedSet,
    config: EvaluationConfig,
    *,
    device: torch.device,
    out: Path,
    num_workers: int,
) -> Outcome:
    """Run both protocols on every model; write segmentation.json, .csv, .md, .jpg, segmentation_images.csv, split.

    What each model made of the images is kept in `out/segmentation`: called again, only what is new is computed.

    Args:
        specs: models, as `features.extractor.load_extractor` reads them.
        num_workers: processes that read and decode images.

    Raises:
        CheckpointError: a model cannot be loaded, or its last layer has no grid.
        ConfigError: a model is given twice, or does not take windows of this edge.
        DataError: a class cannot be learned, or too few images are there for validation.
        TileStoreError: an image cannot be read.
    """
    division = divide(masked.labelled, config)
    masked.check_splits(division.splits, seed=config.seed)
    loaded = load_models(specs, device)
    ready = window_models(
        [extractor for _, extractor in loaded.values()], device, scale=config.segmentation_scale,
        input_px=config.input_px, batch_size=config.batch_size,
    )  # fmt: skip
    models = dict(zip(loaded, ready, strict=True))
    found = {
        name: _kept_or_made(model, masked, division, config, out, device=device, num_workers=num_workers)
        for name, model in models.items()
    }
    rows = _compared(
        [
            Row(name, protocol, _measured(one.confusion[protocol], masked, division, config))
            for protocol in PROTOCOLS
            for name, one in found.items()
        ],
        {name: is_comparison(spec) for name, (spec, _) in loaded.items()},
    )
    best = {name: _measured(one.confusion["best"], masked, division, config) for name, one in found.items()}
    notes = [*_notes(rows, found, models, masked, division, config)]
    text = _page(rows, best, models, masked, division, notes)
    out.mkdir(parents=True, exist_ok=True)
    if division.num_folds is None:
        masked.write_split(out / "split.csv")
    else:
        division.write(out)
    record = {
        "data": division.record(),
        "masks": _masks_record(masked),
        "config": as_plain(config),
        "models": {
            name: _model_record(loaded[name][0], model, found[name], best[name], masked)
            for name, model in models.items()
        },
        "rows": [_row_record(row, found[row.model], masked) for row in rows],
        "notes": notes,
        "environment": shared_environment(),
    }
    SEGMENTATION.write(out / "segmentation.json", SegmentationRecord.model_validate(record))
    for name, lines in (
        ("segmentation.csv", _csv_rows(rows, masked)),
        ("segmentation_images.csv", _image_rows(found, masked, division)),
    ):
        with atomic_write(out / name) as stream:
            csv.writer(stream, lineterminator="\n").writerows(lines)
    with atomic_write(out / "segmentation.md") as stream:
        stream.write(text)
    write_sheet(out / "segmentation.jpg", masked, _on_sheet(division), {name: one.shown for name, one in found.items()})
    linear = {row.model: row.overlap for row in rows if row.protocol == "linear"}
    samples: dict[str, dict[str, Sample]] = {
        measure: {name: one.samples["image", measure] for name, one in linear.items()} for measure in MEASURES
    }
    return Outcome(text, samples, division.units().name)


# --- what a model makes of the images -----------------------------------------------------------------------------


def _kept_or_made(
    model: WindowModel, masked: MaskedSet, division: Division, config: EvaluationConfig, out: Path, *,
    device: torch.device, num_workers: int,
) -> Found:  # fmt: skip
    decisive = {key: value for key, value in as_plain(config).items() if key not in (*NOT_DECISIVE, "num_bootstrap")}
    key = [
        model.extractor.digest,
        model.window_px,
        model.patch_px,
        masked.digest,
        division.labelled.split_digest,
        decisive,
        __version__,
    ]
    file = out / "segmentation" / f"{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]}.npz"
    if file.is_file() and (kept := _read(file)) is not None:
        logger.info("%s: masks from %s", model.extractor.name, file)
        return kept
    found = _make(model, masked, division, config, device=device, num_workers=num_workers)
    told = {"settings": found.settings, "num_features": found.num_features, "seconds": found.seconds}
    arrays: dict[str, Any] = {f"confusion {name}": counts for name, counts in found.confusion.items()}
    arrays |= {f"shown {index}": mask for index, mask in found.shown.items()}
    with atomic_write(file, "w+b") as stream:
        np.savez_compressed(stream, told=np.array(json.dumps(told)), **arrays)
        seal(stream)
    return found


def _read(file: Path) -> Found | None:
    """What a file keeps; None where it is damaged."""
    try:
        if has_checksum(file) and not is_intact(file):  # earlier versions wrote none
            raise ValueError
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as kept:
            return Found(
                confusion={name.partition(" ")[2]: kept[name] for name in kept.files if name.startswith("confusion ")},
                shown={int(name.partition(" ")[2]): kept[name] for name in kept.files if name.startswith("shown ")},
                **json.loads(str(kept["told"])),
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError, BadZipFile, zlib.error):
        logger.warning("%s: damaged, the model is run again", file)
        return None


def _make(
    model: WindowModel, masked: MaskedSet, division: Division, config: EvaluationConfig, *, device: torch.device,
    num_workers: int,
) -> Found:  # fmt: skip
    start_s = time.monotonic()
    num_classes, patch_px, scale = len(masked.classes), model.patch_px, model.scale
    confusion: dict[str, list[Ints]] = {name: [] for name in (*PROTOCOLS, "best")}
    settings, shown, num_features = [], {}, 0
    on_sheet = {*_on_sheet(division)}
    for split in division.splits:
        probe = fit_probe(model, masked, split, config, device=device, num_workers=num_workers)
        settings.append(
            {
                "strength": probe.strength,
                "validation_cross_entropy": {f"{strength:g}": value for strength, value in probe.trials.items()},
                "num_iterations": probe.num_iterations,
                "k": probe.k,
                "num_patches": probe.num_patches,
            }
        )
        for index, image in read_images(
            model, masked, split.part("test"), num_workers, f"masks of {model.extractor.name}"
        ):
            shape = (image.shape[0], image.shape[1])
            true_HW, patches_RCD = masked.read_mask(index, shape), model.patches(image)
            num_features = patches_RCD.shape[2]
            predicted = {
                name: mask_of(one, shape, patch_px=patch_px, scale=scale)
                for name, one in probe.scores(patches_RCD).items()
            }
            for name, mask in (
                *predicted.items(),
                ("best", best_mask(true_HW, num_classes, patch_px=patch_px, scale=scale)),
            ):
                confusion[name].append(mask_confusion(true_HW, mask, num_classes))
            if index in on_sheet:
                shown[index] = predicted["linear"]
    counts = {name: np.stack(of_images) for name, of_images in confusion.items()}
    return Found(counts, settings, shown, num_features, time.monotonic() - start_s)


def _on_sheet(division: Division) -> list[int]:
    """Numbers of the images on the sheet, chosen only by their position, independent of the models."""
    tested = np.unique(division.tested)
    return [int(tested[round(place)]) for place in dict.fromkeys(np.linspace(0, len(tested) - 1, ON_SHEET).round())]


def _measured(confusion_MCC: Ints, masked: MaskedSet, division: Division, config: EvaluationConfig) -> Overlap:
    return measure_overlap(
        confusion_MCC, division.units(), masked.counted, num_bootstrap=config.num_bootstrap, seed=config.seed
    )


def _compared(rows: Sequence[Row], is_control: Mapping[str, bool]) -> list[Row]:
    """Each of the user's models (else the first control) minus every control and every later model."""
    order = list(is_control)
    controls = {
        name for name, is_one in is_control.items() if is_one and (name != order[0] or not all(is_control.values()))
    }
    return [
        Row(row.model, row.protocol, row.overlap, {
            other.model: overlap_difference(row.overlap, other.overlap)
            for other in rows
            if other.protocol == row.protocol and row.model not in controls and other.model != row.model
            and (other.model in controls or order.index(row.model) < order.index(other.model))
        })
        for row in rows
    ]  # fmt: skip


# --- what people read ---------------------------------------------------------------------------------------------


def _page(
    rows: Sequence[Row], best: Mapping[str, Overlap], models: Mapping[str, WindowModel], masked: MaskedSet,
    division: Division, notes: Sequence[str],
) -> str:  # fmt: skip
    averages = list(rows[0].overlap.mean)
    unit = division.labelled.group_kind or "patient"
    titles = {"image": "by image", "patient": f"by {unit}", "pooled": "pooled"}
    columns = [(average, measure) for measure in MEASURES for average in averages]
    of_grids = {model.patch_px: best[name] for name, model in sorted(models.items(), key=lambda item: item[1].patch_px)}
    lines: list[str] = []
    for protocol in PROTOCOLS:
        header = [TITLES[protocol], *(f"{MEASURE_TITLES[m]} {titles[a]}" for a, m in columns)]
        table = {row.model: row.overlap for row in rows if row.protocol == protocol}
        if protocol == "linear":
            table |= {f"(best on patches of {patch_px} px)": one for patch_px, one in of_grids.items()}
        lines += markdown_table(
            header, [[name, *(str(one.mean[a][m]) for a, m in columns)] for name, one in table.items()]
        )
        lines.append("")
    if len(masked.classes) > 2:
        header = ["Dice of each class, by image", "protocol", *masked.classes]
        cells = [
            [
                row.model,
                TITLES[row.protocol],
                *(f"{score.value:.3f}" for score in row.overlap.by_class["image"]["dice"]),
            ]
            for row in rows
        ]
        lines += [*markdown_table(header, cells), ""]
    differences = [
        [f"{row.model} - {other}", TITLES[row.protocol], *(str(means[a]["dice"]) for a in averages)]
        for row in rows
        for other, means in row.differences.items()
    ]
    if differences:
        lines += markdown_table(["difference", "protocol", *(f"Dice {titles[a]}" for a in averages)], differences)
    return markdown_page(f"{division.name}, segmentation", lines, notes)


def _notes(
    rows: Sequence[Row], found: Mapping[str, Found], models: Mapping[str, WindowModel], masked: MaskedSet,
    division: Division, config: EvaluationConfig,
) -> Iterator[str]:  # fmt: skip
    labelled = division.labelled
    of_images = "" if labelled.groups is None else f"; {len(np.unique(division.tested))} images"
    yield f"in brackets: {rows[0].overlap.interval}{of_images}; split: {labelled.split_rule}"
    yield (
        f"means over {', '.join(masked.classes[one] for one in masked.counted)}; a class that is in neither the mask"
        f" nor the prediction of an image is left out of its mean"
    )
    yield from division.notes()
    yield from labelled.notes
    tested = masked.pixels[np.unique(division.tested)].sum(axis=0)
    if (absent := np.flatnonzero(tested == 0)).size:
        yield f"in no test image: {', '.join(masked.classes[one] for one in absent)}"
    scale = config.segmentation_scale
    seen = "the images" if scale == 1 else f"the images resized by {scale:g}"
    data_mpp = labelled.source.mpp
    for name, model in models.items():
        own = model.extractor.preprocessing
        if is_colour_control(model.extractor):
            yield f"{name}: patches of {model.patch_px} px of {seen}, as small as those of any network here"
            continue
        text = f"{name}: windows of {model.window_px} px of {seen}, patches of {model.patch_px} px"
        if own.input_px != model.window_px:
            text += f" (evaluation.input_px; the model's own edge is {own.input_px} px)"
        yield text
        if own.seen_mpp and data_mpp and abs(own.seen_mpp * scale / data_mpp - 1) > MPP_TOLERANCE:
            yield (
                f"{name} was trained at {own.seen_mpp:.3g} um/px but sees these images at {data_mpp / scale:.3g};"
                f" evaluation.segmentation_scale={data_mpp / own.seen_mpp:.3g} makes them equal"
            )
    for name, one in found.items():
        if any(settings["num_iterations"] >= MAX_ITERATIONS for settings in one.settings):
            yield f"{name}, linear layer: the fit stopped after {MAX_ITERATIONS} iterations, before it converged"


# --- what programs read -------------------------------------------------------------------------------------------


def _model_record(
    spec: str, model: WindowModel, found: Found, best: Overlap, masked: MaskedSet
) -> dict[str, Any]:  # fmt: skip
    return {
        "spec": shared_name(spec, num_parts=2),
        "digest": model.extractor.digest,
        "num_features": found.num_features,
        "window_px": model.window_px,
        "patch_px": model.patch_px,
        "mpp": model.extractor.preprocessing.mpp,
        "best": best.record(masked.classes),
        "seconds": round(found.seconds, 1),
    }


def _row_record(row: Row, found: Found, masked: MaskedSet) -> dict[str, Any]:
    return {
        "model": row.model,
        "protocol": row.protocol,
        "overlap": row.overlap.record(masked.classes),
        "settings": {"splits": list(found.settings)},
        "differences": {
            other: {a: {m: score.record() for m, score in of.items()} for a, of in means.items()}
            for other, means in row.differences.items()
        },
    }


def _masks_record(masked: MaskedSet) -> dict[str, Any]:
    total_C = masked.pixels.sum(axis=0)
    return {
        "classes": masked.classes,
        "counted": tuple(masked.classes[one] for one in masked.counted),
        "share": {name: float(share) for name, share in zip(masked.classes, total_C / total_C.sum(), strict=True)},
        "digest": masked.digest,
    }


def _csv_rows(rows: Sequence[Row], masked: MaskedSet) -> Iterator[Sequence[object]]:
    """One line per model, protocol, average, measure and class; the class `mean` is the mean of those that count."""
    yield "model", "protocol", "average", "measure", "class", "value", "low", "high"
    for row in rows:
        for average, means in row.overlap.mean.items():
            for measure, mean in means.items():
                yield row.model, row.protocol, average, measure, "mean", *mean.decimals()
                for name, score in zip(masked.classes, row.overlap.by_class[average][measure], strict=True):
                    yield row.model, row.protocol, average, measure, name, *score.decimals()


def _image_rows(found: Mapping[str, Found], masked: MaskedSet, division: Division) -> Iterator[Sequence[object]]:
    """One line per tested image, model, protocol and class: for means by label or centre, and for the worst images."""
    labelled, groups = division.labelled, division.labelled.groups
    yield "path", "label", labelled.group_kind or "patient", "centre", "model", "protocol", "class", "dice", "iou"
    for name, one in found.items():
        for protocol in PROTOCOLS:
            scores = class_overlap(one.confusion[protocol])
            for place, index in enumerate(division.tested.tolist()):
                about = (
                    labelled.source.name(index),
                    masked.labels[index],
                    "" if groups is None else groups[index],
                    "" if masked.centres is None else masked.centres[index],
                )
                for number, class_name in enumerate(masked.classes):
                    values = (scores[measure][place, number] for measure in MEASURES)
                    shown = ("" if np.isnan(value) else f"{value:.6f}" for value in values)
                    yield *about, name, protocol, class_name, *shown

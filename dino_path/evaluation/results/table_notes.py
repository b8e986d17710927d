"""Notes for reading a table, as sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from dino_path.evaluation.baseline.supervised import Supervised
from dino_path.evaluation.labelled.division import Division
from dino_path.evaluation.measures.calibration import NUM_BINS
from dino_path.evaluation.protocols.by_name import TITLES
from dino_path.evaluation.protocols.signature import NEIGHBOURS, Signature
from dino_path.evaluation.results.input_notes import input_notes
from dino_path.evaluation.results.row import Row
from dino_path.evaluation.results.writing import SUPERVISED, baseline_missing
from dino_path.features.extractor import Extractor

MPP_TOLERANCE = 0.1  # relative; beyond it the row says that model and data differ in scale


def table_notes(
    division: Division,
    rows: Sequence[Row],
    signatures: Mapping[str, Signature],
    extractors: Sequence[Extractor],
    supervised: Supervised | None,
    *,
    input_px: int | None,
) -> tuple[str, ...]:
    """All sentences below a table, the most important ones first.

    Args:
        input_px: `evaluation.input_px`.
    """
    num_images = len(np.unique(division.tested))
    notes = [
        f"in brackets: {rows[0].metrics.interval}; {num_images} images; split: {division.labelled.split_rule}",
        *division.notes(),
        *_no_better_than_the_majority(rows, division),
        *division.labelled.notes,
    ]
    notes.append(
        f"calibration, lower is better: the error is the mean distance between the probability of the predicted"
        f" class and the share of correct predictions ({NUM_BINS} bins); 'if calibrated' is the error of perfect"
        f" probabilities by chance alone, on the same number of independent images; the Brier score, 0 to 2, is the"
        f" squared error of all class probabilities"
    )
    if supervised is None:
        notes.append(f"{SUPERVISED}: {baseline_missing()}; without it nothing shows what labels alone achieve")
    else:
        notes += supervised.notes
    notes += _signature_notes(signatures)
    data_mpp = division.labelled.source.mpp
    for extractor in extractors:
        mpp = extractor.preprocessing.mpp
        if mpp and data_mpp and abs(mpp / data_mpp - 1) > MPP_TOLERANCE:
            notes.append(f"{extractor.name} was trained at {mpp:g} um/px, but these images are at {data_mpp:g}")
    return (*notes, *input_notes(extractors, division.labelled.source, input_px), *_fit_notes(rows))


def _no_better_than_the_majority(rows: Sequence[Row], division: Division) -> Iterator[str]:
    """A probe that always predicts the most frequent class says nothing; as a control it flatters every model."""
    chance = 1 / len(np.unique(division.labels))
    for row in rows:
        score = row.metrics.balanced_accuracy
        if (score.value if math.isnan(score.low) else score.low) > chance:
            continue
        sentence = (
            f"{row.model}, {TITLES[row.protocol]}: no better than always predicting the most frequent class"
            f" (balanced accuracy {chance:.3f}), with {row.metrics.num_units} {row.metrics.unit}"
        )
        if row.protocol in ("linear-uni", "linear-dino"):
            sentence += "; its rule is meant for networks with many features: for a control, use `linear` or `logistic`"
        yield sentence


def _signature_notes(signatures: Mapping[str, Signature]) -> Iterator[str]:
    if not signatures:
        yield "slide signature: unknown without patients or slides"
    for signature in list(signatures.values())[:1]:
        unit = signature.unit.removesuffix("s")
        yield (
            f"{unit} signature: {signature.unit} of {signature.num_images} distinct images (training and test), "
            f"{NEIGHBOURS} neighbours; finding the {unit} means that stain and scanner leak: lower is better"
        )


def _fit_notes(rows: Sequence[Row]) -> Iterator[str]:
    sgd = [row for row in rows if row.protocol == "linear-dino"]
    for row in sgd:
        yield (
            f"{row.model}, {TITLES[row.protocol]}: after {row.settings['num_updates']} updates correct on"
            f" {row.settings['train_accuracy']:.3f} of the training crops"
        )
    if sgd:
        yield "crops hold 8 to 100 % of an image: if only a part of it is labelled (PCam), they may miss that part"
    for row in rows:
        if row.settings.get("has_converged") is False:
            yield f"{row.model}, {TITLES[row.protocol]}: the fit stopped before it converged"
        rules = [one["c_rule"] for one in (row.settings, *row.settings.get("folds", ())) if "c_rule" in one]
        if row.protocol == "linear" and rules:
            where = f" in {len(rules)} folds" if "folds" in row.settings else ""
            yield (
                f"{row.model}, linear: C is not chosen{where} but {rules[0]}, because a class has too few training"
                " units"
            )

"""Sentences on a distilled student relative to its teacher: accuracy, size, time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from dino_path.config import COMPARISON_SPECS
from dino_path.evaluation.labelled.division import Division
from dino_path.evaluation.protocols.by_name import TITLES
from dino_path.evaluation.results.row import Row
from dino_path.features.extractor import Extractor
from dino_path.model.backbone import count_parameters
from dino_path.model.folder import read_model_folder
from dino_path.records.feature_kinds import split_kind

TIMED_TILES, TIMED_PASSES = 8, 3


def distilled_notes(
    models: Mapping[str, tuple[str, Extractor]], rows: Sequence[Row], division: Division, *, input_px: int | None
) -> Iterator[str]:
    """Sentences for each student whose teacher stands in the same table.

    What is kept is (student - floor) / (teacher - floor) of balanced accuracy, where the floor is the student's own
    architecture untrained, if that is in the table (`untrained:` and the student's folder), and chance otherwise.

    Args:
        models: spec and extractor by the name that the rows use.
        input_px: `evaluation.input_px`.
    """
    times_ms: dict[str, float] = {}
    for student, (spec, extractor) in models.items():
        teacher = _teacher_of(spec, models)
        if teacher is None:
            continue
        for name in (student, teacher):
            if name not in times_ms:
                times_ms[name] = ms_per_tile(models[name][1], input_px)
        ours, theirs = (count_parameters(each.module) / 1e6 for each in (extractor, models[teacher][1]))
        device = next(models[teacher][1].module.parameters()).device.type
        yield (
            f"{student} was distilled from {teacher}: {ours:.1f} of {theirs:.1f} M parameters ({ours / theirs:.0%}),"
            f" {times_ms[student]:.2f} ms per tile instead of {times_ms[teacher]:.2f} (the best of {TIMED_PASSES}"
            f" batches"
            f" of {TIMED_TILES} on this {device}, {extractor.precision})"
        )
        floor_model = next((name for name, (other, _) in models.items() if other == f"untrained:{spec}"), None)
        yield from _kept(rows, student, teacher, floor_model, 1 / len(set(division.labels.tolist())))


def _teacher_of(spec: str, models: Mapping[str, tuple[str, Extractor]]) -> str | None:
    """The model of the table that the model folder `spec` says it learned from."""
    _, place = split_kind(spec)
    if place.startswith(COMPARISON_SPECS):
        return None
    digest = read_model_folder(Path(place)).distilled_from
    return next((name for name, (_, one) in models.items() if digest and one.digest.startswith(digest)), None)


def _kept(rows: Sequence[Row], student: str, teacher: str, floor_model: str | None, chance: float) -> Iterator[str]:
    """One sentence a protocol."""
    scores = {(row.model, row.protocol): row.metrics.balanced_accuracy.value for row in rows}
    protocols = [row.protocol for row in rows if row.model == student]
    for protocol in protocols:
        ours, theirs = scores[student, protocol], scores[teacher, protocol]
        floor = chance if floor_model is None else scores[floor_model, protocol]
        above = f"above {'chance' if floor_model is None else floor_model} ({floor:.3f})"
        title = TITLES[protocol]
        if theirs <= floor:
            yield f"{student}, {title}: what it keeps is unknown, because {teacher} ({theirs:.3f}) is not {above}"
            continue
        yield (
            f"{student}, {title}: keeps {(ours - floor) / (theirs - floor):.0%} of what {teacher} has {above}:"
            f" {ours:.3f} of {theirs:.3f}"
        )


@torch.inference_mode()
def ms_per_tile(extractor: Extractor, input_px: int | None) -> float:
    """Milliseconds per tile of the model alone, from the fastest of some small batches."""
    edge_px = input_px or extractor.preprocessing.input_px
    assert edge_px is not None, "a distilled model and its teacher have an edge"
    device = next(extractor.module.parameters()).device
    images = torch.zeros(TIMED_TILES, 3, edge_px, edge_px, device=device)
    seconds = []
    for _ in range(1 + TIMED_PASSES):  # the first one warms up
        start_s = time.perf_counter()
        extractor.module(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start_s)
    return 1000 * min(seconds[1:]) / TIMED_TILES

"""Each model's accuracy and features under shifts: the lines of a page, and their record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dino_path.evaluation.measures.sample import Sample, mean_sample
from dino_path.evaluation.protocols.shifts import ShiftCurve
from dino_path.evaluation.results.writing import markdown_table
from dino_path.features.shifts import LEVELS, MEANINGS, STRENGTHS, Shift

METRIC = "balanced_accuracy"


def at_level(curve: ShiftCurve, level: int) -> Sample:
    """Balanced accuracy, the mean over the shifts at a level; 0: as the images are."""
    if level == 0:
        return curve.unshifted.samples[METRIC]
    return mean_sample([one.metrics.samples[METRIC] for shift, one in curve.under.items() if shift.level == level])


def _drop(curve: ShiftCurve, level: int) -> Sample:
    return at_level(curve, 0) - at_level(curve, level)


def shift_lines(
    curves: Mapping[str, ShiftCurve], pairs: Sequence[tuple[str, str]], changes: Mapping[Shift, float]
) -> Iterator[str]:
    """Tables for people: means over the shifts, differences of the pairs of models, each shift, and what shifts are."""
    levels = (0, *LEVELS)
    headings = ["as they are", *(f"level {level}" for level in LEVELS), f"drop, level {LEVELS[-1]}"]
    rows = [
        [model, *(str(at_level(curve, level).score()) for level in levels),
         str(_drop(curve, LEVELS[-1]).difference())]
        for model, curve in curves.items()
    ]  # fmt: skip
    yield from markdown_table(["balanced accuracy, mean over shifts", *headings], rows)
    yield ""
    if pairs:
        rows = [
            [f"{one} - {other}",
             *(str((at_level(curves[one], level) - at_level(curves[other], level)).difference()) for level in levels),
             str((_drop(curves[one], LEVELS[-1]) - _drop(curves[other], LEVELS[-1])).difference(lowest=-1.0))]
            for one, other in pairs
        ]  # fmt: skip
        yield from markdown_table(["difference", *headings], rows)
        yield ""
    names = list(dict.fromkeys(shift.name for shift in changes))
    rows = []
    for name in names:
        for model, curve in curves.items():
            under = [curve.under[Shift(name, level)] for level in LEVELS]
            drop = curve.unshifted.samples[METRIC] - under[-1].metrics.samples[METRIC]
            rows.append([
                f"{name}, {model}",
                *(f"{one.metrics.balanced_accuracy.value:.3f}" for one in under),
                str(drop.difference()),
                *(f"{one.found.value:.3f}" for one in under),
                f"{under[-1].cosine.value:.3f}",
            ])  # fmt: skip
    yield from markdown_table(
        ["shift", *(f"accuracy, {level}" for level in LEVELS), f"drop, {LEVELS[-1]}",
         *(f"found again, {level}" for level in LEVELS), f"cosine, {LEVELS[-1]}"], rows,
    )  # fmt: skip
    yield ""
    rows = [
        [name, MEANINGS[name], *(f"{strength:g}" for strength in STRENGTHS[name]),
         *(f"{changes[Shift(name, level)]:.1f}" for level in LEVELS)]
        for name in names
    ]  # fmt: skip
    levels_of = [f"level {level}" for level in LEVELS]
    yield from markdown_table(
        ["shift", "strength", *levels_of, *(f"grey levels changed, {level}" for level in LEVELS)], rows
    )
    yield ""


def shift_record(
    curves: Mapping[str, ShiftCurve], pairs: Sequence[tuple[str, str]], changes: Mapping[Shift, float], num_images: int
) -> dict[str, Any]:
    """For JSON: a `ShiftsRecord`."""

    def differences(model: str, level: int) -> dict[str, dict[str, Any]]:
        found = {}
        for one, other in pairs:
            if one != model:
                continue
            score = (at_level(curves[one], level) - at_level(curves[other], level)).difference()
            found[other] = {METRIC: score.record()}
            if level:
                drop = (_drop(curves[one], level) - _drop(curves[other], level)).difference(lowest=-1.0)
                found[other]["drop"] = drop.record()
        return found

    return {
        "num_images": num_images,
        "interval": next(iter(curves.values())).unshifted.interval,
        "pixel_change": {
            name: tuple(changes[Shift(name, level)] for level in LEVELS)
            for name in dict.fromkeys(shift.name for shift in changes)
        },
        "summary": [
            {
                "model": model,
                "level": level,
                METRIC: at_level(curve, level).score().record(),
                "drop": _drop(curve, level).difference().record() if level else None,
                "differences": differences(model, level),
            }
            for model, curve in curves.items()
            for level in (0, *LEVELS)
        ],
        "rows": [
            {
                "model": model,
                "shift": shift.name,
                "level": shift.level,
                "strength": shift.strength,
                METRIC: one.metrics.balanced_accuracy.record(),
                "drop": (curve.unshifted.samples[METRIC] - one.metrics.samples[METRIC]).difference().record(),
                "cosine": one.cosine.score(lowest=-1.0).record(),
                "found_again": one.found.score().record(),
            }
            for model, curve in curves.items()
            for shift, one in curve.under.items()
        ],
    }

"""The curves of `robustness.json` as one picture: accuracy and stability of each model under each shift."""

from __future__ import annotations

import io
from pathlib import Path

from dino_path.atomic import atomic_write
from dino_path.records.robustness import RobustnessRecord, ShiftRow, ShiftsRecord

COLUMN_INCHES, HEIGHT_INCHES, DPI = 2.3, 5.6, 110
UNITS = {  # of a strength, for the axes
    "haematoxylin": "share", "eosin": "share", "gamma": "power", "blur": "sigma, px", "jpeg": "quality",
    "resolution": "factor",
}  # fmt: skip


def draw_shifts(record: RobustnessRecord, file: Path) -> None:
    """Write a PNG: one column for each shift, accuracy with its interval above, the share found again below.

    Raises:
        ValueError: the record holds no shifts.
    """
    if record.shifts is None:
        raise ValueError("a record without shifts has no curves")
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # here, since it takes a second to import
    from matplotlib.figure import Figure

    shifts, models = record.shifts, list(record.models)
    names = list(shifts.pixel_change)
    figure = Figure(figsize=(COLUMN_INCHES * len(names) + 1, HEIGHT_INCHES), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(names), sharey="row", squeeze=False)
    for column, name in enumerate(names):
        above, below = axes[0, column], axes[1, column]
        for number, model in enumerate(models):
            rows = [row for row in shifts.rows if (row.model, row.shift) == (model, name)]
            _draw_accuracy(above, shifts, model, rows, colour=f"C{number}", offset=0.05 * (number - len(models) / 2))
            levels = [0, *(row.level for row in rows)]
            found = [1.0, *(row.found_again.value for row in rows)]
            below.plot(levels, found, marker="o", markersize=3, color=f"C{number}")
        above.set_title(name, fontsize=10)
        strengths = ["none", *(f"{row.strength:g}" for row in rows)]
        for axis in (above, below):
            axis.set_xticks(range(len(strengths)), strengths, fontsize=8)
            axis.grid(axis="y", alpha=0.3)
        below.set_ylim(0, 1.03)
        below.set_xlabel(UNITS[name], fontsize=8)
    axes[0, 0].set_ylabel("balanced accuracy")
    axes[1, 0].set_ylabel("found again")
    figure.suptitle(f"{record.data.title}: {shifts.num_images} test images under shifts", fontsize=11)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=min(4, len(models)),
                  fontsize=8, frameon=False)  # fmt: skip
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    with atomic_write(file, "wb") as stream:
        stream.write(picture.getvalue())


def _draw_accuracy(
    axis: object, shifts: ShiftsRecord, model: str, rows: list[ShiftRow], *, colour: str, offset: float
) -> None:
    """One curve with its intervals, a little aside so that those of several models do not cover one another."""
    start = next(row for row in shifts.summary if row.model == model and row.level == 0)
    scores = [start.balanced_accuracy, *(row.balanced_accuracy for row in rows)]
    values = [score.value or 0.0 for score in scores]
    arms = [
        [value - (score.low if score.low is not None else value) for value, score in zip(values, scores, strict=True)],
        [
            (score.high if score.high is not None else value) - value
            for value, score in zip(values, scores, strict=True)
        ],
    ]
    places = [level + offset for level in (0, *(row.level for row in rows))]
    axis.errorbar(  # type: ignore[attr-defined]
        places, values, yerr=arms, label=model, color=colour, marker="o", markersize=3, linewidth=1.2, elinewidth=0.7
    )

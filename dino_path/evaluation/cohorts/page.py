"""A slide-level evaluation as a page of Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from dino_path.evaluation.cohorts.measuring import TITLES
from dino_path.evaluation.measures.intervals import Score
from dino_path.evaluation.results.writing import markdown_page, markdown_table
from dino_path.records.labelled import ScoreRecord
from dino_path.records.slide_evaluation import SlideRow, SlidesRecord

AGGREGATOR_TITLES = {"mean": "mean + logistic", "abmil": "attention-MIL", "cox": "mean + Cox"}


def page_of(record: SlidesRecord) -> str:
    """The table, differences, classes, centres and maps, and notes."""
    data = record.data
    cases = f"{data.num_cases} {data.unit}s" + (
        f" of {data.num_patients} patients" * (data.unit == "slide") if data.num_patients else ""
    )
    by_class = ", ".join(f"{label} {count}" for label, count in data.num_by_class.items())
    of_what = "patients" if data.num_patients is not None else "slides"
    lines = [
        f"{cases} ({of_what} by {'outcome' if data.task == 'survival' else 'class'}: {by_class})",
        "",
        *_metrics(record),
        *_differences(record.rows),
        *_classes(record),
        *_centres(record.rows),
    ]
    if record.maps:
        rows = [
            [one.source, one.slide, f"{one.largest:.1f} x even", f"{100 * one.half:.0f} %", one.picture]
            for one in record.maps
        ]
        header = ["map of attention", "slide", "largest", "tiles with half of it", "picture"]
        lines += ["", *markdown_table(header, rows)]
    return markdown_page(data.name, lines, record.notes)


def _metrics(record: SlidesRecord) -> list[str]:
    names = list(record.rows[0].metrics)
    # How much one drawing of the folds differs from another is worth a column where there are several.
    spread = [f"{TITLES[names[0]]} by repeat"] if record.data.num_repeats > 1 else []
    rows = [
        [row.source, AGGREGATOR_TITLES[row.aggregator], *(_text(row.metrics[name]) for name in names),
         *([_range(row.by_repeat[names[0]])] if spread else [])]
        for row in record.rows
    ]  # fmt: skip
    return markdown_table(["features", "by", *(TITLES[name] for name in names), *spread], rows)


def _differences(rows: Sequence[SlideRow]) -> list[str]:
    found = [
        [f"{row.source} - {other}", AGGREGATOR_TITLES[row.aggregator], *(_text(score) for score in scores.values())]
        for row in rows
        for other, scores in row.differences.items()
    ]
    header = ["difference", "by", *(TITLES[name] for name in rows[0].metrics)]
    return ["", *markdown_table(header, found)] if found else []


def _classes(record: SlidesRecord) -> list[str]:
    rows = [
        [row.source, AGGREGATOR_TITLES[row.aggregator], *(_text(score) for score in row.recall.values())]
        for row in record.rows
        if row.recall
    ]
    header = ["found of each class", "by", *record.data.classes]
    return ["", *markdown_table(header, rows)] if rows else []


def _centres(rows: Sequence[SlideRow]) -> list[str]:
    found = [row for row in rows if row.by_centre]
    if not found:
        return []
    centres = found[0].by_centre
    header = [f"{centre} ({int(numbers['num_cases'] or 0)})" for centre, numbers in centres.items()]
    cells = [[row.source, AGGREGATOR_TITLES[row.aggregator], *_balanced(row)] for row in found]
    return ["", *markdown_table(["balanced accuracy by centre", "by", *header], cells)]


def _balanced(row: SlideRow) -> Iterator[str]:
    for numbers in row.by_centre.values():
        value = numbers["balanced_accuracy"]
        yield "-" if value is None else f"{value:.3f}"


def _text(score: ScoreRecord) -> str:
    numbers = [math.nan if value is None else value for value in (score.value, score.low, score.high)]
    return str(Score(*numbers))


def _range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{min(known):.3f} to {max(known):.3f}" if known else "-"

"""A suite as a page of Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from dino_path.config import PROTOCOL_TITLES
from dino_path.evaluation.results.writing import SUPERVISED, markdown_page, markdown_table
from dino_path.records.labelled import ScoreRecord
from dino_path.records.suite import SuiteRecord, lacking, num_open, verdict
from dino_path.records.verdict import interval, signed


def suite_markdown(record: SuiteRecord) -> str:
    """Sets x models, mean and mean rank; then differences, warnings and notes."""
    columns = list(record.models)
    header = ["set", "number", *(f"{name} (null)" if record.models[name].role == "null" else name for name in columns)]
    rows = [
        [one.name, f"{PROTOCOL_TITLES.get(one.protocol, one.protocol)}, {one.metric.replace('_', ' ')}",
         *(interval(one.scores[name]) if name in one.scores else lacking(one) for name in columns)]
        for one in record.sets
    ]  # fmt: skip
    models, num_sets = [record.models[name] for name in columns], f"{len(record.sets)} sets"
    rows.append(["mean", num_sets, *("" if model.mean is None else interval(model.mean) for model in models)])
    rows.append(["mean rank", num_sets, *("" if model.rank is None else _rank(model.rank) for model in models)])
    if not any(model.role == "supervised" for model in record.models.values()):
        header.append(SUPERVISED)
        rows = [[*row, lacking(one)] for row, one in zip(rows, record.sets, strict=False)] + [
            [*row, ""] for row in rows[-2:]
        ]
    lines = markdown_table(header, rows)
    if record.differences:
        lines += ["", *_differences(record)]
    return markdown_page(record.title, lines, [*(f"WARNING: {one}" for one in record.warnings), *record.notes])


def _rank(score: ScoreRecord) -> str:
    """`1.75 (1.00-3.00)`."""
    between = "no interval" if score.low is None or score.high is None else f"{score.low:.2f}-{score.high:.2f}"
    return f"{score.value:.2f} ({between})"


def _differences(record: SuiteRecord) -> list[str]:
    rows: list[Sequence[str]] = []
    for one in record.differences:
        rows.append([f"{one.model} - {one.other}", signed(one.mean), verdict(one.mean),
                     str(one.num_above), str(one.num_below), str(num_open(record, one))])  # fmt: skip
    return markdown_table(
        ["difference", "mean over sets", "the mean is", "sets above 0", "sets below 0", "sets open"], rows
    )

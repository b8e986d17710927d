"""Tiles that illustrate an evaluation, in the form that the report's template needs."""

from __future__ import annotations

from collections.abc import Sequence

from dino_path.config import PROTOCOL_TITLES
from dino_path.records.examples import ExamplesRecord, ModelExamplesRecord
from dino_path.reporting.evaluations import Evaluation, Plain

LOW_ACCURACY = 0.5  # share of a slide's images; below it the cell is marked


def examples_section(evaluation: Evaluation) -> Plain:
    """Neighbours, mistakes, attention and results of slides; without them, the page says how to make them."""
    models = [_model(name, entry, record) for record in evaluation.examples for name, entry in record.models.items()]
    return {
        "name": evaluation.name,
        "models": models,
        "slides": _slides(evaluation.examples),
    }


def _model(name: str, entry: ModelExamplesRecord, record: ExamplesRecord) -> Plain:
    tiles = record.tiles
    same = [
        tiles[neighbour.tile].label == tiles[query.tile].label
        for query in entry.queries
        for neighbour in query.neighbours
    ]
    by_class: dict[str, list[Plain]] = {}
    for mistake in entry.mistakes:
        tile = tiles[mistake.tile]
        by_class.setdefault(tile.label, []).append(
            {"tile": tile, "predicted": mistake.predicted, "score": mistake.score}
        )
    return {
        "name": name,
        "apart": record.apart,
        "protocol": PROTOCOL_TITLES.get(record.protocol, record.protocol),
        "num_same": sum(same),
        "num_neighbours": len(same),
        "queries": [
            {
                "tile": tiles[query.tile],
                "neighbours": [
                    {
                        "tile": tiles[one.tile],
                        "similarity": one.similarity,
                        "is_same": tiles[one.tile].label == tiles[query.tile].label,
                    }
                    for one in query.neighbours
                ],
            }
            for query in entry.queries
        ],
        "mistakes": by_class,
        "attention": [{"tile": tiles[one.tile], "jpeg": one.jpeg} for one in entry.attention],
        "no_attention": entry.no_attention,
    }


def _slides(records: Sequence[ExamplesRecord]) -> Plain | None:
    """One table for all models of the same images; the slides with the first model's worst results come first."""
    with_slides = [record for record in records if record.slides]
    if not with_slides:
        return None
    columns = list(dict.fromkeys([
        *(name for record in with_slides for name in record.models),
        *(name for record in with_slides for slide in record.slides for name in slide.accuracy),
    ]))  # fmt: skip
    rows: dict[str, Plain] = {}
    for record in with_slides:
        for slide in record.slides:
            row = rows.setdefault(slide.name, {"name": slide.name, "num_images": slide.num_images, "accuracy": {}})
            row["accuracy"] |= slide.accuracy
    first = columns[0]
    return {
        "unit": with_slides[0].unit,
        "protocol": PROTOCOL_TITLES.get(with_slides[0].protocol, with_slides[0].protocol),
        "columns": columns,
        "rows": sorted(rows.values(), key=lambda row: (row["accuracy"].get(first, 1.0), row["name"])),
        "low": LOW_ACCURACY,
    }

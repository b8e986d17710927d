"""Sentences on each model's input: the edge of the images, the resizing, and the microns per pixel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from dino_path.evaluation.labelled.images import image_edge_px
from dino_path.features.extractor import Extractor
from dino_path.tiles.source import TileSource


def input_notes(extractors: Iterable[Extractor], source: TileSource, input_px: int | None) -> Iterator[str]:
    """One sentence for all models that saw the same.

    Args:
        input_px: `evaluation.input_px`; None: each model sees images of its own edge.
    """
    edge_px, models_of = image_edge_px(source), dict[str, list[str]]()
    for extractor in extractors:
        own = extractor.preprocessing
        seen = replace(own.of_tiles(edge_px, source.mpp), input_px=input_px or own.input_px)
        text = seen.text()
        if own.input_px not in (None, seen.input_px):
            text += f" (evaluation.input_px={input_px}; the model's own edge is {own.input_px} px)"
        models_of.setdefault(text, []).append(extractor.name)
    for text, models in models_of.items():
        yield f"input of {', '.join(models)}: {text}"

"""The picture of a retrieval: some images that search, each with its ten most similar of other patients.

A frame says whether a neighbour has the class of the image that searches: blue with a tick, or orange with a cross.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dino_path.atomic import atomic_write
from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.evaluation.labelled.queries import Queries
from dino_path.evaluation.measures.confusion import Ints
from dino_path.evaluation.protocols.retrieval import NONE, NUM_NEIGHBOURS, Retrieved, units_among
from dino_path.features.images import prepare_image

PICTURE_PX, FRAME_PX, GAP_PX, MARGIN_PX, QUERY_GAP_PX = 128, 5, 8, 30, 26
TITLE_PX, HEADING_PX, TEXT_PX, LINE_PX = 30, 16, 12, 15  # heights of letters, and of a line of small ones
CARD_PX = PICTURE_PX + 2 * FRAME_PX
CARD_HEIGHT_PX = CARD_PX + 3 * LINE_PX + 4
ROW_PX = HEADING_PX + 16 + CARD_HEIGHT_PX  # a model's line of neighbours, its heading above
WIDTH_PX = 2 * MARGIN_PX + (NUM_NEIGHBOURS + 1) * (CARD_PX + GAP_PX) + QUERY_GAP_PX
QUERIES_PER_CLASS, MAX_ROWS = 3, 120  # a JPEG ends at 65,535 px
Colour = tuple[int, int, int]
WHITE, INK, PALE = (255, 255, 255), (25, 25, 30), (105, 105, 112)
RIGHT, WRONG = (0, 105, 180), (225, 90, 0)  # also told apart by those who do not tell red from green


def write_sheet(
    path: Path, labelled: LabelledSet, queries: Queries, found: Mapping[str, Retrieved], *, seed: int
) -> None:
    """Write a JPEG: a block for each query with a row of neighbours for each model.

    Args:
        found: by model, what each query found.

    Raises:
        TileStoreError: an image cannot be read.
    """
    shown = drawn_queries(labelled, queries, MAX_ROWS // len(found), seed=seed)
    block_px = len(found) * ROW_PX + QUERY_GAP_PX
    head_px = MARGIN_PX + TITLE_PX + 2 * (HEADING_PX + 6) + 30
    sheet = Image.new("RGB", (WIDTH_PX, head_px + len(shown) * block_px), WHITE)
    draw = ImageDraw.Draw(sheet)
    unit = labelled.unit_name
    draw.text((MARGIN_PX, MARGIN_PX), f"Neighbours in {labelled.name}", INK, _font(TITLE_PX))
    for number, line in enumerate(_explanation(others(labelled), len(shown), seed)):
        draw.text((MARGIN_PX, MARGIN_PX + TITLE_PX + 10 + number * (HEADING_PX + 6)), line, PALE, _font(HEADING_PX))
    left_of_rows = MARGIN_PX + CARD_PX + GAP_PX + QUERY_GAP_PX
    for place, query in enumerate(shown):
        top = head_px + place * block_px
        draw.line((MARGIN_PX, top - 8, WIDTH_PX - MARGIN_PX, top - 8), (215, 215, 220))
        image = int(queries.number[query])
        draw.text((MARGIN_PX, top), "searches", INK, _font(HEADING_PX))
        sheet.paste(neighbour_card(labelled, image, INK, None, ""), (MARGIN_PX, top + HEADING_PX + 8))
        for row, (model, retrieved) in enumerate(found.items()):
            row_top = top + row * ROW_PX
            neighbours = retrieved.neighbours[query]
            is_right = (labelled.labels[neighbours] == labelled.labels[image]) & (neighbours != NONE)
            known = int((neighbours != NONE).sum())
            heading = f"{model}: {is_right.sum()} of {known} are {labelled.classes[labelled.labels[image]]}"
            if labelled.groups is not None:
                heading += f"; the {known} are of {units_among(neighbours[None], labelled.units)[0]} {unit}"
            draw.text((left_of_rows, row_top), heading, INK, _font(HEADING_PX))
            for rank in range(known):
                caption = f"{retrieved.similarity[query, rank]:.3f}  "
                colour = RIGHT if is_right[rank] else WRONG
                card = neighbour_card(labelled, int(neighbours[rank]), colour, bool(is_right[rank]), caption)
                sheet.paste(card, (left_of_rows + rank * (CARD_PX + GAP_PX), row_top + HEADING_PX + 8))
    with atomic_write(path, "wb") as stream:
        sheet.save(stream, format="jpeg", quality=88)


def drawn_queries(labelled: LabelledSet, queries: Queries, most: int, *, seed: int) -> list[int]:
    """Places of up to QUERIES_PER_CLASS queries of each class in `queries`, class after class, `most` in all.

    They are drawn at random, of one patient (slide) only where its class has no other.
    """
    rng = np.random.default_rng(seed)
    labels_Q, units_Q = labelled.labels[queries.number], labelled.units[queries.number]
    by_class = [
        _of_different_units(rng.permutation(np.flatnonzero(labels_Q == c)), units_Q) for c in np.unique(labels_Q)
    ]
    per_class = max(1, min(QUERIES_PER_CLASS, most // len(by_class)))
    return [int(query) for chosen in by_class[:most] for query in chosen[:per_class]]


def others(labelled: LabelledSet) -> str:
    """The searched images, in words."""
    return "other images" if labelled.groups is None else f"images of other {labelled.unit_name}"


def _of_different_units(place_M: Ints, units_Q: Ints) -> Ints:
    """The same places, the first of each unit before all others."""
    is_first = np.zeros(len(place_M), bool)
    is_first[np.unique(units_Q[place_M], return_index=True)[1]] = True
    return np.concatenate([place_M[is_first], place_M[~is_first]])


def _explanation(searched: str, num_shown: int, seed: int) -> Iterator[str]:
    yield (
        f"{num_shown} of the query images, drawn at random (seed {seed}), each with its {NUM_NEIGHBOURS} most "
        f"similar {searched}, the most similar first."
    )
    yield "Blue frame and tick: same class. Orange frame and cross: another class."


def neighbour_card(
    labelled: LabelledSet, image: int, colour: Colour, is_right: bool | None, similarity: str, *, is_named: bool = True
) -> Image.Image:
    """The image in its frame, with class and similarity below; if `is_named` also patient or slide, and file."""
    card = Image.new("RGB", (CARD_PX, CARD_HEIGHT_PX), WHITE)
    draw = ImageDraw.Draw(card)
    draw.rectangle((0, 0, CARD_PX - 1, CARD_PX - 1), fill=colour)
    card.paste(Image.fromarray(prepare_image(labelled.source.read_image(image), PICTURE_PX)), (FRAME_PX, FRAME_PX))
    if is_right is not None:
        _mark(draw, colour, is_right)
    origin = "" if labelled.groups is None else f"{labelled.group_kind} {labelled.groups[image]}"
    lines = [
        (labelled.classes[labelled.labels[image]], INK),
        (origin, PALE),
        (similarity + Path(labelled.source.name(image)).name, PALE),
    ]
    if not is_named:
        lines[1:] = [(similarity, PALE)]
    for number, (line, ink) in enumerate(lines):
        draw.text((0, CARD_PX + 2 + number * LINE_PX), _shortened(line), ink, _font(TEXT_PX))
    return card


def _mark(draw: ImageDraw.ImageDraw, colour: Colour, is_right: bool) -> None:
    """A tick or a cross in the upper right corner."""
    left, right = CARD_PX - 26, CARD_PX - 1
    draw.rectangle((left, 0, right, 25), fill=colour)
    if is_right:
        draw.line(((left + 5, 13), (left + 10, 18), (left + 20, 7)), WHITE, 3)
    else:
        draw.line(((left + 6, 6), (left + 19, 19)), WHITE, 3)
        draw.line(((left + 6, 19), (left + 19, 6)), WHITE, 3)


def _shortened(text: str) -> str:
    """The text shortened to the available space: its beginning and end, which distinguish files and patients."""
    font, shown, kept = _font(TEXT_PX), text, len(text)
    while font.getlength(shown) > CARD_PX:
        kept -= 1
        shown = f"{text[: kept // 2]}..{text[-(kept - kept // 2) :]}"
    return shown


@cache
def _font(height_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(height_px)

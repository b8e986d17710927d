"""What the running k-NN sees, as a picture: validation tiles beside their nearest of the images to learn from.

Shape suffixes: N images to learn from, Q validation images, D features.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from dino_path.atomic import atomic_write
from dino_path.evaluation.protocols.running import RunningTest
from dino_path.evaluation.results.examples import NUM_NEIGHBOURS, choose_queries, nearest_elsewhere
from dino_path.evaluation.results.neighbour_sheet import (
    CARD_HEIGHT_PX,
    CARD_PX,
    GAP_PX,
    HEADING_PX,
    INK,
    RIGHT,
    WHITE,
    WRONG,
    neighbour_card,
)
from dino_path.run import RunFolder

HEAD_PX = HEADING_PX + 3 * GAP_PX
TITLE = "Validation tiles (left) and their nearest by cosine of the teacher's features; a cross marks another class"


def knn_with_sheet(run: RunFolder, test: RunningTest, backbone: nn.Module) -> float:
    """`RunningTest.knn`; writes RUN/figures/neighbours.png of the same features.

    Raises:
        TileStoreError: an image cannot be read.
    """
    train_ND, query_QD = test.features(backbone)
    write_running_sheet(run.neighbours_file, test, train_ND, query_QD)
    return test.accuracy(train_ND, query_QD)


def write_running_sheet(
    file: Path, test: RunningTest, train_ND: NDArray[np.float32], query_QD: NDArray[np.float32]
) -> None:
    """Write a PNG with a row for each of up to eight validation tiles, which are the same each time.

    Neighbours are never of the tile's own patient or slide, nor a copy of it. The picture names classes, and neither
    slides nor patients nor files.
    """
    labelled = test.labelled
    images = np.concatenate([test.fit, test.validation])  # the number in the set of each row of features
    features, labels = np.concatenate([train_ND, query_QD]), labelled.labels[images]
    is_fit = np.arange(len(images)) < len(test.fit)
    groups = None if labelled.groups is None else labelled.groups[images]
    names: list[str | None] = [None] * len(images) if groups is None else [str(group) for group in groups]
    queries = choose_queries(labels, names, np.flatnonzero(~is_fit), seed=test.config.evaluation.seed)

    column_px, row_px = CARD_PX + GAP_PX, CARD_HEIGHT_PX
    width_px = 3 * GAP_PX + (1 + NUM_NEIGHBOURS) * column_px
    sheet = Image.new("RGB", (width_px, HEAD_PX + len(queries) * row_px), WHITE)
    ImageDraw.Draw(sheet).text((GAP_PX, GAP_PX), TITLE, INK, ImageFont.load_default(HEADING_PX))
    for row, query in enumerate(queries):
        top = HEAD_PX + row * row_px
        sheet.paste(neighbour_card(labelled, int(images[query]), INK, None, "", is_named=False), (GAP_PX, top))
        is_elsewhere = is_fit & (labelled.content[images] != labelled.content[images[query]])
        if groups is not None:
            is_elsewhere &= groups != groups[query]
        found = zip(*nearest_elsewhere(features, query, is_elsewhere), strict=True)
        for column, (one, cosine) in enumerate(found, 1):
            is_right = bool(labels[one] == labels[query])
            card = neighbour_card(
                labelled, int(images[one]), RIGHT if is_right else WRONG, is_right, f"{cosine:.3f}", is_named=False
            )
            sheet.paste(card, (3 * GAP_PX + column * column_px, top))  # the asked tile stands apart
    with atomic_write(file, "wb") as stream:
        sheet.save(stream, format="png")

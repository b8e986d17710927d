"""A picture of some test images: the image, its mask, and the linear layer's mask of every model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.atomic import atomic_write
from dino_path.evaluation.labelled.masks import BACKGROUND, Mask, MaskedSet
from dino_path.evaluation.measures.confusion import mean_where_known
from dino_path.evaluation.measures.overlap import class_overlap, mask_confusion
from dino_path.slides.slide import RgbImage
from dino_path.tiles.writing import encode_jpeg

PANEL_PX, GAP_PX, LINE_PX, MARGIN_PX = 224, 8, 22, 16
FONT, FONT_SCALE = cv2.FONT_HERSHEY_SIMPLEX, 0.45
INK, WHITE, PALE, NOBODY = (25, 25, 30), (255, 255, 255), (232, 232, 236), (150, 150, 150)
# Told apart by people of all kinds of colour vision (Okabe and Ito 2008), and far from the pink of tissue.
COLOURS = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167),
    (86, 180, 233), (213, 94, 0), (240, 228, 66), (0, 0, 0),
)  # fmt: skip


def write_sheet(file: Path, masked: MaskedSet, indices: Sequence[int], shown: Mapping[str, Mapping[int, Mask]]) -> None:
    """Write the JPEG: a line per image of `indices`, a column per model, and below each mask its mean Dice.

    Args:
        shown: predicted masks by model and number of the image.
    """
    titles = ["image", "mask", *shown]
    width = 2 * MARGIN_PX + len(titles) * (PANEL_PX + GAP_PX) - GAP_PX
    height = 2 * MARGIN_PX + len(indices) * (PANEL_PX + LINE_PX + GAP_PX) + 2 * LINE_PX
    sheet: RgbImage = np.full((height, width, 3), 255, np.uint8)
    lefts = [MARGIN_PX + number * (PANEL_PX + GAP_PX) for number in range(len(titles))]
    for left, title in zip(lefts, titles, strict=True):
        _write(sheet, title, left, MARGIN_PX + 14)
    palette = _palette(masked)
    for line, index in enumerate(indices):
        top = MARGIN_PX + LINE_PX + line * (PANEL_PX + LINE_PX + GAP_PX)
        image = masked.labelled.source.read_image(index)
        true_HW = masked.read_mask(index, (image.shape[0], image.shape[1]))
        masks = [true_HW, *(of_model[index] for of_model in shown.values())]
        for left, picture in zip(lefts, (image, *(palette[mask] for mask in masks)), strict=True):
            panel = _panel(picture, is_mask=picture is not image)
            sheet[top : top + panel.shape[0], left : left + panel.shape[1]] = panel
        below = top + PANEL_PX + 15
        _write(sheet, Path(masked.labelled.source.name(index)).name, lefts[0], below)
        _write(sheet, masked.labels[index], lefts[1], below)
        for left, mask in zip(lefts[2:], masks[1:], strict=True):
            dice_C = class_overlap(mask_confusion(true_HW, mask, len(masked.classes)))["dice"]
            _write(sheet, f"Dice {mean_where_known(dice_C[list(masked.counted)]):.2f}", left, below)
    _write_legend(sheet, masked, palette, height - MARGIN_PX)
    with atomic_write(file, "wb") as stream:
        stream.write(encode_jpeg(sheet, 90, "444"))


def _palette(masked: MaskedSet) -> NDArray[np.uint8]:
    """A colour (256, 3) for each number of a mask."""
    palette = np.full((256, 3), NOBODY, np.uint8)
    counted = [name for name in masked.classes if name != BACKGROUND]
    for number, name in enumerate(masked.classes):
        palette[number] = PALE if name == BACKGROUND else COLOURS[counted.index(name) % len(COLOURS)]
    return palette


def _panel(picture: RgbImage, *, is_mask: bool) -> RgbImage:
    """The picture with its longer edge at PANEL_PX; masks keep their colours."""
    factor = PANEL_PX / max(picture.shape[:2])
    size = tuple(max(1, min(PANEL_PX, round(edge * factor))) for edge in picture.shape[1::-1])
    kind = cv2.INTER_NEAREST if is_mask and factor > 1 else cv2.INTER_AREA
    return np.asarray(cv2.resize(picture, size, interpolation=kind), np.uint8)


def _write_legend(sheet: RgbImage, masked: MaskedSet, palette: NDArray[np.uint8], baseline: int) -> None:
    left = MARGIN_PX
    for number, name in enumerate(masked.classes):
        cv2.rectangle(sheet, (left, baseline - 12), (left + 12, baseline), palette[number].tolist(), cv2.FILLED)
        _write(sheet, name, left + 18, baseline - 1, limit_px=None)
        left += 18 + cv2.getTextSize(name, FONT, FONT_SCALE, 1)[0][0] + 24
    _write(sheet, "masks of the linear layer", left, baseline - 1, limit_px=None)


def _write(sheet: RgbImage, text: str, left: int, baseline: int, limit_px: int | None = PANEL_PX) -> None:
    """Text that is made smaller where it is wider than a panel; the font has ASCII letters only."""
    text = text.encode("ascii", "replace").decode()
    width = cv2.getTextSize(text, FONT, FONT_SCALE, 1)[0][0]
    scale = FONT_SCALE if limit_px is None else FONT_SCALE * min(1.0, limit_px / max(1, width))
    cv2.putText(sheet, text, (left, baseline), FONT, scale, INK, 1, cv2.LINE_AA)

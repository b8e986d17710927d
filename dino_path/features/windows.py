"""Vectors of all patches of an image of any size: the network sees windows of the edge that it is meant for.

Windows lie evenly over the image, on whole patches; where they overlap, a patch is taken from the window whose centre
is nearest, which sees most around it. So position embeddings stay as they were trained, whatever the image's size. The
image is mirrored at its right and lower edge until whole patches, and one window, fit.

Shape suffixes: H and W edges of the image in px, R rows and C columns of patches, D width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dino_path.errors import CheckpointError, ConfigError
from dino_path.features.extractor import Extractor, Forward
from dino_path.features.specs import CONTROL_NAMES
from dino_path.slides.slide import RgbImage

CONTROL_PATCH_PX = 16  # of the colour controls, where no network says another
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class WindowModel:
    """A frozen model that gives a vector for every patch of an image.

    Attributes:
        window_px: edge of the windows, in px of the image after scaling; for colour controls that of a patch.
        patch_px: edge of a patch, likewise.
        scale: factor by which images are resized first.
        batch_size: windows per forward pass.
    """

    extractor: Extractor
    forward: Forward
    window_px: int
    patch_px: int
    scale: float
    batch_size: int

    def patches(self, image_HWC: RgbImage) -> Floats:
        """Vectors (R, C, D) of the patches that hold a part of the image."""
        scaled = resized(image_HWC, self.scale)
        per_window = self.window_px // self.patch_px
        shown = tuple(-(-edge // self.patch_px) for edge in scaled.shape[:2])
        rows, columns = (_Axis.of(max(cells, per_window), per_window) for cells in shown)
        bottom = len(rows.window) * self.patch_px - scaled.shape[0]
        right = len(columns.window) * self.patch_px - scaled.shape[1]
        padded = cv2.copyMakeBorder(scaled, 0, bottom, 0, right, cv2.BORDER_REFLECT)
        windows = [
            padded[
                top * self.patch_px : top * self.patch_px + self.window_px,
                left * self.patch_px : left * self.patch_px + self.window_px,
            ]
            for top in rows.starts
            for left in columns.starts
        ]
        maps = np.concatenate(
            [
                self._map(np.stack(windows[start : start + self.batch_size]))
                for start in range(0, len(windows), self.batch_size)
            ]
        )
        maps = maps.reshape(len(rows.starts), len(columns.starts), *maps.shape[1:])
        grid_RCD: Floats = maps[
            rows.window[:, None], columns.window[None, :], rows.within[:, None], columns.within[None, :]
        ]
        if not np.isfinite(grid_RCD).all():
            raise CheckpointError(
                self.extractor.name,
                "the vectors of its patches are not finite.",
                "A model with finite weights is needed.",
                "Export an earlier checkpoint: metrics.jsonl shows where the loss became non-finite.",
            )
        return grid_RCD[: shown[0], : shown[1]]

    def _map(self, windows: NDArray[np.uint8]) -> Floats:
        images = torch.from_numpy(windows)
        if self.window_px == self.patch_px:
            return self.forward(images)[:, None, None]
        return self.forward.patch_map(images)


def is_colour_control(extractor: Extractor) -> bool:
    """Whether the model is a colour control such as `mean-colour`, which takes squares of any size."""
    return extractor.name in CONTROL_NAMES


def window_models(
    extractors: list[Extractor], device: torch.device, *, scale: float, input_px: int | None, batch_size: int
) -> list[WindowModel]:
    """The extractors, ready for images of any size. Colour controls have the smallest patches of the networks.

    Args:
        input_px: edge of the windows; None: the edge that each model is meant for.

    Raises:
        CheckpointError: the last layer of a model has no grid.
        ConfigError: a model does not take windows of this edge, or its grid does not divide them.
    """
    networks = {
        extractor.digest: _of_network(extractor, device, scale, input_px, batch_size)
        for extractor in extractors
        if not is_colour_control(extractor)
    }
    smallest = min((model.patch_px for model in networks.values()), default=CONTROL_PATCH_PX)
    return [
        networks.get(one.digest) or WindowModel(one, Forward(one, device), smallest, smallest, scale, 8192)
        for one in extractors
    ]


def resized(image: NDArray[np.uint8], scale: float) -> NDArray[np.uint8]:
    """The image (H, W, 3) with its edges times `scale`, rounded: shrinking averages areas, enlarging is bicubic."""
    if scale == 1:
        return image
    height, width = scaled_shape(image.shape[:2], scale)
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, (width, height), interpolation=interpolation), np.uint8)


def scaled_shape(shape: tuple[int, ...], scale: float) -> tuple[int, int]:
    """(H, W) times `scale`, rounded, at least 1."""
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


@dataclass(frozen=True)
class _Axis:
    """Rows (or columns) of patches and the windows over them.

    Attributes:
        starts: the first row of each window.
        window: the window that each row is taken from.
        within: which row of that window it is.
    """

    starts: list[int]
    window: NDArray[np.int64]
    within: NDArray[np.int64]

    @classmethod
    def of(cls, cells: int, per_window: int) -> _Axis:
        starts = np.rint(np.linspace(0, cells - per_window, math.ceil(cells / per_window))).astype(np.int64)
        cell = np.arange(cells)
        distance = np.abs(cell[:, None] + 0.5 - (starts + per_window / 2)[None, :])
        window = distance.argmin(axis=1).astype(np.int64)
        return cls(starts.tolist(), window, cell - starts[window])


def _of_network(
    extractor: Extractor, device: torch.device, scale: float, input_px: int | None, batch_size: int
) -> WindowModel:
    edge_px = input_px or extractor.preprocessing.input_px
    assert edge_px is not None, "only colour controls take any size"
    forward = Forward(extractor, device)
    try:
        rows, columns = forward.patch_map(torch.zeros(1, edge_px, edge_px, 3).byte()).shape[1:3]
    except (RuntimeError, AssertionError, ValueError) as error:
        raise _bad_window(
            extractor, edge_px, f"does not take images of this edge ({' '.join(str(error).split())[:200]})"
        ) from None
    if rows != columns or edge_px % rows:
        raise _bad_window(
            extractor, edge_px, f"has a last layer of {rows} x {columns} patches, which does not divide the edge"
        )
    return WindowModel(extractor, forward, edge_px, edge_px // rows, scale, batch_size)


def _bad_window(extractor: Extractor, edge_px: int, found: str) -> ConfigError:
    return ConfigError(
        f"evaluation.input_px={edge_px}",
        f"{extractor.name} {found}.",
        "The edge of a window must be a multiple of the model's patch size.",
        "Set evaluation.input_px to a multiple of the patch size; for a CNN it is usually 32 px.",
    )

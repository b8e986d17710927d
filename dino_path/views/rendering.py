"""Applying view parameters to pixels on the CPU. uint8 RGB all the way, rounded after each operation."""

from __future__ import annotations

from typing import cast

import albumentations.augmentations.pixel.functional as pixel
import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from dino_path.views.parameters import ViewParameters
from dino_path.views.stain import jitter_stain

Image = NDArray[np.uint8]

# ITU-R BT.601 luma, as PIL, torchvision and OpenCV have it.
LUMA = np.array([0.299, 0.587, 0.114])
# dihedral -> whether to transpose, then which way to flip (1 left-right, 0 up-down, -1 both).
TRANSPOSE_AND_FLIP: tuple[tuple[bool, int | None], ...] = (
    (False, None), (True, 0), (False, -1), (True, 1), (False, 1), (True, None), (False, 0), (True, -1),
)  # fmt: skip


def render_view(tile: Image, view: ViewParameters) -> Image:
    """One view, (size_px, size_px, 3) uint8, of an (H, W, 3) uint8 RGB tile. The tile is not changed."""
    image = crop_and_resize(tile, view)
    image = turn_and_flip(image, view.dihedral)
    if view.stain_scale is not None and view.stain_bias is not None:
        image = jitter_stain(image, view.stain_scale, view.stain_bias)
    if view.colour_order is not None:
        image = jitter_colour(image, view)
    if view.is_grey:
        image = _image(cv2.cvtColor(pixel.to_gray_weighted_average(image), cv2.COLOR_GRAY2RGB))
    if view.blur_sigma_px is not None:
        image = blur(image, view.blur_sigma_px)
    if view.is_solarized:
        image = pixel.solarize(image, 128 / 255)
    return image


def crop_and_resize(tile: Image, view: ViewParameters) -> Image:
    """The crop at the view's size, bicubic; antialiased (the kernel grows with the step) where it shrinks."""
    crop = tile[view.y : view.y + view.height, view.x : view.x + view.width]
    size = (view.size_px, view.size_px)
    if view.width <= view.size_px and view.height <= view.size_px:
        return _image(cv2.resize(crop, size, interpolation=cv2.INTER_CUBIC))
    # torch's antialiased bicubic is PIL's to a grey level, and takes half of the time of OpenCV's area averages.
    channels_last = torch.from_numpy(crop.copy())[None].permute(0, 3, 1, 2)
    resized = functional.interpolate(channels_last, size, mode="bicubic", antialias=True)
    return cast(Image, resized.permute(0, 2, 3, 1)[0].numpy())


def turn_and_flip(image: Image, dihedral: int) -> Image:
    """One of the eight symmetries of the square: `dihedral % 4` quarter turns after a flip when `dihedral >= 4`."""
    transposes, flip = TRANSPOSE_AND_FLIP[dihedral]
    if transposes:
        image = _image(cv2.transpose(image))
    return image if flip is None else _image(cv2.flip(image, flip))


def jitter_colour(image: Image, view: ViewParameters) -> Image:
    """Brightness, contrast, saturation and hue in the view's random order, as torchvision's ColorJitter does."""
    for operation in view.colour_order or ():
        if operation == 0:
            image = _transformed(image, _IDENTITY * view.brightness)
        elif operation == 1:
            matrix = _IDENTITY * view.contrast
            matrix[:, 3] = (1 - view.contrast) * (LUMA @ cv2.mean(image)[:3])
            image = _transformed(image, matrix)
        elif operation == 2:
            matrix = _IDENTITY * view.saturation
            matrix[:, :3] += (1 - view.saturation) * LUMA
            image = _transformed(image, matrix)
        else:
            image = shift_hue(image, view.hue)
    return image


def shift_hue(image: Image, hue: float) -> Image:
    """The hue of HSV turned by `hue`, a share of the circle; in steps of 1/256, as PIL does."""
    step = round(hue * 256) % 256
    if step == 0:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    rows = hsv.reshape(len(hsv), -1)
    # It wraps around, as hues do. Whole rows at once: every third byte alone takes twice as long.
    rows += np.tile(np.array([step, 0, 0], np.uint8), hsv.shape[1])
    return _image(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL))


def blur_radius_px(sigma_px: float) -> int:
    """Where the kernel of a blur ends: three standard deviations."""
    return max(1, round(3 * sigma_px))


def blur(image: Image, sigma_px: float) -> Image:
    """Gaussian blur."""
    # OpenCV's GaussianBlur spends twice the time on the same result, to give the same bits on every machine.
    kernel = cv2.getGaussianKernel(2 * blur_radius_px(sigma_px) + 1, sigma_px)
    return _image(cv2.sepFilter2D(image, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT_101))


_IDENTITY = np.eye(3, 4)


def _transformed(image: Image, matrix: NDArray[np.float64]) -> Image:
    """Each pixel (and 1) times a (3, 4) matrix, rounded and cut to uint8."""
    return _image(cv2.transform(image, matrix))


def _image(pixels: cv2.typing.MatLike) -> Image:
    return cast(Image, pixels)

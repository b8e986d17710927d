"""Applying view parameters to pixels. uint8 RGB all the way; the pixel operations are albumentations' and OpenCV's."""

from __future__ import annotations

from typing import cast

import albumentations.augmentations.geometric.functional as geometric
import albumentations.augmentations.pixel.functional as pixel
import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.views.parameters import ViewParameters
from dino_path.views.stain import jitter_stain

Image = NDArray[np.uint8]


def render_view(tile: Image, view: ViewParameters) -> Image:
    """One view, (size_px, size_px, 3) uint8, of an (H, W, 3) uint8 RGB tile. The tile is not changed."""
    image = crop_and_resize(tile, view)
    image = turn_and_flip(image, view.dihedral)
    if view.stain_scale is not None and view.stain_bias is not None:
        image = jitter_stain(image, view.stain_scale, view.stain_bias)
    if view.colour_order is not None:
        image = jitter_colour(image, view)
    if view.is_grey:
        image = pixel.to_gray_weighted_average(image)[..., None].repeat(3, axis=2)
    if view.blur_sigma_px is not None:
        image = cast(Image, cv2.GaussianBlur(image, (0, 0), view.blur_sigma_px, borderType=cv2.BORDER_REFLECT_101))
    if view.is_solarized:
        image = pixel.solarize(image, 128 / 255)
    return image


def crop_and_resize(tile: Image, view: ViewParameters) -> Image:
    """The crop at the view's size: bicubic when it grows, area averages (antialiased) when it shrinks."""
    crop = tile[view.y : view.y + view.height, view.x : view.x + view.width]
    shrinks = view.width > view.size_px or view.height > view.size_px
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cast(Image, cv2.resize(crop, (view.size_px, view.size_px), interpolation=interpolation))


def turn_and_flip(image: Image, dihedral: int) -> Image:
    """One of the eight symmetries of the square: `dihedral % 4` quarter turns after a flip when `dihedral >= 4`."""
    if dihedral >= 4:
        image = geometric.hflip(image)
    return np.ascontiguousarray(np.rot90(image, dihedral % 4))


def jitter_colour(image: Image, view: ViewParameters) -> Image:
    """Brightness, contrast, saturation and hue in the view's random order, as torchvision's ColorJitter does."""
    for operation in view.colour_order or ():
        if operation == 0:
            image = pixel.adjust_brightness_torchvision(image, view.brightness)
        elif operation == 1:
            image = pixel.adjust_contrast_torchvision(image, view.contrast)
        elif operation == 2:
            image = pixel.adjust_saturation_torchvision(image, view.saturation)
        else:
            image = pixel.adjust_hue_torchvision(image, view.hue)
    return image

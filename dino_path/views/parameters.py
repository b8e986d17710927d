"""Parameters of a tile's views: all random numbers are drawn here, from (seed, epoch, tile) alone.

Neither the worker, nor the rank, nor what was drawn before has any influence, so the same tile in the same epoch
gives the same views however the work is divided, and after every resume.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from dino_path.config import ViewsConfig

CROP_TRIES = 10
# Of a crop, its turn, stain, colour, grey, blur and solarisation.
MOST_NUMBERS_PER_VIEW = (2 * CROP_TRIES + 2) + 1 + 7 + 6 + 1 + 2 + 1
COLOUR_ORDERS = tuple(itertools.permutations(range(4)))
Draw = Callable[[], float]
"""The next of a row of random numbers, uniform in [0, 1)."""


@dataclass(frozen=True, slots=True)
class ViewParameters:
    """One view: a crop of the tile, then geometry, colour and blur. None and False leave the view as it is."""

    x: int
    y: int
    width: int
    height: int
    """The crop, in pixels of the tile."""
    size_px: int
    """Edge of the view."""
    dihedral: int
    """0 to 7: number of quarter turns (counter-clockwise), plus 4 for a left-right flip before them."""
    stain_scale: tuple[float, float, float] | None
    """Factors of haematoxylin, eosin and residual density."""
    stain_bias: tuple[float, float, float] | None
    """Offsets of the same, in optical density."""
    colour_order: tuple[int, ...] | None
    """The order of brightness (0), contrast (1), saturation (2) and hue (3); None: no colour jitter."""
    brightness: float
    contrast: float
    saturation: float
    hue: float
    """Factors around 1; hue as a share of the circle around 0."""
    is_grey: bool
    blur_sigma_px: float | None
    is_solarized: bool


class _Stain(TypedDict):
    stain_scale: tuple[float, float, float] | None
    stain_bias: tuple[float, float, float] | None


class _Colour(TypedDict):
    colour_order: tuple[int, ...] | None
    brightness: float
    contrast: float
    saturation: float
    hue: float


def draw_views(
    config: ViewsConfig,
    *,
    tile_width: int,
    tile_height: int,
    mpp: float | None = None,
    seed: int,
    epoch: int,
    tile: int,
) -> list[ViewParameters]:
    """The parameters of all views of one tile: two global ones, then `config.num_local` local ones.

    Args:
        mpp: microns per pixel of the tile; only `global_um` and `local_um` need it.
    """
    num_views = 2 + config.num_local

    def crop_scale(share: tuple[float, float], size_um: tuple[float, float] | None) -> tuple[float, float]:
        """Smallest and largest area, as a share of the tile."""
        if size_um is None:
            return share
        assert mpp is not None
        tile_um2 = tile_width * tile_height * mpp**2
        return size_um[0] ** 2 / tile_um2, size_um[1] ** 2 / tile_um2

    scales = crop_scale(config.global_scale, config.global_um), crop_scale(config.local_scale, config.local_um)
    rng = np.random.Generator(np.random.SFC64([seed, epoch, tile]))
    # All numbers of the tile at once: a call of the generator costs as much as a hundred numbers.
    draw: Draw = iter(rng.random(num_views * MOST_NUMBERS_PER_VIEW).tolist()).__next__
    views = []
    for view in range(num_views):
        is_global = view < 2
        scale = scales[0] if is_global else scales[1]
        x, y, width, height = draw_crop(draw, tile_width, tile_height, scale, config.aspect)
        views.append(
            ViewParameters(
                x=x,
                y=y,
                width=width,
                height=height,
                size_px=config.global_px if is_global else config.local_px,
                dihedral=_draw_dihedral(draw, config),
                **_draw_stain(draw, config),
                **_draw_colour(draw, config),
                is_grey=draw() < config.grey_prob,
                blur_sigma_px=_draw_blur(draw, config, config.blur_prob[min(view, 2)]),
                is_solarized=view == 1 and draw() < config.solarize_prob,
            )
        )
    return views


def draw_crop(
    draw: Draw, tile_width: int, tile_height: int, scale: tuple[float, float], aspect: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(x, y, width, height) of a random-resized crop: area uniform in `scale`, log aspect uniform in `aspect`.

    Source: Szegedy et al. 2015, as torchvision's RandomResizedCrop draws it; after ten misses the centre.
    """
    low, high = math.log(aspect[0]), math.log(aspect[1])
    for _ in range(CROP_TRIES):
        area = tile_width * tile_height * _between(draw, *scale)
        ratio = math.exp(_between(draw, low, high))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= tile_width and 0 < height <= tile_height:
            return int(draw() * (tile_width - width + 1)), int(draw() * (tile_height - height + 1)), width, height
    edge = min(tile_width, tile_height)
    return (tile_width - edge) // 2, (tile_height - edge) // 2, edge, edge


def _between(draw: Draw, low: float, high: float) -> float:
    return low + (high - low) * draw()


def _draw_dihedral(draw: Draw, config: ViewsConfig) -> int:
    if config.dihedral:
        return int(draw() * 8)
    return 4 if draw() < config.flip_prob else 0


def _draw_stain(draw: Draw, config: ViewsConfig) -> _Stain:
    if draw() >= config.stain_prob:
        return {"stain_scale": None, "stain_bias": None}
    low, high, bias = 1 - config.stain_sigma, 1 + config.stain_sigma, config.stain_bias
    return {
        "stain_scale": (_between(draw, low, high), _between(draw, low, high), _between(draw, low, high)),
        "stain_bias": (_between(draw, -bias, bias), _between(draw, -bias, bias), _between(draw, -bias, bias)),
    }


def _draw_colour(draw: Draw, config: ViewsConfig) -> _Colour:
    if draw() >= config.colour_prob:
        return {"colour_order": None, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}

    def around_one(spread: float) -> float:
        return _between(draw, max(0.0, 1 - spread), 1 + spread)

    return {
        "colour_order": COLOUR_ORDERS[int(draw() * len(COLOUR_ORDERS))],
        "brightness": around_one(config.brightness),
        "contrast": around_one(config.contrast),
        "saturation": around_one(config.saturation),
        "hue": _between(draw, -config.hue, config.hue),
    }


def _draw_blur(draw: Draw, config: ViewsConfig, probability: float) -> float | None:
    return _between(draw, *config.blur_sigma) if draw() < probability else None

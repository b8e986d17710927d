"""What happens to each view of a tile: all random numbers are drawn here, from (seed, epoch, tile) alone.

Neither the worker, nor the rank, nor what was drawn before has any influence, so the same tile in the same epoch
gives the same views however the work is divided, and after every resume.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from dino_path.config import ViewsConfig

CROP_TRIES = 10


@dataclass(frozen=True)
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
    colour_order: tuple[int, int, int, int] | None
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
    colour_order: tuple[int, int, int, int] | None
    brightness: float
    contrast: float
    saturation: float
    hue: float


def draw_views(
    config: ViewsConfig, *, tile_width: int, tile_height: int, seed: int, epoch: int, tile: int
) -> list[ViewParameters]:
    """The parameters of all views of one tile: two global ones, then `config.num_local` local ones."""
    rng = np.random.Generator(np.random.SFC64([seed, epoch, tile]))
    views = []
    for view in range(2 + config.num_local):
        is_global = view < 2
        scale = config.global_scale if is_global else config.local_scale
        size_px = config.global_px if is_global else config.local_px
        x, y, width, height = draw_crop(rng, tile_width, tile_height, scale, config.aspect)
        views.append(
            ViewParameters(
                x=x,
                y=y,
                width=width,
                height=height,
                size_px=size_px,
                dihedral=_draw_dihedral(rng, config),
                **_draw_stain(rng, config),
                **_draw_colour(rng, config),
                is_grey=rng.random() < config.grey_prob,
                blur_sigma_px=_draw_blur(rng, config, config.blur_prob[min(view, 2)]),
                is_solarized=view == 1 and rng.random() < config.solarize_prob,
            )
        )
    return views


def draw_crop(
    rng: np.random.Generator,
    tile_width: int,
    tile_height: int,
    scale: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[int, int, int, int]:
    """(x, y, width, height) of a random-resized crop: area uniform in `scale`, log aspect uniform in `aspect`.

    Source: Szegedy et al. 2015, as torchvision's RandomResizedCrop draws it; after ten misses the centre.
    """
    for _ in range(CROP_TRIES):
        area = tile_width * tile_height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < width <= tile_width and 0 < height <= tile_height:
            x = int(rng.integers(tile_width - width + 1))
            y = int(rng.integers(tile_height - height + 1))
            return x, y, width, height
    edge = min(tile_width, tile_height)
    return (tile_width - edge) // 2, (tile_height - edge) // 2, edge, edge


def _draw_dihedral(rng: np.random.Generator, config: ViewsConfig) -> int:
    if config.dihedral:
        return int(rng.integers(8))
    return 4 if rng.random() < config.flip_prob else 0


def _draw_stain(rng: np.random.Generator, config: ViewsConfig) -> _Stain:
    if rng.random() >= config.stain_prob:
        return {"stain_scale": None, "stain_bias": None}
    first, second, third = rng.uniform(1 - config.stain_sigma, 1 + config.stain_sigma, 3).tolist()
    scale = (first, second, third)
    first, second, third = rng.uniform(-config.stain_bias, config.stain_bias, 3).tolist()
    return {"stain_scale": scale, "stain_bias": (first, second, third)}


def _draw_colour(rng: np.random.Generator, config: ViewsConfig) -> _Colour:
    if rng.random() >= config.colour_prob:
        return {"colour_order": None, "brightness": 1.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}

    def around_one(spread: float) -> float:
        return float(rng.uniform(max(0.0, 1 - spread), 1 + spread))

    first, second, third, fourth = rng.permutation(4).tolist()
    return {
        "colour_order": (first, second, third, fourth),
        "brightness": around_one(config.brightness),
        "contrast": around_one(config.contrast),
        "saturation": around_one(config.saturation),
        "hue": float(rng.uniform(-config.hue, config.hue)),
    }


def _draw_blur(rng: np.random.Generator, config: ViewsConfig, probability: float) -> float | None:
    if rng.random() >= probability:
        return None
    return float(rng.uniform(*config.blur_sigma))

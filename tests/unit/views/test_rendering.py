"""Pixels of views: geometry, resampling, blur and colour against plain formulas, PIL, SciPy and torchvision."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as torchvision_colour
from numpy.typing import NDArray
from PIL import Image as PilImage
from scipy.ndimage import gaussian_filter
from tiny import tile_image

from dino_path.config import ViewsConfig
from dino_path.views.parameters import ViewParameters, draw_views
from dino_path.views.rendering import crop_and_resize, jitter_colour, render_view, turn_and_flip

Image = NDArray[np.uint8]
PLAIN = ViewParameters(
    x=0, y=0, width=64, height=64, size_px=64, dihedral=0, stain_scale=None, stain_bias=None, colour_order=None,
    brightness=1, contrast=1, saturation=1, hue=0, is_grey=False, blur_sigma_px=None, is_solarized=False,
)  # fmt: skip
ORDER = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def tile() -> Image:
    image = tile_image(4, 64)
    image.setflags(write=False)
    return image


def smooth_image(edge: int) -> Image:
    """Slow waves in three colours."""
    y, x = np.mgrid[:edge, :edge] / edge * 2 * np.pi
    waves = [np.sin(x + y), np.cos(2 * x - y), np.sin(1.5 * y)]
    return np.rint(127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def largest_difference(one: Image, other: Image) -> int:
    return int(np.abs(one.astype(int) - other.astype(int)).max())


def test_a_view_without_changes_is_the_tile(tile: Image) -> None:
    assert np.array_equal(render_view(tile, PLAIN), tile)


@pytest.mark.parametrize("recipe", ["histology", "dino"])
def test_views_are_whole_uint8_images_of_their_size_in_one_piece_and_the_tile_stays(recipe: str, tile: Image) -> None:
    config = ViewsConfig.model_validate({"recipe": recipe, "global_px": 32, "local_px": 16, "num_local": 2})
    before = tile.copy()
    for number in range(40):
        for view in draw_views(config, tile_width=64, tile_height=64, seed=1, epoch=0, tile=number):
            image = render_view(tile, view)
            assert image.shape == (view.size_px, view.size_px, 3)
            assert image.dtype == np.uint8
            assert image.flags.c_contiguous
            assert not np.shares_memory(image, tile)
    assert np.array_equal(tile, before)


def test_tiles_that_are_not_square_are_cropped_inside() -> None:
    wide = smooth_image(80)[:40]
    for number in range(20):
        for view in draw_views(ViewsConfig(num_local=2), tile_width=80, tile_height=40, seed=0, epoch=0, tile=number):
            assert view.x + view.width <= 80
            assert view.y + view.height <= 40
            assert render_view(wide, view).shape == (view.size_px, view.size_px, 3)


def test_the_eight_symmetries_are_quarter_turns_after_a_flip(tile: Image) -> None:
    for dihedral in range(8):
        expected = np.rot90(tile[:, ::-1] if dihedral >= 4 else tile, dihedral % 4)
        assert np.array_equal(turn_and_flip(tile, dihedral), expected)
    assert len({turn_and_flip(tile, dihedral).tobytes() for dihedral in range(8)}) == 8


def test_a_crop_is_what_its_numbers_say(tile: Image) -> None:
    view = replace(PLAIN, x=5, y=9, width=20, height=20, size_px=20)
    assert np.array_equal(crop_and_resize(tile, view), tile[9:29, 5:25])


def resized_by_pil(image: Image, *, width: int, height: int, size_px: int) -> Image:
    crop = PilImage.fromarray(image).crop((0, 0, width, height))
    return np.asarray(crop.resize((size_px, size_px), PilImage.Resampling.BICUBIC))


@pytest.mark.parametrize(("width", "height"), [(50, 60), (95, 70), (57, 48)])
def test_enlarging_is_bicubic_near_to_pils(width: int, height: int) -> None:
    """OpenCV's cubic has a = -0.75 and PIL's a = -0.5: half a grey level in the mean, more at hard edges."""
    view = replace(PLAIN, width=width, height=height, size_px=96)
    for image, mean, largest in ((smooth_image(96), 0.5, 2), (tile_image(4, 96), 1.2, 14)):
        expected = resized_by_pil(image, width=width, height=height, size_px=96)
        difference = np.abs(crop_and_resize(image, view).astype(int) - expected)
        assert difference.mean() <= mean
        assert difference.max() <= largest


@pytest.mark.parametrize(("width", "height"), [(250, 240), (200, 256), (97, 97), (80, 110)])
def test_shrinking_is_the_antialiased_bicubic_of_pil(width: int, height: int) -> None:
    view = replace(PLAIN, width=width, height=height, size_px=96)
    for image in (smooth_image(256), tile_image(4, 256)):
        expected = resized_by_pil(image, width=width, height=height, size_px=96)
        assert largest_difference(crop_and_resize(image, view), expected) <= 1


def test_shrinking_does_not_alias() -> None:
    y, x = np.mgrid[:256, :256]
    stripes = np.where((x + y) % 2, 255, 0).astype(np.uint8)[..., None].repeat(3, axis=2)  # the finest pattern there is
    shrunk = crop_and_resize(stripes, replace(PLAIN, width=256, height=256, size_px=96))
    aliased = cv2.resize(stripes, (96, 96), interpolation=cv2.INTER_CUBIC)
    assert float(shrunk.mean()) == pytest.approx(127.5, abs=1)
    assert float(shrunk.std()) < 0.15 * float(aliased.std())


def test_blur_is_a_gaussian_of_the_given_sigma(tile: Image) -> None:
    for sigma in (0.5, 1.0, 2.0):
        blurred = render_view(tile, replace(PLAIN, blur_sigma_px=sigma))
        expected = gaussian_filter(tile.astype(float), (sigma, sigma, 0), mode="mirror", truncate=6)
        assert np.abs(blurred - expected).max() <= 2


def test_the_weakest_blur_leaves_the_view_almost_as_it_is(tile: Image) -> None:
    assert largest_difference(render_view(tile, replace(PLAIN, blur_sigma_px=0.1)), tile) <= 1


def test_solarisation_inverts_levels_from_128_on() -> None:
    ramp = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    view = replace(PLAIN, width=16, height=16, size_px=16, is_solarized=True)
    levels = render_view(ramp, view)[..., 0].ravel().tolist()
    assert levels == [level if level < 128 else 255 - level for level in range(256)]


def test_grey_is_the_luminance_in_all_three_channels(tile: Image) -> None:
    grey = render_view(tile, replace(PLAIN, is_grey=True))
    assert np.array_equal(grey[..., 0], grey[..., 1])
    assert np.array_equal(grey[..., 0], grey[..., 2])
    assert np.abs(grey[..., 0] - tile @ np.array([0.299, 0.587, 0.114])).max() <= 1


@pytest.mark.parametrize(
    ("operation", "name", "value"),
    [
        (0, "brightness", 0.7), (0, "brightness", 1.3), (1, "contrast", 0.6), (1, "contrast", 1.4),
        (2, "saturation", 0.8), (2, "saturation", 1.2), (3, "hue", 0.1), (3, "hue", -0.05), (3, "hue", 0.005),
    ],
)  # fmt: skip
def test_colour_jitter_does_what_torchvision_does(tile: Image, operation: int, name: str, value: float) -> None:
    """Against torchvision in floats: its own uint8 path cuts decimals off, and PIL's hue shift as well."""
    neutral: dict[str, float] = {"brightness": 1, "contrast": 1, "saturation": 1, "hue": 0}
    order = (operation, *(number for number in ORDER if number != operation))
    view = replace(PLAIN, colour_order=order, **{**neutral, name: value})  # type: ignore[arg-type]
    floats = torch.from_numpy(tile.copy()).permute(2, 0, 1) / 255
    expected = 255 * getattr(torchvision_colour, f"adjust_{name}")(floats, value).permute(1, 2, 0).numpy()
    difference = np.abs(jitter_colour(tile, view) - expected)
    mean, largest = (0.5, 7) if name == "hue" else (0.3, 1)  # HSV in 8 bits is coarse where there is little colour
    assert difference.mean() <= mean
    assert difference.max() <= largest
    assert largest_difference(jitter_colour(tile, view), tile) > 2


def test_colour_operations_follow_their_order(tile: Image) -> None:
    view = replace(PLAIN, brightness=1.4, contrast=0.6, colour_order=(0, 1, 2, 3))
    other = replace(view, colour_order=(1, 0, 2, 3))
    assert not np.array_equal(jitter_colour(tile, view), jitter_colour(tile, other))
    brighter = jitter_colour(tile, replace(view, contrast=1.0))
    assert np.array_equal(jitter_colour(tile, view), jitter_colour(brighter, replace(view, brightness=1.0)))


def test_a_neutral_jitter_changes_nothing_but_rounding(tile: Image) -> None:
    assert largest_difference(jitter_colour(tile, replace(PLAIN, colour_order=ORDER)), tile) <= 1

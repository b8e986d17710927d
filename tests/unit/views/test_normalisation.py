"""Reinhard's and Macenko's normalisation against their papers' formulas, written out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import tile_image, tiny_batches, tiny_config, write_tiles

from dino_path.views.normalisation import (
    LAB_FROM_LMS,
    TARGET_CONCENTRATIONS,
    TARGET_MEAN,
    TARGET_STAINS,
    TARGET_STD,
    normalise_macenko,
    normalise_reinhard,
    normalise_stain,
    stain_vectors,
)
from dino_path.views.stain import STAIN_RGB

Image = NDArray[np.uint8]
STAINS = np.array([[0.60, 0.70, 0.39], [0.24, 0.86, 0.45]])
STAINS /= np.linalg.norm(STAINS, axis=1, keepdims=True)
LMS_FROM_RGB = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])


def lab_of(image: NDArray[np.float64] | Image) -> NDArray[np.float64]:
    """Reinhard et al. 2001, equations 4 to 6, channel by channel."""
    long, middle, short = np.moveaxis(np.log(np.maximum(image, 1) @ LMS_FROM_RGB.T), -1, 0)
    return np.stack(
        [
            (long + middle + short) / np.sqrt(3),
            (long + middle - 2 * short) / np.sqrt(6),
            (long - middle) / np.sqrt(2),
        ],
        axis=-1,
    )


def stained(stains: NDArray[np.float64], concentrations: NDArray[np.float64]) -> Image:
    """Light of 240 through these concentrations (H, W, 2) of two stains (2, 3)."""
    return np.rint(240 * np.exp(-(concentrations @ stains))).astype(np.uint8)


@pytest.fixture(scope="module")
def concentrations() -> NDArray[np.float64]:
    """Pixels of either stain alone, and of both; (128, 128, 2)."""
    rng = np.random.default_rng(0)
    values = rng.uniform(0.8, 1.2, (128, 128, 2))
    values[:32, :, 0] = 0.0
    values[32:64, :, 1] = 0.0
    values[64:] *= rng.uniform(0.4, 0.8, (64, 128, 1))
    return values


def test_reinhard_sets_mean_and_deviation_of_tissue_to_the_targets(concentrations: NDArray[np.float64]) -> None:
    lab = lab_of(normalise_reinhard(stained(STAINS, concentrations)))
    assert lab.mean((0, 1)) == pytest.approx(TARGET_MEAN, abs=0.03)
    assert lab.std((0, 1)) == pytest.approx(TARGET_STD, rel=0.1)  # some colours are cut at 255


def test_reinhard_does_to_a_pixel_what_the_paper_says(concentrations: NDArray[np.float64]) -> None:
    image = stained(STAINS, concentrations)
    lab, some = lab_of(image), lab_of(image[::4, ::4])
    moved = (lab - some.mean((0, 1))) * TARGET_STD / some.std((0, 1)) + TARGET_MEAN
    expected = np.exp(moved @ np.linalg.inv(LAB_FROM_LMS).T) @ np.linalg.inv(LMS_FROM_RGB).T
    assert np.abs(normalise_reinhard(image) - expected.clip(0, 255)).max() < 0.6


def test_macenko_finds_the_stains_that_made_an_image(concentrations: NDArray[np.float64]) -> None:
    for stains in (STAIN_RGB[:2], STAINS):
        found = stain_vectors((concentrations @ stains).reshape(-1, 3))
        assert (found * stains).sum(1) == pytest.approx(1, abs=1e-3), "cosines"
        assert np.linalg.norm(found, axis=1) == pytest.approx(1)


def test_macenko_replaces_stains_and_scales_their_concentrations(concentrations: NDArray[np.float64]) -> None:
    expected = concentrations * TARGET_CONCENTRATIONS / np.percentile(concentrations, 99, axis=(0, 1))
    normalised = normalise_macenko(stained(STAINS, concentrations))
    difference = np.abs(normalised.astype(int) - stained(TARGET_STAINS, expected))
    assert difference.mean() < 2.5, "stains and extremes are found from percentiles of one pixel in sixteen"
    assert difference.max() < 12


@pytest.mark.parametrize("method", ["reinhard", "macenko"])
def test_two_stainings_of_one_tissue_have_one_colour_afterwards(
    concentrations: NDArray[np.float64], method: str
) -> None:
    one = stained(STAINS, concentrations)
    other = stained(STAINS, concentrations * [0.7, 1.3])
    before = np.abs(one.mean((0, 1)) - other.mean((0, 1)))
    colours = [normalise_stain(image, method).mean((0, 1)) for image in (one, other)]  # type: ignore[arg-type]
    assert np.abs(colours[0] - colours[1]).max() < 0.35 * before.max()


@pytest.mark.parametrize("method", ["reinhard", "macenko"])
def test_glass_stays_and_a_tile_without_tissue_is_left_as_it_is(
    concentrations: NDArray[np.float64], method: str
) -> None:
    image = stained(STAINS, concentrations)
    image[:, 100:] = 240
    normalised = normalise_stain(image, method)  # type: ignore[arg-type]
    assert np.abs(normalised[:, 100:].astype(int) - 240).max() <= 1
    assert not np.array_equal(normalised[:, :100], image[:, :100])
    empty = np.full((64, 64, 3), 238, np.uint8)
    empty[:8, :8] = image[:8, :8]
    assert np.array_equal(normalise_stain(empty, method), empty)  # type: ignore[arg-type]


def test_off_is_off() -> None:
    assert normalise_stain(tile_image(0), None) is not None
    assert np.array_equal(normalise_stain(tile_image(0), None), tile_image(0))


def test_views_are_made_of_normalised_tiles_where_that_is_configured(tmp_path: Path) -> None:
    write_tiles(tmp_path, 4, 96)
    plain = tiny_batches(tiny_config(tmp_path, Path("unused")))
    configured = tiny_batches(tiny_config(tmp_path, Path("unused"), "views.stain_normalisation=macenko"))
    tile = plain.source.read_image(3)
    before = tile.copy()
    assert np.array_equal(configured.tile_image(3), normalise_macenko(tile))
    assert np.array_equal(tile, before)
    assert not torch.equal(configured.batch(0).global_views, plain.batch(0).global_views)

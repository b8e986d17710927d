"""Stain jitter against colour deconvolution written out."""

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny import tile_image

from dino_path.views.stain import STAIN_RGB, jitter_stain

NO_BIAS = (0.0, 0.0, 0.0)


def image_of(haematoxylin: NDArray[np.float64], eosin: NDArray[np.float64]) -> NDArray[np.uint8]:
    """The colours that these two densities give on glass (Beer-Lambert)."""
    density = haematoxylin[..., None] * STAIN_RGB[0] + eosin[..., None] * STAIN_RGB[1]
    return np.rint(255 * np.exp(-density)).astype(np.uint8)


def densities_of(image: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Haematoxylin, eosin and residual density of each pixel, by solving three equations."""
    density = -np.log(np.maximum(image, 1) / 255)
    return np.linalg.solve(STAIN_RGB.T, density.reshape(-1, 3).T).T.reshape(density.shape)


@pytest.fixture(scope="module")
def stained() -> NDArray[np.uint8]:
    """Haematoxylin rises from left to right, eosin from top to bottom."""
    eosin, haematoxylin = np.mgrid[0.1:0.6:24j, 0.1:1.0:24j]
    return image_of(haematoxylin, eosin)


def test_scale_one_without_bias_changes_no_level_by_more_than_one() -> None:
    levels = np.stack(np.meshgrid(*[np.arange(1, 256, 12)] * 3), axis=-1).reshape(-1, 22, 3).astype(np.uint8)
    for image in (levels, tile_image(0)):
        jittered = jitter_stain(image, (1.0, 1.0, 1.0), NO_BIAS)
        assert jittered.dtype == np.uint8
        assert np.abs(jittered.astype(int) - image).max() <= 1


def test_scaling_haematoxylin_changes_haematoxylin_only(stained: NDArray[np.uint8]) -> None:
    before, after = densities_of(stained), densities_of(jitter_stain(stained, (1.3, 1.0, 1.0), NO_BIAS))
    assert np.abs(after[..., 0] - 1.3 * before[..., 0]).max() < 0.03
    assert np.abs(after[..., 1:] - before[..., 1:]).max() < 0.03


def test_scaling_eosin_changes_eosin_only(stained: NDArray[np.uint8]) -> None:
    before, after = densities_of(stained), densities_of(jitter_stain(stained, (1.0, 0.7, 1.0), NO_BIAS))
    assert np.abs(after[..., 1] - 0.7 * before[..., 1]).max() < 0.03
    assert np.abs(after[..., [0, 2]] - before[..., [0, 2]]).max() < 0.03


def test_bias_adds_density_of_one_stain(stained: NDArray[np.uint8]) -> None:
    before, after = densities_of(stained), densities_of(jitter_stain(stained, (1.0, 1.0, 1.0), (0.1, 0.0, 0.0)))
    assert np.abs(after - before - [0.1, 0, 0]).max() < 0.03


def test_glass_stays_glass_when_stains_are_scaled() -> None:
    glass = np.full((4, 4, 3), 255, np.uint8)
    assert np.array_equal(jitter_stain(glass, (1.2, 0.8, 1.1), NO_BIAS), glass)


def test_levels_outside_the_range_are_cut_and_do_not_wrap() -> None:
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    assert jitter_stain(black, (1.2, 1.2, 1.2), (0.02, 0.02, 0.02)).max() <= 1
    assert jitter_stain(white, (1.0, 1.0, 1.0), (-0.5, -0.5, -0.5)).min() == 255

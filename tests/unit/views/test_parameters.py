"""The parameters drawn for each view follow the distributions in the config."""

import itertools
import math
from dataclasses import fields

import numpy as np
import pytest
from numpy.typing import NDArray

from dino_path.config import ViewsConfig
from dino_path.views.parameters import ViewParameters, draw_crop, draw_views

HISTOLOGY = ViewsConfig(
    num_local=2, global_scale=(0.4, 1.0), local_scale=(0.05, 0.4), blur_prob=(0.5, 0.1, 0.5), stain_prob=0.8,
    stain_sigma=0.2, stain_bias=0.02,
)  # fmt: skip
NUM_TILES = 2000
EDGE = 256


def draw(config: ViewsConfig, num_tiles: int = NUM_TILES, edge: int = EDGE) -> list[list[ViewParameters]]:
    """Views of many tiles: [tile][view]."""
    return [
        draw_views(config, tile_width=edge, tile_height=edge, seed=0, epoch=0, tile=tile) for tile in range(num_tiles)
    ]


def rate_is(observed: NDArray[np.bool_] | list[bool], expected: float) -> bool:
    """Whether a measured share is within four standard errors of the configured one."""
    return abs(float(np.mean(observed)) - expected) <= 4 * math.sqrt(expected * (1 - expected) / len(observed)) + 1e-12


@pytest.fixture(scope="module")
def histology() -> list[list[ViewParameters]]:
    return draw(HISTOLOGY)


@pytest.fixture(scope="module")
def dino() -> list[list[ViewParameters]]:
    return draw(ViewsConfig(recipe="dino", num_local=2))  # type: ignore[call-arg]


def test_two_global_views_come_first_then_the_local_ones() -> None:
    views = draw(ViewsConfig(num_local=3, global_px=160, local_px=64), num_tiles=1)[0]
    assert [view.size_px for view in views] == [160, 160, 64, 64, 64]


@pytest.mark.parametrize(("place", "low", "high"), [(0, 0.4, 1.0), (1, 0.4, 1.0), (2, 0.05, 0.4), (3, 0.05, 0.4)])
def test_area_of_crops_is_uniform_in_its_range(
    histology: list[list[ViewParameters]], place: int, low: float, high: float
) -> None:
    areas = np.array([views[place].width * views[place].height / EDGE**2 for views in histology])
    rounding = 0.01
    assert low - rounding <= areas.min() < low + 0.02
    assert high - 0.02 < areas.max() <= high + rounding
    if high < 1:  # near the whole tile, crops that do not fit are drawn again: fewer large ones
        quarters = np.histogram(areas, np.linspace(low, high, 5))[0] / len(areas)
        assert np.allclose(quarters, 0.25, atol=0.045)


def test_aspect_of_crops_is_uniform_on_the_logarithm(histology: list[list[ViewParameters]]) -> None:
    ratios = np.log([views[2].width / views[2].height for views in histology])
    limit = math.log(4 / 3)
    assert np.abs(ratios).max() <= limit + 0.03
    assert abs(np.mean(ratios)) < 0.02
    assert np.allclose(np.histogram(ratios, np.linspace(-limit, limit, 5))[0] / len(ratios), 0.25, atol=0.05)


def test_sizes_in_microns_are_kept_whatever_the_tiles_pixels_are() -> None:
    config = ViewsConfig(global_um=(60, 120), local_um=(20, 50), num_local=2)
    for mpp, edge in ((0.5, 256), (0.25, 640)):
        for place, low, high in ((0, 60, 120), (1, 60, 120), (3, 20, 50)):
            views = [
                draw_views(config, tile_width=edge, tile_height=edge, mpp=mpp, seed=0, epoch=0, tile=tile)[place]
                for tile in range(600)
            ]
            sizes_um = np.array([mpp * math.sqrt(view.width * view.height) for view in views])
            assert low - mpp <= sizes_um.min() < low + 0.1 * (high - low)
            assert high - 0.1 * (high - low) < sizes_um.max() <= high + mpp
            assert np.mean(sizes_um**2) == pytest.approx((low**2 + high**2) / 2, rel=0.06)  # uniform in area


def test_crops_lie_inside_the_tile_and_reach_its_edges(histology: list[list[ViewParameters]]) -> None:
    for place in range(4):
        x = np.array([views[place].x for views in histology])
        right = np.array([views[place].x + views[place].width for views in histology])
        bottom = np.array([views[place].y + views[place].height for views in histology])
        assert x.min() == 0
        assert right.max() == EDGE
        assert bottom.max() == EDGE


def test_a_crop_that_never_fits_becomes_the_central_square() -> None:
    assert draw_crop(np.random.default_rng(0).random, 100, 10, (1.0, 1.0), (1.0, 1.0)) == (45, 0, 10, 10)


@pytest.mark.parametrize(("place", "rate"), [(0, 0.5), (1, 0.1), (2, 0.5), (3, 0.5)])
def test_blur_has_the_configured_rate_on_each_view(
    histology: list[list[ViewParameters]], place: int, rate: float
) -> None:
    assert rate_is([views[place].blur_sigma_px is not None for views in histology], rate)


def test_each_views_blur_comes_as_often_as_its_own_probability_says_and_not_as_often_as_it_should_be_absent() -> None:
    """DINOv2, DINOv3 and OpenMidnight blur with probability 1 - p: no rate here is its own opposite."""
    drawn = draw(ViewsConfig(num_local=2, blur_prob=(0.8, 0.1, 0.3)), num_tiles=3000)
    for place, rate in enumerate((0.8, 0.1, 0.3, 0.3)):
        assert rate_is([views[place].blur_sigma_px is not None for views in drawn], rate)


def test_blur_of_the_paper_is_always_on_view_one_and_seldom_on_view_two(dino: list[list[ViewParameters]]) -> None:
    rates = [np.mean([views[place].blur_sigma_px is not None for views in dino]) for place in range(4)]
    assert rates[0] == 1.0
    assert rates[1:] == pytest.approx([0.1, 0.5, 0.5], abs=0.05)
    sigmas = [views[0].blur_sigma_px or 0 for views in dino]
    assert 0.1 <= min(sigmas) < 0.12
    assert 1.98 < max(sigmas) <= 2.0
    assert np.mean(sigmas) == pytest.approx(1.05, abs=0.06)


def test_only_the_second_global_view_is_ever_solarized(dino: list[list[ViewParameters]]) -> None:
    rates = [np.mean([views[place].is_solarized for views in dino]) for place in range(4)]
    assert [rates[0], *rates[2:]] == [0, 0, 0]
    assert rate_is([views[1].is_solarized for views in dino], 0.2)


def test_histology_has_no_grey_no_solarisation_and_the_paper_no_stain(
    histology: list[list[ViewParameters]], dino: list[list[ViewParameters]]
) -> None:
    assert not any(view.is_grey or view.is_solarized for views in histology for view in views)
    assert all(view.stain_scale is None for views in dino for view in views)
    assert rate_is([view.is_grey for views in dino for view in views], 0.2)


def test_the_eight_symmetries_come_equally_often(histology: list[list[ViewParameters]]) -> None:
    counts = np.bincount([view.dihedral for views in histology for view in views], minlength=8)
    expected = counts.sum() / 8
    assert len(counts) == 8
    assert float(((counts - expected) ** 2 / expected).sum()) < 7 + 5 * math.sqrt(14)


def test_the_paper_flips_left_and_right_only(dino: list[list[ViewParameters]]) -> None:
    turns = [view.dihedral for views in dino for view in views]
    assert {*turns} == {0, 4}
    assert rate_is([turn == 4 for turn in turns], 0.5)


def test_colour_jitter_has_the_configured_rate_ranges_and_orders(dino: list[list[ViewParameters]]) -> None:
    views = [view for tile in dino for view in tile]
    jittered = [view for view in views if view.colour_order is not None]
    assert rate_is([view.colour_order is not None for view in views], 0.8)
    for name, low, high in (("brightness", 0.6, 1.4), ("contrast", 0.6, 1.4), ("saturation", 0.8, 1.2)):
        values = np.array([getattr(view, name) for view in jittered])
        assert low <= values.min() < low + 0.01
        assert high - 0.01 < values.max() <= high
        assert values.mean() == pytest.approx(1, abs=0.01)
    hues = np.array([view.hue for view in jittered])
    assert -0.1 <= hues.min() < -0.099
    assert 0.099 < hues.max() <= 0.1
    assert {view.colour_order for view in jittered} == {*itertools.permutations(range(4))}


def test_stain_jitter_has_the_configured_rate_and_ranges(histology: list[list[ViewParameters]]) -> None:
    views = [view for tile in histology for view in tile]
    assert rate_is([view.stain_scale is not None for view in views], 0.8)
    scales = np.array([view.stain_scale for view in views if view.stain_scale is not None])
    biases = np.array([view.stain_bias for view in views if view.stain_bias is not None])
    assert (scales.min(axis=0) < 0.81).all()
    assert scales.min() >= 0.8
    assert (scales.max(axis=0) > 1.19).all()
    assert scales.max() <= 1.2
    assert np.abs(biases).max() <= 0.02
    assert np.abs(np.corrcoef(scales.T)[np.triu_indices(3, 1)]).max() < 0.06, "the stains are jittered one by one"


def test_a_setting_that_is_off_is_off() -> None:
    off = ViewsConfig(
        dihedral=False, flip_prob=0, stain_prob=0, colour_prob=0, blur_prob=(0, 0, 0), num_local=1, global_scale=(1, 1),
        aspect=(1, 1),
    )  # fmt: skip
    first, second, _ = draw(off, num_tiles=1)[0]
    assert first == second
    assert (first.x, first.y, first.width, first.height) == (0, 0, EDGE, EDGE)
    assert {field.name: getattr(first, field.name) for field in fields(first)[5:]} == {
        "dihedral": 0, "stain_scale": None, "stain_bias": None, "colour_order": None, "brightness": 1.0,
        "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "is_grey": False, "blur_sigma_px": None, "is_solarized": False,
    }  # fmt: skip


def test_views_depend_on_seed_epoch_and_tile_and_on_nothing_else() -> None:
    config = ViewsConfig(num_local=2)

    def views(seed: int = 0, epoch: int = 0, tile: int = 0) -> list[ViewParameters]:
        return draw_views(config, tile_width=EDGE, tile_height=EDGE, seed=seed, epoch=epoch, tile=tile)

    first = views()
    draw(config, num_tiles=3)
    assert views() == first
    for other in (views(seed=1), views(epoch=1), views(tile=1), views(seed=1, epoch=0, tile=0), views(epoch=1, tile=1)):
        assert all(one.x != two.x or one.width != two.width for one, two in zip(first, other, strict=True))

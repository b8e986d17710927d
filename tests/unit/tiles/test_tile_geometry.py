import numpy as np
import pytest

from dino_path.errors import SlideError
from dino_path.slides.slide import Level
from dino_path.tiles.geometry import TileSpec, corner_on_level, covered_fractions, tile_grid, tile_spec


def levels_of(mpp: float, *downsamples: float, edge: int = 4099) -> list[Level]:
    return [Level(round(edge / factor), round(edge / factor), factor, mpp * factor) for factor in downsamples]


def spec_of(levels: list[Level], mpp: float, size_px: int = 256, stride_px: int = 256) -> TileSpec:
    return tile_spec(levels, name="a.svs", mpp=mpp, size_px=size_px, stride_px=stride_px, tolerance=0.05)


@pytest.mark.parametrize(("downsample", "size_level0"), [(4.0, 1024), (3.9990, 1024), (4.0029, 1025)])
def test_a_downsample_a_little_off_four_is_read_as_it_is_with_its_own_footprint(
    downsample: float, size_level0: int
) -> None:
    # int(3.9990) is 3: a reader that truncates takes a third too much; one that asks for d <= 4 takes level 0.
    spec = spec_of(levels_of(0.25, 1.0, downsample), mpp=1.0)
    assert (spec.level, spec.read_px, spec.size_px) == (1, 256, 256)
    assert spec.size_level0 == size_level0 == round(256 * downsample)
    assert spec.stride_level0 == pytest.approx(256 * downsample)
    assert spec.tile_mpp == pytest.approx(0.25 * downsample)


def test_a_level_outside_the_tolerance_is_read_finer_and_the_footprint_is_that_of_the_asked_mpp() -> None:
    spec = spec_of(levels_of(0.3017, 1.0, 4.0), mpp=0.5)
    assert (spec.level, spec.shrink) == (0, 1)
    assert spec.read_px == spec.size_level0 == spec.stride_read == round(256 * 0.5 / 0.3017) == 424
    assert spec.tile_mpp == pytest.approx(0.5, rel=0.002)
    assert spec.tile_mpp == 0.3017 * 424 / 256


@pytest.mark.parametrize(("mpp_level0", "shrink"), [(0.2525, 2), (0.2465, 2), (0.1225, 4), (0.0625, 8)])
def test_the_half_quarter_or_eighth_of_a_level_within_the_tolerance_is_taken_as_it_is(
    mpp_level0: float, shrink: int
) -> None:
    spec = spec_of(levels_of(mpp_level0, 1.0), mpp=0.5)
    assert (spec.shrink, spec.read_px) == (shrink, shrink * 256)
    assert spec.tile_mpp == pytest.approx(shrink * mpp_level0)


@pytest.mark.parametrize("stride_px", [256, 128, 64, 192, 512])
@pytest.mark.parametrize("ratio", [1.1, 1.7, 2.35, 3.4, 5.2, 13.0])
def test_tiles_are_whole_level_pixels_apart_and_never_upsampled(ratio: float, stride_px: int) -> None:
    spec = spec_of(levels_of(0.5 / ratio, 1.0), mpp=0.5, stride_px=stride_px)
    assert spec.stride_read == int(spec.stride_read)
    assert spec.read_px % spec.shrink == spec.stride_read % spec.shrink == 0
    assert spec.read_px >= spec.shrink * spec.size_px
    assert spec.tile_mpp == pytest.approx(0.5, rel=0.01)


def test_where_whole_steps_would_cost_too_much_mpp_the_tiles_keep_it() -> None:
    spec = spec_of(levels_of(0.3017, 1.0), mpp=0.5, stride_px=101)
    assert spec.stride_read != int(spec.stride_read)
    assert spec.tile_mpp == pytest.approx(0.5, rel=0.002)


@pytest.mark.parametrize(("mpp", "downsample"), [(1.0, 3.9990), (1.0, 4.0029), (1.3, 4.0029), (0.5, 4.0)])
def test_the_place_of_a_tile_on_its_level_is_found_again_from_its_rounded_corner(mpp: float, downsample: float) -> None:
    spec = spec_of(levels_of(0.25, 1.0, downsample, edge=100_000), mpp=mpp)
    corners = tile_grid(spec, width_level0=100_000, height_level0=2_000, edge="drop")
    places = [corner_on_level(spec, (x, y))[0] for x, y in corners.tolist() if y == 0]
    assert places == [round(number * spec.stride_read) for number in range(len(places))]
    x, y = corner_on_level(spec, (301, 700))
    assert abs(x - 301 * spec.read_px / spec.size_level0) <= 1
    assert abs(y - 700 * spec.read_px / spec.size_level0) <= 1


def test_the_coarsest_level_that_is_fine_enough_is_read() -> None:
    spec = spec_of(levels_of(0.25, 1.0, 2.0, 4.0, 16.0), mpp=1.5)
    assert (spec.level, spec.read_px, spec.size_level0) == (2, 384, 1536)


@pytest.mark.parametrize(("mpp_level0", "is_native"), [(0.475, True), (0.525, True), (0.474, False)])
def test_the_tolerance_is_relative_and_inclusive(mpp_level0: float, is_native: bool) -> None:
    spec = spec_of(levels_of(mpp_level0, 1.0), mpp=0.5)
    assert (spec.read_px == 256) == is_native
    assert (spec.tile_mpp == mpp_level0) == is_native
    assert spec.tile_mpp == pytest.approx(mpp_level0 if is_native else 0.5, rel=0.002)


def test_tiles_are_never_upsampled() -> None:
    with pytest.raises(SlideError, match=r"(?s)a\.svs.*0\.25 um/px.*0\.53 um/px.*tiles\.mpp to 0\.53 or more"):
        spec_of(levels_of(0.53, 1.0), mpp=0.25)
    with pytest.raises(SlideError):
        spec_of(levels_of(0.5251, 1.0), mpp=0.5)


def test_the_grid_is_row_major_from_the_origin_and_drops_tiles_that_reach_over_the_edge() -> None:
    spec = TileSpec(
        size_px=100,
        tile_mpp=0.5,
        level=0,
        read_px=100,
        stride_read=100.0,
        shrink=1,
        size_level0=100,
        stride_level0=100.0,
    )
    grid = tile_grid(spec, width_level0=300, height_level0=299, edge="drop")
    assert grid.tolist() == [[0, 0], [100, 0], [200, 0], [0, 100], [100, 100], [200, 100]]
    assert grid.dtype == np.int32
    assert tile_grid(spec, width_level0=99, height_level0=500, edge="drop").shape == (0, 2)


def test_a_fractional_stride_is_rounded_once_per_corner_and_never_drifts() -> None:
    spec = spec_of(levels_of(0.2527, 1.0, edge=200_000), mpp=0.5, stride_px=128)
    xs = tile_grid(spec, width_level0=200_000, height_level0=600, edge="drop")[:, 0]
    exact = np.arange(len(xs)) * 128 * spec.tile_mpp / 0.2527
    assert np.abs(xs - exact).max() <= 0.5
    assert 200_000 - (xs[-1] + spec.size_level0) < spec.stride_level0


def test_tiles_without_overlap_leave_no_seam_of_more_than_a_pixel() -> None:
    spec = spec_of(levels_of(0.25, 1.0, 3.9990), mpp=1.0)
    xs = np.unique(tile_grid(spec, width_level0=50_000, height_level0=2000, edge="drop")[:, 0])
    assert np.abs(np.diff(xs) - spec.size_level0).max() <= 1


def test_the_covered_fraction_is_exact_where_tiles_cut_mask_pixels() -> None:
    mask = np.array([[1, 0, 0], [0, 1, 1]], dtype=bool)  # pixels of 10 x 8 level-0 px
    corners = np.array([[0, 0], [5, 4], [12, 4], [20, 8], [26, 8]], dtype=np.int32)
    fractions = covered_fractions(mask, (10.0, 8.0), corners, size_level0=8)
    expected = [8 * 8, 5 * 4 + 3 * 4, 8 * 4, 8 * 8, 4 * 8]
    np.testing.assert_allclose(fractions, np.array(expected) / 64, rtol=1e-6)


def test_the_covered_fraction_equals_counting_pixels() -> None:
    rng = np.random.default_rng(0)
    mask = rng.random((37, 53)) < 0.4
    fine = np.repeat(np.repeat(mask, 7, axis=0), 5, axis=1)
    corners = np.stack([rng.integers(0, 53 * 5 - 60, 50), rng.integers(0, 37 * 7 - 60, 50)], axis=1).astype(np.int32)
    counted = [fine[y : y + 60, x : x + 60].mean() for x, y in corners]
    np.testing.assert_allclose(covered_fractions(mask, (5.0, 7.0), corners, 60), counted, atol=1e-6)


def test_no_tiles_have_no_fractions() -> None:
    empty = np.zeros((0, 2), dtype=np.int32)
    assert covered_fractions(np.ones((3, 3), dtype=bool), (1.0, 1.0), empty, 5).shape == (0,)

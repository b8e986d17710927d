from pathlib import Path

import numpy as np
import pytest
from slide_files import write_slide_file

from dino_path.errors import SlideError
from dino_path.slides.slide import Slide
from dino_path.tiles.geometry import tile_spec
from dino_path.tiles.reading import read_tile, read_tiles


def ramp(width: int, height: int) -> np.ndarray:
    """Red grows with x and green with y, one grey level per 4 px."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([columns // 4, rows // 4, np.zeros_like(rows)], axis=2).astype(np.uint8)


def test_a_native_tile_has_the_pixels_of_the_file(tmp_path: Path) -> None:
    image = ramp(700, 600)
    with Slide.open(write_slide_file(tmp_path / "a.tif", [image], mpp=0.49)) as slide:
        spec = tile_spec(slide.levels, name="a", mpp=0.5, size_px=256, stride_px=256, tolerance=0.05)
        np.testing.assert_array_equal(read_tile(slide, spec, (300, 200)), image[200:456, 300:556])


def test_a_resampled_tile_covers_the_footprint_of_the_asked_mpp(tmp_path: Path) -> None:
    with Slide.open(write_slide_file(tmp_path / "a.tif", [ramp(1000, 1000)], mpp=0.3)) as slide:
        spec = tile_spec(slide.levels, name="a", mpp=0.5, size_px=300, stride_px=300, tolerance=0.05)
        tile = read_tile(slide, spec, (100, 200))
    assert spec.size_level0 == 500
    expected = (100 + (np.arange(300) + 0.5) * 500 / 300) / 4 - 0.5
    assert np.abs(tile[150, :, 0] - expected).max() < 1
    assert np.abs(tile[:, 150, 1] - expected - 25).max() < 1


def test_shrinking_averages_and_does_not_alias(tmp_path: Path) -> None:
    stripes = np.zeros((512, 512, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    with Slide.open(write_slide_file(tmp_path / "a.tif", [stripes], mpp=0.25)) as slide:
        spec = tile_spec(slide.levels, name="a", mpp=0.5, size_px=128, stride_px=128, tolerance=0.05)
        assert (read_tile(slide, spec, (128, 128)) == 100).all()


@pytest.mark.parametrize("edge_level1", [1025, 1024])
def test_a_level_of_uneven_downsample_is_read_where_it_belongs(tmp_path: Path, edge_level1: int) -> None:
    centres = ((np.arange(edge_level1) + 0.5) * 4099 / edge_level1).astype(int) // 17
    level1 = np.stack([*np.meshgrid(centres, centres), np.zeros((edge_level1, edge_level1))], axis=2).astype(np.uint8)
    level0 = np.zeros((4099, 4099, 3), dtype=np.uint8)
    with Slide.open(write_slide_file(tmp_path / "a.tif", [level0, level1], mpp=0.25)) as slide:
        spec = tile_spec(slide.levels, name="a", mpp=1.0, size_px=256, stride_px=256, tolerance=0.05)
        x = round(3 * spec.stride_level0)
        tile = read_tile(slide, spec, (x, 0))
    assert spec.level == 1
    covered = x + (np.arange(256) + 0.5) * spec.size_level0 / 256
    assert np.abs(tile[100, :, 0] * 17.0 + 8.5 - covered).max() < 17


def test_an_unreadable_tile_is_its_own_error_and_the_next_ones_are_read(tmp_path: Path) -> None:
    import tifffile

    path = write_slide_file(tmp_path / "a.tif", [ramp(768, 256)], mpp=0.5)
    with tifffile.TiffFile(path) as file:
        offset, length = file.pages[0].dataoffsets[1], file.pages[0].databytecounts[1]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\0" * length)
    with Slide.open(path) as slide:
        spec = tile_spec(slide.levels, name="a", mpp=0.5, size_px=256, stride_px=256, tolerance=0.05)
        tiles = list(read_tiles(slide, spec, np.array([[0, 0], [256, 0], [512, 0]], dtype=np.int32)))
    assert isinstance(tiles[1], SlideError)
    for number in (0, 2):
        np.testing.assert_array_equal(tiles[number], ramp(768, 256)[:, 256 * number : 256 * (number + 1)])

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from slide_files import stained_image, write_jpeg_slide, write_slide_file

from dino_path.config import TilesConfig
from dino_path.errors import SlideError
from dino_path.slides.readers import native
from dino_path.slides.slide import Slide
from dino_path.tiles.geometry import TileSpec, tile_grid, tile_spec
from dino_path.tiles.reading import Tile, TileReader, read_tile


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
        corners = np.array([[0, 0], [256, 0], [512, 0]], dtype=np.int32)
        reader = TileReader.choose(slide, spec, corners, TilesConfig(mpp=0.5))
        assert reader.reader == "openslide: its tiles are compressed as ADOBE_DEFLATE"
        tiles = list(reader.read_all(corners))
    assert isinstance(tiles[1], SlideError)
    for number in (0, 2):
        tile = tiles[number]
        assert isinstance(tile, Tile)
        np.testing.assert_array_equal(tile.pixels, ramp(768, 256)[:, 256 * number : 256 * (number + 1)])


def reader_and_grid(slide: Slide, mpp: float, reader: str, **settings: Any) -> tuple[TileReader, np.ndarray]:
    config = TilesConfig.model_validate({"mpp": mpp, "size_px": 64, "reader": reader, **settings})
    spec = tile_spec(
        slide.levels, name="a", mpp=mpp, size_px=64, stride_px=config.stride_px or 64, tolerance=config.mpp_tolerance
    )
    grid = tile_grid(spec, width_level0=slide.width_level0, height_level0=slide.height_level0, edge="drop")
    return TileReader.choose(slide, spec, grid, config), grid


def put_together(reader: TileReader, grid: np.ndarray, stride_px: int) -> tuple[np.ndarray, int, int]:
    """All tiles of the grid in one picture, the later over the earlier; its rows and columns of tiles."""
    columns, rows = (len(np.unique(grid[:, axis])) for axis in (0, 1))
    picture = np.zeros(((rows - 1) * stride_px + 64, (columns - 1) * stride_px + 64, 3), dtype=np.uint8)
    for number, tile in enumerate(reader.read_all(grid)):
        assert isinstance(tile, Tile)
        y, x = (stride_px * at for at in divmod(number, columns))
        picture[y : y + 64, x : x + 64] = tile.pixels
    return picture, rows, columns


@pytest.mark.parametrize("reader_name", ["auto", "openslide"])
@pytest.mark.parametrize("stride_px", [64, 32])
@pytest.mark.parametrize("mpp_level0", [0.5, 0.25, 0.3017, 0.2173, 0.1317])
def test_tiles_put_together_are_the_whole_region_resampled_at_once(
    tmp_path: Path, mpp_level0: float, stride_px: int, reader_name: str
) -> None:
    path = write_jpeg_slide(tmp_path / "a.tif", [stained_image(1100, 700)], mpp=mpp_level0, tile_px=240)
    with Slide.open(path) as slide:
        reader, grid = reader_and_grid(slide, 0.5, reader_name, stride_px=stride_px)
        assert reader.reader == ("native" if reader_name == "auto" else "openslide: tiles.reader")
        ours, _, _ = put_together(reader, grid, stride_px)
        size = tuple(round(edge * reader.spec.read_px / 64) for edge in (ours.shape[1], ours.shape[0]))
        region = slide.read_region((0, 0), 0, size)
    whole = cv2.resize(region, (ours.shape[1], ours.shape[0]), interpolation=cv2.INTER_AREA)
    difference = cv2.absdiff(ours, whole)
    if reader_name == "openslide" or reader.spec.shrink == 1:
        assert difference.max() <= 1
    else:  # libjpeg's own halving is a little sharper than a mean, everywhere; the next test looks at the borders
        assert difference.mean() < 2


@pytest.mark.parametrize("mpp_level0", [0.25, 0.2173, 0.1317])
def test_natively_read_tiles_put_together_are_the_whole_region_read_natively(tmp_path: Path, mpp_level0: float) -> None:
    path = write_jpeg_slide(tmp_path / "a.tif", [stained_image(1100, 700)], mpp=mpp_level0, tile_px=240)
    with Slide.open(path) as slide:
        reader, grid = reader_and_grid(slide, 0.5, "auto")
        ours, rows, columns = put_together(reader, grid, 64)
        assert reader._native is not None
        assert reader.shrink == reader.spec.shrink > 1
        size = (columns * reader.spec.read_px, rows * reader.spec.read_px)
        region = reader._native.read((0, 0), size, shrink=reader.spec.shrink)
    whole = cv2.resize(region, (ours.shape[1], ours.shape[0]), interpolation=cv2.INTER_AREA)
    assert cv2.absdiff(ours, whole).max() <= 1


@pytest.mark.parametrize("reader_name", ["auto", "openslide"])
def test_tiles_of_a_level_with_an_uneven_downsample_meet_at_their_borders(tmp_path: Path, reader_name: str) -> None:
    level1 = stained_image(513, 410)
    level0 = cv2.resize(level1, (1025, 819), interpolation=cv2.INTER_LINEAR)
    path = write_jpeg_slide(tmp_path / "a.tif", [level0, level1], mpp=0.25)
    with Slide.open(path) as slide:
        assert slide.levels[1].downsample == pytest.approx(1.9978, abs=1e-4)
        reader, grid = reader_and_grid(slide, 0.7, reader_name)
        ours, rows, columns = put_together(reader, grid, 64)
        spec: TileSpec = reader.spec
        assert spec.level == 1
        region = slide.read_region((0, 0), 1, (columns * spec.read_px, rows * spec.read_px))
    whole = cv2.resize(region, (ours.shape[1], ours.shape[0]), interpolation=cv2.INTER_AREA)
    difference = cv2.absdiff(ours, whole)
    if reader_name == "auto":
        assert difference.max() <= 1
    else:  # OpenSlide is asked in level-0 px, and lies up to a quarter of a level pixel beside the place
        assert difference.mean() < 1.5


def test_a_slide_on_which_the_native_reader_shows_something_else_goes_through_openslide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jpeg_slide(tmp_path / "a.tif", [stained_image(512, 512)])
    decode = native.decode_tile
    monkeypatch.setattr(native, "decode_tile", lambda jpeg, shrink: decode(jpeg, shrink)[..., ::-1].copy())
    with Slide.open(path) as slide:
        reader, grid = reader_and_grid(slide, 0.5, "auto")
        assert reader.reader.startswith("openslide: native pixels differ by ")
        np.testing.assert_array_equal(next(reader.read_all(grid)).pixels, slide.read_region((0, 0), 0, (64, 64)))


def test_where_halving_while_decoding_shows_something_else_the_native_reader_halves_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jpeg_slide(tmp_path / "a.tif", [stained_image(512, 512)], mpp=0.25)
    decode = native.decode_tile
    monkeypatch.setattr(native, "decode_tile", lambda jpeg, shrink: decode(jpeg, shrink) // (2 if shrink > 1 else 1))
    with Slide.open(path) as slide:
        reader, grid = reader_and_grid(slide, 0.5, "auto")
        assert (reader.reader, reader.shrink) == ("native", 1)
        theirs, _ = reader_and_grid(slide, 0.5, "openslide")
        np.testing.assert_array_equal(next(reader.read_all(grid)).pixels, next(theirs.read_all(grid)).pixels)


def test_a_tile_that_the_native_reader_refuses_comes_from_openslide(tmp_path: Path) -> None:
    image = stained_image(1024, 256)
    path = write_jpeg_slide(tmp_path / "a.tif", [image], missing=[1])
    with Slide.open(path) as slide:
        reader, grid = reader_and_grid(slide, 0.5, "auto", size_px=64)
        assert reader.reader == "native"
        tiles = [tile for tile in reader.read_all(grid) if isinstance(tile, Tile)]
        assert len(tiles) == 64
        assert (tiles[5].pixels == 255).all()  # nothing was recorded there: OpenSlide's background


def test_the_scanners_own_jpeg_comes_with_the_tiles_where_the_grid_is_that_of_the_native_tiles(tmp_path: Path) -> None:
    path = write_jpeg_slide(tmp_path / "a.tif", [stained_image(300, 256)], tile_px=64, has_shared_tables=True)
    with Slide.open(path) as slide:
        reader, grid = reader_and_grid(slide, 0.5, "auto", mpp_tolerance=0.05)
        for corner, tile in zip(grid.tolist(), reader.read_all(grid), strict=True):
            assert isinstance(tile, Tile)
            assert tile.jpeg is not None
            stored = cv2.imdecode(np.frombuffer(tile.jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
            np.testing.assert_array_equal(stored, slide.read_region(tuple(corner), 0, (64, 64)))
        for settings in ({"copy_native_jpeg": False}, {"stride_px": 32}):
            reader, grid = reader_and_grid(slide, 0.5, "auto", **settings)
            assert all(isinstance(tile, Tile) and tile.jpeg is None for tile in reader.read_all(grid))


def test_on_real_slides_both_readers_show_the_same(shared_data: Path) -> None:
    for name, mpp in [("CMU-1-Small-Region.svs", 0.5), ("CMU-1-Small-Region.svs", 0.7), ("p2_0039_section1.tif", 0.5)]:
        with Slide.open(shared_data / "slides" / name) as slide:
            ours, grid = reader_and_grid(slide, mpp, "auto")
            theirs, _ = reader_and_grid(slide, mpp, "openslide")
            assert ours.reader == "native"
            some = grid[np.random.default_rng(0).permutation(len(grid))[:20]]
            for one, other in zip(ours.read_all(some), theirs.read_all(some), strict=True):
                assert isinstance(one, Tile)
                assert isinstance(other, Tile)
                np.testing.assert_array_equal(one.pixels, other.pixels)


@pytest.mark.parametrize("mpp", [0.5, 1.0, 1.3])
@pytest.mark.parametrize(
    ("name", "given_mpp", "place"),
    [
        ("CMU-1-Small-Region.svs", None, (0.4, 0.4)),  # of the grid's width and height: there is tissue
        ("TCGA-CR-7395-01A-01-TS1.svs", 0.5, (0.4, 0.5)),
        ("p2_0039_section1.tif", None, (0.65, 0.2)),
    ],
)
def test_on_real_slides_a_block_of_tiles_is_a_whole_region_resampled_at_once(
    shared_data: Path, name: str, given_mpp: float | None, mpp: float, place: tuple[float, float]
) -> None:
    with Slide.open(shared_data / "slides" / name, mpp=given_mpp) as slide:
        reader, grid = reader_and_grid(slide, mpp, "openslide")
        native_reader, _ = reader_and_grid(slide, mpp, "auto")
        spec = reader.spec
        columns, rows = (len(np.unique(grid[:, axis])) for axis in (0, 1))
        left, top = int(place[0] * columns), int(place[1] * rows)
        block = [column + row * columns for row in range(top, top + 6) for column in range(left, left + 6)]
        size = (6 * spec.read_px, 6 * spec.read_px)
        region = slide.read_region(tuple(grid[block[0]].tolist()), spec.level, size)
        whole = cv2.resize(region, (6 * 64, 6 * 64), interpolation=cv2.INTER_AREA)
        theirs, _, _ = put_together(reader, grid[block], 64)
        ours, _, _ = put_together(native_reader, grid[block], 64)
    assert whole.std() > 20  # tissue
    lies_on_pixels = abs(slide.levels[spec.level].downsample % 1) < 1e-9
    if lies_on_pixels:
        assert cv2.absdiff(theirs, whole).max() <= 1
    # Else (JPEG 2000, downsample 2.0005) OpenSlide interpolates up to a quarter of a level pixel beside the place.
    assert cv2.absdiff(ours, whole).mean() < (2.5 if lies_on_pixels else 5)
    borders = cv2.absdiff(ours, whole).reshape(6, 64, 6, 64, 3).mean(axis=(0, 2, 4))
    inner, edge = borders[8:-8, 8:-8].mean(), np.concatenate([borders[0], borders[-1], borders[:, 0], borders[:, -1]])
    assert edge.mean() < inner + 0.5  # no seam: at borders as everywhere

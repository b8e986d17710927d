"""What the pictures of a slide show, where the scanner left most of it empty."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from slide_files import write_jpeg_slide
from test_tiling import TILES

from dino_path.records.slide import read_slide_record
from dino_path.slides.find import SlideRow
from dino_path.slides.overview import read_overview
from dino_path.slides.slide import Slide
from dino_path.tiles.layout import StoreFolder
from dino_path.tiles.summary import _marked_slide
from dino_path.tiles.tiling import tile_slides

EDGE = 2048  # of the slide; scanned is x 1024 to 1536, y 512 to 1024


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A slide of 8 x 8 tiles of 256 px, of which 2 x 2 were recorded: pink tissue in their left half."""
    image = np.full((EDGE, EDGE, 3), 243, np.uint8)
    image[512:1024, 1024:1280] = (214, 120, 170)
    image += np.random.default_rng(0).integers(0, 9, image.shape, np.uint8)
    missing = [number for number in range(64) if number not in (20, 21, 28, 29)]
    return write_jpeg_slide(tmp_path_factory.mktemp("sparse") / "a.tif", [image], missing=missing)


@pytest.mark.parametrize("mask_mpp", [4.0, 0.5])  # the picture is read again, and the mask's own
def test_pictures_show_what_was_scanned_and_tissue_is_a_share_of_it(
    slide: Path, tmp_path: Path, mask_mpp: float
) -> None:
    config = TILES.model_copy(update={"mask_mpp": mask_mpp})
    (record,) = tile_slides([SlideRow(slide, "a")], config, tmp_path / "store", num_workers=0).records
    assert record.pictured == (1024, 512, 512, 512)
    assert record.tissue_percent == pytest.approx(50, abs=2)
    folder = StoreFolder(tmp_path / "store")
    assert read_slide_record(folder.record_file("a")) == record
    thumbnail = cv2.imread(str(folder.thumbnail_file("a")))[..., ::-1].astype(int)
    assert thumbnail.shape == (512, 512, 3)
    assert thumbnail[:, :250].mean(axis=(0, 1)) == pytest.approx((218, 124, 174), abs=4)
    assert thumbnail[:, 262:].mean(axis=(0, 1)) == pytest.approx((247, 247, 247), abs=4)
    overlay = cv2.imread(str(folder.overlay_file("a")))[..., ::-1].astype(int)
    blue = overlay[:512, :512, 2] - overlay[:512, :512, 0] > thumbnail[..., 2] - thumbnail[..., 0] + 15
    columns = np.flatnonzero(blue.sum(axis=0) > 100)
    assert columns.max() < 262  # tiles lie on the tissue, the picture's left half
    assert columns.min() < 10
    assert _marked_slide(folder.overlay_file("a"), record).shape == (128, 128, 3)


def test_a_part_of_a_slide_is_the_same_pixels_as_of_the_whole(slide: Path) -> None:
    with Slide.open(slide) as one:
        whole = read_overview(one, mpp=1.0)
        part = read_overview(one, mpp=1.0, part=(1024, 512, 512, 512))
    np.testing.assert_array_equal(part.rgb, whole.rgb[256:512, 512:768])
    assert whole.scanned == (slice(256, 512), slice(512, 768))
    assert part.covered.all()


def test_a_record_without_the_part_is_of_a_picture_of_the_whole_slide(slide: Path, tmp_path: Path) -> None:
    tile_slides([SlideRow(slide, "a")], TILES, tmp_path / "store", num_workers=0)
    file = StoreFolder(tmp_path / "store").record_file("a")
    lines = file.read_text()
    start = lines.index('"pictured"')
    file.write_text(lines[:start] + lines[lines.index('"level"') :])
    assert read_slide_record(file).pictured_part == (0, 0, EDGE, EDGE)

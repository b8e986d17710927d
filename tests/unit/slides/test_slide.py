import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from slide_files import tissue_image, write_slide_file

from dino_path.errors import SlideError
from dino_path.slides.overview import read_overview
from dino_path.slides.slide import Slide


@pytest.mark.parametrize("unit", ["cm", "inch"])
def test_mpp_in_tiff_tags_is_found_whatever_the_unit(tmp_path: Path, unit: str) -> None:
    slide = Slide.open(write_slide_file(tmp_path / "a.tif", [tissue_image()], mpp=0.4, unit=unit))
    assert slide.mpp == pytest.approx(0.4, rel=1e-4)


@pytest.mark.parametrize(("edge_level1", "downsample"), [(1025, 3.9990), (1024, 4.0029)])
def test_downsamples_stay_floats(tmp_path: Path, edge_level1: int, downsample: float) -> None:
    levels = [np.full((edge, edge, 3), 240, dtype=np.uint8) for edge in (4099, edge_level1)]
    slide = Slide.open(write_slide_file(tmp_path / "a.tif", levels, mpp=0.25))
    assert slide.levels[1].downsample == pytest.approx(downsample, abs=1e-4)
    assert slide.levels[1].mpp == pytest.approx(0.25 * downsample, abs=1e-4)


def test_a_region_has_the_pixels_of_the_file_and_background_outside_it(tmp_path: Path) -> None:
    image = tissue_image()
    with Slide.open(write_slide_file(tmp_path / "a.tif", [image])) as slide:
        np.testing.assert_array_equal(slide.read_region((300, 200), 0, (64, 32)), image[200:232, 300:364])
        pixels, cover = slide.read_region_and_cover((1000, 760), 0, (48, 16))
    np.testing.assert_array_equal(pixels[:8, :24], image[760:, 1000:])
    assert (pixels[8:] == 255).all()
    assert (pixels[:, 24:] == 255).all()
    assert cover[:8, :24].all()
    assert not cover[8:].any()


def test_half_transparent_pixels_are_mixed_with_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slide = Slide.open(write_slide_file(tmp_path / "a.tif", [tissue_image()]))
    slide.background = (200, 100, 0)

    class HalfTransparent:
        def read_region(self, *_: object) -> np.ndarray:
            return np.array([[[100, 100, 100, 51], [9, 9, 9, 0]]], dtype=np.uint8)

    monkeypatch.setattr(slide, "_process_handle", HalfTransparent)
    np.testing.assert_array_equal(slide.read_region((0, 0), 0, (2, 1)), [[[180, 100, 20], [200, 100, 0]]])


def test_one_unreadable_tile_does_not_spoil_later_reads(tmp_path: Path) -> None:
    image = tissue_image()
    path = write_slide_file(tmp_path / "a.tif", [image])
    spoil_tile(path, number=0)
    with Slide.open(path) as slide:
        with pytest.raises(SlideError, match="cannot be read"):
            slide.read_region((10, 10), 0, (8, 8))
        np.testing.assert_array_equal(slide.read_region((300, 300), 0, (8, 8)), image[300:308, 300:308])


def test_a_slide_survives_pickling_after_it_has_been_read(tmp_path: Path) -> None:
    with Slide.open(write_slide_file(tmp_path / "a.tif", [tissue_image()])) as slide:
        before = slide.read_region((300, 300), 0, (8, 8))
        copy = pickle.loads(pickle.dumps(slide))
        np.testing.assert_array_equal(copy.read_region((300, 300), 0, (8, 8)), before)
        copy.close()


def test_another_process_opens_its_own_handle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Slide.open(write_slide_file(tmp_path / "a.tif", [tissue_image()])) as slide:
        slide.read_region((0, 0), 0, (8, 8))
        ours = slide._handle
        monkeypatch.setattr(os, "getpid", lambda: -7)
        slide.read_region((0, 0), 0, (8, 8))
        assert slide._handle is not ours
        ours.close()


def test_a_missing_file_and_a_file_that_is_no_slide_are_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match="no such file"):
        Slide.open(tmp_path / "none.svs")
    (tmp_path / "text.svs").write_text("not a slide")
    with pytest.raises(SlideError, match=r"(?s)does not recognise this file.*download is complete"):
        Slide.open(tmp_path / "text.svs")


@pytest.mark.parametrize(("edge_level1", "mpp"), [(260, 8.0), (259, 8.0), (260, 1.0), (259, 3.3)])
def test_an_overview_made_of_blocks_equals_one_made_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, edge_level1: int, mpp: float
) -> None:
    rows, columns = np.mgrid[0:1037, 0:1037]
    image = np.stack([rows // 5, columns // 5, (rows + columns) // 10], axis=2).astype(np.uint8)
    centres = ((np.arange(edge_level1) + 0.5) * 1037 / edge_level1).astype(int)
    small = image[np.ix_(centres, centres)]
    with Slide.open(write_slide_file(tmp_path / "a.tif", [image, small], mpp=0.25)) as slide:
        monkeypatch.setattr("dino_path.slides.overview.BLOCK_PX", 70)
        in_blocks = read_overview(slide, mpp=mpp)
        monkeypatch.setattr("dino_path.slides.overview.BLOCK_PX", 10**6)
        at_once = read_overview(slide, mpp=mpp)
    difference = np.abs(in_blocks.rgb.astype(int) - at_once.rgb)
    assert difference.max() <= 1
    assert in_blocks.covered.all()
    edge = in_blocks.rgb.shape[0]
    assert in_blocks.px_level0 == (1037 / edge, 1037 / edge)
    # The gradient says where each pixel lies: no drift from rounding the downsample.
    centre_level0 = (np.arange(edge) + 0.5) * 1037 / edge
    assert np.abs(in_blocks.rgb[:, edge // 2, 0] * 5.0 + 2.5 - centre_level0)[1:-1].max() < 5


def test_an_overview_too_large_for_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dino_path.slides.overview.LARGEST_OVERVIEW_PX", 1000)
    slide = Slide.open(write_slide_file(tmp_path / "a.tif", [tissue_image()]))
    with pytest.raises(SlideError, match=r"tiles\.mask_mpp"):
        read_overview(slide, mpp=1.0)


def test_real_slides_open_with_their_mpp_or_their_reason(shared_data: Path) -> None:
    assert Slide.open(shared_data / "slides/CMU-1-Small-Region.svs").mpp == 0.499
    assert Slide.open(shared_data / "slides-dicom/highdicom_sm_image_50px.dcm").mpp == 0.499
    tcga = shared_data / "slides/TCGA-CR-7395-01A-01-TS1.svs"
    with pytest.raises(SlideError, match="does not give the microns per pixel"):
        Slide.open(tcga)
    assert Slide.open(tcga, mpp=0.5).levels[1].mpp == pytest.approx(0.5 * 2.0005, abs=1e-4)
    with pytest.raises(SlideError, match="does not recognise this file"):
        Slide.open(shared_data / "slides-bad/broken.svs")


def spoil_tile(path: Path, number: int) -> None:
    """Overwrite the compressed bytes of one level-0 tile."""
    import tifffile

    with tifffile.TiffFile(path) as file:
        offset, length = file.pages[0].dataoffsets[number], file.pages[0].databytecounts[number]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(b"\0" * length)

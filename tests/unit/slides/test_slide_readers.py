"""Which reader opens which file, the extras' pixels against OpenSlide's, and what a refusal advises."""

import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import tifffile
from slide_files import stained_image

from dino_path.errors import SlideError
from dino_path.slides.find import find_slides
from dino_path.slides.readers import refusals
from dino_path.slides.readers.kinds import NEEDS_EXTRA, OPENED
from dino_path.slides.readers.opening import is_slide_file, open_reader, open_slide_file
from dino_path.slides.slide import Slide

IMAGE = stained_image(700, 530)


def aperio_slide(path: Path) -> Path:
    """What slideio and OpenSlide both take for an Aperio slide: two levels, lossless."""
    description = "Aperio Image Library\n700x530 (256x256) |AppMag = 20|MPP = 0.5"
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate((IMAGE, IMAGE[::2, ::2].copy())):
            file.write(
                level, tile=(256, 256), photometric="rgb", compression="lzw", metadata=None, description=description,
                subfiletype=int(number > 0),
            )  # fmt: skip
    return path


def test_slideio_shows_openslides_pixels_at_every_level(tmp_path: Path) -> None:
    pytest.importorskip("slideio")
    path = aperio_slide(tmp_path / "a.svs")
    ours, theirs = open_reader("slideio", path), open_reader("openslide", path)
    assert ours.facts.sizes == theirs.facts.sizes
    assert float(ours.facts.properties["slideio:resolution-x"]) == pytest.approx(0.5)
    for level in range(len(ours.facts.sizes)):
        for corner, size in (((0, 0), (64, 64)), ((300, 200), (200, 150)), ((600, 500), (150, 120))):
            region, expected = (one.read_region(corner, level, size) for one in (ours, theirs))
            np.testing.assert_array_equal(region[..., 3], expected[..., 3])
            np.testing.assert_array_equal(region[region[..., 3] > 0], expected[region[..., 3] > 0])
    ours.close()
    theirs.close()


def test_wsidicom_shows_openslides_pixels(shared_data: Path) -> None:
    pytest.importorskip("wsidicom")
    folder = shared_data / "slides-odd/dicom_series_listed"
    for path in sorted(folder.glob("*.dcm")):  # the label and the overview, too, stand for the slide
        ours, theirs = open_reader("wsidicom", path), open_reader("openslide", path)
        assert ours.facts.sizes == theirs.facts.sizes
        corner, size = (2000, 2800), (300, 300)  # over the slide's edge
        region, expected = (one.read_region(corner, 0, size) for one in (ours, theirs))
        np.testing.assert_array_equal(region[:167, :220], expected[:167, :220])
        assert not region[167:, :, 3].any()
        assert not region[:, 220:, 3].any()
        ours.close()
        theirs.close()


def test_a_jpeg_ls_series_is_one_slide_with_the_pixels_of_its_twin(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("wsidicom")
    path = Path(shutil.copy(shared_data / "slides-odd/dicom_refused/sm_image_jpegls.dcm", tmp_path / "a.dcm"))
    shutil.copy(path, tmp_path / "b.dcm")
    assert [row.path for row in find_slides([tmp_path])] == [path]
    (tmp_path / "b.dcm").unlink()
    with (
        Slide.open(path) as slide,
        Slide.open(shared_data / "slides-odd/dicom_folder_with_seg_ann/sm_image.dcm") as twin,
    ):
        assert (slide.reader, slide.mpp, slide.mpp_source) == ("wsidicom", 0.499, "wsidicom:mpp-x")
        np.testing.assert_array_equal(slide.read_region((3, 4), 0, (47, 46)), twin.read_region((3, 4), 0, (47, 46)))


def test_every_kind_that_needs_an_extra_is_refused_by_name_with_the_command_that_installs_it(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "find_spec", lambda name: None)
    (tmp_path / "_a_").mkdir()
    (tmp_path / "a.vsi").write_bytes(b"II*\0" + bytes(100))
    with pytest.raises(SlideError, match=r"(?s)\.vsi files.* slideio.*pip install 'dino-path\[slideio\]'"):
        Slide.open(tmp_path / "a.vsi")
    jpeg_ls = shared_data / "slides-odd/dicom_refused/sm_image_jpegls.dcm"
    with pytest.raises(SlideError, match=r"(?s)read through wsidicom.*pip install 'dino-path\[wsidicom\]'"):
        Slide.open(jpeg_ls)


def test_extensions_name_their_reader_once() -> None:
    assert not set(OPENED) & set(NEEDS_EXTRA)
    assert all(name.startswith(".") and name == name.lower() for name in (*OPENED, *NEEDS_EXTRA))


@pytest.mark.parametrize(
    ("where", "cause", "remedy"),
    [
        ("dicom_refused/sm_image_grayscale.dcm", "16 bits per channel and 1 channel", "8-bit RGB"),
        ("dicom_folder_with_seg_ann/seg_image_sm_dots.dcm", "Segmentation Storage", "slide's own files"),
        ("dicom_folder_with_seg_ann/sm_annotations.dcm", "Annotations Storage", "slide's own files"),
        ("mirax_alone/Mirax2-Fluorescence-2.mrxs", "no pixels of its own", "Copy Mirax2-Fluorescence-2 next to it"),
        ("vsi/vsi-ets-test-jpg2k.vsi", "no pixels of its own", "Copy _vsi-ets-test-jpg2k_ next to it"),
    ],
)
def test_a_refusal_states_the_true_cause_and_what_helps(shared_data: Path, where: str, cause: str, remedy: str) -> None:
    with pytest.raises(SlideError, match=rf"(?s){cause}.*{remedy}") as refusal:
        Slide.open(shared_data / "slides-odd" / where)
    assert "Fetch" not in str(refusal.value)


def test_a_mirax_slide_in_fluorescence_is_flagged(shared_data: Path) -> None:
    path = shared_data / "slides-odd/mirax_bounds/Mirax2-Fluorescence-2.mrxs"
    assert Slide.open(path).flags == ("fluorescence",)


def test_a_compression_that_nobody_decodes_is_no_damage(tmp_path: Path) -> None:
    path = aperio_slide(tmp_path / "a.tif")
    with tifffile.TiffFile(path) as file:
        places = [page.tags["Compression"].valueoffset for page in file.pages]
    with path.open("r+b") as stream:
        for place in places:
            stream.seek(place)
            stream.write(struct.pack("<H", 34661))  # JBIG
    with pytest.raises(SlideError, match=r"(?s)compressed as jbig.*Write it again") as refusal:
        Slide.open(path)
    assert "Fetch" not in str(refusal.value)


def test_a_file_that_may_not_be_read_is_refused_and_an_empty_one_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "a.svs").touch()
    with pytest.raises(SlideError, match=r"(?s)is empty.*Fetch"):
        Slide.open(tmp_path / "a.svs")
    (tmp_path / "b.svs").symlink_to(tmp_path / "gone.svs")
    with pytest.raises(SlideError, match="no such file"):
        Slide.open(tmp_path / "b.svs")


def test_tiles_make_a_tiff_a_slide_and_strips_a_picture(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "tiles.tif", IMAGE, tile=(64, 64), photometric="rgb", compression="png")
    tifffile.imwrite(tmp_path / "strips.tif", IMAGE, photometric="rgb")
    (tmp_path / "text.tif").write_text("II*")
    assert [is_slide_file(tmp_path / f"{name}.tif") for name in ("tiles", "strips", "text")] == [True, False, False]


def test_a_qptiff_is_read_with_its_levels_and_without_its_label(tmp_path: Path) -> None:
    path = tmp_path / "a.qptiff"

    def description(kind: str) -> str:
        return f"<PerkinElmer-QPI-ImageDescription><ImageType>{kind}</ImageType></PerkinElmer-QPI-ImageDescription>"

    how = {"photometric": "rgb", "tile": (256, 256), "metadata": None, "software": "PerkinElmer-QPI"}
    micron = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    pictures = (("FullResolution", IMAGE), ("Thumbnail", IMAGE[::7, ::7]), ("ReducedResolution", IMAGE[::2, ::2]))
    with tifffile.TiffWriter(path) as file:
        for kind, picture in (*pictures, ("Label", 255 - IMAGE[::3, ::4])):
            file.write(np.ascontiguousarray(picture), description=description(kind), **how, **micron)
    name, reader = open_slide_file(path)
    assert (name, reader.facts.vendor) == ("tifffile", "qptiff")
    assert reader.facts.sizes == ((700, 530), (350, 265))
    np.testing.assert_array_equal(reader.read_region((100, 100), 1, (90, 80))[..., :3], IMAGE[::2, ::2][50:130, 50:140])
    reader.close()
    assert Slide.open(path).mpp == pytest.approx(0.5)

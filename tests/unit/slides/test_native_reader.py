import pickle
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from slide_files import stained_image, write_jpeg_slide, write_slide_file

from dino_path.errors import SlideError
from dino_path.slides.readers import native
from dino_path.slides.readers.native import NativeReader, NotNative, native_reader
from dino_path.slides.readers.opening import open_reader, open_slide_file
from dino_path.slides.slide import Slide

IMAGE = stained_image(900, 700)
KINDS = [
    {"colours": "ycbcr"},
    {"colours": "ycbcr", "has_shared_tables": True},
    {"colours": "rgb"},
    {"colours": "rgb", "has_shared_tables": True, "tile_px": 240},
]


def reader_of(path: Path, level: int = 0) -> NativeReader:
    return native_reader(Slide.open(path), level)


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_openslide_whatever_the_colours_and_tables(tmp_path: Path, kind: dict[str, object]) -> None:
    path = write_jpeg_slide(tmp_path / "a.tif", [IMAGE, IMAGE[::4, ::4]], **kind)  # type: ignore[arg-type]
    reader = reader_of(path)
    with Slide.open(path) as slide:
        for corner, size in [((0, 0), (256, 256)), ((200, 130), (311, 77)), ((500, 300), (400, 400)), ((3, 5), (1, 1))]:
            theirs = slide.read_region(corner, 0, size)
            np.testing.assert_array_equal(reader.read(corner, size, shrink=1), theirs)
        coarse = reader_of(path, level=1)
        np.testing.assert_array_equal(
            coarse.read((8, 4), (200, 150), shrink=1), slide.read_region((32, 16), 1, (200, 150))
        )
    assert np.abs(reader.read((0, 0), (256, 256), shrink=1).astype(int) - IMAGE[:256, :256]).mean() < 4


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("kind", KINDS)
def test_a_shrunken_region_is_the_mean_of_its_pixels(tmp_path: Path, kind: dict[str, object], shrink: int) -> None:
    reader = reader_of(write_jpeg_slide(tmp_path / "a.tif", [IMAGE], **kind))  # type: ignore[arg-type]
    pixels = reader.read((160, 80), (480, 320), shrink=shrink)
    assert pixels.shape == (320 // shrink, 480 // shrink, 3)
    full = reader.read((160, 80), (480, 320), shrink=1)
    means = cv2.resize(full, (480 // shrink, 320 // shrink), interpolation=cv2.INTER_AREA)
    assert np.abs(pixels.astype(int) - means).mean() < 1.5


def test_what_is_not_surely_the_picture_is_refused(tmp_path: Path) -> None:
    path = write_jpeg_slide(tmp_path / "a.tif", [IMAGE], missing=[1])
    reader = reader_of(path)
    for corner, size, shrink, message in [
        ((800, 0), (101, 10), 1, "edge"),
        ((-1, 0), (10, 10), 1, "edge"),
        ((101, 0), (64, 64), 2, "between pixels"),
        ((250, 0), (10, 10), 1, "never written"),
    ]:
        with pytest.raises(NotNative, match=message):
            reader.read(corner, size, shrink=shrink)
    with tifffile.TiffFile(path) as file:
        offset, length = file.pages[0].dataoffsets[5], file.pages[0].databytecounts[5]
    with path.open("r+b") as stream:
        stream.seek(offset + length // 2)
        stream.write(b"\0" * (length - length // 2))
    with pytest.raises(NotNative, match="no end marker"):
        reader.read((300, 300), (10, 10), shrink=1)
    with path.open("r+b") as stream:
        stream.truncate(offset + 10)
    with pytest.raises(NotNative, match="file ends"):
        reader.read((300, 300), (10, 10), shrink=1)
    np.testing.assert_array_equal(reader.read((0, 0), (9, 9), shrink=1).shape, (9, 9, 3))


def test_only_a_whole_native_tile_is_given_as_its_jpeg(tmp_path: Path) -> None:
    reader = reader_of(write_jpeg_slide(tmp_path / "a.tif", [IMAGE], has_shared_tables=True))
    jpeg = reader.whole_tile_jpeg((256, 256))
    pixels = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(pixels, reader.read((256, 256), (256, 256), shrink=1))
    for corner in [(255, 256), (256, 1), (768, 0), (0, 512)]:  # between tiles, and over the edge
        with pytest.raises(NotNative, match="no complete native tile"):
            reader.whole_tile_jpeg(corner)


def test_slides_that_only_openslide_knows_are_refused_with_the_reason(tmp_path: Path, shared_data: Path) -> None:
    with pytest.raises(NotNative, match="compressed as ADOBE_DEFLATE"):
        reader_of(write_slide_file(tmp_path / "a.tif", [IMAGE]))
    with pytest.raises(NotNative, match="compressed as APERIO_JP2000"):
        native_reader(Slide.open(shared_data / "slides/TCGA-CR-7395-01A-01-TS1.svs", mpp=0.5), 0)
    with pytest.raises(NotNative, match="its format is dicom"):
        native_reader(Slide.open(shared_data / "slides-dicom/highdicom_sm_image_50px.dcm"), 0)
    with pytest.raises(NotNative, match="2 tiled pages have the size"):
        reader_of(write_jpeg_slide(tmp_path / "b.tif", [IMAGE, IMAGE]))


def test_each_native_tile_is_decoded_once_per_row_of_tiles_and_few_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = reader_of(write_jpeg_slide(tmp_path / "a.tif", [IMAGE], tile_px=64))
    decoded = []
    decode = native.decode_tile
    monkeypatch.setattr(native, "decode_tile", lambda jpeg, shrink: decoded.append(jpeg) or decode(jpeg, shrink))
    for x in range(0, 800, 100):
        reader.read((x, 32), (100, 32), shrink=1)
    assert len(decoded) == 800 // 64 + 1
    reader.most_decoded_bytes = 3 * 64 * 64 * 3
    for x in range(0, 800, 100):
        reader.read((x, 164), (100, 100), shrink=1)
    assert len(reader._decoded) == 3
    assert reader._decoded_bytes == 3 * 64 * 64 * 3


def test_a_reader_survives_pickling_and_closing(tmp_path: Path) -> None:
    reader = reader_of(write_jpeg_slide(tmp_path / "a.tif", [IMAGE]))
    before = reader.read((100, 100), (300, 300), shrink=1)
    copy = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(copy.read((100, 100), (300, 300), shrink=1), before)
    reader.close()
    np.testing.assert_array_equal(reader.read((100, 100), (300, 300), shrink=1), before)
    reader.close()
    copy.close()


def test_a_tile_that_claims_more_bytes_than_the_file_has_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    path = write_jpeg_slide(tmp_path / "a.tif", [IMAGE])
    with Slide.open(path) as slide:
        with tifffile.TiffFile(path, mode="r+b") as file:
            lengths = list(file.pages[0].databytecounts)
            file.pages[0].tags["TileByteCounts"].overwrite([2**31, *lengths[1:]])
        with pytest.raises(NotNative, match="longer than the file"):
            native_reader(slide, 0)
    for open_file in (reader_of, open_slide_file, partial(open_reader, "openslide")):
        with pytest.raises(SlideError, match=r"its directory lists a tile of 2,147,483,648 bytes, but the file has"):
            open_file(path)

"""Right pixels through tifffile: every kind of file against `tifffile.imread` and numpy's slicing, at every level."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from slide_files import stained_image, write_jpeg_slide

from dino_path.errors import SlideError
from dino_path.slides.readers.opening import open_slide_file
from dino_path.slides.readers.tiff_reader import TiffReader
from dino_path.slides.slide import Slide

IMAGE = stained_image(700, 530)
HALF, QUARTER = IMAGE[::2, ::2].copy(), IMAGE[::4, ::4].copy()
MICRONS = {"PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.25, "PhysicalSizeYUnit": "µm"}
CENTIMETRES: dict[str, Any] = {"resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}  # 0.25 um/px
COLOURS = {"Channel": {"Name": ["Red", "Green", "Blue"]}}
# Corners and sizes in px of a level: inside a piece, over several, single px at the far corner.
REGIONS = (((0, 0), (16, 16)), ((3, 5), (150, 121)), ((60, 40), (70, 69)))


def write_sub_ifds(path: Path, levels: list[NDArray[np.uint8]], **how: Any) -> Path:
    """An OME-TIFF as Bio-Formats and QuPath write it: the smaller levels are SubIFDs of the first."""
    with tifffile.TiffWriter(path, ome=True, bigtiff=how.pop("bigtiff", False)) as file:
        metadata = how.pop("metadata")
        file.write(levels[0], subifds=len(levels) - 1, metadata=metadata, **how)
        for level in levels[1:]:
            file.write(level, subfiletype=1, metadata=None, **how)
    return path


def planes(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.moveaxis(image, 2, 0))


def ome_interleaved(path: Path) -> Path:
    how = {"photometric": "rgb", "tile": (128, 64), "compression": "deflate", "predictor": True}
    return write_sub_ifds(path, [IMAGE, HALF, QUARTER], metadata={"axes": "YXS", **MICRONS}, **how)


def ome_big(path: Path) -> Path:
    how = {"photometric": "rgb", "tile": (64, 64), "compression": "lzw", "bigtiff": True}
    return write_sub_ifds(path, [IMAGE, HALF, QUARTER], metadata={"axes": "YXS", **MICRONS}, **how)


def ome_channel_pages(path: Path) -> Path:
    how = {"photometric": "minisblack", "tile": (64, 64), "compression": "deflate"}
    levels = [planes(one) for one in (IMAGE, HALF, QUARTER)]
    return write_sub_ifds(path, levels, metadata={"axes": "CYX", **COLOURS, **MICRONS}, **how)


def ome_separate_planes(path: Path) -> Path:
    how = {"photometric": "rgb", "planarconfig": "separate", "tile": (64, 64), "compression": "zstd"}
    levels = [planes(one) for one in (IMAGE, HALF, QUARTER)]
    return write_sub_ifds(path, levels, metadata={"axes": "SYX", **MICRONS}, **how)


def one_strip(path: Path) -> Path:
    tifffile.imwrite(path, IMAGE, photometric="rgb", metadata=None, **CENTIMETRES)
    return path


def one_strip_in_planes(path: Path) -> Path:
    image = planes(IMAGE)
    tifffile.imwrite(path, image, photometric="rgb", planarconfig="separate", metadata=None, **CENTIMETRES)
    return path


def strips(path: Path) -> Path:
    how: dict[str, Any] = {"rowsperstrip": 37, "compression": "lzw", "predictor": True, "byteorder": ">"}
    tifffile.imwrite(path, IMAGE, photometric="rgb", metadata=None, **how, **CENTIMETRES)
    return path


def compressed(compression: str) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        with tifffile.TiffWriter(path) as file:
            for number, level in enumerate((IMAGE, HALF, QUARTER)):
                # Lossless, all of them: what a lossy one shows is its decoder's business.
                arguments = {"level": 100} if compression in ("webp", "jpegxr") else None
                if compression in ("webp",):
                    arguments = {"lossless": True}
                file.write(
                    level, photometric="rgb", tile=(64, 64), compression=compression, compressionargs=arguments,
                    subfiletype=int(number > 0), metadata=None, **CENTIMETRES,
                )  # fmt: skip
        return path

    write.__name__ = f"tiles_in_{compression}"
    return write


KINDS = [
    ome_interleaved, ome_big, ome_channel_pages, ome_separate_planes, one_strip, one_strip_in_planes, strips,
    *map(compressed, ("jpeg2000", "png", "webp", "jpegxr", "zstd", "deflate", "lzw")),
]  # fmt: skip


def true_levels(path: Path) -> list[NDArray[np.uint8]]:
    """Every level as tifffile reads it as a whole, (H, W, 3)."""
    with tifffile.TiffFile(path) as file:
        found = [level.asarray() for level in file.series[0].levels]
    return [np.moveaxis(one, 0, 2) if one.shape[0] == 3 else one for one in found]


@pytest.mark.parametrize("write", KINDS, ids=lambda kind: kind.__name__)
def test_every_level_has_the_pixels_of_the_file(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path / "a.tif")
    levels = true_levels(path)
    reader = TiffReader(path)
    assert reader.facts.sizes == tuple((level.shape[1], level.shape[0]) for level in levels)
    for number, level in enumerate(levels):
        assert np.abs(level.astype(int) - (IMAGE, HALF, QUARTER)[number]).max() <= 1  # the file itself is right
        for (x, y), (width, height) in REGIONS:
            corner_level0 = tuple(round(at * reader.facts.downsamples[number]) for at in (x, y))
            rgba = reader.read_region(corner_level0, number, (width, height))
            np.testing.assert_array_equal(rgba[..., :3], level[y : y + height, x : x + width])
            assert (rgba[..., 3] == 255).all()
    reader.close()


@pytest.mark.parametrize("write", KINDS, ids=lambda kind: kind.__name__)
def test_a_slide_is_opened_by_whom_shows_its_true_colours(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    with Slide.open(write(tmp_path / "a.tif")) as slide:
        assert slide.mpp == pytest.approx(0.25)
        pixels = slide.read_region((300, 200), 0, (64, 32))
    assert np.abs(pixels.astype(int) - IMAGE[200:232, 300:364]).max() <= 1


def test_what_lies_outside_the_slide_is_not_covered(tmp_path: Path) -> None:
    with Slide.open(ome_interleaved(tmp_path / "a.tif")) as slide:
        assert slide.reader == "tifffile"
        pixels, cover = slide.read_region_and_cover((690, -4), 0, (20, 10))
    np.testing.assert_array_equal(pixels[4:, :10], IMAGE[:6, 690:])
    assert cover[4:, :10].all()
    assert not cover[:4].any()
    assert not cover[:, 10:].any()
    assert (pixels[:4] == 255).all()


def test_only_the_pieces_that_a_region_touches_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    whole = tifffile.FileHandle.read

    def counted(self: Any, size: int = -1) -> bytes:
        read.append(size)
        return bytes(whole(self, size))

    for write, most_bytes in (
        (one_strip, 2 * 64 * 700 * 3),
        (strips, 2 * 37 * 700 * 3),
        (ome_interleaved, 128 * 64 * 3),
    ):
        reader = TiffReader(write(tmp_path / f"{write.__name__}.tif"))
        read.clear()
        with monkeypatch.context() as patch:
            patch.setattr(tifffile.FileHandle, "read", counted)
            reader.read_region((10, 70), 0, (20, 20))
        assert 0 < sum(read) <= most_bytes
        reader.close()


def test_physical_size_counts_in_every_unit_of_length_and_not_in_pixels(tmp_path: Path) -> None:
    for unit, size in (("nm", 250.0), ("mm", 0.00025), ("cm", 0.000025), ("µm", 0.25)):
        metadata = {"PhysicalSizeX": size, "PhysicalSizeXUnit": unit, "PhysicalSizeY": size, "PhysicalSizeYUnit": unit}
        path = tmp_path / f"{unit}.ome.tif"
        write_sub_ifds(path, [IMAGE], photometric="rgb", tile=(64, 64), metadata={"axes": "YXS", **metadata})
        slide = Slide.open(path)
        assert (slide.mpp, slide.mpp_source) == (pytest.approx(0.25), "ome:PhysicalSizeX")
        assert Slide.open(path, mpp=0.5).mpp_source == "slides CSV"
    pixels = {"PhysicalSizeX": 1.0, "PhysicalSizeXUnit": "pixel", "PhysicalSizeY": 1.0, "PhysicalSizeYUnit": "pixel"}
    path = tmp_path / "pixel.ome.tif"
    write_sub_ifds(path, [IMAGE], photometric="rgb", tile=(64, 64), metadata={"axes": "YXS", **pixels})
    with pytest.raises(SlideError, match="does not give the microns per pixel"):
        Slide.open(path)


def write_channels(path: Path, image: NDArray[Any], **channel: list[Any]) -> Path:
    metadata = {"axes": "CYX", **({"Channel": channel} if channel else {}), **MICRONS}
    tifffile.imwrite(path, image, photometric="minisblack", tile=(64, 64), ome=True, metadata=metadata)
    return path


def test_channel_pages_take_their_colours_from_their_names(tmp_path: Path) -> None:
    path = write_channels(tmp_path / "a.ome.tif", planes(IMAGE[..., ::-1]), Name=["blue", "Green", "R"])
    with Slide.open(path) as slide:
        np.testing.assert_array_equal(slide.read_region((0, 0), 0, (64, 64)), IMAGE[:64, :64])
        assert slide.flags == ()


def test_three_channels_without_names_are_read_as_colours_and_flagged(tmp_path: Path) -> None:
    with Slide.open(write_channels(tmp_path / "a.ome.tif", planes(IMAGE))) as slide:
        np.testing.assert_array_equal(slide.read_region((0, 0), 0, (64, 64)), IMAGE[:64, :64])
        assert slide.flags == ("colours assumed: its three channels have no names",)


def test_grey_is_read_as_three_equal_colours_and_flagged_whichever_end_is_white(tmp_path: Path) -> None:
    grey = IMAGE[..., 1].copy()
    for photometric, stored in (("minisblack", grey), ("miniswhite", 255 - grey)):
        for number, how in enumerate(({"tile": (64, 64)}, {"tile": (64, 64), "compression": "deflate"}, {})):
            path = tmp_path / f"{photometric}{number}.tif"
            tifffile.imwrite(path, stored, photometric=photometric, metadata=None, **how, **CENTIMETRES)
            with Slide.open(path) as slide:
                assert slide.flags == ("grey",)
                pixels = slide.read_region((5, 6), 0, (50, 40))
            np.testing.assert_array_equal(pixels, np.repeat(grey[6:46, 5:55, None], 3, axis=2))


def test_alpha_is_what_the_scanner_recorded(tmp_path: Path) -> None:
    rgba = np.dstack([IMAGE, np.full(IMAGE.shape[:2], 255, np.uint8)])
    rgba[:100, :100, 3] = 0
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=["unassalpha"], metadata=None, **CENTIMETRES)
    with Slide.open(path) as slide:
        assert slide.reader == "tifffile"
        pixels, cover = slide.read_region_and_cover((90, 90), 0, (20, 20))
    assert (pixels[:10, :10] == 255).all()
    assert not cover[:10, :10].any()
    np.testing.assert_array_equal(pixels[10:, 10:], IMAGE[100:110, 100:110])


def test_colours_that_were_multiplied_by_alpha_are_divided_by_it(tmp_path: Path) -> None:
    alpha = np.full(IMAGE.shape[:2], 128, np.uint8)
    rgba = np.dstack([np.rint(IMAGE * (128 / 255)).astype(np.uint8), alpha])
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=["assocalpha"], metadata=None, **CENTIMETRES)
    reader = TiffReader(path)
    region = reader.read_region((50, 60), 0, (40, 30))
    reader.close()
    assert np.abs(region[..., :3].astype(int) - IMAGE[60:90, 50:90]).max() <= 1
    assert (region[..., 3] == 128).all()


def uint16(path: Path) -> Path:
    image = IMAGE.astype(np.uint16) * 257
    tifffile.imwrite(path, image, photometric="rgb", tile=(64, 64), metadata=None, **CENTIMETRES)
    return path


def grey_uint16(path: Path) -> Path:
    image = IMAGE[..., 0].astype(np.uint16) * 257
    tifffile.imwrite(path, image, photometric="minisblack", tile=(64, 64), metadata=None, **CENTIMETRES)
    return path


def floats(path: Path) -> Path:
    image = IMAGE.astype(np.float32) / 255
    tifffile.imwrite(path, image, photometric="rgb", tile=(64, 64), metadata=None, **CENTIMETRES)
    return path


def cmyk(path: Path) -> Path:
    image = np.dstack([IMAGE, IMAGE[..., :1]])
    tifffile.imwrite(path, image, photometric="separated", tile=(64, 64), metadata=None, **CENTIMETRES)
    return path


def palette(path: Path) -> Path:
    colours = np.zeros((3, 256), np.uint16)
    image = IMAGE[..., 0].copy()
    tifffile.imwrite(path, image, photometric="palette", colormap=colours, tile=(64, 64), metadata=None, **CENTIMETRES)
    return path


def stained_channels(path: Path) -> Path:
    return write_channels(path, planes(IMAGE), Name=["DAPI", "FITC", "Cy3"])


def wavelengths(path: Path) -> Path:
    return write_channels(path, planes(IMAGE), EmissionWavelength=[450, 520, 600])


def five_channels(path: Path) -> Path:
    return write_channels(path, np.concatenate([planes(IMAGE), planes(IMAGE)[:2]]))


def imagej_channels(path: Path) -> Path:
    tifffile.imwrite(path, planes(IMAGE), imagej=True, metadata={"axes": "CYX"}, **CENTIMETRES)
    return path


def pages(path: Path) -> Path:
    tifffile.imwrite(path, np.stack([IMAGE, IMAGE]), photometric="rgb", metadata=None, **CENTIMETRES)
    return path


def focal_planes(path: Path) -> Path:
    stack, metadata = np.stack([IMAGE, IMAGE]), {"axes": "ZYXS", **MICRONS}
    tifffile.imwrite(path, stack, photometric="rgb", tile=(64, 64), ome=True, metadata=metadata)
    return path


@pytest.mark.parametrize(
    ("write", "cause", "remedy"),
    [
        (uint16, "16 bits per channel", "vips cast"),
        (grey_uint16, "16 bits per channel", "vips cast"),
        (floats, "float32", "8-bit RGB"),
        (cmyk, "separated", "vips colourspace"),
        (palette, "palette", "vips colourspace"),
        (stained_channels, r"3 channels \(DAPI, FITC, Cy3\)", "render it to RGB"),
        (wavelengths, "3 channels of fluorescence", "render it to RGB"),
        (five_channels, "5 channels", "render it to RGB"),
        (imagej_channels, "3 channels", "render it to RGB"),
        (focal_planes, "stack of 2 pictures", "bfconvert -z 0"),
        (pages, "stack of 2 pictures", "to a separate file"),
    ],
)
def test_what_is_no_8_bit_colour_is_refused_by_its_cause(
    tmp_path: Path, write: Callable[[Path], Path], cause: str, remedy: str
) -> None:
    with pytest.raises(SlideError, match=rf"(?s){cause}.*{remedy}") as refusal:
        Slide.open(write(tmp_path / "a.tif"))
    assert "Fetch" not in str(refusal.value)


def test_the_largest_image_is_the_slide_and_a_second_large_one_is_flagged(tmp_path: Path) -> None:
    path = tmp_path / "a.ome.tif"
    with tifffile.TiffWriter(path, ome=True) as file:
        for name, image in (("label image", HALF), ("scan", IMAGE), ("scan 2", HALF)):
            file.write(image, photometric="rgb", tile=(64, 64), metadata={"axes": "YXS", "Name": name, **MICRONS})
    with Slide.open(path) as slide:
        assert (slide.width_level0, slide.height_level0) == (700, 530)
        assert slide.flags == ("other large images in the file: 1",)


def test_jpeg_tiles_of_an_ome_tiff_have_openslides_pixels(tmp_path: Path) -> None:
    plain = write_jpeg_slide(tmp_path / "plain.tif", [IMAGE], mpp=0.25, has_shared_tables=True)
    reader = TiffReader(plain)
    with Slide.open(plain) as slide:
        assert slide.reader == "openslide"
        theirs = slide.read_region((17, 33), 0, (300, 300))
    difference = np.abs(reader.read_region((17, 33), 0, (300, 300))[..., :3].astype(int) - theirs)
    assert difference.max() <= 2
    reader.close()


def test_jpeg_in_channel_pages_and_in_planes_is_decoded_one_colour_at_a_time(tmp_path: Path) -> None:
    how: dict[str, Any] = {"tile": (64, 64), "compression": "jpeg", "compressionargs": {"level": 95}}
    pages = {"photometric": "minisblack", "metadata": {"axes": "CYX", **COLOURS, **MICRONS}}
    separate = {"photometric": "rgb", "planarconfig": "separate", "metadata": {"axes": "SYX", **MICRONS}}
    for number, one in enumerate((pages, separate)):
        path = write_sub_ifds(tmp_path / f"{number}.ome.tif", [planes(IMAGE)], **how, **one)
        reader = TiffReader(path)
        region = reader.read_region((40, 50), 0, (200, 150))[..., :3].astype(int)
        assert np.abs(region - true_levels(path)[0][50:200, 40:240]).max() <= 2  # two versions of libjpeg-turbo
        assert np.abs(region - IMAGE[50:200, 40:240]).mean() < 3
        reader.close()


def test_an_ome_tiff_whose_planes_lie_in_other_files_is_refused(tmp_path: Path) -> None:
    path = write_channels(tmp_path / "a.ome.tif", planes(IMAGE))
    with tifffile.TiffFile(path) as file:
        xml = file.ome_metadata
    uuid = "urn:uuid:00000000-0000-0000-0000-000000000001"
    elsewhere = f'<TiffData IFD="0" FirstC="1"><UUID FileName="b.ome.tif">{uuid}</UUID></TiffData></Pixels>'
    start, end = xml.index("<TiffData"), xml.index("</Pixels>")
    xml = xml[:start] + '<TiffData IFD="0" FirstC="0" PlaneCount="1"/>' + elsewhere + xml[end + len("</Pixels>") :]
    for name in ("b.ome.tif", "a.ome.tif"):
        tifffile.imwrite(
            tmp_path / name, IMAGE[..., 0].copy(), tile=(64, 64), photometric="minisblack", description=xml.encode(),
            metadata=None,
        )  # fmt: skip
    with pytest.raises(SlideError, match=r"(?s)planes lie in several files.*bfconvert"):
        Slide.open(path, mpp=0.5)


def test_a_damaged_piece_fails_alone_and_an_absent_one_is_not_covered(tmp_path: Path) -> None:
    path = ome_interleaved(tmp_path / "a.tif")
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        first, length, counts = page.dataoffsets[0], page.databytecounts[0], page.tags["TileByteCounts"]
        at_second = counts.valueoffset + counts.valuebytecount // counts.count
    with path.open("r+b") as stream:
        stream.seek(first)
        stream.write(b"\0" * length)
        stream.seek(at_second)
        stream.write(b"\0" * (counts.valuebytecount // counts.count))
    with Slide.open(path) as slide:
        with pytest.raises(SlideError, match=r"(?s)cannot be read.*Copy the file again"):
            slide.read_region((0, 0), 0, (16, 16))
        assert not slide.read_region_and_cover((64, 0), 0, (64, 128))[1].any()
        np.testing.assert_array_equal(slide.read_region((128, 0), 0, (64, 64)), IMAGE[:64, 128:192])


def test_a_file_cut_short_fails_where_it_ends(tmp_path: Path) -> None:
    path = strips(tmp_path / "a.tif")
    with tifffile.TiffFile(path) as file:
        last = file.pages.first.dataoffsets[-1]
    with path.open("r+b") as stream:
        stream.truncate(last + 10)
    with Slide.open(path) as slide, pytest.raises(SlideError, match="ends within its pixels"):
        slide.read_region((0, 520), 0, (16, 8))


def test_any_byte_of_the_directory_may_be_wrong_and_the_slide_alone_fails(tmp_path: Path) -> None:
    path = strips(tmp_path / "a.tif")
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        start, length = page.offset, 2 + 12 * len(page.tags)
    whole = path.read_bytes()
    failures = 0
    for at in range(start, start + length):
        for value in (0, 255):
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                with Slide.open(path, mpp=0.25) as slide:
                    slide.read_region((0, 0), 0, (8, 8))
            except SlideError:
                failures += 1
    assert failures > 20


def test_a_slide_survives_pickling(tmp_path: Path) -> None:
    with Slide.open(ome_channel_pages(tmp_path / "a.ome.tif")) as slide:
        before = slide.read_region((0, 0), 1, (64, 64))
        copy = pickle.loads(pickle.dumps(slide))
        np.testing.assert_array_equal(copy.read_region((0, 0), 1, (64, 64)), before)
        copy.close()


def test_real_odd_tiffs_show_the_pixels_that_tifffile_reads(shared_data: Path) -> None:
    path = shared_data / "slides-odd/ometiff/tf_sub.ome.tif"
    with Slide.open(path) as slide, tifffile.TiffFile(path) as file:
        assert (slide.mpp, slide.mpp_source, len(slide.levels)) == (0.499, "ome:PhysicalSizeX", 3)
        for number, level in enumerate(file.series[0].levels):
            height, width = level.shape[:2]
            pixels = slide.read_region((0, 0), number, (width, height))
            assert np.abs(pixels.astype(int) - level.asarray()).max() <= 2  # two versions of libjpeg-turbo
    path = shared_data / "slides-odd/strip_tiff/image.tif"
    with Slide.open(path, mpp=0.5) as slide:
        whole = tifffile.imread(path)
        np.testing.assert_array_equal(slide.read_region((100, 90), 0, (300, 200)), whole[90:290, 100:400])
    with pytest.raises(SlideError, match="16 bits per channel"):
        open_slide_file(shared_data / "slides-odd/ometiff/2048x2048_ome6_tiled.ome.tif")

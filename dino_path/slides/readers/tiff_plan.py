"""Finds the pages of a TIFF that are the slide and its levels, and their colours. Reads directories, no pixels.

What is no 8-bit colour or grey is refused with its cause: a wrong guess would look like a slide of another stain.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import tifffile

from dino_path.errors import SlideError
from dino_path.slides.readers.ome import OmeImage, ome_image
from dino_path.slides.readers.reader import SlideFacts, downsamples_of

MIN_IS_WHITE, MIN_IS_BLACK, RGB, YCBCR = 0, 1, 2, 6  # TIFF's photometric interpretations
UNCOMPRESSED, JPEG, APERIO_JPEG2000_YCBCR = 1, 7, 33003
SEPARATE_PLANES = 2
PREMULTIPLIED, STRAIGHT = (1,), (2,)  # TIFF's ExtraSamples: alpha that the colours were multiplied by, and not
UNSIGNED = 1  # TIFF's SampleFormat
LARGEST_PIECE_BYTES = 2**30  # of one native tile or strip, decoded: it is in memory as a whole
LEVEL_SLACK_PX = 3  # sides of a level, halved and rounded several times over, against the slide's shape
OTHER_IMAGES = ("label", "macro", "overview", "thumbnail")  # words in the names of images that are not the slide
LARGE_SHARE = 0.25  # of the slide's area: another image of this size may be another piece of tissue

TO_TILED = "vips tiffsave IN OUT.tif --tile --pyramid --compression deflate"
TO_8_BIT = 'vips cast IN "OUT.tif[tile,pyramid,compression=deflate]" uchar --shift'
TO_SRGB = 'vips colourspace IN "OUT.tif[tile,pyramid,compression=deflate]" srgb'
LIST_UNDER_EXCLUDE = "or list the slide under slides.exclude"
COLOUR_NEEDED = "Three 8-bit colours (red, green, blue), or one 8-bit grey, are needed."


@dataclass(frozen=True)
class TiffPlan:
    """How to read a TIFF as a slide.

    Attributes:
        levels: tifffile's pages of each level: one page, or three that are red, green and blue.
    """

    facts: SlideFacts
    levels: tuple[tuple[Any, ...], ...]


def plan_slide(file: tifffile.TiffFile, path: Path) -> TiffPlan:
    """Find the slide among the images of the file: the largest one, with its smaller levels.

    Raises:
        SlideError: it is no slide that we can show in its true colours.
        damage.DECODER_ERRORS: its directories are damaged.
    """
    series = max(file.series, key=_area)
    page = series.keyframe
    image = _ome_image(file, (page.imagewidth, page.imagelength))
    _refuse_other_files(file, series, path)
    _refuse_colours(page, path)
    order, flags = _colour_order(series, image, path)
    _refuse_samples(page, path)
    levels: list[tuple[Any, ...]] = []
    for level in series.levels:
        pages = tuple(one.aspage() for one in level.pages)
        if _has_shape_of(pages[0], page) and len(pages) == len(order):
            _refuse_pieces(pages[0], path)
            levels.append(tuple(pages[i] for i in order))
    sizes = tuple((pages[0].imagewidth, pages[0].imagelength) for pages in levels)
    num_others = sum(_area(one) >= LARGE_SHARE * _area(series) and not _is_aside(one) for one in file.series) - 1
    if num_others > 0:
        flags = (*flags, f"other large images in the file: {num_others}")
    facts = SlideFacts(_vendor(file), sizes, downsamples_of(sizes), {**_properties(page), **image.properties}, flags)
    return TiffPlan(facts, tuple(levels))


def is_plain_colour(page: Any) -> bool:
    """Whether OpenSlide, too, would show this page in its true colours: three 8-bit ones, or four with alpha."""
    return page.bitspersample == 8 and page.sampleformat == UNSIGNED and _holds_colours(page)


def _holds_colours(page: Any) -> bool:
    has_alpha = page.samplesperpixel == 4 and page.extrasamples[:1] in (PREMULTIPLIED, STRAIGHT)
    return page.photometric in (RGB, YCBCR) and (page.samplesperpixel == 3 or has_alpha)


def _area(series: Any) -> int:
    return int(series.keyframe.imagewidth) * int(series.keyframe.imagelength)


def _is_aside(series: Any) -> bool:
    return any(word in (series.name or "").lower() for word in OTHER_IMAGES)


def _vendor(file: tifffile.TiffFile) -> str:
    return "ome-tiff" if file.is_ome else "qptiff" if file.is_qpi else "tiff"


def _has_shape_of(page: Any, whole: Any) -> bool:
    """Whether a level shows the whole slide: a smaller picture of another shape is a thumbnail or a label."""
    expected = page.imagewidth * whole.imagelength / whole.imagewidth
    return bool(abs(page.imagelength - expected) <= LEVEL_SLACK_PX)


def _ome_image(file: tifffile.TiffFile, size: tuple[int, int]) -> OmeImage:
    try:
        return ome_image(file.ome_metadata or "<OME/>", size)
    except ElementTree.ParseError:
        return OmeImage("", {}, (), False)


def _properties(page: Any) -> dict[str, str]:
    """The page's tags by the names that OpenSlide gives them, which `find_mpp` knows."""
    unit = {2: "inch", 3: "centimeter"}.get(page.tags.valueof(296, 2), "none")
    properties = {"tiff.ResolutionUnit": unit}
    for code, name in ((282, "tiff.XResolution"), (283, "tiff.YResolution")):
        numerator, denominator = page.tags.valueof(code, (0, 1))
        properties[name] = str(numerator / denominator if denominator else 0)
    if page.is_svs:
        aperio = tifffile.tifffile.svs_description_metadata(page.description)
        properties.update({"aperio.MPP": str(aperio.get("MPP", "")), "aperio.AppMag": str(aperio.get("AppMag", ""))})
    return properties


def _colour_order(series: Any, image: OmeImage, path: Path) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Which pages of a level are its colours, in their order, and what is to be known of them (flags).

    Raises:
        SlideError: the channels are no colours.
    """
    page = series.keyframe
    num_pages = len(series.levels[0].pages)
    num_planes = math.prod(size for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "CYXS")
    if num_planes > 1:
        raise _refusal(
            path,
            f"is a stack of {num_planes} pictures (focal planes, times or pages).",
            "One plane is needed; only you can choose it.",
            "Write one plane to a separate file (of focal planes: bfconvert -z 0 IN OUT.ome.tif, of Bio-Formats)",
        )
    flags = ("fluorescence",) if image.is_fluorescence else ()
    if num_pages == 1 and _holds_colours(page):
        return (0,), flags
    if num_pages == page.samplesperpixel == 1:
        return (0,), ("grey", *flags)
    is_colour = num_pages == 3 and page.samplesperpixel == 1 and image.channel_names and not image.is_fluorescence
    if is_colour and image.colour_order is not None:
        return image.colour_order, ()
    if is_colour and not any(image.channel_names):
        return (0, 1, 2), ("colours assumed: its three channels have no names",)
    raise _fluorescence(path, num_pages * page.samplesperpixel, image)


def _fluorescence(path: Path, num_channels: int, image: OmeImage) -> SlideError:
    named = f" ({', '.join(image.channel_names)})" if any(image.channel_names) else ""
    what = " of fluorescence" if image.is_fluorescence else ", which the file does not call red, green and blue"
    return _refusal(
        path,
        f"has {num_channels} channel{'s' * (num_channels != 1)}{named}{what}.",
        COLOUR_NEEDED,
        "dino-path does not read fluorescence: render it to RGB in the tool that shows it",
    )


def _refuse_other_files(file: tifffile.TiffFile, series: Any, path: Path) -> None:
    if any(page is None or page.parent is not file for level in series.levels for page in level.pages):
        raise _refusal(
            path,
            "its planes lie in several files, or one is missing.",
            "One file with all planes is needed.",
            "Write it again (Bio-Formats: bfconvert IN.ome.tif OUT.ome.tif)",
        )


def _refuse_colours(page: Any, path: Path) -> None:
    """Refuse colours whose conversion would be a guess, such as CMYK or a palette."""
    if page.photometric not in (MIN_IS_WHITE, MIN_IS_BLACK, RGB, YCBCR):
        raise _refusal(path, f"its colours are {_name(page.photometric)}.", COLOUR_NEEDED, f"Convert it ({TO_SRGB})")


def _refuse_samples(page: Any, path: Path) -> None:
    """Refuse pixels that are not 8-bit numbers, or that cannot be decoded."""
    if page.sampleformat != UNSIGNED:
        remedy = "Write it as 8-bit RGB with the tool that made it"
        raise _refusal(path, f"its pixels are {page.dtype} numbers.", COLOUR_NEEDED, remedy)
    if page.bitspersample != 8:
        remedy = f"Convert it ({TO_8_BIT if page.bitspersample == 16 else TO_TILED})"
        raise _refusal(
            path, f"has {page.bitspersample} bit{'s' * (page.bitspersample != 1)} per channel.", COLOUR_NEEDED, remedy
        )
    is_raw_ycbcr = page.photometric == YCBCR and page.compression not in (JPEG, APERIO_JPEG2000_YCBCR)
    if is_raw_ycbcr or (page.compression == JPEG and page.samplesperpixel not in (1, 3)):
        found = f"has {page.samplesperpixel} channels of {_name(page.photometric)} in {_name(page.compression)}."
        raise _refusal(
            path, found, "Colours that can be decoded without guessing are needed.", f"Convert it ({TO_TILED})"
        )
    if page.compression != UNCOMPRESSED and page.compression not in tifffile.TIFF.DECOMPRESSORS:
        raise _refusal(
            path,
            f"its pixels are compressed as {_name(page.compression)}.",
            "A compression that imagecodecs decodes is needed.",
            "Write it again with the tool that made it, as a TIFF in deflate or JPEG",
        )


def _refuse_pieces(page: Any, path: Path) -> None:
    """Refuse levels that can only be decoded as a whole, when that would not fit in memory."""
    if page.compression == UNCOMPRESSED and not page.is_tiled:
        return
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    if min(rows, page.imagelength) * columns * page.samplesperpixel > LARGEST_PIECE_BYTES:
        raise _refusal(
            path,
            f"its pixels are compressed in pieces of {columns} x {rows} px.",
            f"Tiles or strips of at most {LARGEST_PIECE_BYTES // 2**20} MiB are needed.",
            f"Convert it to tiles ({TO_TILED})",
        )


def _name(value: Any) -> str:
    """Of a TIFF's number, as its standard calls it."""
    return str(getattr(value, "name", value)).lower()


def _refusal(path: Path, found: str, needed: str, remedy: str) -> SlideError:
    return SlideError(str(path), found, needed, f"{remedy}, {LIST_UNDER_EXCLUDE}.")

"""Small slides for tests: pyramidal tiled TIFFs whose every pixel is known (deflate loses nothing)."""

import io
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from dino_path.slides.images.jpeg import table_segments

GLASS, PINK, PURPLE = (243, 243, 243), (214, 120, 170), (110, 60, 140)


def write_slide_file(
    path: Path,
    levels: Sequence[NDArray[np.uint8]],
    mpp: float | None = 0.5,
    unit: str = "cm",
    compression: Literal["zlib"] | None = "zlib",
) -> Path:
    """A TIFF that OpenSlide opens, with these RGB levels (finest first); `mpp` goes into the resolution tags."""
    path.parent.mkdir(parents=True, exist_ok=True)
    resolution = {}
    if mpp is not None:
        per_unit = {"cm": 10_000, "inch": 25_400}[unit] / mpp
        resolution = {
            "resolution": (per_unit, per_unit),
            "resolutionunit": {"cm": "CENTIMETER", "inch": "INCH"}[unit],
        }
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(levels):
            file.write(
                level,
                tile=(256, 256),
                photometric="rgb",
                compression=compression,
                compressionargs={"level": 1} if compression else None,
                subfiletype=1 if number else 0,
                metadata=None,
                **(resolution if number == 0 else {}),
            )
    return path


def tissue_image(width: int = 1024, height: int = 768) -> NDArray[np.uint8]:
    """Glass with slight noise and a rectangle of textured pink tissue: x from 256 to width - 256, y from 128."""
    rng = np.random.default_rng(0)
    image = np.full((height, width, 3), GLASS, dtype=np.int16) + rng.integers(-2, 3, (height, width, 1))
    tissue = image[128 : height - 128, 256 : width - 256]
    tissue[:] = np.array(PINK) + rng.integers(-20, 21, tissue.shape[:2])[..., None]
    tissue[::16] = PURPLE
    return image.astype(np.uint8)


def write_jpeg_slide(
    path: Path,
    levels: Sequence[NDArray[np.uint8]],
    *,
    mpp: float = 0.5,
    tile_px: int = 256,
    colours: Literal["ycbcr", "rgb"] = "ycbcr",
    has_shared_tables: bool = False,
    missing: Collection[int] = (),
    quality: int = 90,
    bigtiff: bool = False,
) -> Path:
    """A JPEG-tiled TIFF that OpenSlide opens, 4:2:0 YCbCr or (as Aperio's scanners write it) RGB without markers.

    Args:
        has_shared_tables: the tables stand once in the TIFF's directory, and the tiles come without.
        missing: numbers of level-0 tiles that are never written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path, bigtiff=bigtiff) as file:
        for number, level in enumerate(levels):
            streams = [_jpeg(tile, colours, quality) for tile in _padded_tiles(level, tile_px)]
            tables = b"\xff\xd8" + table_segments(streams[0]) + b"\xff\xd9" if has_shared_tables else None
            if has_shared_tables:
                streams = [_without_tables(stream) for stream in streams]
            if number == 0:
                streams = [b"" if index in missing else stream for index, stream in enumerate(streams)]
            file.write(
                iter(streams),
                shape=level.shape,
                dtype=np.uint8,
                tile=(tile_px, tile_px),
                photometric=colours,
                subsampling=(2, 2) if colours == "ycbcr" else None,
                compression="jpeg",
                compressionargs={"outcolorspace": "rgb"} if colours == "rgb" else None,
                jpegtables=tables,
                subfiletype=1 if number else 0,
                resolution=(10_000 / mpp, 10_000 / mpp),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def zero_ends_of_tiles(slide: Path, every: int) -> None:
    """Zero the last two thirds of every n-th level-0 tile's JPEG, but for its end marker: a lost block of the disk."""
    with tifffile.TiffFile(slide) as file:
        places = list(zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True))[::every]
    with slide.open("r+b") as stream:
        for offset, length in places:
            scan = slide.read_bytes()[offset : offset + length].find(b"\xff\xda") + 14
            stream.seek(offset + scan + (length - scan) // 3)
            stream.write(bytes(offset + length - 2 - stream.tell()))


def stained_image(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Structure at every scale and in every channel, none of it the same as another's."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), dtype=np.float32)
    for size_px, strength in ((64, 22), (16, 16), (5, 12), (2, 5)):
        coarse = rng.standard_normal((height // size_px + 2, width // size_px + 2, 3)).astype(np.float32)
        image += strength * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + np.array([190, 110, 170]), 0, 255).astype(np.uint8)


def _padded_tiles(image: NDArray[np.uint8], tile_px: int) -> Iterator[NDArray[np.uint8]]:
    height, width = image.shape[:2]
    padded = np.pad(image, ((0, -height % tile_px), (0, -width % tile_px), (0, 0)), mode="edge")
    for y in range(0, height, tile_px):
        for x in range(0, width, tile_px):
            yield padded[y : y + tile_px, x : x + tile_px]


def _jpeg(rgb: NDArray[np.uint8], colours: str, quality: int) -> bytes:
    stream = io.BytesIO()
    if colours == "ycbcr":
        Image.fromarray(rgb).save(stream, "jpeg", quality=quality, subsampling="4:2:0")
    else:
        Image.fromarray(rgb).save(stream, "jpeg", quality=quality, subsampling="4:4:4", keep_rgb=True)
    return stream.getvalue()


def _without_tables(stream: bytes) -> bytes:
    """Start, frame, scan: the abbreviated format of TIFF Technical Note 2. No marker says what the colours are."""
    kept, at = [stream[:2]], 2
    while stream[at + 1] != 0xDA:
        stop = at + 2 + int.from_bytes(stream[at + 2 : at + 4], "big")
        if stream[at + 1] == 0xC0:
            kept.append(stream[at:stop])
        at = stop
    return b"".join([*kept, stream[at:]])

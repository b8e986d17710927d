"""One slide's tiles into the store: a tar of JPEGs, the same byte for byte whenever it is written."""

from __future__ import annotations

import io
import tarfile
from typing import IO, Literal
from zlib import crc32

import cv2
import numpy as np

from dino_path.slides.slide import RgbImage

Subsampling = Literal["444", "420"]
SAMPLING_FACTORS = {"444": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, "420": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420}


class TileWriter:
    """Appends tiles to an open tar file. The stream stays open after `close`: its owner makes it appear."""

    def __init__(self, stream: IO[bytes], slide_id: str, jpeg_quality: int, subsampling: Subsampling) -> None:
        self._slide_id, self._jpeg_quality, self._subsampling = slide_id, jpeg_quality, subsampling
        self._tar = tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115

    def add(self, tile: RgbImage, corner_level0: tuple[int, int], jpeg: bytes | None) -> tuple[int, int, int]:
        """Store one tile as `<slide_id>_x<X>_y<Y>.jpg`: a key without dots, as WebDataset needs.

        Args:
            jpeg: the tile as it is encoded already; None: encoded here.

        Returns:
            Offset and length of the JPEG in the tar, bytes, and its CRC-32.
        """
        x, y = corner_level0
        encoded = encode_jpeg(tile, self._jpeg_quality, self._subsampling) if jpeg is None else jpeg
        header = tarfile.TarInfo(f"{self._slide_id}_x{x}_y{y}.jpg")  # owner, time and mode stay at constants
        header.size = len(encoded)
        self._tar.addfile(header, io.BytesIO(encoded))
        blocks = -(-len(encoded) // tarfile.BLOCKSIZE)
        return self._tar.offset - blocks * tarfile.BLOCKSIZE, len(encoded), crc32(encoded)

    def close(self) -> None:
        """Write the end of the tar."""
        self._tar.close()


def encode_jpeg(rgb: RgbImage, quality: int, subsampling: Subsampling) -> bytes:
    """JPEG bytes of an RGB image; no metadata."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLING_FACTORS[subsampling]]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    return np.asarray(encoded).tobytes()

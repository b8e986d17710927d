"""One slide's tiles into the store: a tar of JPEGs and a table that says where each lies. Repeated, byte for byte."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dino_path.run import atomic_write
from dino_path.slides.slide import RgbImage

TABLE = pa.schema(
    [
        ("x_level0", pa.int32()),
        ("y_level0", pa.int32()),
        ("size_level0", pa.int32()),
        ("tissue_fraction", pa.float32()),
        ("sharpness", pa.float32()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
    ]
)


@dataclass
class TileWriter:
    """Appends tiles to an open tar file and remembers where they lie."""

    stream: IO[bytes]
    slide_id: str
    size_level0: int
    jpeg_quality: int
    rows: list[tuple[int, int, int, float, float, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._tar = tarfile.open(fileobj=self.stream, mode="w", format=tarfile.GNU_FORMAT)  # noqa: SIM115

    def add(
        self,
        tile: RgbImage,
        corner_level0: tuple[int, int],
        *,
        tissue_fraction: float,
        sharpness: float,
        jpeg: bytes | None = None,
    ) -> None:
        """Store one tile as `<slide_id>_x<X>_y<Y>.jpg`: a key without dots, as WebDataset needs.

        Args:
            jpeg: the tile as it is encoded already; None: encoded here.
        """
        x, y = corner_level0
        encoded = encode_jpeg(tile, self.jpeg_quality) if jpeg is None else jpeg
        header = tarfile.TarInfo(f"{self.slide_id}_x{x}_y{y}.jpg")  # owner, time and mode stay at constants
        header.size = len(encoded)
        self._tar.addfile(header, io.BytesIO(encoded))
        blocks = -(-len(encoded) // tarfile.BLOCKSIZE)
        offset = self._tar.offset - blocks * tarfile.BLOCKSIZE
        self.rows.append((x, y, self.size_level0, tissue_fraction, sharpness, offset, len(encoded)))

    def close(self) -> None:
        """Write the end of the tar. The stream stays open: its owner makes it appear."""
        self._tar.close()


def write_table(path: Path, rows: list[tuple[int, int, int, float, float, int, int]]) -> None:
    """Write the table of one slide, one row per tile in the order of the tar."""
    columns = list(zip(*rows, strict=True)) if rows else [()] * len(TABLE)
    arrays = [pa.array(column, type=kind.type) for column, kind in zip(columns, TABLE, strict=True)]
    with atomic_write(path, "wb") as stream:
        pq.write_table(pa.Table.from_arrays(arrays, schema=TABLE), stream)


def encode_jpeg(rgb: RgbImage, quality: int) -> bytes:
    """JPEG bytes of an RGB image; no metadata."""
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(encoded).tobytes()

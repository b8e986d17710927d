"""Images in HDF5 files, read one by one: a file of 7 GB costs no more memory than a small one."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from dino_path.errors import DataError, TileStoreError
from dino_path.slides.images.decoding import MOST_PIXELS
from dino_path.slides.slide import RgbImage

# Chunks that hold many images are unpacked once, not once per image, when they are read in order.
CHUNK_CACHE_BYTES = 64 * 2**20


class H5Images:
    """The images (N, H, W, 3) uint8 RGB of one dataset in each of several files, one file after the other."""

    def __init__(self, files: Sequence[Path], dataset: str, *, mpp: float | None) -> None:
        """Check the shapes, without reading pixels.

        Raises:
            DataError: a file is no HDF5, has no such dataset, or it holds no RGB images.
        """
        self.files, self.dataset, self.mpp = tuple(files), dataset, mpp
        counts = [_count_images(file, dataset) for file in self.files]
        self._first_of_file = np.concatenate([[0], np.cumsum(counts)])
        sizes = [f"{file.name}:{file.stat().st_size}" for file in self.files]
        self.digest = hashlib.sha256(";".join(sizes).encode()).hexdigest()[:16]
        self._lock, self._open = threading.Lock(), dict[int, h5py.Dataset]()

    def __len__(self) -> int:
        return int(self._first_of_file[-1])

    def read_image(self, index: int) -> RgbImage:
        file, row = self._place(index)
        try:
            with self._lock:  # of our own: h5py lets one thread in at a time anyway
                if file not in self._open:
                    self._open[file] = h5py.File(self.files[file], "r", rdcc_nbytes=CHUNK_CACHE_BYTES)[self.dataset]
                return np.asarray(self._open[file][row], np.uint8)
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise TileStoreError(
                self.name(index),
                f"cannot be read ({' '.join(str(error).split())[:200]}).",
                "A complete HDF5 file is needed.",
                "Fetch it again.",
            ) from None

    def read_bytes(self, index: int) -> bytes:
        return self.read_image(index).tobytes()

    def name(self, index: int) -> str:
        file, row = self._place(index)
        return f"{self.files[file]}[{row}]"

    def _place(self, index: int) -> tuple[int, int]:
        file = int(np.searchsorted(self._first_of_file, index, side="right")) - 1
        return file, int(index - self._first_of_file[file])

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens the files for itself."""
        return {key: value for key, value in self.__dict__.items() if key not in ("_lock", "_open")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock, self._open = threading.Lock(), {}


def read_h5(file: Path, dataset: str, *, with_values: bool = False) -> tuple[tuple[int, ...], np.ndarray[Any, Any]]:
    """Shape of a dataset, and its values if requested (else an empty array of its type).

    Raises:
        DataError: the file is no HDF5, or has no such dataset of numbers.
    """
    try:
        with h5py.File(file, "r") as stream:
            found = stream[dataset]
            return tuple(found.shape), np.asarray(found[()]) if with_values else np.empty(0, found.dtype)
    except (OSError, KeyError, AttributeError, TypeError, ValueError) as error:
        raise DataError(
            str(file),
            f"cannot be read ({' '.join(str(error).split())[:200]}).",
            f"An unpacked HDF5 file with the dataset {dataset!r} is needed.",
            "Download it again; unpack it if its name ends in .gz.",
        ) from None


def _count_images(file: Path, dataset: str) -> int:
    shape, empty = read_h5(file, dataset)
    if len(shape) == 4 and shape[1] * shape[2] > MOST_PIXELS:
        raise DataError(
            str(file),
            f"{dataset!r} holds images of {shape[1]:,} x {shape[2]:,} pixels.",
            f"At most {MOST_PIXELS:,} pixels each are needed.",
            "Cut them into tiles.",
        )
    if len(shape) != 4 or shape[3] != 3 or empty.dtype != np.uint8:
        raise DataError(
            str(file),
            f"{dataset!r} holds {empty.dtype} of the shape {shape}.",
            "Images (N, height, width, 3) uint8 are needed.",
            "Check which file this is.",
        )
    return shape[0]

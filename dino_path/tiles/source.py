"""Sources of tiles for training, features and evaluation: a tile store, a folder of images, or a part of either."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dino_path.errors import TileStoreError
from dino_path.slides.slide import RgbImage
from dino_path.tiles.images import IMAGE_EXTENSIONS, ImageFiles, image_files, search_images
from dino_path.tiles.store import TileStore
from dino_path.walk import Unreadable


class TileSource(Protocol):
    """Images by number. Implementations can be pickled, and open files per process."""

    @property
    def digest(self) -> str:
        """Changes when the content does."""

    @property
    def mpp(self) -> float | None:
        """Microns per pixel, where known."""

    def __len__(self) -> int: ...

    def read_image(self, index: int) -> RgbImage:
        """One image: (H, W, 3) uint8 RGB.

        Raises:
            TileStoreError: it cannot be read.
        """

    def read_bytes(self, index: int) -> bytes:
        """One image as it is stored, or its raw pixels: equal bytes are equal images.

        Raises:
            TileStoreError: it cannot be read.
        """

    def name(self, index: int) -> str:
        """The image's name for messages."""


class Subset:
    """Some tiles of another source, in the order of `indices` (N,)."""

    def __init__(self, source: TileSource, indices: NDArray[np.integer]) -> None:
        self.source, self.indices = source, np.asarray(indices, dtype=np.int64)
        if self.indices.size and not 0 <= int(self.indices.min()) <= int(self.indices.max()) < len(source):
            raise IndexError(f"indices reach from {self.indices.min()} to {self.indices.max()} of {len(source)} tiles")
        self.mpp = source.mpp
        self.digest = hashlib.sha256(source.digest.encode() + self.indices.tobytes()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.indices)

    def read_image(self, index: int) -> RgbImage:
        return self.source.read_image(int(self.indices[index]))

    def read_bytes(self, index: int) -> bytes:
        return self.source.read_bytes(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))


def open_tiles(path: Path, *, split: str | None = None, exclude: Sequence[str] = ()) -> TileSource:
    """A tile store, or else a folder of images (with its subfolders), all of which can be read.

    Args:
        split, exclude: of a tile store's slides. In a folder of images `exclude` names files and folders; there is no
            split.

    Raises:
        TileStoreError: neither is there, it is damaged, nothing is left, or a folder in it cannot be read.
    """
    if _is_store(path):
        return TileStore.open(path, split=split, exclude=exclude)
    _refuse_no_folder(path)
    _refuse_split_of_images(path, split)
    return _images_of(path, image_files(path, exclude))


def open_readable_tiles(path: Path) -> tuple[TileSource, Sequence[Unreadable]]:
    """As `open_tiles`, with what could not be looked at in a folder of images instead of a refusal."""
    if _is_store(path):
        return TileStore.open(path), ()
    _refuse_no_folder(path)
    found = search_images(path)
    return (_images_of(path, found.files) if found.files else open_tiles(path)), found.unreadable


def refuse_no_tiles(path: Path, *, split: str | None = None, exclude: Sequence[str] = ()) -> None:
    """The refusals of `open_tiles`, quickly: in a folder of images, the search stops at the first image.

    Raises:
        TileStoreError: see `open_tiles`.
    """
    if _is_store(path):
        TileStore.open(path, split=split, exclude=exclude)
        return
    _refuse_no_folder(path)
    _refuse_split_of_images(path, split)
    names = (name for _, _, names in os.walk(path, followlinks=True) for name in names)
    if not any(Path(name).suffix.lower() in IMAGE_EXTENSIONS for name in names):
        raise _no_images(path)


def _is_store(path: Path) -> bool:
    """Whether this is a tile store, also one whose store.json is lost: its pictures of slides are no tiles."""
    return any(os.path.lexists(path / name) for name in ("store.json", "expected.json"))


def _refuse_no_folder(path: Path) -> None:
    if not path.is_dir():
        raise TileStoreError(
            str(path),
            "no such folder.",
            "A tile store or a folder of images is needed.",
            "Check the path; `dino-path tile` makes a store from slides.",
        )


def _refuse_split_of_images(path: Path, split: str | None) -> None:
    if split is not None:
        raise TileStoreError(
            str(path),
            f"is a folder of images, and slides.split={split} is set.",
            "Only the slides of a tile store have splits.",
            "Leave slides.split out, or give the subfolder.",
        )


def _images_of(path: Path, files: Sequence[Path]) -> ImageFiles:
    if not files:
        raise _no_images(path)
    return ImageFiles(files)


def _no_images(path: Path) -> TileStoreError:
    return TileStoreError(
        str(path),
        "holds neither store.json nor images.",
        f"A tile store, or files that end in {', '.join(IMAGE_EXTENSIONS)}, is needed.",
        "Check the path; `dino-path tile` makes a store from slides.",
    )

"""Image files on disk, one tile each, and the decoding of any encoded tile."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from dino_path.errors import TileStoreError
from dino_path.slides.images.decoding import BadImage, decode_image
from dino_path.slides.slide import RgbImage
from dino_path.walk import Found, files_below, name_some, without_names

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")


class ImageFiles:
    """Image files, one tile each, in the order given."""

    def __init__(self, paths: Sequence[Path], mpp: float | None = None, *, sizes: Sequence[int] | None = None) -> None:
        """Check only the size of each file, not its contents.

        Args:
            sizes: bytes of each file, where they are known; then no file is looked at, and some may be missing.

        Raises:
            TileStoreError: no paths, or one that is no file.
        """
        if not paths:
            raise TileStoreError("images", "none were given.", "At least one image is needed.", "Check the path.")
        self.paths, self.mpp = tuple(paths), mpp
        self.sizes = tuple(_file_size(path) for path in self.paths) if sizes is None else tuple(sizes)
        content = hashlib.sha256()
        for path, size in zip(self.paths, self.sizes, strict=True):
            content.update(f"{path.parent.name}/{path.name}:{size};".encode())
        self.digest = content.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.paths)

    def read_image(self, index: int) -> RgbImage:
        return decode_tile(self.read_bytes(index), self.name(index))

    def read_bytes(self, index: int) -> bytes:
        try:
            return self.paths[index].read_bytes()
        except OSError as error:
            raise _unreadable_image(str(self.paths[index]), str(error)) from None

    def name(self, index: int) -> str:
        return str(self.paths[index])


def image_files(folder: Path, exclude: Sequence[str] = ()) -> list[Path]:
    """Image files below `folder`, sorted; links are followed, hidden names are left out, and those in `exclude`.

    Raises:
        TileStoreError: a folder cannot be read, or a link to an image or a folder leads nowhere.
    """
    found = search_images(folder, exclude)
    if found.unreadable:
        raise TileStoreError(
            str(folder),
            f"{len(found.unreadable)} folder(s) or link(s) in it cannot be read: {name_some(found.unreadable)}.",
            "All images must be readable, or the run would silently use only a part of them.",
            "Ask for permission, mount the disk, or remove the links.",
        )
    return list(found.files)


def search_images(folder: Path, exclude: Sequence[str] = ()) -> Found:
    """Image files below `folder` whose names are not in `exclude`, and what could not be looked at."""
    found = files_below(folder, lambda name: Path(name).suffix.lower() in IMAGE_EXTENSIONS)
    files = tuple(file for file in found.files if file.name not in exclude)
    return Found(files, without_names(found.unreadable, exclude))


def decode_tile(encoded: bytes, name: str) -> RgbImage:
    """(H, W, 3) uint8 RGB; grey comes back as RGB, 16 bits as 8, and transparent pixels white (slides/images).

    Raises:
        TileStoreError: not an image, or a damaged one. `name` says which.
    """
    try:
        return decode_image(encoded)
    except BadImage as error:
        raise _unreadable_image(name, str(error)) from None


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise _unreadable_image(str(path), str(error)) from None


def _unreadable_image(name: str, found: str) -> TileStoreError:
    return TileStoreError(
        name,
        f"cannot be read ({' '.join(found.split())}).",
        "A complete image (JPEG, PNG, TIFF, BMP or WebP; 8 or 16 bits; grey, RGB or palette) is needed.",
        "Copy it again, save it as PNG if its format is the reason, or remove it from the data.",
    )

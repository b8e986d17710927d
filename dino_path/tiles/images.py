"""Image files on disk, one tile each, and the decoding of any encoded tile."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from dino_path.errors import TileStoreError
from dino_path.slides.slide import RgbImage
from dino_path.walk import Found, files_below, name_some, without_names

IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")


class ImageFiles:
    """Image files, one tile each, in the order given."""

    def __init__(self, paths: Sequence[Path], mpp: float | None = None) -> None:
        """Look at the size of each file, and at nothing inside.

        Raises:
            TileStoreError: no paths, or one that is no file.
        """
        if not paths:
            raise TileStoreError("images", "none were given.", "At least one image is needed.", "Check the path.")
        self.paths, self.mpp = tuple(paths), mpp
        content = hashlib.sha256()
        for path in self.paths:
            try:
                content.update(f"{path.parent.name}/{path.name}:{path.stat().st_size};".encode())
            except OSError as error:
                raise _unreadable_image(str(path), str(error)) from None
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
            "All images must be there, or a part of them would decide without a word.",
            "Ask for permission, mount the disk, or take the links away.",
        )
    return list(found.files)


def search_images(folder: Path, exclude: Sequence[str] = ()) -> Found:
    """Image files below `folder` whose names are not in `exclude`, and what could not be looked at."""
    found = files_below(folder, lambda name: Path(name).suffix.lower() in IMAGE_EXTENSIONS)
    files = tuple(file for file in found.files if file.name not in exclude)
    return Found(files, without_names(found.unreadable, exclude))


def decode_tile(encoded: bytes, name: str) -> RgbImage:
    """(H, W, 3) uint8 RGB; grey comes back as RGB, 16 bits as 8, and transparent pixels white.

    Raises:
        TileStoreError: not an image, or a damaged one. `name` says which.
    """
    # UNCHANGED keeps the alpha channel of PNG and TIFF; JPEG has none, and COLOR applies its EXIF rotation.
    is_jpeg = encoded[:2] == b"\xff\xd8"
    flags = cv2.IMREAD_COLOR if is_jpeg else cv2.IMREAD_UNCHANGED
    if is_jpeg and encoded.rfind(b"\xff\xd9") < encoded.rfind(b"\xff\xda"):
        # No end marker after the last start of scan: OpenCV would return the missing rows as plain grey.
        raise _unreadable_image(name, "a JPEG that is cut short")
    try:
        image = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), flags) if encoded else None
    except cv2.error as error:
        raise _unreadable_image(name, str(error)) from None
    if image is None:
        raise _unreadable_image(name, f"{len(encoded)} bytes that do not decode")
    if image.dtype not in (np.uint8, np.uint16):
        raise _unreadable_image(name, f"its pixels are {image.dtype}, and only 8 and 16 bits without sign are colours")
    if image.dtype == np.uint16:
        image = np.rint(image / 257)
    pixels = np.asarray(image, dtype=np.uint8)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB), dtype=np.uint8)
    if pixels.shape[2] == 4:
        weight = pixels[..., 3:].astype(np.float32) / 255
        pixels = np.rint(pixels[..., :3] * weight + 255 * (1 - weight)).astype(np.uint8)
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _unreadable_image(name: str, found: str) -> TileStoreError:
    return TileStoreError(
        name,
        f"cannot be read ({' '.join(found.split())}).",
        "A whole image file (JPEG, PNG, TIFF, BMP or WebP) is needed.",
        "Fetch it again, or take it out of the data.",
    )

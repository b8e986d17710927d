"""What a caller gives as images, as a source of tiles: PIL images, arrays, paths, folders and stores.

Shape suffixes: N images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pil

from dino_path.api.settings import PathLike
from dino_path.api.tile_store import TileStore
from dino_path.errors import DataError, TileStoreError
from dino_path.tiles.images import IMAGE_EXTENSIONS, decode_tile
from dino_path.tiles.source import TileSource, open_tiles

OneImage = PathLike | Pil.Image | NDArray[np.uint8]
if TYPE_CHECKING:
    from dino_path.api.dataset import TileDataset  # it imports torch

    Images = OneImage | Sequence[OneImage] | NDArray[np.uint8] | TileStore | TileDataset
ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")
COLOUR_MODES = ("RGB", "L", "P", "1", *ALPHA_MODES)
NEEDED = "Images are PIL images, paths, or uint8 arrays of the shape (N, H, W, 3) or (H, W, 3), values 0 to 255."


class GivenImages:
    """Images in memory or in files, one after the other, as a `TileSource`."""

    mpp = None

    def __init__(self, images: Sequence[OneImage]) -> None:
        """Check what can be checked without reading a file.

        Raises:
            DataError: there are none, or one is no image. TileStoreError: a path is no image file.
        """
        if len(images) == 0:
            raise DataError("images", "none were given.", "At least one image is needed.", "Check the list.")
        for number, image in enumerate(images):
            _check(image, number)
        self.images = images

    @property
    def digest(self) -> str:
        content = hashlib.sha256()
        for number in range(len(self)):
            content.update(hashlib.sha256(self.read_bytes(number)).digest())
        return content.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.images)

    def read_image(self, index: int) -> NDArray[np.uint8]:
        image = self.images[index]
        if isinstance(image, np.ndarray):
            return image
        if isinstance(image, Pil.Image):
            return _rgb(image)
        return decode_tile(self.read_bytes(index), self.name(index))

    def read_bytes(self, index: int) -> bytes:
        image = self.images[index]
        if isinstance(image, np.ndarray | Pil.Image):
            return self.read_image(index).tobytes()
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise TileStoreError(
                str(image),
                f"cannot be read ({error.strerror or error}).",
                "An image file is needed.",
                "Check the path.",
            ) from None

    def name(self, index: int) -> str:
        image = self.images[index]
        return f"image {index}" if isinstance(image, np.ndarray | Pil.Image) else os.fspath(image)


def source_of(images: Images) -> TileSource:
    """The images as a source.

    Raises:
        DataError: they are none of the kinds that are taken. TileStoreError: a path leads to no image.
    """
    if isinstance(images, TileStore):
        return images.source
    if isinstance(images, str | os.PathLike):
        path = Path(images)
        if not path.exists():
            raise TileStoreError(
                str(path),
                "no such file or folder.",
                "An image, a folder of images, or a tile store is needed.",
                "Check the path; dino_path.tile() makes a store from slides.",
            )
        return open_tiles(path) if path.is_dir() else GivenImages([path])
    if isinstance(images, Pil.Image):
        return GivenImages([images])
    if isinstance(images, np.ndarray):
        return GivenImages(list(images) if images.ndim == 4 else [images])
    if isinstance(images, Sequence):
        return GivenImages(images)
    if _kind(images) != "dino_path.api.dataset.TileDataset":
        raise _no_image("images", f"its type is {_kind(images)}.", images)
    return images.source


def _check(image: Any, number: int) -> None:
    """Refuse what is no image."""
    name = f"image {number}"
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise _no_image(name, f"its values are {image.dtype}.", image)
        if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise _no_image(name, f"its shape is {image.shape}.", image)
    elif isinstance(image, Pil.Image):
        if image.mode not in COLOUR_MODES:
            raise _no_image(name, f"a PIL image of the mode {image.mode}.", image)
    elif isinstance(image, str | os.PathLike):
        path = Path(image)
        if not path.is_file():
            found = "is a folder." if path.is_dir() else "no such file."
            raise TileStoreError(str(path), found, "A list of paths names image files.", "Check the path.")
        if path.suffix.lower() not in IMAGE_EXTENSIONS:
            raise TileStoreError(
                str(path),
                f"its name does not end as that of an image ({path.suffix or 'no ending'}).",
                f"Images end in {', '.join(IMAGE_EXTENSIONS)}.",
                "If it is a slide: dino_path.tile() cuts it into tiles first.",
            )
    else:
        raise _no_image(name, f"its type is {_kind(image)}.", image)


def _no_image(name: str, found: str, given: Any) -> DataError:
    """The refusal, with what to do about the commonest mistakes."""
    dtype, shape = getattr(given, "dtype", None), tuple(getattr(given, "shape", ()))
    if _kind(given) == "torch.Tensor":
        remedy = "Give an array: images.permute(0, 2, 3, 1).cpu().numpy() of uint8 images (N, 3, H, W)."
    elif isinstance(given, np.ndarray) and np.issubdtype(dtype, np.floating):
        remedy = (
            "Give the image before it was normalised; of values from 0 to 1: (255 * image).round().astype(numpy.uint8)."
        )
    elif len(shape) >= 3 and shape[-3] == 3 and shape[-1] != 3:
        remedy = "Put the channels last: numpy.moveaxis(image, -3, -1)."
    elif len(shape) == 2:
        remedy = "Of a grey image make three channels: numpy.repeat(image[..., None], 3, axis=2)."
    else:
        remedy = "Convert them first, such as PIL's image.convert('RGB')."
    return DataError(name, found, NEEDED, remedy)


def _kind(value: object) -> str:
    module = type(value).__module__
    return type(value).__name__ if module == "builtins" else f"{module}.{type(value).__name__}"


def _rgb(image: Pil.Image) -> NDArray[np.uint8]:
    """(H, W, 3) uint8; transparent pixels are white."""
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        colours = image.convert("RGBA")
        image = Pil.alpha_composite(Pil.new("RGBA", colours.size, (255, 255, 255, 255)), colours)
    return np.asarray(image.convert("RGB"), np.uint8)

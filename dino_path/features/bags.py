"""Feature files of slides, whoever wrote them, as bags of tiles that are read piece by piece.

Read are `.h5` files with `features` (N, D) and `coords` (N, 2), as `dino-path embed`, TRIDENT and CLAM write them
(STAMP calls the first `feats`), and CLAM's `.pt` files, which hold a plain tensor and are opened with `weights_only`.
Torch is imported for `.pt` files only.

Shape suffixes: N tiles of a slide, D features.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
from numpy.typing import NDArray

from dino_path.errors import DataError
from dino_path.walk import files_like, name_some

if TYPE_CHECKING:
    import torch

Features = NDArray[np.float32]

PIECE_TILES = 4096  # read at a time: 25 MB of 1536 features
# What h5py raises at damaged files.
HDF5_ERRORS = (OSError, RuntimeError, KeyError, AttributeError, ValueError, TypeError)
KEYS = ("features", "feats")
INNER_FOLDERS = ("h5_files", "pt_files")  # CLAM's, below the folder of an encoder
LOOK_BELOW = ("*", "*/*", "*/*/*")  # where the folder that was meant may lie
PREFIXES = ("features_", "clam_")


@dataclass(frozen=True)
class BagFolder:
    """The feature files of one extractor.

    Attributes:
        path: as it was given.
        name: of the extractor, from the folder's name: `features_uni_v2` is uni_v2.
        files: slide name (the file's, without its extension) -> file.
    """

    path: Path
    name: str
    files: Mapping[str, Path]

    @property
    def needs_torch(self) -> bool:
        """Whether the files are tensors of torch's."""
        return any(file.suffix == ".pt" for file in self.files.values())


@dataclass(frozen=True)
class Bag:
    """The features of one slide on disk.

    Attributes:
        encoder, encoder_digest: the extractor and what it was, where the file says so (those of `dino-path embed` do).
    """

    path: Path
    num_tiles: int
    num_features: int
    encoder: str | None = None
    encoder_digest: str | None = None

    def pieces(self) -> Iterator[Features]:
        """The features (n, D), at most PIECE_TILES tiles at a time.

        Raises:
            DataError: the file cannot be read any more, or holds numbers that are not finite.
        """
        with _Opened(self.path) as stored:
            for start in range(0, self.num_tiles, PIECE_TILES):
                try:
                    piece = np.asarray(stored[start : start + PIECE_TILES], np.float32)
                except HDF5_ERRORS as error:
                    raise _bad_bag(self.path, _one_line(error)) from None
                if not np.isfinite(piece).all():
                    row = start + int(np.argmin(np.isfinite(piece).all(axis=1)))
                    raise DataError(
                        str(self.path),
                        f"the features of tile {row} are not finite.",
                        "Finite features of every tile are needed.",
                        "Embed the slide again, with --precision bf16 or fp32 instead of fp16; or remove it from the"
                        " labels.",
                    )
                yield piece

    def rectangles(self) -> Rectangles:
        """Where the tiles lie.

        Raises:
            DataError: the file does not say it.
        """
        try:
            with h5py.File(self.path) as h5:
                coords = h5["coords"]
                corners_N2 = np.asarray(coords, np.float64).reshape(-1, 2)
                edge_level0 = _edge_level0(dict(coords.attrs))
        except HDF5_ERRORS as error:
            raise _no_rectangles(self.path, _one_line(error)) from None
        if len(corners_N2) != self.num_tiles or edge_level0 is None:
            raise _no_rectangles(
                self.path, "no edge of the tiles" if edge_level0 is None else f"{len(corners_N2)} rows"
            )
        return Rectangles(corners_N2, edge_level0)


@dataclass(frozen=True)
class Rectangles:
    """The tiles of a slide: top-left corners (N, 2) and their edge, level-0 px."""

    corners: NDArray[np.float64]
    edge_level0: float


def find_bags(folder: Path) -> BagFolder:
    """The feature files in a folder: `.h5`, else `.pt`; CLAM's folder of an encoder holds them one level lower.

    Raises:
        DataError: no such folder, or no feature files in it.
    """
    if not folder.is_dir():
        raise _no_bags(folder, "no such folder." if not folder.exists() else "is a file.", "Check the path.")
    for place in (folder, *(folder / inner for inner in INNER_FOLDERS)):
        for suffix in ("h5", "pt"):
            if files := files_like(place, f"*.{suffix}"):
                named = Path(os.path.abspath(folder))  # noqa: PTH100 (`a/..` has a name, and links keep theirs)
                named = named.parent if named.name in INNER_FOLDERS else named
                name = next((named.name.removeprefix(p) for p in PREFIXES if named.name.startswith(p)), named.name)
                return BagFolder(folder, name, {file.stem: file for file in files})
    below = sorted({file.parent for pattern in LOOK_BELOW for file in folder.glob(f"{pattern}/*.h5")})
    meant = [place for place in below if place.name not in ("patches", "store")]
    raise _no_bags(
        folder,
        "holds no .h5 or .pt files.",
        f"Give a folder below it: {name_some(meant)}." if meant else "Make them with `dino-path embed MODEL STORE`.",
    )


def open_bag(path: Path) -> Bag:
    """The contents of a feature file, according to its header.

    Raises:
        DataError: it cannot be read, or holds no (N, D) features.
    """
    with _Opened(path) as stored:
        if len(stored.shape) != 2:
            raise _bad_bag(path, f"its features have the shape {tuple(stored.shape)}")
        try:
            attributes = dict(stored.attributes)
        except HDF5_ERRORS as error:
            raise _bad_bag(path, _one_line(error)) from None
        num_tiles, num_features = map(int, stored.shape)
    return Bag(path, num_tiles, num_features, *(_text(attributes.get(key)) for key in ("encoder", "encoder_digest")))


class _Opened:
    """The features of a file as an array that is read in slices; a leading axis of length 1 is left out."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._h5: h5py.File | None = None
        self.attributes: Mapping[str, Any] = {}

    def __enter__(self) -> _Opened:
        if self.path.suffix == ".pt":
            self._stored: Any = _read_tensor(self.path)
        else:
            try:
                self._h5 = h5py.File(self.path)
                key = next((key for key in KEYS if key in self._h5), None)
                is_of_images = "names" in self._h5
                self._stored = None if key is None else self._h5[key]
            except HDF5_ERRORS as error:
                self.__exit__()
                raise _bad_bag(self.path, _one_line(error)) from None
            if is_of_images or not isinstance(self._stored, h5py.Dataset) or self._stored.shape is None:
                self.__exit__()
                raise _bad_bag(
                    self.path, "the features of a folder of images" if is_of_images else "no `features` in it"
                )
            self.attributes = self._stored.attrs
        shape = tuple(self._stored.shape)
        self._is_nested = len(shape) == 3 and shape[0] == 1
        self.shape: tuple[int, ...] = shape[1:] if self._is_nested else shape
        return self

    def __exit__(self, *_: object) -> None:
        if self._h5 is not None:
            self._h5.close()

    def __getitem__(self, rows: slice) -> Any:
        return self._stored[0, rows] if self._is_nested else self._stored[rows]


def _read_tensor(path: Path) -> torch.Tensor:
    from dino_path.model.torch_file import UNREADABLE, load_torch_file

    try:
        tensor = load_torch_file(path)
    except UNREADABLE as error:
        raise _bad_bag(path, _one_line(error)) from None
    if getattr(tensor, "ndim", None) is None:
        raise _bad_bag(path, f"a {type(tensor).__name__}, no tensor")
    plain: torch.Tensor = tensor.detach().float()
    return plain


def _edge_level0(attributes: Mapping[str, Any]) -> float | None:
    """The edge of a tile by the attributes of `coords`: TRIDENT's, else CLAM's; None: they do not say it."""
    if "patch_size_level0" in attributes:
        return float(attributes["patch_size_level0"])
    if "patch_size" in attributes and "downsample" in attributes:
        return float(attributes["patch_size"]) * float(np.mean(attributes["downsample"]))
    return None


def _text(value: Any) -> str | None:
    return None if value is None else str(value.decode() if isinstance(value, bytes) else value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _bad_bag(path: Path, found: str) -> DataError:
    return DataError(
        str(path),
        f"is not a feature file of a slide ({found}).",
        "An .h5 file with `features` (tiles, features) is needed, or a .pt file with such a tensor.",
        "Embed the slide again with `dino-path embed`, TRIDENT or CLAM.",
    )


def _no_bags(folder: Path, found: str, remedy: str) -> DataError:
    return DataError(
        str(folder), found, "A folder of feature files is needed, one .h5 or .pt file for each slide.", remedy
    )


def _no_rectangles(path: Path, found: str) -> DataError:
    return DataError(
        str(path),
        f"does not give the positions of its tiles ({found}).",
        "`coords` with `patch_size_level0` (TRIDENT), or `patch_size` and `downsample` (CLAM), are needed for a map.",
        "Leave --heatmap out, or give the .h5 files of `dino-path embed`, TRIDENT or CLAM.",
    )

"""Feature files as MIL tools read them: TRIDENT's layout, CLAM's layout, and one file for a folder of images.

TRIDENT (mahmoodlab/TRIDENT a91fa84; `patch` is its word for tile): `coords` are top-left corners in level-0 px, and
attributes on that data set say how large a tile is. Its reader takes only the ratio of the two magnifications, so
10 / mpp as floats gives the exact footprint where its own rounding to 40x, 20x, 10x would not.
CLAM (mahmoodlab/CLAM 53e2409): the same two arrays, and the features once more as a plain tensor.

Shape suffixes: N tiles, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from dino_path.errors import DataError
from dino_path.run import atomic_write
from dino_path.tiles.layout import SlideRecord

Attributes = Mapping[str, str | int | float]
Features = NDArray[np.float32]
Coordinates = NDArray[np.int64]  # (N, 2): x, y of top-left corners, level-0 px

ROWS_PER_CHUNK = 256
UM_PER_PX_AT_1X = 10.0  # by convention 20x is 0.5 um/px


@dataclass(frozen=True)
class Origin:
    """What features were made with: written beside them, and compared before a file is taken as finished.

    Attributes:
        encoder: name of the extractor.
        encoder_digest: of its weights and preprocessing.
        tiles_digest: of the tiles it saw.
    """

    encoder: str
    encoder_digest: str
    tiles_digest: str


@dataclass(frozen=True)
class FeatureFile:
    """The content of one feature file; `coords` is None for a folder of images, `names` for a slide."""

    features: Features
    coords: Coordinates | None
    coords_attributes: Attributes
    names: tuple[str, ...] | None
    origin: Origin


def job_folder_name(*, mpp: float, size_px: int, overlap_px: int) -> str:
    """TRIDENT's folder for one kind of tile: `20x_256px_0px_overlap` for 256 px at 0.5 um/px."""
    return f"{UM_PER_PX_AT_1X / mpp:g}x_{size_px}px_{overlap_px}px_overlap"


def tile_attributes(record: SlideRecord, *, size_px: int, size_level0: int, overlap_px: int) -> Attributes:
    """The attributes of `coords` for one slide: sizes in px, magnifications as 10 / mpp.

    Args:
        size_px: edge of a tile, in px at the tile's mpp.
        size_level0: the same edge in level-0 px.
        overlap_px: of neighbouring tiles, in px at the tile's mpp.
    """
    assert record.mpp is not None
    assert record.tile_mpp is not None
    return {
        "patch_size": size_px,
        "patch_size_level0": size_level0,
        "level0_magnification": UM_PER_PX_AT_1X / record.mpp,
        "target_magnification": UM_PER_PX_AT_1X / record.tile_mpp,
        "overlap": overlap_px,
        "name": record.slide_id,
        "savetodir": "",  # TRIDENT's absolute path; nothing reads it, and it would tell where we work
        "level0_width": record.width_level0,
        "level0_height": record.height_level0,
    }


def write_coordinates(file: Path, coords_N2: Coordinates, attributes: Attributes) -> None:
    """TRIDENT's `<slide>_patches.h5`: the tiles without features."""
    with atomic_write(file, "w+b") as stream, h5py.File(stream, "w") as h5:
        _write_coords(h5, coords_N2, attributes)


def write_slide_features(
    file: Path, features_ND: Features, coords_N2: Coordinates, attributes: Attributes, origin: Origin
) -> None:
    """One slide's `features` and `coords`, row by row the same tiles; complete or not there at all."""
    assert len(features_ND) == len(coords_N2)
    with atomic_write(file, "w+b") as stream, h5py.File(stream, "w") as h5:
        _write_features(h5, features_ND, origin, name=str(attributes["name"]))
        _write_coords(h5, coords_N2, attributes)


def write_tensor(file: Path, features_ND: Features) -> None:
    """CLAM's `<slide>.pt`: the features as a plain tensor, which torch.load(weights_only=True) reads."""
    with atomic_write(file, "wb") as stream:
        torch.save(torch.from_numpy(features_ND), stream)


def write_image_features(file: Path, features_ND: Features, names: Sequence[str], origin: Origin) -> None:
    """`features` and `names` of a folder of images."""
    assert len(features_ND) == len(names)
    with atomic_write(file, "w+b") as stream, h5py.File(stream, "w") as h5:
        _write_features(h5, features_ND, origin, name="")
        h5.create_dataset("names", data=np.asarray(names, dtype=object), dtype=h5py.string_dtype())


def read_feature_file(file: Path) -> FeatureFile:
    """A feature file that we have written.

    Raises:
        DataError: missing, damaged, or written by something else.
    """
    try:
        with h5py.File(file) as h5:
            stored = h5["features"]
            coords = h5.get("coords")
            return FeatureFile(
                features=np.asarray(stored, np.float32),
                coords=None if coords is None else np.asarray(coords, np.int64),
                coords_attributes={} if coords is None else {key: _plain(coords.attrs[key]) for key in coords.attrs},
                names=tuple(name.decode() for name in h5["names"][()]) if "names" in h5 else None,
                origin=_origin(stored),
            )
    except (OSError, KeyError) as error:
        raise _unreadable(file, error) from None


def read_origin(file: Path) -> tuple[Origin, int]:
    """What a feature file was made with, and its number of rows.

    Raises:
        DataError: damaged, or written by something else.
    """
    try:
        with h5py.File(file) as h5:
            return _origin(h5["features"]), int(h5["features"].shape[0])
    except (OSError, KeyError) as error:
        raise _unreadable(file, error) from None


def _write_features(h5: h5py.File, features_ND: Features, origin: Origin, *, name: str) -> None:
    rows, width = features_ND.shape
    stored = h5.create_dataset(
        "features",
        data=features_ND.astype(np.float32, copy=False),
        chunks=(min(max(rows, 1), ROWS_PER_CHUNK), width),
        maxshape=(None, width),
    )
    stored.attrs.update(
        {
            "name": name,
            "savetodir": "",
            "encoder": origin.encoder,
            "encoder_digest": origin.encoder_digest,
            "tiles_digest": origin.tiles_digest,
        }
    )


def _write_coords(h5: h5py.File, coords_N2: Coordinates, attributes: Attributes) -> None:
    rows = len(coords_N2)
    stored = h5.create_dataset(
        "coords",
        data=coords_N2.astype(np.int64, copy=False).reshape(rows, 2),
        chunks=(min(max(rows, 1), ROWS_PER_CHUNK), 2),
        maxshape=(None, 2),
    )
    stored.attrs.update(attributes)


def _origin(stored: h5py.Dataset) -> Origin:
    attributes = stored.attrs
    return Origin(*(str(attributes[key]) for key in ("encoder", "encoder_digest", "tiles_digest")))


def _plain(value: object) -> str | int | float:
    plain: str | int | float = value.item() if isinstance(value, np.generic) else str(value)
    return plain


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(
        str(file),
        f"is not a feature file of ours, or a damaged one ({' '.join(str(error).split())[:160]}).",
        "A file as `dino-path embed` writes it is needed.",
        "Delete it, or choose another --out.",
    )

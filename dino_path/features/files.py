"""Feature files as MIL tools read them: TRIDENT's layout, CLAM's layout, and one file for a folder of images.

TRIDENT (mahmoodlab/TRIDENT a91fa84) reads `features` and `coords`, row by row the same tiles; CLAM
(mahmoodlab/CLAM 53e2409) the same two arrays, and the features once more as a plain tensor. `coords` and its attributes
are described in `coordinates`.

Shape suffixes: N tiles, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from dino_path.errors import DataError
from dino_path.features.coordinates import ROWS_PER_CHUNK, Attributes, Coordinates, add_coordinates
from dino_path.run import atomic_write

Features = NDArray[np.float32]


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


def write_slide_features(
    file: Path, features_ND: Features, coords_N2: Coordinates, attributes: Attributes, origin: Origin
) -> None:
    """One slide's `features` and `coords`, row by row the same tiles; complete or not there at all."""
    assert len(features_ND) == len(coords_N2)
    with atomic_write(file, "w+b") as stream, h5py.File(stream, "w") as h5:
        _write_features(h5, features_ND, origin, name=str(attributes["name"]))
        add_coordinates(h5, coords_N2, attributes)


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

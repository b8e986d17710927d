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

from dino_path.atomic import atomic_write
from dino_path.errors import DataError
from dino_path.features.coordinates import ROWS_PER_CHUNK, Coordinates, add_coordinates
from dino_path.features.hdf5 import new_hdf5
from dino_path.features.layouts import Attributes
from dino_path.identity import Identity, is_same_content

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Origin:
    """The origin of features: stored with them, and compared before a file counts as finished.

    Attributes:
        encoder: name of the extractor.
        encoder_digest: of its weights and preprocessing.
        tiles_digest: of the tiles it saw.
        slide_digest: of the slide that the tiles are of; empty for a folder of images, and where it is not known.
    """

    encoder: str
    encoder_digest: str
    tiles_digest: str
    slide_digest: str = ""

    def is_of_replaced_slide(self, now: Origin) -> bool:
        """Whether these features are of a slide that another has replaced since; False where a digest is not known."""
        if self.encoder_digest != now.encoder_digest or not (self.slide_digest and now.slide_digest):
            return False
        return not is_same_content(self.slide_digest, now.slide_digest)

    def is_same(self, now: Origin) -> bool:
        """Whether these features are those that would be made now; an older file does not know its slide's digest."""
        mine, other = (self.encoder_digest, self.tiles_digest), (now.encoder_digest, now.tiles_digest)
        return mine == other and not self.is_of_replaced_slide(now)


@dataclass(frozen=True)
class FeatureFile:
    """The content of one feature file; `coords` is None for a folder of images, `names` for a slide.

    Attributes:
        identities: of each image of a folder; None: a slide, or a file that an older version has written.
    """

    features: Features
    coords: Coordinates | None
    coords_attributes: Attributes
    names: tuple[str, ...] | None
    origin: Origin
    identities: tuple[Identity, ...] | None = None


def write_slide_features(
    file: Path, features_ND: Features, coords_N2: Coordinates, attributes: Attributes, origin: Origin
) -> None:
    """One slide's `features` and `coords`, row by row the same tiles; complete or not there at all."""
    assert len(features_ND) == len(coords_N2)
    with new_hdf5(file) as (h5, _):
        _write_features(h5, features_ND, origin, name=str(attributes["name"]))
        add_coordinates(h5, coords_N2, attributes)


def write_tensor(file: Path, features_ND: Features) -> None:
    """CLAM's `<slide>.pt`: the features as a plain tensor, which torch.load(weights_only=True) reads."""
    with atomic_write(file, "wb") as stream:
        torch.save(torch.from_numpy(features_ND), stream)


def write_image_features(
    file: Path, features_ND: Features, names: Sequence[str], origin: Origin, identities: Sequence[Identity]
) -> None:
    """`features` and `names` of a folder of images, and by `digests` and `stamps` which contents they are of."""
    assert len(features_ND) == len(names) == len(identities)
    with new_hdf5(file) as (h5, _):
        _write_features(h5, features_ND, origin, name="")
        columns = {
            "names": names,
            "digests": [one.digest for one in identities],
            "stamps": [one.stamp for one in identities],
        }
        for column, values in columns.items():
            h5.create_dataset(column, data=np.asarray(values, dtype=object), dtype=h5py.string_dtype())


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
                names=_texts(h5["names"]) if "names" in h5 else None,
                origin=_origin(stored),
                identities=_identities(h5) if "digests" in h5 else None,
            )
    except (OSError, KeyError) as error:
        raise _unreadable(file, error) from None


def read_origin(file: Path) -> tuple[Origin, int]:
    """The origin of a file of features or patch tokens, and its number of rows.

    Raises:
        DataError: damaged, or written by something else.
    """
    try:
        with h5py.File(file) as h5:
            stored = h5["tokens"] if "tokens" in h5 else h5["features"]
            return _origin(stored), int(stored.shape[0])
    except (OSError, KeyError) as error:
        raise _unreadable(file, error) from None


def other_features(file: Path) -> DataError:
    """The refusal to mix features."""
    return DataError(
        str(file),
        "holds features of another model or other tiles.",
        "One folder holds the features of one model and one set of tiles.",
        "Choose another --out, or delete the old files.",
    )


def _write_features(h5: h5py.File, features_ND: Features, origin: Origin, *, name: str) -> None:
    rows, width = features_ND.shape
    stored = h5.create_dataset(
        "features",
        data=features_ND.astype(np.float32, copy=False),
        chunks=(min(max(rows, 1), ROWS_PER_CHUNK), width),
        maxshape=(None, width),
        fletcher32=True,
    )
    stored.attrs.update(origin_attributes(origin, name=name))


def origin_attributes(origin: Origin, *, name: str) -> dict[str, str]:
    """The attributes that record the origin of features or patch tokens, under TRIDENT's names and ours."""
    return {
        "name": name,
        "savetodir": "",
        "encoder": origin.encoder,
        "encoder_digest": origin.encoder_digest,
        "tiles_digest": origin.tiles_digest,
        "slide_digest": origin.slide_digest,
    }


def _origin(stored: h5py.Dataset) -> Origin:
    attributes = stored.attrs
    encoder, encoder_digest, tiles_digest = (
        str(attributes[key]) for key in ("encoder", "encoder_digest", "tiles_digest")
    )
    return Origin(encoder, encoder_digest, tiles_digest, str(attributes.get("slide_digest", "")))


def _texts(stored: h5py.Dataset) -> tuple[str, ...]:
    return tuple(value.decode() for value in stored[()])


def _identities(h5: h5py.File) -> tuple[Identity, ...]:
    return tuple(map(Identity, _texts(h5["stamps"]), _texts(h5["digests"])))


def _plain(value: object) -> str | int | float:
    plain: str | int | float = value.item() if isinstance(value, np.generic) else str(value)
    return plain


def _unreadable(file: Path, error: Exception) -> DataError:
    return DataError(
        str(file),
        f"is not a feature file of dino_path, or is damaged ({' '.join(str(error).split())[:160]}).",
        "A file written by `dino-path embed` is needed.",
        "Delete it, or choose another --out.",
    )

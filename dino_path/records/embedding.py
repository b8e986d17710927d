"""What `dino-path embed` made of a store, beside the features: `embed_<encoder>.json`."""

from __future__ import annotations

from pathlib import Path

from dino_path.errors import DataError
from dino_path.records.feature_kinds import FeatureKind
from dino_path.records.format import Format, Record, Tree


class EmbeddingRecord(Record):
    """The model, the tiles, and the result for every slide.

    Attributes:
        encoder_mpp, tile_mpp: microns per pixel that the model was trained at (None: not known), and of the tiles.
        input_px, stain_normalisation: what tiles were resized to for the model, and what was done to them before.
        features: which vector of a tile they are; None: as the network pools them, and in files of version 1.
        token_grid: rows and columns of the patch tokens of a tile; None: they were not asked for.
        store_digest: of the tiles.
        written, kept: ids of slides whose features this call made; which were there already.
        empty, failed: (slide id, reason) of slides without tiles; of those that could not be read.
    """

    encoder: str
    encoder_digest: str
    encoder_mpp: float | None
    tile_mpp: float
    tile_px: int
    precision: str
    store_digest: str
    written: tuple[str, ...]
    kept: tuple[str, ...]
    empty: tuple[tuple[str, str], ...]
    failed: tuple[tuple[str, str], ...]
    num_tiles: int
    input_px: int | None = None
    features: FeatureKind | None = None
    token_grid: tuple[int, int] | None = None
    stain_normalisation: str | None = None


def _version_2_from_1(tree: Tree) -> Tree:
    return {**tree, "features": None, "token_grid": None}


EMBEDDING = Format(
    "embedding",
    EmbeddingRecord,
    DataError,
    "A file as `dino-path embed` writes it is needed.",
    "Call `dino-path embed` again: features that are there are kept.",
    (_version_2_from_1,),
    is_shared=True,
)


def write_embedding(file: Path, record: EmbeddingRecord) -> None:
    """Write `embed_<encoder>.json`."""
    EMBEDDING.write(file, record)

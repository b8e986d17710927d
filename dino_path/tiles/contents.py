"""Which contents the tiles of a source have, beside which tiles they are: names say the one, digests the other."""

from __future__ import annotations

import hashlib
from functools import lru_cache

from dino_path.errors import TileStoreError
from dino_path.identity import content_digest
from dino_path.tiles.images import ImageFiles
from dino_path.tiles.source import TileSource
from dino_path.tiles.store import TileStore

MOST_IMAGES_READ = 64


def contents_digest(source: TileSource) -> str:
    """Changes when images or slides were replaced under their names; empty: not known. Found out once for a source.

    Of a folder of images up to 64, evenly spread, are read: training starts on millions. Of a store the slides' digests
    count, where all are known. Empty where the content is not known, or not whole.

    Raises:
        TileStoreError: an image cannot be read.
    """
    return _contents(source) if isinstance(source, (TileStore, ImageFiles)) else ""


@lru_cache(maxsize=8)
def _contents(source: TileStore | ImageFiles) -> str:
    digests = _slides(source) if isinstance(source, TileStore) else _images(source)
    return hashlib.sha256("".join(digests).encode()).hexdigest()[:16] if all(digests) else ""


def _slides(store: TileStore) -> list[str]:
    return [record.content_digest for record in store.slides]


def _images(source: ImageFiles) -> list[str]:
    every = -(-len(source.paths) // MOST_IMAGES_READ)
    try:
        return [content_digest(path) for path in source.paths[::every]]
    except FileNotFoundError:  # an image that was taken out of a run's folder, which the run names by itself
        return [""]
    except OSError as error:
        raise TileStoreError(
            str(error.filename),
            f"cannot be read ({error.strerror}).",
            "Every image of the folder is needed.",
            "Check that its disk is mounted and that you may read it; or remove it from the folder.",
        ) from None

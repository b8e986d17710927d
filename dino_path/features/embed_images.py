"""One feature file from a frozen model and a folder of images; called again, it updates replaced images.

Shape suffixes: N images, D features.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from dino_path.errors import TileStoreError
from dino_path.features.extractor import Extractor, extract_features
from dino_path.features.files import FeatureFile, Origin, other_features, read_feature_file, write_image_features
from dino_path.identity import Identity, identity_of, is_same_content
from dino_path.tiles.images import ImageFiles
from dino_path.tiles.source import Subset

logger = logging.getLogger(__name__)

READING_THREADS = 8


def embed_images(
    extractor: Extractor,
    source: ImageFiles,
    out: Path,
    *,
    root: Path,
    batch_size: int,
    device: torch.device,
    num_workers: int = 0,
) -> Path:
    """Features of a folder of images as `out/features.h5`: `features` (N, D) and `names` relative to `root`.

    Images whose content was replaced since are embedded again, the others keep their features.

    Raises:
        DataError: `out` holds features that another model, or images of other names, have given.
        TileStoreError: an image cannot be read.
    """
    file = out / "features.h5"
    names = tuple(_relative(path, root) for path in source.paths)
    origin = Origin(extractor.name, extractor.digest, source.digest)
    before = read_feature_file(file) if file.exists() else None
    if before is not None and (before.origin.encoder_digest != origin.encoder_digest or before.names != names):
        raise other_features(file)
    if before is not None and before.identities is None:  # of an older version: told by names and sizes
        if before.origin.tiles_digest != origin.tiles_digest:
            raise other_features(file)
        return file
    now = _identities(source.paths, None if before is None else before.identities)
    changed = _changed(before, now)
    if before is not None and len(changed) == 0:
        return file
    features_ND = extract_features(
        extractor, Subset(source, changed), batch_size=batch_size, device=device, num_workers=num_workers,
        what="embedding",
    )  # fmt: skip
    if before is not None:
        logger.warning("%s: %d of %d images were replaced (first: %s): their features are computed again",
                       file, len(changed), len(names), names[changed[0]])  # fmt: skip
        before.features[changed] = features_ND
    write_image_features(file, features_ND if before is None else before.features, names, origin, now)
    return file


def _identities(paths: Sequence[Path], known: Sequence[Identity] | None) -> list[Identity]:
    def look(path: Path, before: Identity | None) -> Identity:
        try:
            return identity_of(path, before)
        except OSError as error:
            raise TileStoreError(
                str(path),
                f"cannot be read ({error.strerror or error}).",
                "A complete image file is needed.",
                "Check that its disk is mounted and that you may read it; or remove it from the folder.",
            ) from None

    with ThreadPoolExecutor(READING_THREADS) as pool:
        return list(pool.map(look, paths, known or [None] * len(paths)))


def _changed(before: FeatureFile | None, now: Sequence[Identity]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Numbers of the images whose features must be computed."""
    if before is None or before.identities is None:
        return np.arange(len(now), dtype=np.int64)
    pairs = zip(before.identities, now, strict=True)
    changed = [number for number, (then, one) in enumerate(pairs) if not is_same_content(then.digest, one.digest)]
    return np.array(changed, np.int64)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()

"""Features of labelled images, kept by content: extracted once, by all processes together, and resumed after a kill.

FOLDER/<key>.npy             the features (N, D) of one model and one set of images, fp32; at its end a checksum
FOLDER/<key>/<piece>.npy     pieces of PIECE rows while they are being made; each is whole or not there

FOLDER is `features` in the folder of the results; for RUN/eval/NAME it is RUN/eval/features, shared by all of them.
The key holds the model's weights and preprocessing, the images, their order, and the size they are brought to.
Shape suffixes: N images, B images of a batch, D features.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dino_path.atomic import atomic_write, one_at_a_time
from dino_path.checksum import has_checksum, is_intact, seal
from dino_path.config import EvaluationConfig
from dino_path.errors import ConfigError
from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.features.extractor import Extractor, iterate_features, load_extractor
from dino_path.progress import meter
from dino_path.tiles.source import Subset, TileSource

logger = logging.getLogger(__name__)

PIECE = 1024  # images: what a kill can cost each process
Features = NDArray[np.float32]


@dataclass(frozen=True)
class Images:
    """Images to extract features of.

    Attributes:
        content: changes when an image or the order does.
        what: for the progress display.
    """

    source: TileSource
    content: str
    what: str = "features"

    @classmethod
    def of(cls, labelled: LabelledSet) -> Images:
        return cls(labelled.source, labelled.content_digest)


@dataclass(frozen=True)
class FeatureCache:
    """The folder of cached features, and how they are computed. Processes that share the work must share the folder."""

    folder: Path
    device: torch.device
    batch_size: int
    num_workers: int
    input_px: int | None

    @classmethod
    def create(cls, out: Path, config: EvaluationConfig, device: torch.device, num_workers: int) -> FeatureCache:
        """The cache of an evaluation that writes to `out`: in it; evaluations below one `eval` folder share theirs."""
        root = out.parent if out.parent.name == "eval" else out
        return cls(root / "features", device, config.batch_size, num_workers, config.input_px)

    def features(self, extractor: Extractor, images: Images) -> Features:
        """Features (N, D) of all images, mapped from their file: pages that are not in use can leave memory.

        Raises:
            CheckpointError: the model gives numbers that are not finite.
            ConfigError: the model does not take images of this edge.
            TileStoreError: an image cannot be read.
        """
        file, shape = self._file(extractor, images), (len(images.source), extractor.num_features)
        pieces, lock = file.with_suffix(""), file.with_suffix(".lock")
        if (kept := _read(file, shape)) is None:
            with one_at_a_time(lock):  # evaluations that share the folder may want the same
                if (kept := _read(file, shape)) is None:
                    self.extract_share(extractor, images, rank=0, size=1)
                    self._join(extractor, images)
        elif pieces.exists() or lock.exists():  # of a process that was killed when the features were complete
            with one_at_a_time(lock):
                if pieces.exists():
                    shutil.rmtree(pieces)
        if kept is not None:
            logger.info("%s: %s from %s", extractor.name, images.what, file)
            return kept
        features_ND: Features = np.load(file, mmap_mode="r", allow_pickle=False)
        return features_ND

    def extract_share(self, extractor: Extractor, images: Images, *, rank: int, size: int) -> None:
        """Make the missing ones among the pieces of this process: every `size`-th one. Raises as `features` does."""
        if _read(self._file(extractor, images), (len(images.source), extractor.num_features)) is not None:
            return
        num_pieces = -(-len(images.source) // PIECE)
        own = range(rank, num_pieces, size)
        missing = [
            piece
            for piece in own
            if _read(self._piece(extractor, images, piece), self._shape(extractor, images, piece)) is None
        ]
        if not missing:
            return
        rows = np.concatenate([np.arange(*self._rows(images, piece)) for piece in missing])
        if len(missing) < len(own):
            logger.info("%s: continuing with %s, %d images are left", extractor.name, images.what, len(rows))
        with meter(f"{images.what} of {extractor.name}", len(rows), "images") as counter:
            batches = iterate_features(
                extractor, Subset(images.source, rows), batch_size=self.batch_size, input_px=self.input_px,
                device=self.device, num_workers=self.num_workers,
            )  # fmt: skip
            sizes = [self._shape(extractor, images, piece)[0] for piece in missing]
            for piece, features_BD in zip(missing, _regrouped(batches, sizes), strict=True):
                with atomic_write(self._piece(extractor, images, piece), "w+b") as stream:
                    np.save(stream, features_BD)
                    seal(stream)
                counter.advance(len(features_BD))

    def _join(self, extractor: Extractor, images: Images) -> None:
        """Write the pieces as one file, one piece in memory at a time, and remove them."""
        file = self._file(extractor, images)
        pieces = [self._piece(extractor, images, piece) for piece in range(-(-len(images.source) // PIECE))]
        with atomic_write(file, "w+b") as stream:
            header = {"descr": "<f4", "fortran_order": False, "shape": (len(images.source), extractor.num_features)}
            np.lib.format.write_array_header_1_0(stream, header)
            for piece in pieces:
                stream.write(np.load(piece, allow_pickle=False).tobytes())
            seal(stream)
        shutil.rmtree(file.with_suffix(""))

    def _file(self, extractor: Extractor, images: Images) -> Path:
        key = json.dumps([extractor.digest, images.content, self.input_px])
        return self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npy"

    def _piece(self, extractor: Extractor, images: Images, piece: int) -> Path:
        return self._file(extractor, images).with_suffix("") / f"{piece:06d}.npy"

    def _rows(self, images: Images, piece: int) -> tuple[int, int]:
        return piece * PIECE, min((piece + 1) * PIECE, len(images.source))

    def _shape(self, extractor: Extractor, images: Images, piece: int) -> tuple[int, int]:
        first, last = self._rows(images, piece)
        return last - first, extractor.num_features


def load_models(specs: Sequence[str], device: torch.device) -> dict[str, tuple[str, Extractor]]:
    """Spec and extractor by the name that the table shows; all are loaded before the first is run.

    Raises:
        CheckpointError: a model cannot be loaded.
        ConfigError: a model is given twice.
    """
    repeated = sorted({spec for spec in specs if specs.count(spec) > 1})
    if repeated:
        raise ConfigError(repeated[0], "is given twice.", "Each model is one row.", "Give it once.")
    loaded = [(spec, load_extractor(spec, device=device)) for spec in specs]
    names = [extractor.name for _, extractor in loaded]
    # Two folders of one name: their full specs tell them apart.
    return {
        extractor.name if names.count(extractor.name) == 1 else spec: (spec, extractor) for spec, extractor in loaded
    }


def _read(file: Path, shape: tuple[int, int]) -> Features | None:
    """The memory-mapped array of a file; None if it is missing, or its shape or checksum is wrong."""
    if not file.is_file():
        return None
    found = "damaged"
    try:
        kept: Features = np.load(file, mmap_mode="r", allow_pickle=False)
        if kept.shape == shape and kept.dtype == np.float32 and is_intact(file):
            return kept
        if not has_checksum(file):
            found = "without a checksum, as written by earlier versions"
    except (OSError, ValueError, EOFError):
        pass
    logger.warning("%s: %s, computing the features again", file, found)
    return None


def _regrouped(batches: Iterator[Features], sizes: Sequence[int]) -> Iterator[Features]:
    """The rows of the batches in arrays of these sizes, which together hold all rows."""
    waiting: list[Features] = []
    for size in sizes:
        while sum(map(len, waiting)) < size:
            waiting.append(next(batches))
        rows = np.concatenate(waiting)
        yield rows[:size]
        waiting = [rows[size:]]

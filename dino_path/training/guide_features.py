"""A guide's features of whole tiles, computed once by all processes, cached in the run folder, and memory-mapped.

RUN/guide_features/features.json          what they are of (`GuideFeaturesRecord`)
RUN/guide_features/cls_<piece>.npy        of PIECE tiles: (P, G) fp32
RUN/guide_features/patches_<piece>.npy    (P, N, G) fp16, where patches are compared

A piece is whole or not there, so that a killed run goes on with those that are missing. A tile that could not be read
has NaN. Shape suffixes: P tiles of a piece, B tiles of a batch, N patches of a tile, G features of the guide.
"""

from __future__ import annotations

import logging
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_path.atomic import atomic_write
from dino_path.checksum import seal
from dino_path.config import Config
from dino_path.distributed import usable_cores
from dino_path.errors import CheckpointError, TileStoreError
from dino_path.progress import meter
from dino_path.records.guide import GUIDE_FEATURES, GuideFeaturesRecord
from dino_path.run import RunFolder
from dino_path.tiles.contents import contents_digest
from dino_path.tiles.source import TileSource
from dino_path.training.guide import Guide
from dino_path.training.learner import Learner
from dino_path.training.objective.term import Guidance
from dino_path.views.plain import PlainViews, iterate_plain

logger = logging.getLogger(__name__)

PIECE = 256  # tiles: what a kill can cost each process, and what one may have to wait for another at the end
MOST_OPEN = 256  # mapped pieces
Part = Literal["cls", "patches"]
DTYPES: dict[Part, type[np.floating]] = {"cls": np.float32, "patches": np.float16}


class KeptGuide:
    """A guide whose features come from files; it does not see the views."""

    def __init__(self, folder: Path, made_of: GuideFeaturesRecord, device: torch.device) -> None:
        self.folder, self.facts, self.num_tiles, self.device = folder, made_of.guide, made_of.num_tiles, device
        self.parts: tuple[Part, ...] = ("cls",) if self.facts.num_patches is None else ("cls", "patches")
        self._mapped = lru_cache(MOST_OPEN)(self._map)

    def __call__(self, views: Tensor, tiles: Tensor) -> Guidance:
        """The features of these tiles, for the first global view and for the second.

        Raises:
            TileStoreError: a tile could not be read when the features were made.
        """
        found = {part: self._rows(part, tiles) for part in self.parts}
        return Guidance(found["cls"], found.get("patches"))

    def _rows(self, part: Part, tiles: Tensor) -> Tensor:
        rows = np.stack([self._mapped(part, tile // PIECE)[tile % PIECE] for tile in tiles.tolist()])
        missing = np.isnan(rows).reshape(len(rows), -1).any(1)
        if missing.any():
            tile = int(tiles[int(missing.argmax())])
            raise TileStoreError(
                str(self.file(part, tile // PIECE)),
                f"has no features of tile {tile}: the tile was unreadable when they were computed, and is readable"
                f" now.",
                "Every training tile needs them.",
                "Delete this file, and give the same command again: the features are computed again.",
            )
        sent = torch.from_numpy(rows)
        if self.device.type == "cuda":
            sent = sent.pin_memory()
        sent = sent.to(self.device, non_blocking=True)
        return torch.cat([sent, sent])

    def _map(self, part: Part, piece: int) -> NDArray[np.floating]:
        kept: NDArray[np.floating] = np.load(self.file(part, piece), mmap_mode="r", allow_pickle=False)
        return kept

    def file(self, part: Part, piece: int) -> Path:
        return self.folder / f"{part}_{piece:06d}.npy"

    def range_of(self, piece: int) -> range:
        """The tiles of a piece."""
        return range(piece * PIECE, min((piece + 1) * PIECE, self.num_tiles))

    def missing(self) -> list[int]:
        """Pieces that have yet to be made."""
        return [piece for piece in range(-(-self.num_tiles // PIECE)) if not self._is_whole(piece)]

    def _is_whole(self, piece: int) -> bool:
        for part in self.parts:
            file = self.file(part, piece)
            try:
                if file.exists() and self._map(part, piece).shape == self.shape(part, piece):
                    continue
            except (OSError, ValueError, EOFError):
                logger.warning("%s: damaged, computing it again", file)
            return False
        return True

    def shape(self, part: Part, piece: int) -> tuple[int, ...]:
        patches = () if part == "cls" else (self.facts.num_patches or 0,)
        return (len(self.range_of(piece)), *patches, self.facts.num_features)

    @property
    def num_bytes(self) -> int:
        """Of all features."""
        per_row = {part: np.dtype(DTYPES[part]).itemsize * self.facts.num_features for part in self.parts}
        rows = {"cls": 1, "patches": self.facts.num_patches or 0}
        return self.num_tiles * sum(size * rows[part] for part, size in per_row.items())


def keep_features(learner: Learner, guide: Guide, run: RunFolder, config: Config, tiles: TileSource) -> KeptGuide:
    """The guide's features of all tiles, those that are missing made now. All ranks must call, and share the folder.

    Raises:
        CheckpointError: the folder holds features of another guide or other tiles; or they are not finite, or do not
            fit on the disk.
    """
    world, folder = learner.world, run.guide_features
    made_of = GuideFeaturesRecord(
        guide=guide.facts,
        num_tiles=len(tiles),
        tiles_digest=tiles.digest,
        contents_digest=contents_digest(tiles),
        view_px=config.views.global_px,
        stain_normalisation=config.views.stain_normalisation,
        precision=learner.precision,
    )
    kept = KeptGuide(folder, made_of, world.device)
    header = folder / "features.json"
    if header.exists():
        _refuse_others(folder, GUIDE_FEATURES.read(header), made_of)
    missing = kept.missing()
    world.barrier()  # all have looked before the first writes
    if world.is_first and not header.exists():
        _refuse_no_room(folder, kept)
        GUIDE_FEATURES.write(header, made_of)
    _make(kept, guide, missing[world.rank :: world.size], learner, config, tiles)
    world.barrier()
    return kept


def _make(
    kept: KeptGuide, guide: Guide, pieces: list[int], learner: Learner, config: Config, tiles: TileSource
) -> None:
    """Write these pieces."""
    training, device = learner.training, learner.world.device
    num_workers = min(usable_cores() - 1, 8) if training.num_workers is None else training.num_workers
    size = 2 * training.batch_size_per_gpu  # as many views as a step's micro-batch has
    ranges = [
        [tiles_of[at : at + size] for at in range(0, len(tiles_of), size)] for tiles_of in map(kept.range_of, pieces)
    ]
    views = PlainViews(tiles, config.views, [each for of_piece in ranges for each in of_piece])
    batches = iterate_plain(views, num_workers=num_workers, pin_memory=device.type == "cuda")
    num_unreadable = 0
    with meter(f"features of {kept.facts.name}", sum(map(len, views.ranges)), "tiles") as counter:
        for piece, of_piece in zip(pieces, ranges, strict=True):
            rows: dict[Part, list[NDArray[np.floating]]] = {part: [] for part in kept.parts}
            for tiles_of in of_piece:
                batch = next(batches)
                pixels = batch.views.to(device, non_blocking=True).permute(0, 3, 1, 2).float() / 255
                with torch.no_grad(), learner.autocast():
                    guidance = guide(pixels, torch.tensor(tiles_of))
                lost = [tile - tiles_of.start for tile, _ in batch.unreadable]
                for part in kept.parts:
                    rows[part].append(_checked(kept, part, getattr(guidance, part), lost))
                num_unreadable += len(lost)
                counter.advance(len(tiles_of))
            for part in kept.parts:
                with atomic_write(kept.file(part, piece), "w+b") as stream:
                    np.save(stream, np.concatenate(rows[part]))
                    seal(stream)
    if num_unreadable:
        logger.warning("%d tiles could not be read, and have no features of %s", num_unreadable, kept.facts.name)


def _checked(kept: KeptGuide, part: Part, features: Tensor, lost: list[int]) -> NDArray[np.floating]:
    """Stored features; NaN if there was no image.

    Raises:
        CheckpointError: they are not finite.
    """
    with np.errstate(over="ignore"):  # refused below
        stored = features.float().cpu().numpy().astype(DTYPES[part])
    if not np.isfinite(stored).all():
        raise CheckpointError(
            kept.facts.name,
            f"its features ({part}) are not finite as {np.dtype(DTYPES[part]).name}.",
            "Finite features are needed.",
            "Set training.precision=fp32, or objective.distill.cached=false, or use another model.",
        )
    stored[lost] = np.nan
    return stored


def _refuse_others(folder: Path, found: GuideFeaturesRecord, needed: GuideFeaturesRecord) -> None:
    if found == needed:
        return
    names = [name for name in GuideFeaturesRecord.model_fields if getattr(found, name) != getattr(needed, name)]
    raise CheckpointError(
        str(folder),
        f"holds features of {found.guide.name} that were computed from something else ({', '.join(names)} differ).",
        "The cached features must belong to exactly this model and these tiles.",
        "Give the run another `out`, or delete the folder: the features are then computed again.",
    )


def _refuse_no_room(folder: Path, kept: KeptGuide) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    logger.info("caching %s's features of %d tiles: %.1f GB", kept.facts.name, kept.num_tiles, kept.num_bytes / 1e9)
    if kept.num_bytes > free:
        raise CheckpointError(
            str(folder),
            f"the features take {kept.num_bytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free.",
            "There must be space for the features of all tiles.",
            "Free some space, or set objective.distill.patches=0 or objective.distill.cached=false.",
        )

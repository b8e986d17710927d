"""Checkpoints: one file with everything that the next step depends on; tensors and plain values only."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dino_path.atomic import atomic_write
from dino_path.config import Config
from dino_path.errors import CheckpointError
from dino_path.model.checkpoint import Checkpoint, Start, as_record, read_checkpoint
from dino_path.records.best import BestRecord, write_best
from dino_path.run import RunFolder
from dino_path.settings import as_plain
from dino_path.tiles.contents import contents_digest
from dino_path.tiles.source import TileSource
from dino_path.tiles.store import TileStore
from dino_path.training.finished import delete_old_checkpoints
from dino_path.training.learner import Learner
from dino_path.training.objective.total import StateDifference
from dino_path.training.same_run import refuse_other_run
from dino_path.training.sharding import load_whole, load_whole_optimizer, whole

logger = logging.getLogger(__name__)


def save_checkpoint(
    run: RunFolder,
    learner: Learner,
    config: Config,
    tiles: TileSource,
    *,
    step: int,
    starts: Sequence[Start] = (),
    best: BestRecord | None = None,
) -> Path:
    """Write the state after `step` updates, then delete older ones.

    The newest `training.keep_checkpoints` up to it stay, and the best.

    Views, tile order and stochastic depth are functions of (seed, step): no random state needs to be kept. Every rank
    must call it, for each may hold a part; the first one writes.

    Args:
        starts: of the run's `Position`.
        best: what a comparison with this state has found, written after it; None: there was none.

    Raises:
        CheckpointError: the disk is full; what was there before is as it was.
    """
    path, world = run.checkpoint_file(step), learner.world
    student, teacher = ({part: whole(module.state_dict(), world) for part, module in network.named_children()}
                        for network in (learner.student, learner.teacher))  # fmt: skip
    optimizer = whole(learner.optimizer.state_dict(), world)
    if not world.is_first:
        return path
    checkpoint = Checkpoint(
        step=step,
        config=as_plain(config),
        num_tiles=len(tiles),
        num_slides=len(tiles.slides) if isinstance(tiles, TileStore) else None,
        tiles_digest=tiles.digest,
        contents_digest=contents_digest(tiles),
        tile_mpp=tiles.mpp,
        tile_px=tiles.size_px if isinstance(tiles, TileStore) else None,
        world_size=world.size,
        global_batch_size=learner.global_batch_size,
        num_skipped=learner.num_skipped,
        student=student,
        teacher=teacher,
        objective=learner.objective.state(),
        optimizer=optimizer,
        starts=list(starts),
    )
    try:
        with atomic_write(path, "wb") as stream:
            torch.save(as_record(checkpoint), stream)
    except (OSError, RuntimeError) as error:  # torch's writer may hide the first behind the second
        raise CheckpointError(
            str(path),
            f"cannot be written ({_root_of(error)}).",
            "Space on the disk and in the quota is needed; earlier checkpoints are intact.",
            "Free some space (see training.keep_checkpoints), then start the same command again.",
        ) from error
    if best is not None:
        write_best(run, best)
    delete_old_checkpoints(run, path, keep=learner.training.keep_checkpoints)
    return path


def _root_of(error: BaseException) -> BaseException:
    """The first of the errors that led to one another."""
    while error.__context__ is not None:
        error = error.__context__
    return error


@dataclass(frozen=True)
class Position:
    """The position of a run, and the runs that it continues."""

    step: int
    starts: tuple[Start, ...] = ()
    """The oldest first; see `Checkpoint.starts`."""


def restore(run: RunFolder, learner: Learner, config: Config, tiles: TileSource) -> Position:
    """Load the newest readable checkpoint into `learner`; returns where to go on (step 0 in a fresh run).

    A damaged newest file is passed over, with a warning, for the one before.

    Raises:
        CheckpointError: there are checkpoints, but none can be read, or they belong to other settings or tiles.
    """
    files = run.checkpoint_files()
    if not files:
        return Position(0)
    path, checkpoint = newest_readable(run.checkpoints, files)
    refuse_other_run(path, checkpoint, config, tiles, global_batch_size=learner.global_batch_size, guide=learner.guide)
    _refuse_other_state(path, load_networks(learner, checkpoint))
    load_whole_optimizer(learner.optimizer, checkpoint.optimizer)
    learner.num_skipped = checkpoint.num_skipped
    warn_of_other_circumstances(path, checkpoint, config, tiles, learner)
    logger.info("continuing from %s", path)
    return Position(checkpoint.step, tuple(checkpoint.starts))


def newest_readable(folder: Path, files: Sequence[Path]) -> tuple[Path, Checkpoint]:
    """The newest checkpoint that can be read, of `files`, oldest first; damaged ones are passed over with a warning.

    Raises:
        CheckpointError: none can be read.
    """
    for path in reversed(files):
        try:
            return path, read_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s", error)
    raise CheckpointError(
        str(folder),
        f"none of its {len(files)} checkpoints can be read.",
        "A readable checkpoint is needed to continue this run.",
        "Move the folder away and start again, or restore a checkpoint from a backup.",
    )


def load_networks(learner: Learner, checkpoint: Checkpoint) -> StateDifference:
    """Load both networks and the state of the objective's terms from a checkpoint of the same architecture.

    Returns:
        What the terms and the checkpoint remember apart from one another.
    """
    for network, parts in ((learner.student, checkpoint.student), (learner.teacher, checkpoint.teacher)):
        for name, module in network.named_children():
            load_whole(module, parts[name])
    return learner.objective.load_state(checkpoint.objective)


def _refuse_other_state(path: Path, difference: StateDifference) -> None:
    """Refuse a checkpoint of this run that does not hold exactly the state of the run's terms."""
    found = [f"lacks {name}" for name in difference.missing] + [f"has {name} too" for name in difference.unused]
    if found:
        raise CheckpointError(
            str(path),
            f"{', '.join(found)}.",
            "A checkpoint must hold exactly the state of the objective's terms; this file was changed, or is from"
            " another version.",
            "Remove this file, so that the previous checkpoint is used, or install the version that wrote it.",
        )


def warn_of_other_circumstances(
    path: Path, checkpoint: Checkpoint, config: Config, tiles: TileSource, learner: Learner
) -> None:
    """Log changes that no setting shows: another number of processes, or other contents under the tiles' names."""
    if checkpoint.world_size != learner.world.size:
        logger.warning(
            "%s was written by %d process(es), this run has %d: the tiles and views are the same, but stochastic"
            " depth and rounding differ.",
            path, checkpoint.world_size, learner.world.size,
        )  # fmt: skip
    then, now = checkpoint.contents_digest, contents_digest(tiles)
    if then and now and then != now and checkpoint.tiles_digest == tiles.digest:
        logger.warning(
            "%s has tiles of the same names as when %s was written, but other contents: images or slides were"
            " replaced. The run continues with the new ones.", config.store, path,
        )  # fmt: skip

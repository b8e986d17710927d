"""Checkpoints: one file with everything that the next step depends on; tensors and plain values only."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from dino_path.config import Config
from dino_path.errors import CheckpointError
from dino_path.model.checkpoint import Checkpoint, as_record, read_checkpoint
from dino_path.run import RunFolder, atomic_write, is_abandoned
from dino_path.settings import as_plain
from dino_path.tiles.contents import contents_digest
from dino_path.tiles.source import TileSource
from dino_path.tiles.store import TileStore
from dino_path.training.learner import Learner
from dino_path.training.sharding import load_whole, load_whole_optimizer, whole

logger = logging.getLogger(__name__)


def save_checkpoint(run: RunFolder, learner: Learner, config: Config, tiles: TileSource, *, step: int) -> Path:
    """Write the state after `step` updates, then delete all but the newest `training.keep_checkpoints` up to it.

    Views, tile order and stochastic depth are functions of (seed, step): no random state needs to be kept. Every rank
    must call it, for each may hold a part; the first one writes.

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
    )
    for torn in run.checkpoints.glob(".step_*.tmp"):  # a run that was killed while it wrote
        if is_abandoned(torn):
            torn.unlink(missing_ok=True)
    try:
        with atomic_write(path, "wb") as stream:
            torch.save(as_record(checkpoint), stream)
    except (OSError, RuntimeError) as error:  # torch's writer may hide the first behind the second
        raise CheckpointError(
            str(path),
            f"cannot be written ({_root_of(error)}).",
            "Room on the disk, and in the quota, is needed; the checkpoints before it are good.",
            "Make room (training.keep_checkpoints), then start the same command again.",
        ) from error
    # A later file is a damaged one that `restore` passed over: it must not count as one of the newest.
    written = [file for file in run.checkpoint_files() if file <= path]
    for old in written[: -learner.training.keep_checkpoints]:
        old.unlink()
    return path


def _root_of(error: BaseException) -> BaseException:
    """The first of the errors that led to one another."""
    while error.__context__ is not None:
        error = error.__context__
    return error


def restore(run: RunFolder, learner: Learner, config: Config, tiles: TileSource) -> int:
    """Load the newest readable checkpoint into `learner`; returns the step to go on with (0 in a fresh run).

    A damaged newest file is passed over, with a warning, for the one before.

    Raises:
        CheckpointError: there are checkpoints, but none can be read, or they belong to other settings or tiles.
    """
    files = run.checkpoint_files()
    if not files:
        return 0
    for path in reversed(files):
        try:
            checkpoint = read_checkpoint(path)
        except CheckpointError as error:
            logger.warning("%s", error)
            continue
        _refuse_other_run(path, checkpoint, config, tiles, learner)
        _load(learner, checkpoint)
        if checkpoint.world_size != learner.world.size:
            logger.warning(
                "%s was written by %d process(es), this is a run of %d: the same tiles and views, but other"
                " stochastic depth and rounding.",
                path, checkpoint.world_size, learner.world.size,
            )  # fmt: skip
        then, now = checkpoint.contents_digest, contents_digest(tiles)
        if then and now and then != now:
            logger.warning(
                "%s has the same tiles by name as when %s was written, and other contents: images or slides were"
                " replaced. The run goes on with what lies there now.", config.store, path,
            )  # fmt: skip
        logger.info("continuing from %s", path)
        return checkpoint.step
    raise CheckpointError(
        str(run.checkpoints),
        f"none of its {len(files)} checkpoints can be read.",
        "One good checkpoint is needed to continue this run.",
        "Move the folder away and start anew, or restore a checkpoint from a backup.",
    )


def _load(learner: Learner, checkpoint: Checkpoint) -> None:
    """Everything that a step changes, of a checkpoint of the same settings."""
    for network, parts in ((learner.student, checkpoint.student), (learner.teacher, checkpoint.teacher)):
        for name, module in network.named_children():
            load_whole(module, parts[name])
    learner.objective.load_state(checkpoint.objective)
    load_whole_optimizer(learner.optimizer, checkpoint.optimizer)
    learner.num_skipped = checkpoint.num_skipped


# Settings that may change between two starts of one run: they do not change what is computed, but for rounding. How
# the global batch is divided may change too; its size may not.
_FREE_SECTIONS = ("monitor", "evaluation", "baseline", "wandb", "cluster", "tiles")
_FREE_SETTINGS = {"slides.exclude"} | {  # which chooses tiles, and the tiles are compared
    f"training.{name}" for name in (
        "num_workers", "checkpoint_every_steps", "keep_checkpoints", "max_non_finite_steps", "device",
        "batch_size_per_gpu", "accumulate_steps", "activation_checkpointing", "compile",
        "fused_loss", "sharding", "timeout_s",
    )
}  # fmt: skip
_MAPS = {"model.arguments"}  # one setting each, whatever is in it


def _refuse_other_run(path: Path, checkpoint: Checkpoint, config: Config, tiles: TileSource, learner: Learner) -> None:
    try:  # validated, so that a setting which is younger than the checkpoint has its default there
        before = _decisive(as_plain(Config.model_validate(checkpoint.config)))
    except ValidationError as error:
        raise CheckpointError(
            str(path),
            f"was made by another version of dino_path ({' '.join(str(error).split())[:200]}).",
            "A run ends with the version that it began with.",
            "Install that version (environment.json names it), or use another `out`.",
        ) from None
    now = _decisive(as_plain(config))
    keys = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
    differing = [f"{key} ({before.get(key)} -> {now.get(key)})" for key in keys]
    if checkpoint.tiles_digest != tiles.digest:
        differing.append(f"the tiles ({checkpoint.num_tiles} -> {len(tiles)}, or others of the same number)")
    if checkpoint.global_batch_size != learner.global_batch_size:
        differing.append(f"global batch size ({checkpoint.global_batch_size} -> {learner.global_batch_size})")
    if differing:
        raise CheckpointError(
            str(path),
            f"was made with other settings: {'; '.join(differing)}.",
            "A run folder holds one run, so that its numbers mean one thing.",
            "Use the same settings, or another `out`.",
        )


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    """Dotted settings that decide what is computed."""
    sections = {key: values for key, values in config.items() if key not in _FREE_SECTIONS and isinstance(values, dict)}
    return {key: value for key, value in _dotted(sections) if key not in _FREE_SETTINGS}


def _dotted(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and prefix + key not in _MAPS:
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value

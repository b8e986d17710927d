"""A new run that starts from all of another run's state: `training.continue_from`.

Exact where nothing changed: the new run then ends with the weights of one run that was never interrupted, to the bit.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from dino_path.config import Config
from dino_path.distributed import World
from dino_path.errors import CheckpointError, ConfigError
from dino_path.model.checkpoint import Checkpoint, Start, read_checkpoint
from dino_path.run import RunFolder
from dino_path.tiles.source import TileSource
from dino_path.training.checkpoints import Position, load_networks, newest_readable, warn_of_other_circumstances
from dino_path.training.learner import Learner
from dino_path.training.same_run import changed_settings, network_settings, other_guide, settings_of
from dino_path.training.schedules import Schedules, run_schedules
from dino_path.training.sharding import load_whole_optimizer

logger = logging.getLogger(__name__)

NAMES = {
    "lr": "learning rate", "weight_decay": "weight decay", "momentum": "teacher momentum",
    "teacher_temp": "teacher temperature",
}  # fmt: skip
_OWN = ("training.continue_from", "training.schedules")


@dataclass(frozen=True)
class Origin:
    """The state that a run starts from.

    Attributes:
        config, schedules: of the run that wrote it.
        changed: settings that decide what is computed and are others now, as `before -> now`.
    """

    path: Path
    checkpoint: Checkpoint
    config: Config
    schedules: Schedules
    changed: dict[str, str]


def start_from_other_run(learner: Learner, config: Config, tiles: TileSource) -> Position:
    """Load the state of `training.continue_from` into `learner`; log what continues and what starts again.

    Skipped steps are counted from 0. Every rank must call it.

    Raises:
        CheckpointError: no readable checkpoint, other networks, or a length that ends before it begins.
        ConfigError: `model.weights` names another start.
    """
    origin = _read_origin(config)
    _refuse_other_networks(origin, config, learner)
    _refuse_two_starts(config, origin)
    _refuse_different_reads(origin, learner.world)
    difference = load_networks(learner, origin.checkpoint)
    moments = _take_moments(learner, origin)
    position = _position(origin, config, tiles, learner)
    schedules = run_schedules(config, position.starts, num_tiles=len(tiles), world_size=learner.world.size)
    _refuse_too_short(origin, position, schedules)

    logger.info("starting from %s, with its student, teacher, heads and centers; %s", origin.path, moments)
    warn_of_other_circumstances(origin.path, origin.checkpoint, config, tiles, learner)
    for key, change in origin.changed.items():
        if key not in _OWN:
            logger.info("changed: %s (%s)", key, change)
    for name in difference.missing:
        logger.info("%s starts at zero: that run had none", name)
    for name in difference.unused:
        logger.info("%s of that run is dropped: the objective no longer has one", name)
    logger.info("%s", _tiles_line(origin, position, config, tiles, learner))
    logger.info("%s", _schedules_line(origin, position, schedules))
    return position


def _read_origin(config: Config) -> Origin:
    assert config.training is not None
    assert config.training.continue_from is not None
    start = config.training.continue_from
    if start.is_file():
        path, checkpoint = start, read_checkpoint(start)
    else:
        run = RunFolder(start)
        path, checkpoint = newest_readable(run.checkpoints, run.checkpoint_files())
    before = settings_of(path, checkpoint)
    schedules = run_schedules(
        before, checkpoint.starts, num_tiles=checkpoint.num_tiles, world_size=checkpoint.world_size
    )
    return Origin(path, checkpoint, before, schedules, changed_settings(before, config))


def _position(origin: Origin, config: Config, tiles: TileSource, learner: Learner) -> Position:
    """Start of the new run: its step, its stream of tiles, and the previous runs."""
    assert config.training is not None
    step, before = origin.checkpoint.step, origin.schedules.clock
    schedules, weights = config.training.schedules, origin.config.model.weights
    is_extended = schedules == "extend"
    if not is_extended:
        stream_start, tiles_before = 0, 0
    elif not _new_order(origin, tiles, learner):
        stream_start, tiles_before = before.stream_start, before.tiles_before
    else:
        stream_start, tiles_before = step, origin.checkpoint.tiles_seen
    start = Start(
        run=_run_name(origin.path),
        step=step,
        tiles_seen=origin.checkpoint.tiles_seen,
        weights=Path(weights).name if weights is not None and not origin.checkpoint.starts else None,
        schedules=schedules,
        stream_start=stream_start,
        tiles_before=tiles_before,
    )
    return Position(step if is_extended else 0, (*origin.checkpoint.starts, start))


def _run_name(checkpoint: Path) -> str:
    """The name of a checkpoint's run folder, or of the file if it is not in one."""
    folder = checkpoint.resolve().parent
    return folder.parent.name if folder.name == "checkpoints" else checkpoint.name


def _new_order(origin: Origin, tiles: TileSource, learner: Learner) -> list[str]:
    """Changes that give another order of tiles; empty if the stream can continue."""
    checkpoint = origin.checkpoint
    found = [f"{key} ({origin.changed[key]})" for key in ("training.seed", "training.balance") if key in origin.changed]
    if checkpoint.tiles_digest != tiles.digest:
        found.append(f"tiles ({checkpoint.num_tiles} -> {len(tiles)}, or others of the same number)")
    if checkpoint.global_batch_size != learner.global_batch_size:
        found.append(f"tiles per step ({checkpoint.global_batch_size} -> {learner.global_batch_size})")
    return found


def _take_moments(learner: Learner, origin: Origin) -> str:
    """Load the optimizer's moments if optimizer and parameter groups agree; returns what was done as a sentence."""
    ours, theirs = (
        [len(group["params"]) for group in groups]
        for groups in (learner.optimizer.param_groups, origin.checkpoint.optimizer["param_groups"])
    )
    if learner.optim.optimizer == origin.config.optim.optimizer and ours == theirs:
        load_whole_optimizer(learner.optimizer, origin.checkpoint.optimizer)
        return "the optimizer keeps its moments"
    return "the optimizer's moments start at zero, because it is another optimizer or groups parameters differently"


def _refuse_other_networks(origin: Origin, config: Config, learner: Learner) -> None:
    names = [name for name in network_settings(origin.config, config) if name in origin.changed]
    differing = [f"{name} ({origin.changed[name]})" for name in names] + other_guide(origin.checkpoint, learner.guide)
    if differing:
        raise CheckpointError(
            str(origin.path),
            f"has other networks: {'; '.join(differing)}.",
            "training.continue_from loads student, teacher, heads and centers completely.",
            "Set these as in that run. Or use only its backbone: `dino-path export` it, and give the model folder as"
            " model.weights.",
        )


def _refuse_two_starts(config: Config, origin: Origin) -> None:
    assert config.training is not None
    if config.model.weights is not None and "model.weights" in origin.changed:
        raise ConfigError(
            f"model.weights={config.model.weights}",
            f"contradicts training.continue_from={config.training.continue_from}.",
            "A run starts from one state, and a continued run has its own weights.",
            "Leave one of the two out.",
        )


def _refuse_different_reads(origin: Origin, world: World) -> None:
    """Refuse a start that another run is writing, where the processes met different checkpoints."""
    step = origin.checkpoint.step
    total = float(world.sum_(torch.tensor(float(step), dtype=torch.float64, device=world.device)))
    if total != step * world.size:
        raise CheckpointError(
            str(origin.path),
            "is not the newest checkpoint for all processes: a run is writing them.",
            "All processes must start from one state.",
            "Name one checkpoint file in training.continue_from, or wait until that run has ended.",
        )


def _refuse_too_short(origin: Origin, position: Position, schedules: Schedules) -> None:
    num_steps = schedules.clock.num_steps
    if position.step >= num_steps:
        raise CheckpointError(
            str(origin.path),
            f"is at step {position.step}, but this run ends at step {num_steps}.",
            "With training.schedules=extend, the length counts from the first step of the first run.",
            f"Give a larger length (training.num_steps above {position.step}), or set training.schedules=restart: the"
            " length then counts from here.",
        )


def _tiles_line(origin: Origin, position: Position, config: Config, tiles: TileSource, learner: Learner) -> str:
    """Whether the stream of tiles continues."""
    assert config.training is not None
    changes = _new_order(origin, tiles, learner)
    if config.training.schedules == "extend" and not changes:
        return f"tiles: the same; their order continues at step {position.step}"
    why = f" ({'; '.join(changes)})" if changes else ""
    line = f"tiles: order and epochs start again at step {position.step}{why}"
    if "training.seed" in origin.changed:
        return line
    return (
        f"{line}; with the same training.seed={config.training.seed}, the views of that run's first epochs repeat;"
        f" another seed gives new views"
    )


def _schedules_line(origin: Origin, position: Position, schedules: Schedules) -> str:
    """The schedules at the transition: each value at the old run's last step and at the new run's first."""
    step, num_steps = origin.checkpoint.step, schedules.clock.num_steps
    last, first = origin.schedules.at(max(step - 1, 0)).logged(), schedules.at(position.step).logged()
    values = ", ".join(f"{name} {last[key]:.3g} -> {first[key]:.3g}" for key, name in NAMES.items())
    how = (
        f"schedules=extend: as in one run of {num_steps} steps, from its step {position.step} on"
        if position.starts[-1].schedules == "extend"
        else f"schedules=restart: {num_steps} new steps, with warm-ups"
    )
    return f"{how}; last there -> first here: {values}"

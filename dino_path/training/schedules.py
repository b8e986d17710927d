"""Schedules: learning rate, weight decay, teacher momentum and temperature as functions of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from dino_path.config import Clock, Config, ObjectiveConfig, OptimConfig, TrainingConfig
from dino_path.model.checkpoint import Start


@dataclass(frozen=True)
class Schedule:
    """Linear from 0 (or `warmup_from`) to `peak` over `warmup_steps`, both ends included, then a cosine to `final`.

    Source: facebookresearch/dino `utils.py`, cosine_scheduler. The cosine comes close to `final` but does not
    reach it: its last value is one step before.
    """

    peak: float
    final: float
    num_steps: int
    warmup_steps: int = 0
    warmup_from: float = 0.0

    def at(self, step: int) -> float:
        if step < self.warmup_steps:
            share = step / (self.warmup_steps - 1) if self.warmup_steps > 1 else 0.0
            return self.warmup_from + share * (self.peak - self.warmup_from)
        turn = math.pi * (step - self.warmup_steps) / max(self.num_steps - self.warmup_steps, 1)
        return self.final + 0.5 * (self.peak - self.final) * (1 + math.cos(turn))


@dataclass(frozen=True)
class StepSettings:
    """The scheduled values of one step."""

    lr: float
    weight_decay: float
    momentum: float
    teacher_temp: float
    last_layer_frozen: bool
    backbone_frozen: bool = False
    kde_ramp: float | None = None
    """Factor of KDE's weight, 0 to 1; None: the objective has no KDE."""

    def logged(self) -> dict[str, float]:
        """The numbers among them, for the record."""
        values = asdict(self)
        return {name: value for name, value in values.items() if value is not None and not isinstance(value, bool)}


@dataclass(frozen=True)
class Schedules:
    """All schedules of a run, resolved to steps."""

    clock: Clock
    lr: Schedule
    weight_decay: Schedule
    momentum: Schedule
    teacher_temp: Schedule
    freeze_steps: int
    backbone_freeze_steps: int = 0
    kde_ramp: tuple[int, int] | None = None
    """Steps between which KDE's weight rises."""

    def at(self, step: int) -> StepSettings:
        return StepSettings(
            lr=self.lr.at(step),
            weight_decay=self.weight_decay.at(step),
            momentum=self.momentum.at(step),
            teacher_temp=self.teacher_temp.at(step),
            last_layer_frozen=step < self.freeze_steps,
            backbone_frozen=step < self.backbone_freeze_steps,
            kde_ramp=_ramp(step, *self.kde_ramp) if self.kde_ramp is not None else None,
        )

    def lines(self) -> list[str]:
        """The resolved numbers, for the log."""
        clock, lr = self.clock, self.lr
        return [
            f"{clock.num_steps} steps of {clock.global_batch_size} tiles = {clock.tiles_seen(clock.num_steps):,} tiles"
            f" = {clock.epoch(clock.num_steps):.2f} epochs",
            f"learning rate 0 -> {lr.peak:.3g} in {lr.warmup_steps} steps -> {lr.final:.3g}",
            f"weight decay {self.weight_decay.peak:g} -> {self.weight_decay.final:g}, teacher momentum"
            f" {self.momentum.peak:g} -> {self.momentum.final:g}, prototypes frozen for {self.freeze_steps} steps",
            f"teacher temperature {self.teacher_temp.warmup_from:g} -> {self.teacher_temp.peak:g}"
            f" in {self.teacher_temp.warmup_steps} steps",
            *(
                [f"backbone frozen for {self.backbone_freeze_steps} steps: until then only the heads are trained"]
                if self.backbone_freeze_steps > 0
                else []
            ),
            *(
                [f"KDE's weight 0 -> full between steps {' and '.join(map(str, self.kde_ramp))}"]
                if self.kde_ramp is not None and self.kde_ramp[1] > 0
                else []
            ),
        ]


def _ramp(step: int, start: int, end: int) -> float:
    """0 until `start`, 1 from `end` on, linear between."""
    return 1.0 if step >= end else max(0.0, (step - start) / (end - start))


def resolve_clock(
    training: TrainingConfig, *, num_tiles: int, world_size: int, stream_start: int = 0, tiles_before: int = 0
) -> Clock:
    """Steps, tiles per step and steps per epoch of this run.

    Args:
        stream_start, tiles_before: see `Clock`; epochs are counted from there, tiles from the first run on.
    """
    global_batch_size = training.batch_size_per_gpu * training.accumulate_steps * world_size
    steps_per_epoch = num_tiles / global_batch_size
    if training.num_steps is not None:
        num_steps = training.num_steps
    elif training.num_epochs is not None:
        num_steps = max(1, stream_start + round(training.num_epochs * steps_per_epoch))
    else:
        assert training.num_tiles is not None
        num_steps = max(1, stream_start + round((training.num_tiles - tiles_before) / global_batch_size))
    return Clock(
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
        global_batch_size=global_batch_size,
        stream_start=stream_start,
        tiles_before=tiles_before,
    )


def resolve_schedules(
    optim: OptimConfig, objective: ObjectiveConfig, training: TrainingConfig, clock: Clock
) -> Schedules:
    """Turn settings into schedules; the learning rate follows the global batch as `optim.lr_scaling` says."""
    num_steps, dino, kde = clock.num_steps, objective.dino, objective.kde
    match optim.lr_scaling:
        case "linear":
            lr_factor = clock.global_batch_size / 256
        case "sqrt":
            lr_factor = math.sqrt(clock.global_batch_size / 1024)
    return Schedules(
        clock=clock,
        lr=Schedule(
            peak=optim.base_lr * lr_factor,
            final=optim.final_lr,
            num_steps=num_steps,
            warmup_steps=min(optim.lr_warmup.steps(clock), num_steps),
        ),
        weight_decay=Schedule(optim.weight_decay, optim.final_weight_decay, num_steps),
        momentum=Schedule(training.momentum, training.final_momentum, num_steps),
        teacher_temp=Schedule(
            dino.teacher_temp,
            dino.teacher_temp,
            num_steps,
            warmup_steps=min(dino.teacher_temp_warmup.steps(clock), num_steps),
            warmup_from=dino.warmup_teacher_temp,
        ),
        freeze_steps=optim.freeze_last_layer.steps(clock),
        backbone_freeze_steps=training.freeze_backbone.steps(clock),
        kde_ramp=(kde.ramp_start.steps(clock), kde.ramp_end.steps(clock)) if kde.weight > 0 else None,
    )


def run_schedules(config: Config, starts: Sequence[Start], *, num_tiles: int, world_size: int) -> Schedules:
    """The schedules of a run on so many tiles.

    Args:
        starts: the runs that it came from; see `Checkpoint.starts`.
    """
    assert config.training is not None
    clock = resolve_clock(
        config.training,
        num_tiles=num_tiles,
        world_size=world_size,
        stream_start=starts[-1].stream_start if starts else 0,
        tiles_before=starts[-1].tiles_before if starts else 0,
    )
    return resolve_schedules(config.optim, config.objective, config.training, clock)

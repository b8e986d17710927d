"""Lengths of training in steps, epochs, tiles and per cent, and what they resolve to."""

import pytest

from dino_path.config import Clock, Duration, ObjectiveConfig, OptimConfig, TrainingConfig
from dino_path.training.schedules import Schedule, resolve_clock, resolve_schedules


def test_durations_resolve_against_the_clock_of_the_run() -> None:
    clock = Clock(num_steps=400, steps_per_epoch=12.5, global_batch_size=80)
    lengths = {("25", "steps"): 25, ("2", "epochs"): 25, ("2000", "tiles"): 25, ("10", "%"): 40, ("0", "epochs"): 0}
    for (amount, unit), steps in lengths.items():
        assert Duration.model_validate({"amount": amount, "unit": unit}).steps(clock) == steps


@pytest.mark.parametrize(
    ("length", "num_steps"), [({"num_steps": 7}, 7), ({"num_epochs": 2}, 50), ({"num_tiles": 401}, 10)]
)
def test_length_of_the_run_comes_from_steps_epochs_or_tiles(length: dict[str, float], num_steps: int) -> None:
    training = TrainingConfig.model_validate({"batch_size_per_gpu": 20, **length})
    clock = resolve_clock(training, num_tiles=1000, world_size=2)
    assert clock == Clock(num_steps=num_steps, steps_per_epoch=25, global_batch_size=40)


def test_a_run_shorter_than_one_step_has_one() -> None:
    training = TrainingConfig(num_epochs=0.001)
    assert resolve_clock(training, num_tiles=10, world_size=1).num_steps == 1


@pytest.mark.parametrize(("world_size", "peak"), [(1, 5e-4 * 64 / 256), (8, 5e-4 * 512 / 256)])
def test_learning_rate_scales_with_the_global_batch(world_size: int, peak: float) -> None:
    training = TrainingConfig(num_epochs=100)
    clock = resolve_clock(training, num_tiles=64_000, world_size=world_size)
    schedules = resolve_schedules(OptimConfig(), ObjectiveConfig(), training, clock)
    assert max(schedules.at(step).lr for step in range(clock.num_steps)) == pytest.approx(peak)


def test_a_warm_up_longer_than_the_run_is_cut_to_it() -> None:
    training = TrainingConfig(num_steps=5)
    clock = resolve_clock(training, num_tiles=10**6, world_size=1)
    schedules = resolve_schedules(OptimConfig(), ObjectiveConfig(), training, clock)
    rates = [schedules.at(step).lr for step in range(5)]
    assert rates == pytest.approx([schedules.lr.peak * share / 4 for share in range(5)])


def test_schedules_never_leave_the_range_between_their_ends() -> None:
    schedule = Schedule(peak=2.0, final=0.5, num_steps=50, warmup_steps=10)
    values = [schedule.at(step) for step in range(50)]
    assert values[:10] == sorted(values[:10])
    assert values[9:] == sorted(values[9:], reverse=True)
    assert values[9] == values[10] == 2.0
    assert 0.5 < values[-1] < 0.51


def test_the_resolved_numbers_are_said() -> None:
    training = TrainingConfig(num_steps=100)
    clock = resolve_clock(training, num_tiles=640, world_size=1)
    schedules = resolve_schedules(OptimConfig(), ObjectiveConfig(), training, clock)
    text = "\n".join(schedules.lines())
    assert "100 steps of 64 tiles = 6,400 tiles = 10.00 epochs" in text
    assert "prototypes frozen for 10 steps" in text

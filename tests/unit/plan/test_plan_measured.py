"""A few real steps: which sizes are timed, and what they leave behind."""

from pathlib import Path

import pytest
from tiny import tiny_config, tiny_learner, tiny_schedules

from dino_path.plan.measured import Measured, disk_bytes_per_s, measure_steps, measure_views
from dino_path.tiles.source import open_tiles


def measured(store: Path, out: Path, *settings: str, budget_s: float) -> Measured:
    config = tiny_config(store, out, *settings)
    return measure_steps(config, open_tiles(store), tiny_learner(config), tiny_schedules(config), budget_s=budget_s)


def test_whole_steps_are_timed_where_they_fit_into_the_time(tiles_folder: Path, tmp_path: Path) -> None:
    found = measured(tiles_folder, tmp_path / "run", "training.accumulate_steps=2", budget_s=20)
    assert found.step.how == "measured: 12 steps of 8 tiles"
    assert found.largest == 4
    assert found.step.low is not None
    assert found.step.high is not None
    assert 0 <= found.step.low < found.step.value < found.step.high
    assert 0 < found.wait < 1
    assert found.worker_bytes is None
    assert [*tmp_path.iterdir()] == []


def test_where_they_do_not_two_smaller_sizes_are_drawn_on(tiles_folder: Path, tmp_path: Path) -> None:
    found = measured(tiles_folder, tmp_path / "run", "training.batch_size_per_gpu=64", budget_s=1e-6)
    assert found.step.how == "measured: 8 steps of 1 and 2 tiles, drawn on to 64"
    assert found.largest == 2
    assert found.step.low is not None
    assert found.step.high is not None
    assert 0 < found.step.low <= found.step.value <= found.step.high  # whatever noise makes of the line


def test_the_memory_of_workers_is_read_while_they_live(tiles_folder: Path, tmp_path: Path) -> None:
    found = measured(tiles_folder, tmp_path / "run", "training.num_workers=1", budget_s=1)
    if not Path("/proc/self/smaps_rollup").exists():
        pytest.skip("Linux's /proc tells a process's own memory")
    assert found.worker_bytes is not None
    assert 1e6 < found.worker_bytes < 2e9


def test_views_and_disk_have_rates_and_leave_nothing(tiles_folder: Path, tmp_path: Path) -> None:
    rate = measure_views(tiny_config(tiles_folder, tmp_path / "run"), open_tiles(tiles_folder))
    assert rate.unit == "tiles/s"
    assert rate.low is not None
    assert 0 < rate.low < rate.value
    assert disk_bytes_per_s(tmp_path / "not" / "there") > 0
    assert [*tmp_path.iterdir()] == []

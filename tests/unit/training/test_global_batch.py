"""A run goes on with the global batch that it began with, whatever number of processes it gets."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_config, training_of

from dino_path.run import RunFolder
from dino_path.training.global_batch import keep_global_batch


def run_with_batch(path: Path, global_batch_size: int) -> Path:
    run = RunFolder(path)
    run.checkpoints.mkdir(parents=True)
    torch.save({"global_batch_size": global_batch_size}, run.checkpoint_file(5))
    run.checkpoint_file(10).write_bytes(b"damaged")
    return path


@pytest.mark.parametrize(
    ("world_size", "tiles", "passes"),
    [(8, 64, 1), (4, 64, 2), (2, 64, 4), (1, 64, 8), (16, 32, 1), (512, 1, 1)],
)
def test_other_processes_share_out_the_same_batch_and_none_takes_more_at_once(
    tmp_path: Path, world_size: int, tiles: int, passes: int
) -> None:
    config = tiny_config(tmp_path, run_with_batch(tmp_path / "run", 512), "training.batch_size_per_gpu=64")
    training = training_of(keep_global_batch(config, world_size))
    assert (training.batch_size_per_gpu, training.accumulate_steps) == (tiles, passes)
    assert world_size * tiles * passes == 512


def test_the_fewest_passes_that_divide_evenly_are_taken(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, run_with_batch(tmp_path / "run", 90), "training.batch_size_per_gpu=20")
    training = training_of(keep_global_batch(config, 2))
    assert (training.batch_size_per_gpu, training.accumulate_steps) == (15, 3)


@pytest.mark.parametrize("world_size", [3, 1024])
def test_a_batch_that_cannot_be_shared_out_evenly_stays_for_restore_to_refuse(tmp_path: Path, world_size: int) -> None:
    config = tiny_config(tmp_path, run_with_batch(tmp_path / "run", 512))
    assert keep_global_batch(config, world_size) == config


def test_a_run_without_a_checkpoint_begins_with_the_batch_of_its_settings(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path / "run")
    assert keep_global_batch(config, 7) == config

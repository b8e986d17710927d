"""Operations, memory and bytes of a counted step against closed forms, and a checkpoint against its file."""

from pathlib import Path

import pytest
from tiny import ALL_TERMS, ALONE, tiny_config, tiny_learner, tiny_schedules, training_of

from dino_path.config import Config
from dino_path.plan.counted import StepCount, count_step
from dino_path.training.loop import pretrain


def counted(config: Config) -> StepCount:
    settings = tiny_schedules(config).at(training_of(config).num_steps or 0)
    return count_step(config, settings, precision="fp32", is_gpu=False)


def vit_flops(edge_px: int, width: int = 32, depth: int = 2, patch_px: int = 8) -> float:
    """Of one image and forward pass: patches, then for each block qkv, two products of attention, projection, MLP."""
    num_patches = (edge_px // patch_px) ** 2
    tokens = num_patches + 1
    block = tokens * width * width * (3 + 1 + 8) + 2 * tokens * tokens * width
    return 2.0 * (num_patches * 3 * patch_px**2 * width + depth * block)


def test_operations_are_those_of_the_matrix_products(tiles_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(tiles_folder, tmp_path / "run")
    head = 2.0 * (32 * 32 + 32 * 32 + 32 * 16 + 16 * 64)  # three layers of the MLP, and 64 prototypes
    large, small = vit_flops(32), vit_flops(16)
    student = 2 * (large + head) + 2 * (small + head)
    of_tile = 3 * student + 2 * (large + head)  # a backward pass costs two forward passes
    patches = 2.0 * (2 * 16 + 2 * 4) * 3 * 8**2 * 32  # whose input needs no gradient
    assert counted(config).flops == pytest.approx(4 * (of_tile - patches), rel=0.01)


def test_micro_batches_multiply_the_operations_and_leave_the_networks_alone(tiles_folder: Path, tmp_path: Path) -> None:
    one = counted(tiny_config(tiles_folder, tmp_path / "run"))
    three = counted(tiny_config(tiles_folder, tmp_path / "run", "training.accumulate_steps=3"))
    assert three.flops == 3 * one.flops
    assert three.kept_bytes == one.kept_bytes
    assert three.peak_bytes - one.peak_bytes == 2 * 2 * 4 * 3 * 32**2 * 4  # two batches of global views that wait


def test_what_is_kept_is_two_networks_gradients_and_two_moments(tiles_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(tiles_folder, tmp_path / "run", "objective.dino.num_prototypes=4096")
    learner = tiny_learner(config)
    of_network = 4 * sum(one.numel() for one in learner.student.parameters())
    of_learning = 4 * sum(one.numel() for one in learner.student.parameters() if one.requires_grad)
    count = counted(config)
    assert count.kept_bytes == pytest.approx(2 * of_network + 3 * of_learning, rel=0.25)  # blocks of 512 bytes, views
    assert count.kept_bytes >= 2 * of_network + 3 * of_learning
    assert count.num_parameters == sum(one.numel() for one in learner.student.backbone.parameters())


def test_the_peak_grows_by_as_much_for_each_tile(tiles_folder: Path, tmp_path: Path) -> None:
    four, eight, sixteen = (
        counted(tiny_config(tiles_folder, tmp_path / "run", f"training.batch_size_per_gpu={size}"))
        for size in (64, 128, 256)
    )
    first, second = eight.peak_bytes - four.peak_bytes, (sixteen.peak_bytes - eight.peak_bytes) / 2
    assert first == pytest.approx(second, rel=0.02)
    assert sixteen.tile_bytes == pytest.approx(first / 64, rel=0.05)


@pytest.mark.parametrize("settings", [(), ALL_TERMS, ("optim.optimizer=sgd",)], ids=["dino", "all terms", "sgd"])
def test_a_checkpoint_is_as_large_as_counted(tiles_folder: Path, tmp_path: Path, settings: tuple[str, ...]) -> None:
    config = tiny_config(tiles_folder, tmp_path / "run", "training.num_steps=5", *settings)
    size = pretrain(config, ALONE).stat().st_size
    small = size - counted(config).checkpoint_bytes  # names, and the settings
    assert 0 < small < 150_000

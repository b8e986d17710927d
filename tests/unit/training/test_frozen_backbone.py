"""`training.freeze_backbone`: heads learn alone, to the bit, and the backbone follows from a step on."""

from pathlib import Path

import pytest
import torch
from runs import keep_only_step, state_in
from tiny import (
    ALONE,
    differences,
    state_of,
    tiny_batches,
    tiny_config,
    tiny_learner,
    tiny_schedules,
)

from dino_path.run import RunFolder
from dino_path.training.learner import Learner
from dino_path.training.loop import pretrain
from dino_path.training.step import train_step

FROZEN = "training.freeze_backbone=3 steps"
IBOT = (
    "objective.ibot.weight=1", "objective.ibot.num_prototypes=32", "objective.ibot.head_hidden=32",
    "objective.ibot.head_bottleneck=16",
)  # fmt: skip


def train(tiles: Path, num_steps: int, *settings: str) -> Learner:
    config = tiny_config(tiles, Path("unused"), "optim.freeze_last_layer=0 steps", *settings)
    learner, batches, schedules = tiny_learner(config), tiny_batches(config), tiny_schedules(config)
    for step in range(num_steps):
        train_step(learner, [batches.batch(step)], schedules.at(step), step=step)
    return learner


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], part: str) -> list[str]:
    return [name for name in differences(before, after) if part in name and not name.startswith("optimizer")]


def test_the_backbone_stays_to_the_bit_while_the_heads_learn_and_then_moves(tiles_folder: Path) -> None:
    start, frozen, thawed = (state_of(train(tiles_folder, steps, FROZEN)) for steps in (0, 3, 4))
    assert moved(start, frozen, ".backbone.") == []
    assert {"student.head.mlp.0.weight", "teacher.head.mlp.0.weight"} <= {*moved(start, frozen, ".head.")}
    assert len(moved(frozen, thawed, "student.backbone.")) == sum("student.backbone." in name for name in start)


def test_the_optimizer_knows_no_frozen_parameter_and_counts_its_steps_from_the_thaw(tiles_folder: Path) -> None:
    for steps, of_backbone in ((3, []), (5, [2.0])):
        learner = train(tiles_folder, steps, FROZEN)
        counts = {
            part: [float(learner.optimizer.state[one]["step"]) for one in parameters if one in learner.optimizer.state]
            for part, parameters in learner.parts.items()
        }
        assert sorted(set(counts["backbone"])) == of_backbone
        assert set(counts["head"]) == {float(steps)}


def test_heads_learn_from_the_very_gradients_that_they_have_beside_a_learning_backbone(tiles_folder: Path) -> None:
    free, frozen = (state_of(train(tiles_folder, 1, "optim.lr_warmup=0 steps", *more)) for more in ((), (FROZEN,)))
    assert "student.backbone.cls_token" in differences(free, frozen)
    assert moved(free, frozen, ".head.") == []


@pytest.mark.parametrize("settings", [(), IBOT, ("model.backbone=resnet10t", "model.arguments={}")])
def test_a_run_that_is_killed_before_the_thaw_ends_with_the_weights_of_one_that_was_not(
    tiles_folder: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    config = tiny_config(tiles_folder, tmp_path / "run", "training.freeze_backbone=70 %", *settings)
    whole = state_in(pretrain(config, ALONE))
    run = RunFolder(tmp_path / "run")
    halfway = state_in(run.checkpoint_file(5))
    weights = [name for name in halfway if name.startswith("student_backbone") and "running" not in name]
    assert len([name for name in differences(halfway, whole) if name in weights]) > len(weights) // 2
    keep_only_step(run, 5)
    assert differences(whole, state_in(pretrain(config, ALONE))) == []


def test_the_mask_token_is_frozen_with_the_backbone(tiles_folder: Path, tmp_path: Path) -> None:
    settings = (*IBOT, "training.freeze_backbone=5 steps")
    pretrain(tiny_config(tiles_folder, tmp_path / "run", *settings), ALONE)
    run = RunFolder(tmp_path / "run")
    token = "student_mask_token.weight"
    assert state_in(run.checkpoint_file(5))[token].abs().max() == 0
    assert state_in(run.checkpoint_file(10))[token].abs().max() > 0


def test_the_log_says_for_how_long(tiles_folder: Path) -> None:
    lines = tiny_schedules(tiny_config(tiles_folder, Path("unused"), "training.freeze_backbone=30 %")).lines()
    assert "backbone frozen for 3 steps: until then only the heads are trained" in lines

"""Two gloo processes are one training: the same weights on both, and those of one process with the same batch."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import free_port, keep_only_step, state_in
from tiny import ALONE, differences, state_of, tiny_batches, tiny_config, tiny_learner, tiny_schedules

from dino_path.model.checkpoint import read_checkpoint
from dino_path.run import RunFolder
from dino_path.training.learner import train_step
from dino_path.training.loop import pretrain

pytestmark = pytest.mark.slow
NUM_STEPS = 4
# The gradient is the mean of two means instead of one mean: in float64 only the last digits differ, and AdamW
# magnifies them where a gradient is almost zero.
TOLERANCE = 1e-8


@contextmanager
def doubles() -> Iterator[None]:
    """New tensors are in double precision."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def out(tiles_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes wrote, after both have ended well."""
    folder = tmp_path_factory.mktemp("two_ranks")
    script, tests = Path(__file__).with_name("two_ranks.py"), Path(__file__).parents[1]
    shared = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent)]),
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(tiles_folder), str(folder)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    answers = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(answers)
    assert "Warning" not in "".join(answers)
    return folder


@pytest.fixture(scope="module")
def ranks(out: Path) -> list[dict[str, Any]]:
    return [torch.load(out / f"rank_{rank}.pt", weights_only=True) for rank in range(2)]


def test_both_ranks_hold_the_same_student_teacher_center_and_optimizer(ranks: list[dict[str, Any]]) -> None:
    assert differences(ranks[0]["state"], ranks[1]["state"]) == []


def test_ranks_saw_disjoint_tiles_that_are_the_stream_together(ranks: list[dict[str, Any]], tiles_folder: Path) -> None:
    seen = [rank["tiles"][:6] for rank in ranks]  # three steps of two tiles on each rank: the first epoch
    assert {*seen[0]}.isdisjoint(seen[1])
    assert {*seen[0]} | {*seen[1]} == {*range(12)}


def test_two_ranks_equal_one_process_with_the_same_global_batch(
    ranks: list[dict[str, Any]], tiles_folder: Path
) -> None:
    config = tiny_config(tiles_folder, Path("unused"), "model.drop_path_rate=0", f"training.num_steps={NUM_STEPS}")
    with doubles():
        learner = tiny_learner(config)
    batches, schedules = tiny_batches(config), tiny_schedules(config)
    start = state_of(learner)
    for step in range(NUM_STEPS):
        train_step(learner, [batches.batch(step)], schedules.at(step), step=step)
    state = state_of(learner)
    assert state["student.backbone.cls_token"].dtype == torch.float64
    assert len(differences(start, state)) > len(start) // 2
    for name, value in state.items():
        torch.testing.assert_close(
            ranks[0]["state"][name], value, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda text, n=name: f"{n}: {text}"
        )


def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_both(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        skipping = rank["skipping"]
        assert skipping["is_skipped"]
        assert skipping["num_skipped"] == 1
        assert differences(skipping["before"], skipping["after_skip"]) == []
        assert "student.backbone.cls_token" in differences(skipping["before"], skipping["after"])
    assert differences(ranks[0]["skipping"]["after"], ranks[1]["skipping"]["after"]) == []


def test_a_run_of_two_processes_writes_one_folder_with_the_means_of_both(
    out: Path, tiles_folder: Path, tmp_path: Path
) -> None:
    run = RunFolder(out / "run")
    alone = tiny_config(tiles_folder, tmp_path / "run", "model.drop_path_rate=0", f"training.num_steps={NUM_STEPS}")
    with doubles():
        pretrain(alone, ALONE)
    two, one = run.read_metrics(), RunFolder(tmp_path / "run").read_metrics()
    assert [record["step"] for record in two] == [*range(NUM_STEPS)]
    assert [record["tiles_seen"] for record in two] == [4, 8, 12, 16]
    for name in ("loss", "teacher_entropy", "kl", "lr"):
        assert [record[name] for record in two] == pytest.approx([record[name] for record in one], rel=1e-3)
    checkpoint = read_checkpoint(run.checkpoint_file(NUM_STEPS))
    assert checkpoint["world_size"] == 2
    assert not [name for name in checkpoint["student_backbone"] if name.startswith("module.")]


@pytest.mark.parametrize("divided", [("4", "1"), ("1", "4")])
def test_what_two_processes_began_one_ends_with_the_same_global_batch(
    out: Path, tiles_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, divided: tuple[str, str]
) -> None:
    shutil.copytree(out / "run", tmp_path / "run")
    both = RunFolder(tmp_path / "run").checkpoint_file(NUM_STEPS)
    expected = state_in(both)
    keep_only_step(RunFolder(tmp_path / "run"), 2)
    settings = ("model.drop_path_rate=0", f"training.num_steps={NUM_STEPS}", "training.checkpoint_every_steps=2")
    sizes = (f"training.batch_size_per_gpu={divided[0]}", f"training.accumulate_steps={divided[1]}")
    with doubles():
        pretrain(tiny_config(tiles_folder, tmp_path / "run", *settings, *sizes), ALONE)
    assert "was written by 2 process(es), this is a run of 1" in caplog.text
    state = state_in(both)
    assert state["student_backbone.cls_token"].dtype == torch.float64
    for name, value in expected.items():
        torch.testing.assert_close(
            state[name], value, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda text, n=name: f"{n}: {text}"
        )

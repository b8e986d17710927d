"""Train 10 steps = train 5, die, resume 5: bit for bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import ALONE, TINY, differences, tiny_config

from dino_path.model.checkpoint import read_checkpoint
from dino_path.run import RunFolder
from dino_path.training.loop import pretrain

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
SETTINGS = ("model.drop_path_rate=0.2", "model.norm_last_layer=false")  # stochastic depth is part of what must repeat
NUM_STEPS = 200  # of the command that is killed
LONG = (*SETTINGS, f"training.num_steps={NUM_STEPS}", "training.checkpoint_every_steps=10")


def state_in(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint by name: both networks, center, optimizer moments."""
    record = read_checkpoint(checkpoint)
    state = {"center": record["center"]}
    for part in ("student_backbone", "student_head", "teacher_backbone", "teacher_head"):
        state |= {f"{part}.{name}": value for name, value in record[part].items()}
    for number, moments in record["optimizer"]["state"].items():
        state |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    return state


def keep_only_step(run: RunFolder, step: int) -> None:
    """The folder as a run killed between `step` and the next checkpoint leaves it."""
    for file in run.checkpoint_files():
        if file != run.checkpoint_file(step):
            file.unlink()


@pytest.mark.parametrize(
    ("num_workers", "views"),
    [(0, ""), (0, "views.colour_on_device=true"), pytest.param(2, "", marks=pytest.mark.slow)],
)
def test_five_steps_resumed_for_five_equal_ten(
    tiles_folder: Path, tmp_path: Path, num_workers: int, views: str
) -> None:
    settings = (*SETTINGS, *([views] if views else []))
    whole = pretrain(tiny_config(tiles_folder, tmp_path / "whole", *settings), ALONE)
    config = tiny_config(tiles_folder, tmp_path / "resumed", *settings, f"training.num_workers={num_workers}")
    pretrain(config, ALONE)
    keep_only_step(RunFolder(tmp_path / "resumed"), 5)
    torch.manual_seed(123)  # nothing that was drawn before may matter
    resumed = pretrain(config, ALONE)
    state, expected = state_in(resumed), state_in(whole)
    assert any(name.startswith("optimizer.") and name.endswith("exp_avg_sq") for name in expected)
    assert differences(expected, state) == []
    halfway = state_in(RunFolder(tmp_path / "resumed").checkpoint_file(5))
    assert len(differences(halfway, state)) > len(state) // 2, "the second half must have moved something"


def pretrain_command(store: Path, out: Path) -> list[str]:
    settings = [*TINY, *LONG]
    return [
        sys.executable, "-c", "from dino_path.cli import main; main()", "pretrain",
        f"store={store}", f"out={out}", *settings,
    ]  # fmt: skip


def run_to_end(store: Path, out: Path) -> Path:
    answer = subprocess.run(pretrain_command(store, out), capture_output=True, text=True, check=False, env=ONE_THREAD)
    assert answer.returncode == 0, answer.stderr
    checkpoint = RunFolder(out).checkpoint_file(NUM_STEPS)
    assert f"checkpoint: {checkpoint}" in answer.stdout
    return checkpoint


def kill_in_the_middle(store: Path, out: Path) -> None:
    """Start the command, and kill it without warning when it has written its second checkpoint."""
    process = subprocess.Popen(
        pretrain_command(store, out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=ONE_THREAD,
    )
    deadline_s = time.monotonic() + 120
    while len(RunFolder(out).checkpoint_files()) < 2:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline_s, "it wrote no checkpoint"
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_command_called_again_ends_with_the_weights_of_an_undisturbed_one(
    tiles_folder: Path, tmp_path: Path
) -> None:
    whole = pretrain(tiny_config(tiles_folder, tmp_path / "whole", *LONG), ALONE)
    killed = RunFolder(tmp_path / "killed")
    kill_in_the_middle(tiles_folder, killed.path)
    assert not killed.checkpoint_file(NUM_STEPS).exists()
    resumed = run_to_end(tiles_folder, killed.path)
    assert differences(state_in(whole), state_in(resumed)) == []
    assert [record["step"] for record in killed.read_metrics()] == [*range(NUM_STEPS)]
    assert not list(killed.path.rglob("*.tmp"))
    assert "continuing from" in killed.log_file.read_text()

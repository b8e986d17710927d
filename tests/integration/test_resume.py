"""Train 10 steps = train 5, die, resume 5: bit for bit."""

import random
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from runs import Command, keep_only_step, metrics_of, state_in, two_ranks
from tiny import ALL_TERMS, ALONE, differences, tiny_config

from dino_path.run import RunFolder
from dino_path.training.loop import pretrain
from dino_path.training.signals import SAME_REQUEST_S

SETTINGS = (
    "model.drop_path_rate=0.2",
    "objective.dino.norm_last_layer=false",
)  # stochastic depth is part of what must repeat
NUM_STEPS = 200  # of the commands that are killed
LONG = (*SETTINGS, f"training.num_steps={NUM_STEPS}", "training.checkpoint_every_steps=10")
WITH_WORKERS = (*LONG, "training.num_workers=2")
EXIT_STOPPED = 85


@pytest.fixture(scope="module")
def undisturbed(tiles_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The state after all steps of `LONG` in one go."""
    return state_in(pretrain(tiny_config(tiles_folder, tmp_path_factory.mktemp("whole"), *LONG), ALONE))


@pytest.mark.parametrize(
    ("num_workers", "further"),
    [
        (0, ()),
        (0, ("views.colour_on_device=true",)),
        (0, (*ALL_TERMS, "objective.ibot.head=shared", "optim.freeze_by=zero_lr")),
        pytest.param(2, (), marks=pytest.mark.slow),
        pytest.param(
            2, (*ALL_TERMS, "objective.targets.method=sinkhorn-knopp", "optim.layer_decay=0.8"), marks=pytest.mark.slow
        ),
    ],
)
def test_five_steps_resumed_for_five_equal_ten(
    tiles_folder: Path, tmp_path: Path, num_workers: int, further: tuple[str, ...]
) -> None:
    settings = (*SETTINGS, *further)
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


@pytest.mark.slow
def test_a_run_killed_twice_at_random_steps_ends_with_the_weights_of_an_undisturbed_one(
    tiles_folder: Path, tmp_path: Path, undisturbed: dict[str, torch.Tensor]
) -> None:
    run = RunFolder(tmp_path / "killed")
    before = 0
    for _ in range(2):
        command = Command(tiles_folder, run.path, *WITH_WORKERS, "training.keep_checkpoints=100")
        command.wait_for_checkpoints(before + random.randint(1, 6))
        command.signal_group(signal.SIGKILL)
        assert command.end()[0] == -signal.SIGKILL
        before = len(run.checkpoint_files())
    assert not run.checkpoint_file(NUM_STEPS).exists()
    code, out, err = Command(tiles_folder, run.path, *WITH_WORKERS).end()
    assert (code, out.splitlines()[0]) == (0, f"checkpoint: {run.checkpoint_file(NUM_STEPS)}"), err
    assert differences(undisturbed, state_in(run.checkpoint_file(NUM_STEPS))) == []
    assert [record["step"] for record in metrics_of(run)] == [*range(NUM_STEPS)]
    assert not list(run.path.rglob("*.tmp"))
    assert run.log_file.read_text().count("continuing from") == 2


@pytest.mark.slow
def test_a_run_whose_newest_checkpoint_is_damaged_ends_with_the_weights_of_an_undisturbed_one(
    tiles_folder: Path, tmp_path: Path, undisturbed: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path / "damaged")
    config = tiny_config(tiles_folder, run.path, *LONG)
    pretrain(config, ALONE)
    run.checkpoint_file(NUM_STEPS).unlink()
    newest = run.checkpoint_files()[-1]
    newest.write_bytes(newest.read_bytes()[:10_000])
    pretrain(config, ALONE)
    assert f"{newest}: cannot be read as a checkpoint" in caplog.text
    assert differences(undisturbed, state_in(run.checkpoint_file(NUM_STEPS))) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_processes_ends_the_step_saves_it_and_loses_nothing(
    tiles_folder: Path, tmp_path: Path, undisturbed: dict[str, torch.Tensor], number: signal.Signals
) -> None:
    settings = (*WITH_WORKERS, "training.checkpoint_every_steps=50")
    command = Command(tiles_folder, tmp_path / "run", *settings)
    command.wait_for_checkpoints(1)
    command.signal_group(number)
    code, _, err = command.end()
    assert code == EXIT_STOPPED, err
    stopped = command.run.checkpoint_files()[-1]
    assert 50 <= int(stopped.stem.removeprefix("step_")) < NUM_STEPS
    assert f"stopped by {number.name} after step" in err
    assert f"Everything is saved in {stopped}" in err
    assert "Traceback" not in err
    code, _, err = Command(tiles_folder, tmp_path / "run", *settings).end()
    assert code == 0, err
    assert differences(undisturbed, state_in(command.run.checkpoint_file(NUM_STEPS))) == []


@pytest.mark.slow
def test_a_signal_to_one_of_two_ranks_stops_both_after_the_same_step(tiles_folder: Path, tmp_path: Path) -> None:
    num_steps = 80
    settings = (
        *LONG, f"training.num_steps={num_steps}", "training.batch_size_per_gpu=2", "training.checkpoint_every_steps=20"
    )  # fmt: skip
    ranks = two_ranks(tiles_folder, tmp_path / "run", *settings)
    ranks[0].wait_for_checkpoints(1)
    ranks[1].process.send_signal(signal.SIGTERM)
    ends = [rank.end() for rank in ranks]
    assert [code for code, _, _ in ends] == [EXIT_STOPPED, EXIT_STOPPED], ends
    stopped = ranks[0].run.checkpoint_files()[-1]
    assert stopped != ranks[0].run.checkpoint_file(num_steps)
    assert "stopped by another process after step" in ends[0][2]
    assert "stopped by SIGTERM after step" in ends[1][2]
    for out in ("run", "whole"):
        ends = [rank.end() for rank in two_ranks(tiles_folder, tmp_path / out, *settings)]
        assert [code for code, _, _ in ends] == [0, 0], ends
    whole, resumed = (RunFolder(tmp_path / out).checkpoint_file(num_steps) for out in ("whole", "run"))
    assert differences(state_in(whole), state_in(resumed)) == []


@pytest.mark.slow
def test_a_second_signal_ends_the_run_at_once(tiles_folder: Path, tmp_path: Path) -> None:
    slow = ("training.accumulate_steps=4000", "training.num_steps=100")  # a first step that takes a while
    command = Command(tiles_folder, tmp_path / "run", *slow)
    while not command.run.metrics_file.exists():  # opened after the handlers are in place
        assert command.process.poll() is None, command.end()
    command.process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        command.process.wait(timeout=SAME_REQUEST_S + 0.5)
    command.process.send_signal(signal.SIGTERM)
    assert command.end()[0] == -signal.SIGTERM
    assert command.run.checkpoint_files() == []

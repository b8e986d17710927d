"""A run that continues in another folder (`training.continue_from`) is as exact as one that is resumed."""

import signal
from pathlib import Path

import pytest
from runs import Command, metrics_of, state_in, two_ranks
from tiny import ALONE, differences, tiny_config

from dino_path.run import RunFolder
from dino_path.training.loop import pretrain

NUM_STEPS = 200
LONG = (
    "model.drop_path_rate=0.2", "objective.dino.norm_last_layer=false", f"training.num_steps={NUM_STEPS}",
    "training.checkpoint_every_steps=50", "training.keep_checkpoints=100",
)  # fmt: skip
EXIT_STOPPED = 85


@pytest.mark.slow
def test_a_continued_run_is_stopped_killed_and_resumed_to_the_same_weights(tiles_folder: Path, tmp_path: Path) -> None:
    settings = (*LONG, "training.num_workers=2")
    whole = RunFolder(tmp_path / "whole")
    pretrain(tiny_config(tiles_folder, whole.path, *LONG), ALONE)
    start = f"training.continue_from={whole.checkpoint_file(50)}"
    command = Command(tiles_folder, tmp_path / "rest", *settings, start)
    command.wait_for_checkpoints(1)
    command.signal_group(signal.SIGKILL)  # only its start is saved
    assert command.end()[0] == -signal.SIGKILL
    whole.checkpoint_file(50).unlink()  # which it needs no more
    command = Command(tiles_folder, tmp_path / "rest", *settings, start)
    command.wait_for_checkpoints(2)
    command.signal_group(signal.SIGINT)
    code, _, err = command.end()
    assert code == EXIT_STOPPED, err
    assert not command.run.checkpoint_file(NUM_STEPS).exists()
    code, _, err = Command(tiles_folder, tmp_path / "rest", *settings, start).end()
    assert code == 0, err
    assert (
        differences(state_in(whole.checkpoint_file(NUM_STEPS)), state_in(command.run.checkpoint_file(NUM_STEPS))) == []
    )
    assert [record["step"] for record in metrics_of(command.run)] == [*range(50, NUM_STEPS)]


@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["null", "fsdp2"])
def test_two_processes_continue_a_run_to_the_weights_of_the_undisturbed_one(
    tiles_folder: Path, tmp_path: Path, sharding: str
) -> None:
    settings = (
        *LONG, "training.num_steps=10", "training.checkpoint_every_steps=5", "training.batch_size_per_gpu=2",
        f"training.sharding={sharding}",
    )  # fmt: skip
    whole, rest = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "rest")
    start = f"training.continue_from={whole.checkpoint_file(5)}"
    for out, further in ((whole.path, ()), (rest.path, (start,))):
        ends = [rank.end() for rank in two_ranks(tiles_folder, out, *settings, *further)]
        assert [code for code, _, _ in ends] == [0, 0], ends
    assert [file.stem for file in rest.checkpoint_files()] == ["step_00000005", "step_00000010"]
    assert differences(state_in(whole.checkpoint_file(10)), state_in(rest.checkpoint_file(10))) == []


@pytest.mark.slow
def test_a_finished_run_called_with_a_larger_length_exits_with_2_and_says_what_to_type(
    tiles_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    pretrain(tiny_config(tiles_folder, out, "training.num_steps=2"), ALONE)
    code, _, err = Command(tiles_folder, out, "training.num_steps=4").end()
    assert code == 2, err
    assert "Traceback" not in err
    assert f"out={out}-2 training.continue_from={out}" in err.replace("\n", " ")

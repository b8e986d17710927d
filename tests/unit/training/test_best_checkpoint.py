"""The best checkpoint is kept beside the newest, whatever kills the run, and a run that gains nothing can end."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from runs import keep_only_step, state_in
from tiny import ALONE, differences, tiny_config
from torch import nn

import dino_path
from dino_path.config import Config
from dino_path.errors import CheckpointError, ConfigError, FolderInUse
from dino_path.lock import only_writer
from dino_path.records.best import best_checkpoint, read_best
from dino_path.records.metrics import read_metrics
from dino_path.run import RunFolder
from dino_path.training import checkpoints, loop
from dino_path.training.finished import delete_old_checkpoints, finished_checkpoint
from dino_path.training.loop import pretrain

EVERY_TWO = ("monitor.knn_data=images", "monitor.knn_every_steps=2", "training.keep_checkpoints=1")

FEW = ("training.checkpoint_every_steps=2", "training.keep_checkpoints=2")


class Killed(Exception):
    """Replaces a SIGKILL."""


def says(accuracies: Sequence[float]) -> Callable[[nn.Module], float]:
    """A k-NN that finds these accuracies, one after the other."""
    answers = iter(accuracies)
    return lambda backbone: next(answers)


def config_of(store: Path, out: Path, *settings: str) -> Config:
    return tiny_config(store, out, *EVERY_TWO, *settings)


def names(run: RunFolder) -> list[int]:
    return [int(file.stem.removeprefix("step_")) for file in run.checkpoint_files()]


def test_the_best_stays_beside_the_newest_and_is_the_state_that_was_measured(
    tiles_folder: Path, tmp_path: Path
) -> None:
    run = RunFolder(tmp_path / "run")
    pretrain(config_of(tiles_folder, run.path), ALONE, knn=says([0.5, 0.7, 0.6, 0.7, 0.4]))
    best = read_best(run)
    assert best is not None
    assert (best.step, best.value, best.last_step, best.num_without_gain) == (4, 0.7, 10, 3)
    assert str(best) == "step 4 (k-NN 0.700)"
    assert names(run) == [4, 10]
    assert best_checkpoint(run.path) == run.checkpoint_file(4)
    pretrain(config_of(tiles_folder, tmp_path / "short", "training.num_steps=10", "monitor.stop_after=1"), ALONE,
             knn=says([0.5, 0.4]))  # fmt: skip
    short = RunFolder(tmp_path / "short")
    assert names(short) == [2, 4]
    assert differences(state_in(run.checkpoint_file(4)), state_in(short.checkpoint_file(4))) == []


def test_without_labels_the_effective_rank_of_a_periodic_checkpoint_decides(tiles_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(
        tiles_folder, tmp_path / "run", "training.checkpoint_every_steps=3", "training.keep_checkpoints=1"
    )
    pretrain(config, ALONE)
    run = RunFolder(tmp_path / "run")
    ranks = {one.step + 1: one.rankme or 0 for one in read_metrics(run.metrics_file).records}
    compared = {step: ranks[step] for step in (3, 6, 9, 10)}
    best = read_best(run)
    assert best is not None
    assert (best.measure, best.data, best.step) == ("rankme", None, max(compared, key=lambda step: compared[step]))
    assert best.value == compared[best.step]
    assert names(run) == sorted({best.step, 10})


@pytest.mark.parametrize("moment", ["before the checkpoint", "after the checkpoint", "after the record"])
def test_a_kill_at_any_moment_of_a_comparison_loses_and_repeats_none(
    tiles_folder: Path, tmp_path: Path, moment: str
) -> None:
    config, run = config_of(tiles_folder, tmp_path / "run"), RunFolder(tmp_path / "run")

    def kill_at_4(patch: pytest.MonkeyPatch, name: str, module: object, *, is_before: bool) -> None:
        original = getattr(module, name)

        def dying(*arguments: object, **keywords: object) -> object:
            is_at_4 = keywords.get("step") == 4 or getattr(arguments[-1], "last_step", None) == 4
            if is_at_4 and is_before:
                raise Killed
            result = original(*arguments, **keywords)
            if is_at_4:
                raise Killed
            return result

        patch.setattr(module, name, dying)

    with pytest.MonkeyPatch.context() as patch:
        match moment:
            case "before the checkpoint":
                kill_at_4(patch, "save_checkpoint", loop, is_before=True)
            case "after the checkpoint":
                kill_at_4(patch, "write_best", checkpoints, is_before=True)
            case "after the record":
                kill_at_4(patch, "write_best", checkpoints, is_before=False)
        with pytest.raises(Killed):
            pretrain(config, ALONE, knn=says([0.5, 0.7]))
    again = [0.7] if moment == "before the checkpoint" else []
    pretrain(config, ALONE, knn=says([*again, 0.6, 0.6, 0.6]))
    best = read_best(run)
    assert best is not None
    assert (best.step, best.value, best.num_without_gain, names(run)) == (4, 0.7, 3, [4, 10])


@pytest.mark.parametrize("caller", ["the loop", "without torch"])
def test_a_kill_before_the_last_deletion_keeps_no_checkpoint_for_ever(
    tiles_folder: Path, tmp_path: Path, caller: str
) -> None:
    config, run = tiny_config(tiles_folder, tmp_path / "run", *FEW), RunFolder(tmp_path / "run")

    def dying(run: RunFolder, newest: Path, *, keep: int) -> None:
        if newest == run.checkpoint_file(10):
            raise Killed
        delete_old_checkpoints(run, newest, keep=keep)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "delete_old_checkpoints", dying)
        with pytest.raises(Killed):
            pretrain(config, ALONE)
    pretrain(tiny_config(tiles_folder, tmp_path / "whole", *FEW), ALONE)
    kept = names(RunFolder(tmp_path / "whole"))
    assert {*kept} < {*names(run)}
    pretrain(tiny_config(tiles_folder, run.path, *FEW[:1], "training.keep_checkpoints=1"), ALONE)
    assert {*kept} < {*names(run)}  # a finished run loses none by other settings
    if caller == "the loop":
        assert pretrain(config, ALONE) == run.checkpoint_file(10)
    else:
        with only_writer(run.path), pytest.raises(FolderInUse):
            dino_path.pretrain(config=config)
        assert dino_path.pretrain(config=config).was_finished
    assert names(run) == kept


def test_a_run_that_goes_back_to_an_older_checkpoint_counts_no_comparison_twice(
    tiles_folder: Path, tmp_path: Path
) -> None:
    config, run = config_of(tiles_folder, tmp_path / "run", "training.keep_checkpoints=9"), RunFolder(tmp_path / "run")
    pretrain(config, ALONE, knn=says([0.5, 0.6, 0.5, 0.8, 0.7]))
    before = read_best(run)
    keep_only_step(run, 4)
    pretrain(config, ALONE, knn=says([0.5, 0.8, 0.7]))
    assert read_best(run) == before
    assert 8 in names(run)


def test_a_run_without_gain_ends_well_and_stays_ended_until_its_patience_is_changed(
    tiles_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = RunFolder(tmp_path / "run")
    config = config_of(tiles_folder, run.path, "monitor.stop_after=2")
    assert pretrain(config, ALONE, knn=says([0.7, 0.6, 0.7])) == run.checkpoint_file(6)
    assert "ended after step 6 of 10: 2 comparisons without a gain (monitor.stop_after)" in caplog.text
    assert finished_checkpoint(config) == run.checkpoint_file(6)
    assert pretrain(config, ALONE, knn=says([])) == run.checkpoint_file(6)
    assert f"{run.path} is already finished" in caplog.text
    assert "Its best checkpoint: step 2 (k-NN 0.700); export it with --best" in caplog.text
    patient = config_of(tiles_folder, run.path)
    assert finished_checkpoint(patient) is None
    assert pretrain(patient, ALONE, knn=says([0.8, 0.9])) == run.checkpoint_file(10)
    assert names(run) == [10]
    whole = pretrain(config_of(tiles_folder, tmp_path / "whole"), ALONE, knn=says([0.5] * 5))
    assert differences(state_in(whole), state_in(run.checkpoint_file(10))) == []


def test_another_measure_or_a_lost_file_starts_the_comparison_again_and_says_so(
    tiles_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path / "run")
    settings = ("training.keep_checkpoints=9", "training.checkpoint_every_steps=2")
    pretrain(config_of(tiles_folder, run.path, *settings), ALONE, knn=says([0.9, 0.5, 0.5, 0.5, 0.5]))
    run.checkpoint_file(10).unlink()
    run.checkpoint_file(2).unlink()
    pretrain(config_of(tiles_folder, run.path, *settings), ALONE, knn=says([0.4]))
    assert f"starts again: {run.checkpoint_file(2)}, the best, is missing" in caplog.text
    best = read_best(run)
    assert best is not None
    assert (best.step, best.value) == (8, 0.5)
    run.checkpoint_file(10).unlink()
    pretrain(tiny_config(tiles_folder, run.path, *settings), ALONE)
    assert "starts again: by RankMe, no longer by k-NN" in caplog.text
    best = read_best(run)
    assert best is not None
    assert best.measure == "rankme"


def test_what_was_not_compared_has_no_best(tiles_folder: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    last = pretrain(config_of(tiles_folder, run.path, "monitor.keep_best=false"), ALONE, knn=says([0.9] + [0.1] * 4))
    assert not run.best_file.exists()
    assert names(run) == [10]
    with pytest.raises(CheckpointError, match=r"holds no best\.json"):
        best_checkpoint(run.path)
    with pytest.raises(CheckpointError, match="is not a run folder"):
        best_checkpoint(last)
    record = {"measure": "rankme", "data": None, "step": 4, "value": 2.0, "last_step": 4, "num_without_gain": 0}
    run.best_file.write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"is missing, but best.json names it as the best: step 4 \(RankMe 2.0"):
        best_checkpoint(run.path)


def test_patience_without_a_best_is_refused(tiles_folder: Path) -> None:
    with pytest.raises(ConfigError, match="stop_after needs keep_best=true"):
        tiny_config(tiles_folder, Path("unused"), "monitor.stop_after=2", "monitor.keep_best=false")

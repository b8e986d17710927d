"""A new run that starts from all of another's state: exact where nothing changed, and said where something did."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import metrics_of, state_in
from tiny import ALL_TERMS, ALONE, PATCHES, differences, tiny_config, write_tiles
from typer.testing import CliRunner

from dino_path.cli import app
from dino_path.config import TrainingConfig
from dino_path.errors import CheckpointError, ConfigError
from dino_path.exporting.checkpoint import export_checkpoint
from dino_path.model.checkpoint import read_checkpoint
from dino_path.reporting.report import write_report
from dino_path.run import RunFolder
from dino_path.training import loop
from dino_path.training.loop import pretrain

KEEP_ALL = "training.keep_checkpoints=100"
SETTINGS = ("model.drop_path_rate=0.2", "objective.dino.norm_last_layer=false", KEEP_ALL)
STEADY = (  # schedules that are the same for every length
    "optim.final_lr=4.6875e-05", "optim.lr_warmup=0 steps", "optim.final_weight_decay=0.04",
    "training.final_momentum=0.9", *SETTINGS,
)  # fmt: skip


def go(store: Path, out: Path, *settings: str) -> RunFolder:
    pretrain(tiny_config(store, out, *settings), ALONE)
    return RunFolder(out)


def says(log: pytest.LogCaptureFixture, line: str) -> bool:
    return any(line in message for message in log.messages)


@pytest.mark.parametrize(
    "further", [(), ("views.colour_on_device=true",), ("optim.optimizer=sgd",), (*ALL_TERMS, "optim.layer_decay=0.8")]
)
def test_a_run_continued_from_its_middle_ends_with_the_weights_of_the_undisturbed_one(
    tiles_folder: Path, tmp_path: Path, further: tuple[str, ...]
) -> None:
    settings = (*SETTINGS, *further)
    whole = go(tiles_folder, tmp_path / "whole", *settings)
    start = f"training.continue_from={whole.checkpoint_file(5)}"
    rest = go(tiles_folder, tmp_path / "rest", *settings, start)
    assert differences(state_in(whole.checkpoint_file(10)), state_in(rest.checkpoint_file(10))) == []
    told, expected = metrics_of(rest), metrics_of(whole)[5:]
    for name in ("step", "loss", "lr", "momentum", "epoch", "tiles_seen", "num_steps", "grad_norm"):
        assert [record[name] for record in told] == [record[name] for record in expected]


def test_a_finished_run_made_longer_equals_one_of_that_length_where_schedules_are_steady(
    tiles_folder: Path, tmp_path: Path
) -> None:
    short = go(tiles_folder, tmp_path / "short", *STEADY, "training.num_steps=6")
    longer = go(tiles_folder, tmp_path / "longer", *STEADY, f"training.continue_from={short.path}")
    whole = go(tiles_folder, tmp_path / "whole", *STEADY)
    assert differences(state_in(whole.checkpoint_file(10)), state_in(longer.checkpoint_file(10))) == []


def test_the_new_run_holds_its_start_and_needs_the_other_no_more(tiles_folder: Path, tmp_path: Path) -> None:
    whole = go(tiles_folder, tmp_path / "whole", *SETTINGS)
    start = f"training.continue_from={whole.checkpoint_file(5)}"
    rest = go(tiles_folder, tmp_path / "rest", *SETTINGS, start)
    assert [file.stem for file in rest.checkpoint_files()] == ["step_00000005", "step_00000010"]
    rest.checkpoint_file(10).unlink()  # as if killed before its first own checkpoint
    whole.checkpoint_file(5).unlink()
    go(tiles_folder, tmp_path / "rest", *SETTINGS, start)
    assert differences(state_in(whole.checkpoint_file(10)), state_in(rest.checkpoint_file(10))) == []


def test_schedules_are_extended_or_restarted_and_the_seam_is_said(
    tiles_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    old = go(tiles_folder, tmp_path / "old", KEEP_ALL)
    start = f"training.continue_from={old.path}"
    extended = metrics_of(go(tiles_folder, tmp_path / "extended", start, "training.num_steps=14"))
    assert [record["step"] for record in extended] == [10, 11, 12, 13]
    as_one_run = metrics_of(go(tiles_folder, tmp_path / "one", "training.num_steps=14"))
    for name in ("lr", "weight_decay", "momentum", "teacher_temp", "epoch", "tiles_seen"):
        assert [record[name] for record in extended] == [record[name] for record in as_one_run[10:]]
    assert says(caplog, "schedules=extend: as in one run of 14 steps, from its step 10 on; last there -> first here")
    assert says(caplog, "tiles: the same; their order continues at step 10")
    assert says(caplog, "changed: training.num_steps (10 -> 14)")

    restarted = go(tiles_folder, tmp_path / "restarted", start, "training.schedules=restart", "training.num_steps=4")
    alone = go(tiles_folder, tmp_path / "alone", "training.num_steps=4")
    for name in ("step", "lr", "weight_decay", "momentum", "teacher_temp", "epoch", "tiles_seen"):
        of_each = ([record[name] for record in metrics_of(run)] for run in (restarted, alone))
        assert next(of_each) == next(of_each)
    assert says(caplog, "schedules=restart: 4 new steps, with warm-ups")
    assert says(caplog, "order and epochs start again at step 0; with the same training.seed=0")
    first = state_in(restarted.checkpoint_files()[0])
    assert differences(state_in(old.checkpoint_file(10)), first) == [], "everything was taken over"


def test_other_tiles_begin_their_own_epochs_at_the_seam_and_lengths_in_epochs_are_theirs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    old = go(write_tiles(tmp_path / "12", 12), tmp_path / "old")
    view_batches, asked = loop.view_batches, []

    def noted(*arguments: Any, **keywords: Any) -> Any:
        asked.append((keywords["start"], keywords["num_steps"]))
        return view_batches(*arguments, **keywords)

    monkeypatch.setattr(loop, "view_batches", noted)
    more = write_tiles(tmp_path / "16", 16)
    settings = (f"training.continue_from={old.path}", "training.num_steps=null", "training.num_epochs=1.5", KEEP_ALL)
    new = go(more, tmp_path / "new", *settings)
    assert asked == [(0, 6)], "the stream of tiles begins again"
    records = metrics_of(new)
    assert [record["step"] for record in records] == [*range(10, 16)]
    assert [record["epoch"] for record in records] == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
    assert [record["tiles_seen"] for record in records] == [44, 48, 52, 56, 60, 64]
    assert {record["num_steps"] for record in records} == {16}
    assert says(caplog, "order and epochs start again at step 10 (tiles (12 -> 16, or others of the same number))")
    checkpoint = read_checkpoint(new.checkpoint_file(16))
    assert checkpoint.tiles_seen == 64
    assert [(start.stream_start, start.tiles_before) for start in checkpoint.starts] == [(10, 40)]
    last = state_in(new.checkpoint_file(16))
    new.checkpoint_file(16).unlink()
    go(more, tmp_path / "new", *settings)
    assert differences(last, state_in(new.checkpoint_file(16))) == [], "a resume finds the stream again"


def test_another_global_batch_counts_tiles_over_both(tiles_folder: Path, tmp_path: Path) -> None:
    old = go(tiles_folder, tmp_path / "old")
    length = ("training.num_steps=null", "training.num_tiles=64", "training.batch_size_per_gpu=8")
    new = go(tiles_folder, tmp_path / "new", f"training.continue_from={old.path}", *length)
    assert [record["tiles_seen"] for record in metrics_of(new)] == [48, 56, 64]


@pytest.mark.parametrize(
    ("setting", "are_kept"),
    [("optim.base_lr=0.001", True), ("optim.optimizer=sgd", False), ("optim.decay_embeddings=false", False)],
)
def test_moments_are_taken_over_where_they_are_of_the_same_optimizer(
    tiles_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, setting: str, are_kept: bool
) -> None:
    caplog.set_level("INFO")
    old = go(tiles_folder, tmp_path / "old")
    new = go(
        tiles_folder, tmp_path / "new", f"training.continue_from={old.path}", setting, "training.num_steps=12", KEEP_ALL
    )
    expected, found = (state_in(run.checkpoint_file(10)) for run in (old, new))
    lost = {name for name in expected if name.startswith("optimizer.")}
    assert differences(expected, found) == ([] if are_kept else sorted(lost))
    assert says(caplog, "keeps its moments" if are_kept else "moments start at zero")


def test_a_restarted_run_of_all_terms_takes_everything_over(tiles_folder: Path, tmp_path: Path) -> None:
    settings = (*ALL_TERMS, "training.num_steps=3", KEEP_ALL)
    old = go(tiles_folder, tmp_path / "old", *settings)
    new = go(
        tiles_folder, tmp_path / "new", *settings,
        f"training.continue_from={old.path}", "training.schedules=restart",
    )  # fmt: skip
    taken = state_in(new.checkpoint_file(0))
    assert differences(state_in(old.checkpoint_file(3)), taken) == []
    assert taken["ibot.center"].any()
    assert not torch.equal(taken["ibot.center"], state_in(new.checkpoint_file(3))["ibot.center"])
    assert [record["kde_ramp"] for record in metrics_of(new)] == [0, 0, 0.5], "its ramp begins at this run's step 0"


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ("centering", "sinkhorn-knopp", "dino.center of that run is dropped: the objective no longer has one"),
        ("sinkhorn-knopp", "centering", "ibot.center starts at zero: that run had none"),
    ],
)
def test_targets_of_another_kind_go_on_with_centers_of_their_own_and_say_so(
    tiles_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, before: str, now: str, said: str
) -> None:
    caplog.set_level("INFO")
    of = "objective.targets.method={}".format
    old = go(tiles_folder, tmp_path / "old", *ALL_TERMS, of(before), "training.num_steps=2")
    assert ("center" in state_in(old.checkpoint_file(2))) == (before == "centering")
    settings = (*ALL_TERMS, of(now), f"training.continue_from={old.path}", "training.num_steps=4", KEEP_ALL)
    new = go(tiles_folder, tmp_path / "new", *settings)
    first, last = (state_in(new.checkpoint_file(step)) for step in (2, 4))
    centers = {"center", "ibot.center"}
    assert {*differences(state_in(old.checkpoint_file(2)), first)} == centers
    assert centers & first.keys() == centers & last.keys() == (centers if now == "centering" else set())
    assert not any(first[name].any() for name in centers & first.keys())
    assert all(last[name].any() for name in centers & last.keys())
    assert says(caplog, said)
    assert says(caplog, f"changed: objective.targets.method ({before} -> {now})")
    new.checkpoint_file(4).unlink()
    go(tiles_folder, tmp_path / "new", *settings)
    assert differences(last, state_in(new.checkpoint_file(4))) == []


def test_a_checkpoint_of_this_run_without_a_center_is_refused(tiles_folder: Path, tmp_path: Path) -> None:
    run = go(tiles_folder, tmp_path / "run", *ALL_TERMS, "training.num_steps=2")
    file = run.checkpoint_file(2)
    record = torch.load(file, weights_only=True)
    record["objective"] = {"ibot": record["objective"]["ibot"], "toy": {"mean": torch.zeros(1)}}
    torch.save(record, file)
    with pytest.raises(CheckpointError, match=r"lacks dino\.center, has toy\.mean too"):
        go(tiles_folder, run.path, *ALL_TERMS, "training.num_steps=2")


@pytest.mark.parametrize(
    ("before", "now", "named"),
    [
        ((), PATCHES, r"objective\.ibot\.weight \(0\.0 -> 1\.0\)"),
        (PATCHES, (), r"objective\.ibot\.weight \(1\.0 -> 0\.0\)"),
        (PATCHES, (*PATCHES, "objective.ibot.head=shared"), r"objective\.ibot\.head \(own -> shared\)"),
        (PATCHES, (*PATCHES, "objective.ibot.num_prototypes=24"), r"objective\.ibot\.num_prototypes \(48 -> 24\)"),
    ],
)
def test_patches_cannot_be_switched_on_or_off_by_continuing(
    tiles_folder: Path, tmp_path: Path, before: tuple[str, ...], now: tuple[str, ...], named: str
) -> None:
    old = go(tiles_folder, tmp_path / "old", *before, "training.num_steps=1")
    with pytest.raises(CheckpointError, match=f"has other networks: .*{named}") as refusal:
        go(tiles_folder, tmp_path / "new", *now, f"training.continue_from={old.path}")
    assert "use only its backbone: `dino-path export` it" in refusal.value.remedy


def test_weights_of_terms_and_masks_may_change_in_a_continued_run(
    tiles_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    old = go(tiles_folder, tmp_path / "old", *PATCHES, "training.num_steps=1")
    changes = ("objective.koleo.weight=0.1", "objective.ibot.masks.shape=patches", "optim.layer_decay=0.9")
    new = go(tiles_folder, tmp_path / "new", *PATCHES, *changes, f"training.continue_from={old.path}")
    assert {"koleo_loss", "ibot_loss"} <= metrics_of(new)[0].keys()
    for line in ("objective.koleo.weight (0.0 -> 0.1)", "objective.ibot.masks.shape (blocks -> patches)"):
        assert says(caplog, f"changed: {line}")
    assert says(
        caplog,
        "the optimizer's moments start at zero, because it is another optimizer or groups parameters differently",
    )


def test_other_networks_are_refused_and_every_difference_is_named(tiles_folder: Path, tmp_path: Path) -> None:
    old = go(tiles_folder, tmp_path / "old", "training.num_steps=1")
    others = (
        "model.arguments={img_size: 32, patch_size: 8, embed_dim: 32, depth: 3, num_heads: 2}",
        "objective.dino.num_prototypes=32", "objective.dino.head_hidden=16", "optim.base_lr=0.1",
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="has other networks") as refusal:
        go(tiles_folder, tmp_path / "new", f"training.continue_from={old.path}", *others)
    found = refusal.value.found
    assert "objective.dino.num_prototypes (64 -> 32)" in found
    assert "objective.dino.head_hidden (32 -> 16)" in found
    assert "model.arguments ({'img_size': 32" in found
    assert "base_lr" not in found
    assert not (tmp_path / "new" / "config.yaml").exists()


def test_a_start_that_cannot_be_is_refused(tiles_folder: Path, tmp_path: Path) -> None:
    old = go(tiles_folder, tmp_path / "old", "training.num_steps=4", "training.checkpoint_every_steps=2")
    start = f"training.continue_from={old.path}"
    with pytest.raises(ConfigError, match="lies in the run's own folder"):
        go(tiles_folder, old.path, f"training.continue_from={old.checkpoint_file(2)}")
    with pytest.raises(CheckpointError, match="no such file or folder"):
        go(tiles_folder, tmp_path / "new", f"training.continue_from={tmp_path / 'nothing'}")
    with pytest.raises(CheckpointError, match="is at step 4, but this run ends at step 3") as refusal:
        go(tiles_folder, tmp_path / "new", start, "training.num_steps=3")
    assert "training.schedules=restart" in refusal.value.remedy
    with pytest.raises(ConfigError, match="contradicts training"):
        go(tiles_folder, tmp_path / "new", start, "model.weights=timm")
    with pytest.raises(ValueError, match="schedules=restart needs continue_from"):
        TrainingConfig(num_steps=3, schedules="restart")


def test_a_finished_run_called_with_another_length_says_what_to_type(tiles_folder: Path, tmp_path: Path) -> None:
    old = go(tiles_folder, tmp_path / "a run", "training.num_steps=2")
    (tmp_path / "a run-2").mkdir()
    with pytest.raises(CheckpointError, match=r"training\.num_steps \(2 -> 4\)") as refusal:
        go(tiles_folder, old.path, "training.num_steps=4")
    assert "To continue to the new length, append these to the same command" in refusal.value.remedy
    words = refusal.value.remedy.rpartition(": ")[2]
    assert words == f"'out={tmp_path / 'a run-3'}' 'training.continue_from={old.path}'"
    longer = go(tiles_folder, tmp_path / "a run-3", f"training.continue_from={old.path}", "training.num_steps=4")
    assert [record["step"] for record in metrics_of(longer)] == [2, 3]
    with pytest.raises(CheckpointError) as refusal:  # networks cannot be continued from: nothing is offered
        go(tiles_folder, old.path, "objective.dino.num_prototypes=32")
    assert "continue_from" not in refusal.value.remedy


def test_a_run_folder_that_began_from_another_start_is_refused(tiles_folder: Path, tmp_path: Path) -> None:
    old = go(tiles_folder, tmp_path / "old", "training.num_steps=2")
    go(tiles_folder, tmp_path / "new", f"training.continue_from={old.path}", "training.num_steps=4")
    with pytest.raises(CheckpointError, match=r"training\.continue_from"):
        go(tiles_folder, tmp_path / "new", "training.num_steps=4")


def test_report_and_model_card_name_the_chain_of_runs(tiles_folder: Path, tmp_path: Path, reload_here: None) -> None:
    first = go(tiles_folder, tmp_path / "first", "training.num_steps=2")
    second = go(tiles_folder, tmp_path / "second", f"training.continue_from={first.path}", "training.num_steps=4")
    third = go(
        tiles_folder, tmp_path / "third",
        f"training.continue_from={second.path}", "training.schedules=restart", "training.num_steps=3",
    )  # fmt: skip
    chain = "step 4 of run second (16 tiles), that one from step 2 of run first (8 tiles), that one from random weights"
    assert json.loads(third.start_file.read_text())["started_from"] == chain
    page = write_report([third.path, first.path], tmp_path / "report.html").read_text(encoding="utf-8")
    assert chain in page
    card = (export_checkpoint(third.path, tmp_path / "model").folder / "README.md").read_text(encoding="utf-8")
    assert chain in card
    assert str(tmp_path) not in card


def test_submit_refuses_a_start_that_is_not_there(tiles_folder: Path, tmp_path: Path) -> None:
    words = [f"store={tiles_folder}", f"out={tmp_path / 'run'}", "training.num_steps=4"]
    start = f"training.continue_from={tmp_path / 'nothing'}"
    answer = CliRunner().invoke(app, ["submit", "pretrain", *words, start])
    assert isinstance(answer.exception, CheckpointError)
    assert "no such file or folder" in answer.exception.found

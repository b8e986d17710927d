"""Whole tiny runs: what they write, how they end, and that a collapse is seen while it happens."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from runs import state_in
from tiny import ALONE, differences, tiny_config

from dino_path.errors import CollapseDetected, ConfigError, NonFiniteLoss, TileStoreError
from dino_path.run import RunFolder
from dino_path.settings import load_config
from dino_path.training import loop
from dino_path.training.loop import pretrain


class Killed(Exception):
    """Replaces a SIGKILL in the middle of a run."""


def strict_records(run: Path) -> list[dict[str, object]]:
    """metrics.jsonl as any JSON reader sees it: NaN and Infinity are no JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in metrics.jsonl")

    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse) for line in lines]


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the run die when it reaches `step`."""
    train_step = loop.train_step

    def dying(*arguments: object, **keywords: object) -> object:
        if keywords["step"] == step:
            raise Killed
        return train_step(*arguments, **keywords)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "train_step", dying)


def test_a_run_leaves_its_config_environment_metrics_and_checkpoints(tiles_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(tiles_folder, tmp_path / "run", "training.num_steps=6")
    checkpoint = pretrain(config, ALONE)
    run = RunFolder(tmp_path / "run")
    assert checkpoint == run.checkpoint_file(6)
    assert [file.name for file in run.checkpoint_files()] == ["step_00000005.pt", "step_00000006.pt"]
    assert load_config(run.config_file) == config
    assert {"torch", "timm"} <= json.loads(run.environment_file.read_text())["versions"].keys()
    records = strict_records(tmp_path / "run")
    assert [record["step"] for record in records] == [*range(6)]
    last = records[-1]
    assert last["tiles_seen"] == 24
    assert last["epoch"] == pytest.approx(2.0)
    assert last["loss_minus_ln_k"] == pytest.approx(last["loss"] - math.log(64))  # type: ignore[operator]
    assert last["kl"] == pytest.approx(last["loss"] - last["teacher_entropy"], abs=1e-5)  # type: ignore[operator]
    assert {record["num_skipped"] for record in records} == {0}


def test_an_interval_holds_the_mean_of_its_steps(tiles_folder: Path, tmp_path: Path) -> None:
    pretrain(tiny_config(tiles_folder, tmp_path / "each", "training.num_steps=5"), ALONE)
    pretrain(tiny_config(tiles_folder, tmp_path / "pairs", "training.num_steps=5", "monitor.log_every_steps=2"), ALONE)
    losses = [record["loss"] for record in strict_records(tmp_path / "each")]
    pairs = strict_records(tmp_path / "pairs")
    assert [record["step"] for record in pairs] == [1, 3, 4]
    means = [(losses[0] + losses[1]) / 2, (losses[2] + losses[3]) / 2, losses[4]]  # type: ignore[operator]
    assert [record["loss"] for record in pairs] == pytest.approx(means, abs=1e-12)


def test_metrics_after_a_resume_have_every_step_once(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("training.num_steps=8", "training.checkpoint_every_steps=3")
    pretrain(tiny_config(tiles_folder, tmp_path / "whole", *settings), ALONE)
    config = tiny_config(tiles_folder, tmp_path / "killed", *settings)
    with monkeypatch.context() as patch:
        kill_at(5, patch)
        with pytest.raises(Killed):
            pretrain(config, ALONE)
    with (tmp_path / "killed/metrics.jsonl").open("a") as stream:
        stream.write('{"step": 5, "lo')  # torn by the kill
    pretrain(config, ALONE)
    whole, killed = strict_records(tmp_path / "whole"), strict_records(tmp_path / "killed")
    assert [record["step"] for record in killed] == [*range(8)]
    for name in ("loss", "teacher_entropy", "grad_norm", "lr", "momentum", "epoch", "tiles_seen", "num_skipped"):
        assert [record[name] for record in killed] == [record[name] for record in whole]


def test_a_running_knn_is_recorded_and_changes_no_weight(tiles_folder: Path, tmp_path: Path) -> None:
    settings = (
        "training.num_steps=5", "monitor.log_every_steps=2", "monitor.knn_every_steps=2",
        "objective.dino.head_batch_norm=true", "model.drop_path_rate=0.3",
    )  # fmt: skip
    plain = pretrain(tiny_config(tiles_folder, tmp_path / "plain", *settings), ALONE)
    seen: list[dict[str, torch.Tensor]] = []

    def draw_and_spoil(backbone: torch.nn.Module) -> float:
        assert not backbone.training
        seen.append({name: value.clone() for name, value in backbone.state_dict().items()})
        for value in backbone.parameters():
            value.data.zero_()
        torch.manual_seed(5)
        return len(seen) / 10

    config = tiny_config(tiles_folder, tmp_path / "watched", *settings, "monitor.knn_data=images")
    watched = pretrain(config, ALONE, knn=draw_and_spoil)
    assert differences(state_in(plain), state_in(watched)) == []
    records = strict_records(tmp_path / "watched")
    assert [(record["step"], record.get("knn_accuracy")) for record in records] == [(1, 0.1), (3, 0.2), (4, 0.3)]
    last = torch.load(watched, weights_only=True)["teacher"]["backbone"]
    assert differences(seen[-1], last) == [], "it is the teacher of after the step"


def test_a_running_knn_between_two_records_is_refused(tiles_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"knn_every_steps \(5\) must be a multiple of log_every_steps \(2\)"):
        tiny_config(
            tiles_folder, tmp_path, "monitor.knn_data=x", "monitor.knn_every_steps=5", "monitor.log_every_steps=2"
        )


def test_gradient_norms_by_part_make_up_the_whole_and_memory_is_recorded(tiles_folder: Path, tmp_path: Path) -> None:
    pretrain(tiny_config(tiles_folder, tmp_path / "run", "training.num_steps=4"), ALONE)
    for record in strict_records(tmp_path / "run"):
        parts = [float(str(record[f"grad_norm_{part}"])) for part in ("backbone", "head", "prototypes")]
        assert math.hypot(*parts) == pytest.approx(record["grad_norm"], rel=1e-5)
        assert min(parts[:2]) > 0
        assert (parts[2] == 0) == (int(str(record["step"])) < 2), "prototypes are frozen for two steps"
        assert 0.05 < float(str(record["peak_memory_gb"])) < 50


def test_a_finished_run_is_left_as_it_is(tiles_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(tiles_folder, tmp_path / "run", "training.num_steps=2")
    checkpoint = pretrain(config, ALONE)
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")}
    assert pretrain(config, ALONE) == checkpoint
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "run").rglob("*")} == before


def test_too_many_losses_that_are_not_finite_end_the_run(
    tiles_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(
        tiles_folder, tmp_path / "run", "optim.base_lr=1e36", "optim.lr_warmup=0 steps",
        "training.max_non_finite_steps=3", "monitor.log_every_steps=2",
    )  # fmt: skip
    with pytest.raises(NonFiniteLoss, match="4 steps had a loss that is not finite"):
        pretrain(config, ALONE)
    assert "nothing was updated. Tiles of this rank: [" in caplog.text
    records = strict_records(tmp_path / "run")
    assert records[-1]["loss"] is None
    assert records[-1]["num_skipped"] == 3


def test_skipped_steps_are_counted_across_a_resume(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(
        tiles_folder, tmp_path / "run", "optim.base_lr=1e36", "optim.lr_warmup=0 steps",
        "training.checkpoint_every_steps=1", "training.max_non_finite_steps=3",
    )  # fmt: skip
    with monkeypatch.context() as patch:
        kill_at(3, patch)
        with pytest.raises(Killed):
            pretrain(config, ALONE)
    with pytest.raises(NonFiniteLoss, match="4 steps"):
        pretrain(config, ALONE)
    assert [record["num_skipped"] for record in strict_records(tmp_path / "run")] == [0, 1, 2, 3]


def test_a_teacher_too_warm_collapses_to_uniform_and_is_warned_of(
    tiles_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny_config(
        tiles_folder, tmp_path / "run", "training.num_steps=40", "objective.dino.teacher_temp=20",
        "objective.dino.num_prototypes=8", "objective.dino.warmup_teacher_temp=20", "optim.base_lr=0.3",
        "training.checkpoint_every_steps=40",
        "model.drop_path_rate=0",
    )  # fmt: skip
    pretrain(config, ALONE)
    records = strict_records(tmp_path / "run")
    assert records[-1]["collapse"] == "uniform"
    assert records[-1]["loss"] == pytest.approx(math.log(8), abs=0.02)
    assert "the teacher has collapsed (uniform). Try this: lower objective.dino.teacher_temp" in caplog.text


def test_a_teacher_too_cold_without_centering_collapses_to_one_hot_and_ends_the_run(
    tiles_folder: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        tiles_folder, tmp_path / "run", "objective.dino.teacher_temp=0.0001",
        "objective.dino.warmup_teacher_temp=0.0001", "objective.targets.center_momentum=0.999999",
        "monitor.on_collapse=stop", "training.num_steps=40",
    )  # fmt: skip
    with pytest.raises(CollapseDetected, match="one-hot") as refusal:
        pretrain(config, ALONE)
    assert "raise objective.dino.teacher_temp" in refusal.value.remedy
    last = strict_records(tmp_path / "run")[-1]
    assert last["collapse"] == "one-hot"
    assert int(str(last["step"])) >= 4, "the first tenth of a run is not judged"


def test_a_healthy_start_is_not_called_a_collapse(tiles_folder: Path, tmp_path: Path) -> None:
    pretrain(tiny_config(tiles_folder, tmp_path / "run"), ALONE)
    assert {record["collapse"] for record in strict_records(tmp_path / "run")} == {None}


@pytest.mark.parametrize(
    ("setting", "error", "found"),
    [
        ("views.local_px=20", ConfigError, "it does not take views of 20 px"),
        ("model.backbone=vit_smal_patch16_224", ConfigError, "has no such model"),
        ("model.arguments={embed_dimm: 32}", ConfigError, "timm cannot build it"),
        ("slides.split=train", TileStoreError, "slides.split=train is set"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(
    tiles_folder: Path, tmp_path: Path, setting: str, error: type[Exception], found: str
) -> None:
    with pytest.raises(error, match=found):
        pretrain(tiny_config(tiles_folder, tmp_path / "run", setting), ALONE)
    assert not (tmp_path / "run").exists()


def test_one_tile_without_local_views_and_one_interval_give_numbers(tiles_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(tiles_folder, tmp_path / "run", "training.batch_size_per_gpu=1", "training.num_steps=1")
    pretrain(config, ALONE)
    assert strict_records(tmp_path / "run")[0]["feature_std"] == 0
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["training"]["num_steps"] == 1

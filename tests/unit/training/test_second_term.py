"""A second term shows in loss, gradients, records, progress, checkpoints and report without a list to edit."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from runs import keep_only_step, metrics_of, state_in
from tiny import ALONE, differences, outputs_of, tiny_batches, tiny_config, tiny_learner, tiny_schedules
from toy_term import add_toy_term

from dino_path.errors import ConfigError
from dino_path.reporting.report import write_report
from dino_path.run import RunFolder
from dino_path.training import records
from dino_path.training.loop import pretrain
from dino_path.training.step import train_step

OUT = Path("unused")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    add_toy_term(monkeypatch)


@pytest.mark.usefixtures("toy")
def test_the_loss_is_the_weighted_sum_and_its_shares_are_logged(tiles_folder: Path) -> None:
    config = tiny_config(tiles_folder, OUT, "objective.dino.weight=2")
    learner, settings = tiny_learner(config), tiny_schedules(config).at(3)
    outputs = outputs_of(learner, tiny_batches(config).batch(0))
    loss, numbers = learner.objective.measure(outputs, settings)
    dino, toy = (learner.objective.terms[name].measure(outputs, settings).loss for name in ("dino", "toy"))
    torch.testing.assert_close(loss, 2 * dino + 0.5 * toy)
    torch.testing.assert_close(numbers["dino_loss"] + numbers["toy_loss"], numbers["loss"])
    assert {"teacher_entropy", "kl", "prototypes_used", "toy_length"} <= numbers.keys()
    assert not any(value.requires_grad for value in numbers.values())


@pytest.mark.usefixtures("toy")
def test_its_mean_is_that_of_the_global_batch_and_moves_only_in_accepted_steps(tiles_folder: Path) -> None:
    means = []
    for division in ((), ("training.batch_size_per_gpu=1", "training.accumulate_steps=4")):
        config = tiny_config(tiles_folder, OUT, "model.drop_path_rate=0", *division)
        learner, settings = tiny_learner(config), tiny_schedules(config).at(3)
        batches = [tiny_batches(config).batch(number) for number in range(learner.training.accumulate_steps)]
        std, learner.std = learner.std, learner.std * torch.nan
        assert train_step(learner, batches, settings, step=0).is_skipped
        assert not learner.objective.state()["toy"]["running_mean"].any()
        learner.std = std
        train_step(learner, batches, settings, step=0)
        means.append(learner.objective.state()["toy"]["running_mean"])
    assert means[0].any()
    torch.testing.assert_close(means[0], means[1], rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("toy")
def test_a_run_logs_it_resumes_it_and_is_reported_with_it(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, logged = tiny_config(tiles_folder, tmp_path / "run"), []
    wandb_run = SimpleNamespace(log=lambda values, step: logged.append(values), finish=lambda exit_code: None)
    monkeypatch.setattr(records, "_start_wandb", lambda run, config: wandb_run)
    with caplog.at_level("INFO"):
        pretrain(config, ALONE)
    run = RunFolder(tmp_path / "run")
    last = metrics_of(run)[-1]
    assert last["loss"] == pytest.approx(last["dino_loss"] + last["toy_loss"], rel=1e-6)
    assert {"toy_loss", "toy_length", "dino_loss"} <= logged[-1].keys()
    assert last["kl"] == pytest.approx(last["dino_loss"] - last["teacher_entropy"], abs=1e-5)
    assert f"toy {last['toy_length']:.2f}  rank" in caplog.text
    whole = state_in(run.checkpoint_file(10))
    assert whole["toy.running_mean"].any()
    keep_only_step(run, 5)
    pretrain(config, ALONE)
    assert differences(whole, state_in(run.checkpoint_file(10))) == []
    page = write_report([run.path], tmp_path / "report.html").read_text(encoding="utf-8")
    for title in ("Toy loss", "DINO", "Toy length", "Teacher entropy"):
        assert title in page


def test_a_term_may_name_a_collapse(tiles_folder: Path, toy: None) -> None:
    objective = tiny_learner(tiny_config(tiles_folder, OUT)).objective
    healthy = {"loss": 3.0, "teacher_entropy": 3.0, "kl": 0.4, "prototypes_used": 30.0, "toy_length": 1.0}
    assert objective.find_collapse(healthy) is None
    collapse = objective.find_collapse(healthy | {"toy_length": 0.0})
    assert collapse is not None
    assert collapse.mode == "toy"


def test_patches_are_those_of_the_global_views_and_change_no_feature(tiles_folder: Path) -> None:
    learner = tiny_learner(tiny_config(tiles_folder, OUT))
    learner.student.eval()
    large, small = torch.randn(4, 3, 32, 32), torch.randn(6, 3, 16, 16)
    plain, asked = learner.student([large, small]), learner.student([large, small], with_patches=True)
    assert plain.tokens is None
    assert asked.patches.shape == (4, 16, 32)
    assert torch.equal(plain.features, asked.features)
    tokens = learner.student.backbone.forward_features(large)
    assert torch.equal(asked.patches, tokens[:, 1:])


@pytest.mark.usefixtures("toy")
def test_a_backbone_without_patches_is_refused_where_a_term_needs_them(tiles_folder: Path) -> None:
    config = tiny_config(tiles_folder, OUT, "model.backbone=resnet10t", "model.arguments={}")
    with pytest.raises(ConfigError, match="resnet10t: a ResNet has no patch tokens"):
        tiny_learner(config)

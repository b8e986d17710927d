"""A run with every term: what is logged is what was optimised, and page, progress and model folder tell of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from runs import metrics_of, state_in
from tiny import ALL_TERMS, ALONE, outputs_of, tiny_batches, tiny_config, tiny_learner, tiny_schedules

from dino_path.exporting.checkpoint import export_checkpoint
from dino_path.features.extractor import load_extractor
from dino_path.model.checkpoint import read_checkpoint
from dino_path.records.metrics import read_metrics
from dino_path.reporting.report import write_report
from dino_path.run import RunFolder
from dino_path.training import records
from dino_path.training.loop import pretrain
from dino_path.training.step import train_step
from dino_path.training.watch import health_line, log_line

NAMES = ("dino", "ibot", "koleo", "kde")
SETTINGS = (*ALL_TERMS, "objective.targets.method=sinkhorn-knopp", "training.num_steps=4", "optim.clip_norm=null")
Ran = tuple[RunFolder, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def ran(tiles_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """A run, and its W&B records."""
    out, logged = tmp_path_factory.mktemp("all") / "run", []
    wandb_run = SimpleNamespace(log=lambda values, step: logged.append(values), finish=lambda exit_code: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "_start_wandb", lambda run, config: wandb_run)
        pretrain(tiny_config(tiles_folder, out, *SETTINGS), ALONE)
    return RunFolder(out), logged


def test_every_terms_share_is_logged_and_they_add_up_to_the_loss(ran: Ran) -> None:
    run, logged = ran
    for record, of_wandb in zip(metrics_of(run), logged, strict=True):
        shares = [record[f"{name}_loss"] for name in NAMES]
        assert record["loss"] == pytest.approx(sum(shares), rel=1e-6)
        assert record["koleo_loss"] == pytest.approx(0.1 * record["koleo"], rel=1e-5)
        assert record["kde_loss"] == pytest.approx(0.05 * record["kde_ramp"] * record["kde"], rel=1e-5, abs=1e-9)
        assert record["kl"] == pytest.approx(record["dino_loss"] - record["teacher_entropy"], abs=1e-5)
        assert {"ibot_entropy", "ibot_kl", "ibot_prototypes_used", "grad_norm_patch_head"} <= record.keys()
        assert of_wandb.items() <= record.items()
        assert {f"{name}_loss" for name in NAMES} <= of_wandb.keys()


def test_the_logged_loss_is_the_one_that_is_differentiated(tiles_folder: Path) -> None:
    config = tiny_config(tiles_folder, Path("unused"), *SETTINGS, "model.drop_path_rate=0")
    batch, settings = tiny_batches(config).batch(3), tiny_schedules(config).at(3)
    learner, other = tiny_learner(config), tiny_learner(config)
    report = train_step(learner, [batch], settings, step=3)
    outputs = outputs_of(other, batch)
    other.objective.prepare([outputs.teacher], settings)
    terms = other.objective.terms.values()
    loss = sum((term.weight * term.measure(outputs, settings).loss for term in terms), torch.zeros(()))
    torch.testing.assert_close(report.loss, loss.detach())
    trained = [value for value in other.student.parameters() if value.requires_grad]
    ours = [value.grad for value in learner.student.parameters() if value.requires_grad]
    for found, expected in zip(ours, torch.autograd.grad(loss, trained), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_the_line_of_progress_names_both_entropies(ran: Ran, tiles_folder: Path) -> None:
    last = read_metrics(ran[0].metrics_file).records[-1]
    notes = tiny_learner(tiny_config(tiles_folder, Path("unused"), *SETTINGS)).objective.notes
    numbers = last.numbers()
    line = log_line(last, 4, health=health_line(numbers, notes))
    entropies = f"entropy {numbers['teacher_entropy']:.2f}  patch entropy {numbers['ibot_entropy']:.2f}"
    assert line.startswith(f"step 4/4  100.0%  loss {numbers['loss']:.3f}  {entropies}  rank ")
    assert len(line) < 160


def test_the_report_draws_every_terms_curves(ran: Ran, tmp_path: Path) -> None:
    page = write_report([ran[0].path], tmp_path / "report.html").read_text(encoding="utf-8")
    titles = ("DINO", "iBOT", "KoLeo, unweighted", "KDE, unweighted", "Teacher entropy on patches", "KL on patches")
    for title in (*titles, "Weight of iBOT", "Share of KDE&#39;s weight"):
        assert title in page


@pytest.mark.usefixtures("reload_here")
def test_the_exported_folder_is_an_ordinary_timm_model_whose_card_names_the_methods(ran: Ran, tmp_path: Path) -> None:
    run = ran[0]
    folder = export_checkpoint(run.path, tmp_path / "model").folder
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    state = read_checkpoint(run.checkpoint_file(4)).teacher["backbone"]
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not any("mask" in name for name in model.state_dict())
    assert any(name.startswith("teacher_mask_token") for name in state_in(run.checkpoint_file(4)))
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(
            load_extractor(str(folder), device=torch.device("cpu")).module(images), model(images)
        )
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "pretrained with DINO + iBOT + KoLeo + KDE + Sinkhorn-Knopp by dino_path" in card
    for author in ("M. Caron", "J. Zhou", "A. Sablayrolles", "E. Zimmermann", "Contrasting Cluster Assignments"):
        assert author in card

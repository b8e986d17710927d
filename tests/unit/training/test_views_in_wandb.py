"""W&B gets pixels only when it is asked to: a sheet of views, once, which stays in the run folder too."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from runs import keep_only_step
from tiny import ALONE, tiny_config

from dino_path.run import RunFolder
from dino_path.training import records
from dino_path.training.loop import pretrain


@pytest.mark.parametrize("is_asked", [False, True])
def test_a_sheet_of_views_is_sent_once_and_only_when_asked(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_asked: bool
) -> None:
    logged: list[tuple[int, dict[str, Any]]] = []
    wandb_run = SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda exit_code: None)
    monkeypatch.setattr(records, "_start_wandb", lambda run, config: wandb_run)
    config = tiny_config(tiles_folder, tmp_path / "run", f"wandb.log_images={is_asked}")
    pretrain(config, ALONE)
    run = RunFolder(tmp_path / "run")
    keep_only_step(run, 5)
    pretrain(config, ALONE)
    assert [step for step, values in logged if "views" in values] == ([0] if is_asked else [])
    assert (run.figures / "views.png").exists() == is_asked


@pytest.mark.parametrize("is_asked", [False, True])
def test_the_sheet_of_neighbours_is_sent_with_each_running_knn_and_only_when_asked(
    tiles_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_asked: bool
) -> None:
    logged: list[tuple[int, dict[str, Any]]] = []
    wandb_run = SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda exit_code: None)
    monkeypatch.setattr(records, "_start_wandb", lambda run, config: wandb_run)
    run = RunFolder(tmp_path / "run")
    config = tiny_config(
        tiles_folder, run.path, f"wandb.log_images={is_asked}", "training.num_steps=6", "monitor.log_every_steps=1",
        "monitor.knn_every_steps=2", f"monitor.knn_data={tiles_folder}",
    )  # fmt: skip

    def knn(backbone: object) -> float:
        run.neighbours_file.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(run.neighbours_file)
        return 0.5

    pretrain(config, ALONE, knn=knn)
    assert [step for step, values in logged if "neighbours" in values] == ([1, 3, 5] if is_asked else [])
    assert [step for step, values in logged if "knn_accuracy" in values] == [1, 3, 5]

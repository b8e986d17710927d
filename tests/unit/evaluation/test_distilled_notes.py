"""A table says what a student keeps of its teacher, where both stand in it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from frozen_models import GUIDE, write_guide

from dino_path.config import EvaluationConfig
from dino_path.evaluation.labelled.datasets import load_labelled
from dino_path.evaluation.results import distilled
from dino_path.evaluation.results.distilled import distilled_notes
from dino_path.evaluation.results.table import evaluate_table
from dino_path.features.extractor import Extractor, load_extractor
from dino_path.model.frozen import load_frozen

CPU = torch.device("cpu")


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    teacher = write_guide(tmp_path / "large")
    origin = {"distilled_from": {"model": "large", "digest": load_frozen(str(teacher)).digest[:16]}}
    small = {**GUIDE, "embed_dim": 24}
    return write_guide(tmp_path / "small", seed=1, model_args=small, dino_path=origin), teacher


def notes_of(specs: list[str], scores: dict[str, float]) -> list[str]:
    """Of k-NN, where the test images are of three classes."""
    loaded = [(spec, load_extractor(spec, device=CPU)) for spec in specs]
    models: dict[str, tuple[str, Extractor]] = {one.name: (spec, one) for spec, one in loaded}
    rows: list[Any] = [
        SimpleNamespace(
            model=name, protocol="knn", metrics=SimpleNamespace(balanced_accuracy=SimpleNamespace(value=scores[name]))
        )
        for name in models
    ]
    division: Any = SimpleNamespace(labels=np.array([0, 1, 2, 2]))
    return [*distilled_notes(models, rows, division, input_px=None)]


@pytest.mark.usefixtures("same_time")
def test_it_keeps_a_share_of_what_the_teacher_has_above_the_untrained_student(folders: tuple[Path, Path]) -> None:
    student, teacher = map(str, folders)
    scores = {"small": 0.8, "large": 0.9, "untrained-small": 0.4}
    size, kept = notes_of([student, teacher, f"untrained:{student}"], scores)
    assert size.startswith(
        "small was distilled from large: 0.0 of 0.0 M parameters (28%), 2.00 ms per tile instead of 2"
    )
    assert kept == "small, k-NN: keeps 80% of what large has above untrained-small (0.400): 0.800 of 0.900"
    kept = notes_of([student, teacher], {**scores, "small": 1.85 / 3})[1]
    assert kept == "small, k-NN: keeps 50% of what large has above chance (0.333): 0.617 of 0.900"
    kept = notes_of([student, teacher, f"untrained:{student}"], {**scores, "untrained-small": 0.95})[1]
    assert "is unknown, because large (0.900) is not above untrained-small (0.950)" in kept


def test_nothing_is_said_without_the_teacher_or_of_models_that_had_none(folders: tuple[Path, Path]) -> None:
    student, teacher = map(str, folders)
    assert notes_of([student], {"small": 0.8}) == []
    assert notes_of([teacher, f"untrained:{student}"], {"large": 0.8, "untrained-small": 0.2}) == []


def test_it_stands_below_the_table(folders: tuple[Path, Path], class_folders: Path, tmp_path: Path) -> None:
    config = EvaluationConfig(num_bootstrap=100, input_px=32)
    table = evaluate_table(
        [str(folder) for folder in folders], load_labelled(str(class_folders), config), config, device=CPU,
        out=tmp_path / "out", protocols=("knn",), baseline=None, num_workers=0,
    )  # fmt: skip
    assert "- small was distilled from large: " in table.markdown()
    assert any(note.startswith("small, k-NN: ") for note in table.notes)


@pytest.fixture
def same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distilled, "ms_per_tile", lambda *_: 2.0)

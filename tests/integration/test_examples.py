"""The examples run as a user runs them."""

import csv
import runpy
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.slow
def test_attention_mil_finds_the_tiles_that_make_a_slide_positive(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    features, labels = tmp_path / "features", tmp_path / "labels.csv"
    features.mkdir()
    rows, telling = [], {}
    for number in range(48):
        bag = random.normal(size=(30, 8)).astype(np.float32)
        if number % 2:
            telling[f"s{number}"] = {*random.choice(30, size=3, replace=False).tolist()}
            bag[[*telling[f"s{number}"]], :3] += 4
        with h5py.File(features / f"s{number}.h5", "w") as file:
            file["features"] = bag
        rows.append((f"s{number}", "focus" if number % 2 else "none", f"p{number // 4}"))
    with labels.open("w", newline="") as stream:
        csv.writer(stream).writerows([("slide_id", "label", "patient_id"), *rows, ("without features", "none", "p")])
    answer = subprocess.run(
        [
            sys.executable, EXAMPLES / "attention_mil.py", features, labels,
            "--epochs", "40", "--folds", "3", "--out", tmp_path / "attention.csv",
        ],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert answer.stderr == ""
    first, second, _ = answer.stdout.splitlines()
    assert first == "48 slides, 1,440 tiles, 3 folds by patient"
    assert float(second.split()[1]) > 0.9  # AUROC on slides of other patients
    with (tmp_path / "attention.csv").open(newline="") as stream:
        weights = [(row["slide_id"], int(row["tile"]), float(row["attention"])) for row in csv.DictReader(stream)]
    assert sum(weight for _, _, weight in weights) == pytest.approx(48, rel=1e-3)
    on_telling = [weight for slide, tile, weight in weights if tile in telling.get(slide, ())]
    assert sum(on_telling) / 24 > 0.5  # 3 of 30 tiles hold most of the attention of the 24 positive slides


@pytest.mark.slow
def test_first_features_goes_from_slides_to_a_picture_of_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: another would import torch for as long as the example runs."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(sys, "argv", ["first_features.py", str(tmp_path)])
    shown = runpy.run_path(str(EXAMPLES / "first_features.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert "6 done, 0 there before, 0 empty, 0 failed" in out
    assert shown["features"].values.shape == (len(shown["labelled"]), 7)
    # Its own k-NN centres the features first, which the protocol does not: they need not agree.
    assert 0.1 < shown["is_right"].mean() < 0.9
    assert "k-NN balanced accuracy" in out
    picture = np.asarray(Image.open(tmp_path / "neighbours.png").convert("RGB"))
    assert picture.std() > 20

import csv
import json

import numpy as np
import pytest
import torch

from dino_path.api.inputs import check_baseline
from dino_path.config import BaselineConfig, Config, EvaluationConfig
from dino_path.errors import DataError
from dino_path.evaluation.baseline.files import BaselineFolder
from dino_path.evaluation.baseline.training import train_baseline
from dino_path.evaluation.labelled.datasets import load_labelled
from dino_path.evaluation.labelled.splits import draw_labelled
from dino_path.evaluation.protocols import linear
from dino_path.evaluation.results.fractions import evaluate_fractions

CPU = torch.device("cpu")
CONFIG = EvaluationConfig(num_bootstrap=100, input_px=32)
BASELINE = BaselineConfig(backbone="resnet10t", num_epochs=1, batch_size=8, input_px=32)


@pytest.fixture
def labelled(class_folders):
    """24 training and 12 test images; every patient has four of one class."""
    rows = [
        (path.relative_to(class_folders), path.parent.name, f"{path.parent.name}{int(path.stem) // 4}")
        for path in sorted(class_folders.rglob("*.png"))
    ]
    with (class_folders / "groups.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "patient_id"), *rows])
    return load_labelled(str(class_folders), CONFIG)


def train(labelled, out):
    train_baseline(labelled, BASELINE, num_bootstrap=100, seed=0, out=out, device=CPU, num_workers=1)


def run(labelled, out, fractions=(1.0, 0.25), baseline=None, specs=("mean-colour", "untrained:timm:resnet10t")):
    return evaluate_fractions(
        specs, labelled, CONFIG, fractions, device=CPU, out=out, baseline=baseline, num_workers=0
    )  # fmt: skip


def test_a_fraction_of_every_class_is_labelled_and_at_least_one_image():
    labels = np.repeat([0, 1, 2], [1000, 100, 3])
    chosen = draw_labelled(labels, np.arange(1103), 0.1, seed=[0, 0])
    assert [chosen[labels == label].sum() for label in range(3)] == [100, 10, 1]


def test_few_labels_come_from_few_patients():
    labels, units = np.tile([0, 1], 500), np.repeat(np.arange(20), 50)
    chosen = draw_labelled(labels, units, 0.1, seed=[3])
    assert len(np.unique(units[chosen])) == 2  # a tenth of twenty, whole
    assert chosen.sum() == 100


def test_a_small_fraction_is_part_of_a_larger_one_and_draws_differ():
    labels, units = np.tile([0, 1], 500), np.repeat(np.arange(100), 10)
    small, large, other = (draw_labelled(labels, units, f, seed=s) for f, s in ((0.01, [1]), (0.1, [1]), (0.1, [2])))
    assert (large | ~small).all()
    assert (large != other).any()


def test_a_label_draw_keeps_the_test_part_and_tells_itself_apart(labelled):
    first, second, *others = labelled.label_draws(0.25, 5, seed=0)
    assert len(others) == 3
    assert first.counts()["train"] == {"blood": 2, "leaf": 2, "sea": 2}
    assert (first.part("test") == labelled.part("test")).all()
    assert len({drawn.split_digest for drawn in (labelled, first, second, *others)}) == 6
    assert "0.25 of the training labels, draw 0" in first.split_rule
    assert labelled.label_draws(1, 5, seed=0) == [labelled]


def test_validation_images_of_the_same_patients_are_admitted(labelled):
    (drawn, *_) = labelled.label_draws(0.5, 5, seed=0)  # one patient of each class
    assert (
        "so few patients are labelled that validation images come from the same patients as the training images"
        in drawn.notes
    )
    fit, validation = drawn.fit_and_validation(0.25, seed=0)
    assert not set(fit) & set(validation)
    assert drawn.record()["grouped_by"] == "patient"
    assert drawn.unit_name == "images"


def test_given_validation_images_are_labelled_no_more_than_training_images(tmp_path, write_image):
    for part, count in (("train", 10), ("val", 10), ("test", 2)):
        for number, label in enumerate("ab"):
            for index in range(count):
                write_image(tmp_path / "set" / part / label / f"{index}.png", 1000 * len(part) + 100 * number + index)
    labelled = load_labelled(str(tmp_path / "set"), CONFIG)
    (drawn, *_) = labelled.label_draws(0.2, 5, seed=0)
    assert drawn.counts() == {"train": {"a": 2, "b": 2}, "val": {"a": 2, "b": 2}, "test": {"a": 2, "b": 2}}


def test_the_table_has_the_shape_of_table_10_and_says_what_is_missing(labelled, tmp_path):
    text = run(labelled, tmp_path / "out")
    assert "## logistic" in text
    assert "## k-NN" in text
    header = "| labels | mean-colour | untrained-resnet10t | supervised ResNet-50 | mean-colour - untrained-resnet10t |"
    assert header in text
    assert "missing, run `dino-path baseline`" in text
    assert "missing, run `dino-path baseline --fraction 0.25`" in text
    assert "25 %: 6 labelled images, 2 to 2 per class" in text
    assert "missing, run `dino-path baseline --fraction 0.25`" in (tmp_path / "out" / "fractions.csv").read_text()
    record = json.loads((tmp_path / "out" / "fractions.json").read_text())
    assert [(r["model"], r["protocol"], r["fraction"], r["num_draws"]) for r in record["rows"]][:4] == [
        ("mean-colour", "logistic", 1.0, 1),
        ("mean-colour", "logistic", 0.25, 5),
        ("mean-colour", "knn", 1.0, 1),
        ("mean-colour", "knn", 0.25, 5),
    ]
    row, other = record["rows"][3], record["rows"][-1]
    wanted = row["metrics"]["accuracy"]["value"] - other["metrics"]["accuracy"]["value"]
    assert row["differences"]["untrained-resnet10t"]["accuracy"]["value"] == pytest.approx(wanted)
    assert other["differences"] == {}


def test_the_supervised_network_stands_beside_with_the_same_labels(labelled, tmp_path):
    folder = BaselineFolder(tmp_path / "baseline")
    train(labelled, folder.path)
    text = run(labelled, tmp_path / "out", baseline=folder.path, specs=["mean-colour"])
    assert "missing, run `dino-path baseline`" not in text
    assert "missing, run `dino-path baseline --fraction 0.25`" in text
    for number, drawn in enumerate(labelled.label_draws(0.25, 5, seed=0)):
        train(drawn, folder.of_draw(0.25, number).path)
    text = run(labelled, tmp_path / "out", baseline=folder.path, specs=["mean-colour"])
    assert "missing" not in text
    rows = json.loads((tmp_path / "out" / "fractions.json").read_text())["rows"]
    title = "supervised resnet10t (from scratch, undertrained)"
    assert all(title in row["differences"] for row in rows if row["protocol"] != "end-to-end")
    assert f"| labels | mean-colour | {title} | mean-colour - {title} |" in text


def test_a_folder_without_any_baseline_is_refused(labelled, tmp_path):
    with pytest.raises(DataError, match=r"no result\.json here"):
        run(labelled, tmp_path / "out", baseline=tmp_path / "nowhere", specs=["mean-colour"])


def test_a_baseline_of_a_fraction_alone_will_do(labelled, tmp_path):
    folder = BaselineFolder(tmp_path / "baseline")
    train(labelled.label_draws(0.25, 5, seed=0)[0], folder.of_draw(0.25, 0).path)
    config = Config(evaluation=CONFIG)
    check_baseline(folder.path, labelled, config, [1.0, 0.25])
    with pytest.raises(DataError, match=r"no result\.json here"):
        check_baseline(folder.path, labelled, config, [0.1])


def test_fits_that_did_not_converge_are_counted(labelled, tmp_path, monkeypatch):
    monkeypatch.setattr(linear, "MAX_ITERATIONS", 1)
    text = run(labelled, tmp_path / "out", specs=["mean-colour"])
    assert "mean-colour, logistic, 25 %: 5 of 5 fits stopped before they converged" in text


def test_a_baseline_of_other_labels_is_refused(labelled, tmp_path):
    folder = BaselineFolder(tmp_path / "baseline")
    others = labelled.label_draws(0.25, 5, seed=1)
    for number, drawn in enumerate(others):
        train(drawn, folder.of_draw(0.25, number).path)
    with pytest.raises(DataError, match="tested on another split"):
        run(labelled, tmp_path / "out", fractions=[0.25], baseline=folder.path, specs=["mean-colour"])

import csv
import json

import numpy as np
import pytest
import torch

from dino_path.config import BaselineConfig, EvaluationConfig
from dino_path.errors import CheckpointError, ConfigError, DataError
from dino_path.evaluation.baseline.training import train_baseline
from dino_path.evaluation.labelled.datasets import load_labelled
from dino_path.evaluation.protocols import cache
from dino_path.evaluation.results import table as table_module
from dino_path.evaluation.results.table import evaluate_table

CPU = torch.device("cpu")
CONFIG = EvaluationConfig(num_bootstrap=100, input_px=32)


@pytest.fixture
def labelled(class_folders):
    return load_labelled(str(class_folders), CONFIG)


@pytest.fixture
def baseline(labelled, tmp_path):
    config = BaselineConfig(backbone="resnet10t", num_epochs=1, batch_size=8, input_px=32)
    return train_baseline(
        labelled, config, num_bootstrap=100, seed=0, out=tmp_path / "baseline", device=CPU, num_workers=1
    ).out


def run(specs, labelled, out, *, protocols=("knn", "linear"), baseline=None, config=CONFIG):
    return evaluate_table(
        specs, labelled, config, device=CPU, out=out, protocols=protocols, baseline=baseline, num_workers=0
    )


def test_every_model_has_a_row_per_protocol_and_stands_beside_the_baseline(labelled, baseline, tmp_path):
    table = run(["mean-colour", "untrained:timm:resnet10t"], labelled, tmp_path / "out", baseline=baseline)
    assert [(row.model, row.protocol) for row in table.rows] == [
        ("mean-colour", "knn"),
        ("mean-colour", "linear"),
        ("untrained-resnet10t", "knn"),
        ("untrained-resnet10t", "linear"),
        ("supervised resnet10t (from scratch, undertrained)", "end-to-end"),
    ]
    assert table.rows[0].metrics.accuracy.value == 1.0  # the classes are colours
    supervised = "supervised resnet10t (from scratch, undertrained)"
    assert set(table.rows[0].differences) == {"untrained-resnet10t", supervised}
    assert set(table.rows[3].differences) == {supervised}
    difference = table.rows[0].differences["untrained-resnet10t"]["accuracy"].value
    assert difference == pytest.approx(table.rows[0].metrics.accuracy.value - table.rows[2].metrics.accuracy.value)
    assert "stopped at its last allowed epoch, 1, " in " ".join(table.notes)
    assert table.markdown() == (tmp_path / "out" / "results.md").read_text()
    assert "| supervised resnet10t (from scratch, undertrained) |" in table.markdown()


def test_a_missing_baseline_is_said_in_every_file(labelled, tmp_path):
    table = run(["mean-colour"], labelled, tmp_path / "out", protocols=("knn",))
    assert table.baseline is None
    for name in ("results.md", "results.csv", "results.json"):
        text = (tmp_path / "out" / name).read_text()
        assert "supervised ResNet-50" in text
        assert "missing, run `dino-path baseline`" in text


def test_a_baseline_of_another_split_is_refused(class_folders, baseline, tmp_path):
    other = load_labelled(str(class_folders), EvaluationConfig(seed=7))
    with pytest.raises(DataError, match="tested on another split"):
        run(["mean-colour"], other, tmp_path / "out", baseline=baseline)


def test_the_record_says_what_is_needed_to_repeat_the_numbers(labelled, tmp_path):
    run(["mean-colour"], labelled, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "results.json").read_text())
    knn, linear = record["rows"]
    assert record["data"]["num_images"]["train"] == {"blood": 8, "leaf": 8, "sea": 8}
    assert record["data"]["split_digest"] == labelled.split_digest
    assert record["data"]["split_rule"] == "0.3 of the images for testing, stratified by class, seed 0"
    assert record["config"]["seed"] == 0
    by_k = knn["settings"].pop("by_k")
    assert knn["settings"] == {"k": 20, "temperature": 0.07, "similarity": "cosine", "index": "flat"}
    assert list(by_k) == ["10", "20", "24"]  # 100 and 200 are clamped to the training images
    assert by_k["20"]["accuracy"] == knn["metrics"]["accuracy"]["value"]
    assert linear["settings"]["c"] in linear["settings"]["c_grid"]
    assert len(linear["settings"]["trials"]) == len(linear["settings"]["c_grid"])
    assert knn["metrics"]["interval"] == "95 % interval over 12 test images (Student's t, 9.0 degrees of freedom)"
    assert len(record["models"]["mean-colour"]["digest"]) == 64
    assert "no group ids" in " ".join(record["notes"])


def test_the_csv_has_one_line_per_number(labelled, tmp_path):
    run(["mean-colour"], labelled, tmp_path / "out", protocols=("knn",))
    with (tmp_path / "out" / "results.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["metric"] for line in lines[:5]] == ["accuracy", "balanced_accuracy", "macro_f1", "kappa", "auroc"]
    assert float(lines[0]["low"]) <= float(lines[0]["value"]) <= float(lines[0]["high"])


def test_unis_protocols_stand_beside_the_others_and_approximate_indexes_tell_their_recall(labelled, tmp_path):
    config = EvaluationConfig(num_bootstrap=100, input_px=32, knn_index="hnsw")
    table = run(["mean-colour"], labelled, tmp_path / "out", protocols=("knn-uni", "linear-uni"), config=config)
    knn, linear = table.rows
    assert knn.settings["temperature"] is None
    assert knn.settings["recall"] > 0.9
    assert linear.settings["c"] == 4 * 3 / 100
    assert "| model | k-NN (UNI) balanced accuracy | k-NN (UNI) accuracy |" in table.markdown()
    assert "| balanced accuracy by number of neighbours | protocol | 10 | 20 | 24 |" in table.markdown()


def test_mine_less_the_others_whatever_the_order(labelled, baseline, tmp_path):
    table = run(
        ["mean-colour", "untrained:timm:resnet10t", str(baseline)], labelled, tmp_path / "out", protocols=("knn",)
    )
    colour, untrained, mine = table.rows
    assert set(mine.differences) == {"mean-colour", "untrained-resnet10t"}
    assert not colour.differences
    assert not untrained.differences
    assert "| baseline - mean-colour | k-NN |" in table.markdown()


def test_of_two_models_of_mine_the_first_is_compared_with_the_second(labelled, baseline, tmp_path):
    copy = tmp_path / "second"
    copy.mkdir()
    for name in ("config.json", "model.safetensors"):
        (copy / name).write_bytes((baseline / name).read_bytes())
    table = run([str(baseline), str(copy)], labelled, tmp_path / "out", protocols=("knn",))
    assert set(table.rows[0].differences) == {"second"}
    assert not table.rows[1].differences


def test_a_probe_no_better_than_the_commonest_class_is_named(labelled, tmp_path, monkeypatch):
    def always_blood(protocol, features_ND, split, config):
        return np.tile([1.0, 0.0, 0.0], (len(split.part("test")), 1)), {}

    monkeypatch.setattr(table_module, "run_protocol", always_blood)
    table = run(["mean-colour"], labelled, tmp_path / "out", protocols=("linear-uni", "linear"))
    named = [note for note in table.notes if "no better than always predicting the most frequent class" in note]
    assert len(named) == 2
    assert "for a control, use `linear` or `logistic`" in named[0]


def test_a_class_too_small_for_validation_images_gets_a_fixed_strength(tmp_path, write_image):
    for number, label in enumerate("ab"):
        for index in range(2):
            write_image(tmp_path / "set" / label / f"{index}.png", 10 * number + index, (90 + 80 * number, 90, 90))
    labelled = load_labelled(str(tmp_path / "set"), CONFIG)
    table = run(["mean-colour"], labelled, tmp_path / "out", protocols=("linear",))
    assert table.rows[0].metrics.accuracy.value == 1.0
    assert any("C is not chosen but 10 / D" in note for note in table.notes)


def test_features_are_computed_once_and_again_when_damaged(labelled, tmp_path, monkeypatch):
    calls = []
    extract = cache.iterate_features

    def counted(*arguments, **keywords):
        calls.append(1)
        return extract(*arguments, **keywords)

    monkeypatch.setattr(cache, "iterate_features", counted)
    first = run(["mean-colour"], labelled, tmp_path / "out", protocols=("knn",))
    run(["mean-colour"], labelled, tmp_path / "out", protocols=("linear",))
    assert len(calls) == 1
    (kept,) = (tmp_path / "out" / "features").glob("*.npy")
    kept.write_bytes(kept.read_bytes()[:200])
    again = run(["mean-colour"], labelled, tmp_path / "out", protocols=("knn",))
    assert len(calls) == 2
    assert (again.rows[0].predicted == first.rows[0].predicted).all()
    run(["mean-colour"], labelled, tmp_path / "out", config=EvaluationConfig(num_bootstrap=100, input_px=16))
    assert len(calls) == 3


def test_models_that_cannot_be_used_are_refused_before_any_work(labelled, tmp_path):
    with pytest.raises(ConfigError, match="is given twice"):
        run(["mean-colour", "mean-colour"], labelled, tmp_path / "out")
    with pytest.raises(CheckpointError):
        run(["mean-colour", str(tmp_path / "nowhere")], labelled, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_folders_of_one_name_are_told_apart(labelled, baseline, tmp_path):
    copy = tmp_path / "elsewhere" / "baseline"
    copy.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (copy / name).write_bytes((baseline / name).read_bytes())
    table = run([str(baseline), str(copy)], labelled, tmp_path / "out", protocols=("knn",))
    assert [row.model for row in table.rows] == [str(baseline), str(copy)]
    assert (table.rows[0].predicted == table.rows[1].predicted).all()


def test_a_model_of_another_scale_is_noted(labelled, baseline, tmp_path):
    config = json.loads((baseline / "config.json").read_text())
    (baseline / "config.json").write_text(json.dumps({**config, "mpp": 0.25}))
    labelled.source.mpp = 0.5
    table = run([str(baseline)], labelled, tmp_path / "out", protocols=("knn",))
    assert "baseline was trained at 0.25 um/px, but these images are at 0.5" in table.notes


def test_the_notes_say_what_each_model_saw(labelled, baseline, tmp_path):
    labelled.source.mpp, edge_px = 0.5, labelled.source.read_image(0).shape[0]
    models = [str(baseline), f"untrained:{baseline}", "mean-colour"]
    own = run(models, labelled, tmp_path / "own", protocols=("knn",), config=EvaluationConfig(num_bootstrap=100))
    seen = f"tiles of {edge_px} px at 0.5 um/px" + ("" if edge_px == 32 else ", resized to 32 px")
    assert any(note.startswith(f"input of baseline, untrained-baseline: {seen}") for note in own.notes)
    assert f"input of mean-colour: tiles of {edge_px} px at 0.5 um/px" in own.notes
    other = EvaluationConfig(num_bootstrap=100, input_px=64)
    notes = run(models, labelled, tmp_path / "other", protocols=("knn",), config=other).notes
    assert any("(evaluation.input_px=64; the model's own edge is 32 px)" in note for note in notes)


def test_colour_alone_tells_real_lung_classes_apart_better_than_chance(shared_data, tmp_path):
    labelled = load_labelled(f"nct-crc:{shared_data / 'nct-crc-108'}", CONFIG)
    table = run(["mean-colour"], labelled, tmp_path / "out", config=EvaluationConfig(num_bootstrap=100))
    assert np.mean([row.metrics.accuracy.value for row in table.rows]) > 0.4

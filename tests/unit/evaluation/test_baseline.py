import json

import numpy as np
import pytest
import timm
import torch

from dino_path.config import BaselineConfig, EvaluationConfig
from dino_path.errors import CheckpointError, DataError
from dino_path.evaluation.baseline import training as baseline_module
from dino_path.evaluation.baseline.files import BaselineFolder
from dino_path.evaluation.baseline.training import Training, train_baseline
from dino_path.evaluation.labelled.datasets import load_labelled
from dino_path.features.extractor import extract_features, load_extractor

CPU = torch.device("cpu")
# The smallest residual network of timm: the tests are about the training, not about the network.
CONFIG = BaselineConfig(backbone="resnet10t", num_epochs=3, batch_size=8, lr=3e-3, input_px=32)


@pytest.fixture
def labelled(class_folders):
    return load_labelled(str(class_folders), EvaluationConfig())


def train(labelled, out, config=CONFIG, seed=0):
    return train_baseline(labelled, config, num_bootstrap=100, seed=seed, out=out, device=CPU, num_workers=1)


@pytest.fixture
def trained(labelled, tmp_path):
    return train(labelled, tmp_path / "baseline")


def test_it_learns_colours_and_reports_what_is_needed_to_repeat_it(trained, labelled):
    record = json.loads((trained.out / "result.json").read_text())
    assert trained.metrics.accuracy.value > 0.9
    assert record["metrics"]["accuracy"]["value"] == trained.metrics.accuracy.value
    assert record["data"]["split_digest"] == labelled.split_digest
    assert record["config"]["backbone"] == "resnet10t"
    assert "quarter turns" in record["augmentation"]
    assert record["validation"]["num_fit_images"] + record["validation"]["num_validation_images"] == 24
    assert len(record["history"]) == len(trained.history) == 3
    assert not (trained.out / "checkpoint.pt").exists()
    best = max(trained.history, key=lambda e: (e.validation_balanced_accuracy, -e.validation_log_loss))
    assert trained.best_epoch == best.epoch == record["best_epoch"]
    assert [epoch["epoch"] for epoch in record["history"]] == [1, 2, 3]


def test_files_that_count_epochs_from_0_are_read_as_from_1(trained, labelled):
    record = json.loads((trained.out / "result.json").read_text())
    old = {**record, "format_version": 1, "format": "dino_path supervised baseline, 1",
           "best_epoch": record["best_epoch"] - 1,
           "history": [{**epoch, "epoch": epoch["epoch"] - 1} for epoch in record["history"]]}  # fmt: skip
    (trained.out / "result.json").write_text(json.dumps(old))
    assert train(labelled, trained.out).best_epoch == trained.best_epoch
    assert train(labelled, trained.out).history == trained.history


def test_a_baseline_that_ended_at_its_last_epoch_is_called_undertrained(labelled, trained, tmp_path):
    assert BaselineFolder(trained.out).title() == "supervised resnet10t (from scratch, undertrained)"
    patient = CONFIG.model_copy(update={"num_epochs": 20, "patience": 1, "lr": 1e-9})
    stalled = train(labelled, tmp_path / "stalled", patient)
    assert len(stalled.history) < 20
    assert BaselineFolder(stalled.out).title() == "supervised resnet10t (from scratch)"


def test_validation_and_test_images_are_never_trained_on(labelled, tmp_path, monkeypatch):
    seen = []
    fit_images = Training.start.__func__  # type: ignore[attr-defined]

    def spy(cls, data, config, images, fit, validation, **others):
        seen.extend([set(fit.tolist()), set(validation.tolist())])
        return fit_images(cls, data, config, images, fit, validation, **others)

    monkeypatch.setattr(Training, "start", classmethod(spy))
    train(labelled, tmp_path / "b", CONFIG.model_copy(update={"num_epochs": 1}))
    fit, validation = seen
    assert not fit & validation
    assert fit | validation == set(labelled.part("train").tolist())


def test_equal_seeds_give_equal_scores_and_other_seeds_other_ones(labelled, trained, tmp_path):
    assert (train(labelled, tmp_path / "again").scores == trained.scores).all()
    assert (train(labelled, tmp_path / "other", seed=1).scores != trained.scores).any()


def test_killed_and_continued_it_ends_with_the_same_scores(labelled, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(baseline_module, "CHECKPOINT_EVERY_S", 0.0)
    whole_epoch = Training.run_epoch

    def die_in_the_third(self, counter):
        if len(self.history) == 2:
            raise KeyboardInterrupt
        whole_epoch(self, counter)

    monkeypatch.setattr(Training, "run_epoch", die_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        train(labelled, tmp_path / "killed")
    monkeypatch.setattr(Training, "run_epoch", whole_epoch)
    continued = train(labelled, tmp_path / "killed")
    assert continued.history == trained.history
    assert (continued.scores == trained.scores).all()


@pytest.mark.parametrize(("num_epochs", "batch_size"), [(1, 32), (2, 32), (4, 32), (2, 12)])
def test_a_training_of_very_few_steps_is_possible(labelled, tmp_path, num_epochs, batch_size):
    config = CONFIG.model_copy(update={"num_epochs": num_epochs, "batch_size": batch_size})
    assert len(train(labelled, tmp_path / "few", config).history) == num_epochs


def test_called_again_when_finished_it_only_reads(labelled, trained, monkeypatch):
    monkeypatch.setattr(Training, "run_epoch", None)
    again = train(labelled, trained.out)
    assert again.scores == pytest.approx(trained.scores, abs=1e-6)
    assert again.metrics.accuracy == trained.metrics.accuracy


def test_a_folder_of_another_experiment_is_refused(labelled, trained):
    with pytest.raises(DataError, match="holds a baseline of other data"):
        train(labelled, trained.out, seed=1)
    with pytest.raises(DataError, match="holds a baseline of other data"):
        train(labelled, trained.out, CONFIG.model_copy(update={"lr": 1e-4}))


def test_a_damaged_checkpoint_is_refused(labelled, tmp_path):
    (tmp_path / "b").mkdir()
    for content in (b"torn", b""):
        (tmp_path / "b" / "checkpoint.pt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt: cannot be read"):
            train(labelled, tmp_path / "b")
    torch.save({"experiment": np.float64}, tmp_path / "b" / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: cannot be read"):
        train(labelled, tmp_path / "b")


def test_it_stops_when_validation_gains_no_more(labelled, tmp_path):
    patient = CONFIG.model_copy(update={"num_epochs": 20, "patience": 1, "lr": 1e-9})
    assert len(train(labelled, tmp_path / "b", patient).history) < 20


def test_the_backbone_loads_with_timm_and_as_an_extractor(trained, labelled):
    model = timm.create_model(f"local-dir:{trained.out}", pretrained=True).eval()
    extractor = load_extractor(str(trained.out), device=CPU)
    assert extractor.preprocessing.input_px == 32
    image = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(model(image), extractor.module(image), atol=1e-6)
    features = extract_features(extractor, labelled.source, batch_size=8, device=CPU)
    assert features.shape == (36, model.num_features)


def test_training_starts_from_a_model_folder(labelled, trained, tmp_path):
    config = CONFIG.model_copy(update={"weights": str(trained.out), "num_epochs": 1, "lr": 1e-9})
    again = train(labelled, tmp_path / "b", config)
    before = load_extractor(str(trained.out), device=CPU).module.state_dict()["conv1.0.weight"]
    after = load_extractor(str(again.out), device=CPU).module.state_dict()["conv1.0.weight"]
    assert torch.allclose(before, after, atol=1e-6)


def test_scores_are_found_again_when_the_images_moved_and_refused_for_another_split(trained, labelled, class_folders):
    moved = class_folders.rename(class_folders.with_name("moved"))
    folder = BaselineFolder(trained.out)
    assert folder.read_scores(load_labelled(str(moved), EvaluationConfig())) == pytest.approx(trained.scores, abs=1e-6)
    other = load_labelled(str(moved), EvaluationConfig(seed=3))
    with pytest.raises(DataError, match=r"tested on another split of data .*seed 0"):
        folder.read_scores(other)


def test_a_folder_that_is_no_baseline_is_refused(tmp_path, labelled):
    with pytest.raises(DataError, match=r"no result\.json here"):
        BaselineFolder(tmp_path).read_scores(labelled)
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(DataError, match=r"result\.json: is damaged"):
        BaselineFolder(tmp_path).read_scores(labelled)


def test_predictions_are_one_row_per_test_image(trained, labelled):
    lines = (trained.out / "predictions.csv").read_text().splitlines()
    assert lines[0] == "content,image,label,predicted,score_blood,score_leaf,score_sea,format_version"
    assert len(lines) == 1 + len(labelled.part("test"))
    assert np.array([line.split(",")[2] == line.split(",")[3] for line in lines[1:]]).mean() == pytest.approx(
        trained.metrics.accuracy.value
    )

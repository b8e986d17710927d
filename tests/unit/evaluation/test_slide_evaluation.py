"""`evaluate slides` from end to end: numbers, files, maps, and an evaluation that goes on where it was."""

import csv
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from cohort_files import write_cohort, write_table
from lifelines.utils import concordance_index
from sklearn.metrics import balanced_accuracy_score, roc_auc_score

from dino_path import cli
from dino_path.config import CohortConfig
from dino_path.errors import DataError
from dino_path.evaluation.cohorts.cohort import Cohort, Source, read_cohort
from dino_path.evaluation.cohorts.files import refuse_to_lose_slides
from dino_path.evaluation.cohorts.folds import Folds, draw_cohort_folds
from dino_path.evaluation.cohorts.page import page_of
from dino_path.evaluation.cohorts.slides import evaluate_slides
from dino_path.features.bags import find_bags
from dino_path.records.slide_evaluation import SlidesRecord, read_slides_record

CONFIG = CohortConfig(
    folds=3, repeats=2, num_bootstrap=100, abmil_hidden=8, abmil_attention=4, abmil_epochs=15, abmil_lr=1e-2
)


@dataclass(frozen=True)
class Plan:
    """What an evaluation is of."""

    cohort: Cohort
    sources: tuple[Source, ...]
    folds: Folds
    config: CohortConfig

    @classmethod
    def of(cls, table: Path, folders: Sequence[Path], config: CohortConfig = CONFIG) -> "Plan":
        cohort, sources = read_cohort(table, [find_bags(folder) for folder in folders], config)
        return cls(cohort, sources, draw_cohort_folds(cohort, config), config)

    def evaluate(self, out: Path, **options: object) -> SlidesRecord:
        return evaluate_slides(
            self.cohort, self.sources, self.folds, self.config, out=out, device=torch.device("cpu"), **options
        )


def test_features_that_tell_are_told_from_those_that_do_not(tmp_path: Path) -> None:
    table, told, null = write_cohort(tmp_path, num_patients=30, gain=4)
    plan, out = Plan.of(table, [told, null]), tmp_path / "out"
    record = plan.evaluate(out, mapped=["P003_1"])
    rows = {(row.source, row.aggregator): row for row in record.rows}
    assert [*rows] == [
        ("number of tiles", "mean"), ("mine", "mean"), ("mine", "abmil"), ("untrained-mine", "mean"),
        ("untrained-mine", "abmil"),
    ]  # fmt: skip
    for aggregator in ("mean", "abmil"):
        assert rows["mine", aggregator].metrics["auroc"].low > 0.7
        assert rows["untrained-mine", aggregator].metrics["auroc"].low < 0.5
        assert rows["mine", aggregator].differences["untrained-mine"]["auroc"].low > 0
        assert np.sum(rows["mine", aggregator].confusion) == 2 * 30
    assert read_slides_record(out / "slides.json") == record

    page = (out / "slides.md").read_text()
    assert page == page_of(record)
    assert (
        "not significantly better than guessing, with 30 patients: untrained-mine (mean), untrained-mine (abmil)"
        in page
    )
    assert "no untrained network" not in page

    # The predictions in the file give the numbers of the page.
    with (out / "predictions.csv").open() as stream:
        predicted = [row for row in csv.DictReader(stream) if (row["features"], row["aggregator"]) == ("mine", "mean")]
    rights = [int(row["times_right"]) / int(row["of"]) for row in predicted]
    recall = [np.mean([r for r, row in zip(rights, predicted, strict=True) if row["label"] == label])
              for label in ("normal", "tumour")]  # fmt: skip
    assert rows["mine", "mean"].metrics["balanced_accuracy"].value == pytest.approx(np.mean(recall))
    assert [rows["mine", "mean"].recall[label].value for label in ("normal", "tumour")] == pytest.approx(recall)

    # The map: one tile object for each tile, whose attention is one on average.
    features = json.loads((out / "maps/mine/P003_1.geojson").read_text())["features"]
    attention = [feature["properties"]["measurements"]["attention"] for feature in features]
    assert len(features) == plan.sources[0].num_tiles[3]
    assert np.mean(attention) == pytest.approx(1, abs=1e-3)
    assert features[2]["geometry"]["coordinates"][0][0] == [512.0, 0.0]
    assert {feature["properties"]["objectType"] for feature in features} == {"tile"}
    assert (out / "maps/untrained-mine/P003_1.png").read_bytes().startswith(b"\x89PNG")

    # Called again, no network is trained; a damaged one is, and comes out the same.
    files = sorted((out / "networks").rglob("*.safetensors"))
    assert len(files) == 2 * 6
    before = {file: file.stat().st_mtime_ns for file in files}
    files[0].write_bytes(b"cut short")
    content = bytearray(files[1].read_bytes())
    content[-9] ^= 1
    files[1].write_bytes(content)
    again = plan.evaluate(out)
    assert again.rows == record.rows
    assert files[1].stat().st_mtime_ns != before[files[1]]
    assert [file for file in files[2:] if file.stat().st_mtime_ns != before[file]] == []

    # What would be lost is named.
    for lost, folders, changed in (
        ("untrained-mine is left out", [told], {}),
        ("cohort.abmil_epochs was 15, now 3", [told, null], {"abmil_epochs": 3}),
        ("other cases, labels or folds", [told, null], {"folds": 4}),
        ("abmil is left out", [told, null], {"aggregators": ("mean",)}),
        ("mean is left out", [told, null], {"aggregators": ("abmil",)}),
    ):
        other = Plan.of(table, folders, CONFIG.model_copy(update=changed))
        with pytest.raises(DataError, match=lost):
            refuse_to_lose_slides(out, other.cohort, other.sources, other.folds, other.config)
    refuse_to_lose_slides(out, plan.cohort, plan.sources, plan.folds, plan.config)


def test_mean_pooling_is_scikit_learns_own_and_areas_are_within_folds(tmp_path: Path) -> None:
    table, told, _ = write_cohort(tmp_path, num_patients=30, slides_each=2, gain=1.0)
    plan = Plan.of(table, [told], CONFIG.model_copy(update={"aggregators": ("mean",), "repeats": 1}))
    record = plan.evaluate(tmp_path / "out")
    row = record.rows[1]
    from sklearn.linear_model import LogisticRegression

    means = np.array([np.concatenate(list(of_case[0].pieces())).mean(axis=0) for of_case in plan.sources[0].bags])
    guesses, areas, pairs = np.zeros(60, int), [], []
    for fold in plan.folds:
        centre, scale = means[fold.train].mean(axis=0), means[fold.train].std(axis=0)
        model = LogisticRegression(C=10 / 4, class_weight="balanced")
        model.fit((means[fold.train] - centre) / scale, plan.cohort.labels[fold.train])
        scores = model.predict_proba((means[fold.test] - centre) / scale)
        truth = plan.cohort.labels[fold.test]
        guesses[fold.test] = scores.argmax(axis=1)
        areas.append(roc_auc_score(truth, scores[:, 1]))
        pairs.append(truth.sum() * (1 - truth).sum())
    assert row.metrics["auroc"].value == pytest.approx(np.average(areas, weights=pairs), abs=1e-9)
    assert row.metrics["balanced_accuracy"].value == pytest.approx(balanced_accuracy_score(plan.cohort.labels, guesses))
    assert any("no untrained network and no colour control" in note for note in record.notes)
    assert "over 30 patients" in row.interval


def test_survival_is_of_patients_and_its_concordance_is_that_of_lifelines(tmp_path: Path) -> None:
    _, told, null = write_cohort(tmp_path, num_patients=40, slides_each=2)
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(40):
        time = rng.exponential(10 if patient % 2 == 0 else 1.5)
        rows += [
            (f"P{patient:03d}_{slide}", f"P{patient:03d}", f"{time:.3f}", int(rng.random() < 0.8)) for slide in (1, 2)
        ]
        rows[-1] = (*rows[-1][:3], rows[-2][3])
    table = write_table(tmp_path / "survival.csv", ("slide_id", "patient_id", "time", "event"), rows)
    plan, out = Plan.of(table, [told, null], CONFIG.model_copy(update={"repeats": 1})), tmp_path / "out"
    record = plan.evaluate(out)
    mine = next(row for row in record.rows if row.source == "mine")
    data = record.data
    assert (data.unit, data.num_cases, data.num_slides, mine.aggregator) == ("patient", 40, 80, "cox")
    assert mine.metrics["concordance"].low > 0.5
    assert mine.differences["untrained-mine"]["concordance"].value > 0
    with (out / "predictions.csv").open() as stream:
        risks = [float(row["mean_risk"]) for row in csv.DictReader(stream) if row["features"] == "mine"]
    within = [
        (concordance_index(plan.cohort.times[fold.test], -np.array(risks)[fold.test], plan.cohort.labels[fold.test]))
        for fold in plan.folds
    ]
    assert mine.metrics["concordance"].value == pytest.approx(np.mean(within), abs=0.03)
    assert min(within) <= mine.metrics["concordance"].value <= max(within)


def test_networks_of_other_features_are_trained_again(tmp_path: Path) -> None:
    table, told, _ = write_cohort(tmp_path, num_patients=12)
    config = CONFIG.model_copy(update={"repeats": 1, "abmil_epochs": 1, "aggregators": ("abmil",)})
    Plan.of(table, [told], config).evaluate(tmp_path / "out")
    files = sorted((tmp_path / "out/networks").rglob("*.safetensors"))
    before = [file.stat().st_mtime_ns for file in files]
    os.utime(told / "P000_1.h5", ns=(1, 1))
    Plan.of(table, [told], config).evaluate(tmp_path / "out")
    assert all(file.stat().st_mtime_ns != then for file, then in zip(files, before, strict=True))


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable]:
    """Calls the program in this process: exit code, stdout, stderr; puts logging back as it was."""
    logger = logging.getLogger("dino_path")
    before = logger.handlers[:], logger.propagate, logger.level
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dino-path", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        output = capfd.readouterr()
        return int(end.value.code or 0), output.out, output.err

    yield call
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


def test_the_command_prints_the_page_or_the_record_and_refuses_maps_that_cannot_be(
    run: Callable, tmp_path: Path
) -> None:
    table, told, null = write_cohort(tmp_path, num_patients=12)
    words = ("evaluate", "slides", told, null, "--labels", table, "--out", tmp_path / "out", "--device", "cpu",
             "cohort.folds=3", "cohort.repeats=1", "cohort.num_bootstrap=100")  # fmt: skip
    code, out, err = run(*words, "cohort.aggregators=[mean]")
    assert code == 0, err
    assert "mine - untrained-mine" in out
    assert f"results: {tmp_path / 'out/slides.json'}" in out
    code, out, err = run(*words, "cohort.aggregators=[mean]", "--json", "--quiet")
    assert (code, err) == (0, "")
    assert [row["source"] for row in json.loads(out)["rows"]] == ["number of tiles", "mine", "untrained-mine"]
    for more, found in (
        (("cohort.aggregators=[mean]", "--heatmap", "P001_1"), "no attention is trained here"),
        (("--heatmap", "P099_1"), "not in the table"),
        (("--heatmap", "P001_1", "--slides", tmp_path), "holds no slides"),
    ):
        code, _, err = run(*words, *more)
        assert (code, found in err) == (2, True), err

"""`evaluate robustness` from the command line to its files, on small images of six patients and two centres."""

import csv
import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from dino_path.cli import app
from dino_path.config import EvaluationConfig
from dino_path.errors import DataError
from dino_path.evaluation.labelled.datasets import load_labelled
from dino_path.evaluation.labelled.division import divide
from dino_path.evaluation.protocols import clustering
from dino_path.evaluation.protocols.by_name import run_protocol
from dino_path.evaluation.protocols.shifts import accuracy_under_shifts, images_to_shift, shifted_images
from dino_path.evaluation.results.robustness import compared, evaluate_robustness
from dino_path.features.shifts import Shift
from dino_path.records.robustness import ROBUSTNESS

MODELS = ("mean-colour", "colour-statistics")
QUICK = ("evaluation.num_bootstrap=100", "evaluation.shifts=[gamma,blur]")
CONFIG = EvaluationConfig(num_bootstrap=100, shifts=("gamma",))


@pytest.fixture(autouse=True)
def quick_and_quiet(monkeypatch):
    monkeypatch.setattr(clustering, "RUNS", 1)
    monkeypatch.setattr(clustering, "MAX_CLUSTERS", 3)
    logger = logging.getLogger("dino_path")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


@pytest.fixture
def manifest(tmp_path, write_image):
    """96 images of two classes; the second centre gives them a cast. Twelve patients with both classes."""
    rows = []
    for number in range(96):
        label, patient = number % 2, number // 8
        centre = patient % 2
        colour = (150 + 45 * label, 110 + 25 * centre, 150)
        write_image(tmp_path / "images" / f"{number}.png", number, colour)
        rows.append((f"images/{number}.png", f"class{label}", f"p{patient}", f"centre{centre}"))
    path = tmp_path / "labelled.csv"
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "label", "patient_id", "centre"), *rows])
    return path


def evaluate(*words, data, out):
    arguments = ["evaluate", "robustness", *MODELS, *QUICK, *words, "--data", str(data), "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, "--device", "cpu", "--workers", "0"])
    if result.exception is not None:
        raise result.exception
    return result.output


def test_with_centres_every_figure_stands_on_the_page_and_in_the_files(manifest, tmp_path):
    out = tmp_path / "out"
    page = evaluate(data=manifest, out=out)
    record = ROBUSTNESS.read(out / "robustness.json")
    (centres,) = record.makers
    assert (centres.kind, centres.unit, centres.num_units) == ("centre", "patients", {"centre0": 6, "centre1": 6})
    assert record.shifts is None
    first = centres.rows[0]
    assert set(first.figures) == {
        "robustness_index", "croma", "croma_worst_tenth", "clustering_score", "told_within_class", "accuracy_known",
        "accuracy_new", "drop",
    }  # fmt: skip
    assert first.figures["told_within_class"].value > 0.9  # the cast is a matter of colour
    known, new = first.figures["accuracy_known"], first.figures["accuracy_new"]
    assert first.figures["drop"].value == pytest.approx(known.value - new.value)
    assert set(first.accuracy_by_maker) == {"centre0", "centre1"}
    mine, other = (row.figures["croma"].value for row in centres.rows)
    assert first.differences["colour-statistics"]["croma"].value == pytest.approx(mine - other)
    assert centres.rows[1].differences == {}
    assert "no untrained network among the models" in page
    assert "no colour control" not in page
    assert "12 patients of these centres, not over centres" in page
    assert "neither, or chance" in page
    assert not (out / "robustness.png").exists()
    rows = list(csv.DictReader((out / "robustness.csv").read_text().splitlines()))
    assert {row["metric"] for row in rows} == set(first.figures)
    assert {row["interval_over"] for row in rows} == {"12 patients"}
    assert (out / "split.csv").is_file()
    assert "# labelled, robustness" in (out / "robustness.md").read_text()


def test_without_centres_shifts_are_made_and_drawn(class_folders, tmp_path):
    out = tmp_path / "out"
    page = evaluate(data=class_folders, out=out)
    record = ROBUSTNESS.read(out / "robustness.json")
    assert record.makers == ()
    assert record.shifts is not None
    assert list(record.shifts.pixel_change) == ["gamma", "blur"]
    assert sorted({(row.model, row.level) for row in record.shifts.summary}) == sorted(
        (model, level) for model in MODELS for level in range(4)
    )
    assert len(record.shifts.rows) == 2 * 2 * 3
    blurred = [row for row in record.shifts.rows if (row.model, row.shift) == ("mean-colour", "blur")]
    assert all(row.cosine.value > 0.9 for row in blurred)  # blur leaves the mean colour
    assert "the data name no two centres or scanners" in page
    assert (out / "robustness.png").read_bytes().startswith(b"\x89PNG")
    assert "grey levels changed, 3" in page


def test_shifts_beside_centres_on_request_and_json_for_programs(manifest, tmp_path):
    record = json.loads(evaluate("--shifts", "--json", "-q", data=manifest, out=tmp_path / "out"))
    assert record["makers"][0]["kind"] == "centre"
    assert record["shifts"]["num_images"] > 0
    with pytest.raises(DataError, match="the results under shifts is left out"):
        evaluate(data=manifest, out=tmp_path / "out")


def test_scanners_have_a_table_of_their_own(manifest, tmp_path):
    text = manifest.read_text().replace("centre\n", "scanner\n", 1)
    manifest.write_text(text)
    page = evaluate(data=manifest, out=tmp_path / "out")
    assert "scanner told within class" in page
    assert ROBUSTNESS.read(tmp_path / "out" / "robustness.json").makers[0].kind == "scanner"


def test_classes_of_one_centre_each_say_what_is_not_known(manifest, tmp_path):
    lines = manifest.read_text().splitlines()
    confounded = [lines[0], *(",".join([*line.split(",")[:3], line.split(",")[1]]) for line in lines[1:])]
    manifest.write_text("\n".join(confounded))
    page = evaluate(data=manifest, out=tmp_path / "out")
    assert "accuracy at a new centre: unknown, fewer than two classes" in page
    assert "centre told within class: unknown" in page
    assert "clustering score: no two classes share two centres" in page
    (centres,) = ROBUSTNESS.read(tmp_path / "out" / "robustness.json").makers
    assert set(centres.rows[0].figures) == {"robustness_index"}


def test_ours_are_compared_with_every_control_and_with_ours_after_them():
    specs = {"a": "a", "b": "b", "untrained-a": "untrained:a", "mean-colour": "mean-colour"}
    assert compared(specs) == [
        ("a", "b"), ("a", "untrained-a"), ("a", "mean-colour"), ("b", "untrained-a"), ("b", "mean-colour"),
    ]  # fmt: skip
    assert compared({"x": "mean-colour", "y": "untrained:a"}) == [("x", "y")]


def features_of(labelled, seed=0):
    rng = np.random.default_rng(seed)
    return (labelled.labels[:, None] + rng.normal(size=(len(labelled.labels), 8))).astype(np.float32)


@pytest.mark.parametrize("cross_validation", [None, 3])
def test_unshifted_accuracy_is_that_of_the_table(manifest, cross_validation):
    config = CONFIG.model_copy(update={"cross_validation": cross_validation})
    division = divide(load_labelled(str(manifest), config), config)
    features = features_of(division.labelled)
    chosen = images_to_shift(division, config)
    curve = accuracy_under_shifts(features, {Shift("gamma", 1): features[chosen]}, division, chosen, config)
    scores = np.concatenate([run_protocol("logistic", features, split, config)[0] for split in division.splits])
    assert curve.unshifted.accuracy.value == pytest.approx((scores.argmax(axis=1) == division.labels).mean())
    assert curve.unshifted.unit == "patients"
    (under,) = curve.under.values()
    assert under.metrics.accuracy.value == curve.unshifted.accuracy.value
    assert (under.found.value, under.cosine.value) == (1, pytest.approx(1, abs=1e-6))


def test_features_that_turn_round_are_lost_and_not_found_again(manifest):
    labelled = load_labelled(str(manifest), CONFIG)
    division = divide(labelled, CONFIG)
    features = features_of(labelled)
    chosen = images_to_shift(division, CONFIG)
    turned = 2 * features[chosen].mean(axis=0) - features[chosen]
    (under,) = accuracy_under_shifts(features, {Shift("gamma", 3): turned}, division, chosen, CONFIG).under.values()
    assert under.cosine.value == pytest.approx(-1, abs=1e-3)
    assert under.found.value == 0
    assert under.metrics.accuracy.value < 0.3


def test_no_more_images_than_asked_for_are_shifted_and_copies_once(manifest):
    division = divide(load_labelled(str(manifest), CONFIG), CONFIG)
    tested = division.tested
    assert set(images_to_shift(division, CONFIG)) == set(tested)
    few = CONFIG.model_copy(update={"shift_images": 5})
    assert len(images_to_shift(division, few)) == 5
    content = division.labelled.content.copy()
    content[tested[0]] = content[tested[1]]
    copies = replace(division, labelled=replace(division.labelled, content=content))
    assert len(images_to_shift(copies, CONFIG)) == len(tested) - 1


def test_images_of_each_shift_have_a_key_of_their_own(manifest):
    labelled = load_labelled(str(manifest), CONFIG)
    chosen = np.arange(4)
    keys = {
        shifted_images(labelled, numbers, shift).content
        for numbers in (chosen, chosen[:3])
        for shift in (Shift("blur", 1), Shift("blur", 2), Shift("gamma", 1))
    }
    assert len(keys) == 6


def test_called_again_features_come_from_their_files(manifest, tmp_path, monkeypatch):
    labelled = load_labelled(str(manifest), CONFIG)
    common = {"with_shifts": True, "device": torch.device("cpu"), "out": tmp_path / "out", "num_workers": 0}
    first = evaluate_robustness(MODELS, labelled, CONFIG, **common).text
    monkeypatch.setattr("dino_path.evaluation.protocols.cache.iterate_features", None)
    assert evaluate_robustness(MODELS, labelled, CONFIG, **common).text == first

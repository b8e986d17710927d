"""Tiles that show what an evaluation measured: checked against what one finds by hand."""

import base64
import json

import cv2
import numpy as np
import pytest
import torch

from dino_path.config import EvaluationConfig
from dino_path.errors import CheckpointError
from dino_path.evaluation.labelled.datasets import load_labelled
from dino_path.evaluation.results.examples import choose_queries, nearest_elsewhere
from dino_path.evaluation.results.table import evaluate_table
from dino_path.features.attention import cls_attention_picture
from dino_path.features.extractor import load_extractor
from dino_path.records.examples import EXAMPLES, read_examples

CONFIG = EvaluationConfig(num_bootstrap=100, input_px=32)


def evaluate(labelled, out, specs=("untrained:timm:resnet10t",)):
    table = evaluate_table(list(specs), labelled, CONFIG, device=torch.device("cpu"), out=out,
                           protocols=("knn", "linear"), baseline=None, num_workers=0)  # fmt: skip
    return table, EXAMPLES.read(out / "examples.json")


@pytest.fixture
def with_patients(class_folders, tmp_path):
    """Twelve patients, one image of each class from each."""
    rows = [f"{file},{file.parent.name},p{file.stem}" for file in sorted(class_folders.glob("*/*.png"))]
    (tmp_path / "data.csv").write_text("\n".join(["path,label,patient_id", *rows]) + "\n")
    return load_labelled(str(tmp_path / "data.csv"), CONFIG)


def test_the_examples_are_those_that_the_features_and_scores_give(with_patients, tmp_path):
    table, record = evaluate(with_patients, tmp_path / "out")
    [features_file] = (tmp_path / "out" / "features").glob("*.npy")
    unit_ND = np.load(features_file)
    unit_ND /= np.linalg.norm(unit_ND, axis=1, keepdims=True)
    names = [f"{with_patients.source.paths[n].name}" for n in range(len(with_patients.source))]
    model = record.models["untrained-resnet10t"]
    assert (record.apart, record.protocol, len(model.queries)) == ("patients", "linear", 8)
    for query in model.queries:
        asked = record.tiles[query.tile]
        label = with_patients.classes.index(asked.label)
        [number] = [n for n, name in enumerate(names) if name == asked.name and with_patients.labels[n] == label]
        assert with_patients.split[number] == "test"
        similarity = unit_ND @ unit_ND[number]
        similarity[with_patients.groups == with_patients.groups[number]] = -2
        expected = np.sort(similarity)[::-1][:5]
        assert [one.similarity for one in query.neighbours] == pytest.approx(expected, abs=1e-3)
        assert asked.name not in {record.tiles[one.tile].name for one in query.neighbours}, "the name is the patient's"
    row = next(row for row in table.rows if row.protocol == "linear")
    tested = with_patients.part("test")
    is_wrong = row.predicted != with_patients.labels[tested]
    wrong = int(is_wrong.sum())
    for label, name in enumerate(with_patients.classes):
        shown = [one for one in model.mistakes if record.tiles[one.tile].label == name]
        assert len(shown) == min(4, int((is_wrong & (with_patients.labels[tested] == label)).sum()))
        assert [one.score for one in shown] == sorted((one.score for one in shown), reverse=True)
        assert all(one.predicted != name and 1 / 3 <= one.score <= 1 for one in shown)
    assert record.unit == "patient"
    assert sum(one.num_images for one in record.slides) == len(tested)
    right = sum(one.num_images * one.accuracy["untrained-resnet10t"] for one in record.slides)
    assert right == pytest.approx(len(tested) - wrong, abs=0.01)
    assert [one.name for one in record.slides] == [f"patient {n + 1}" for n in range(len(record.slides))]


def test_pictures_are_the_tiles_and_no_patient_is_named(with_patients, tmp_path):
    _, record = evaluate(with_patients, tmp_path / "out")
    first = record.tiles[0]
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(first.jpeg), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    main = {"blood": 0, "leaf": 1, "sea": 2}[first.label]
    assert picture.mean(axis=(0, 1)).argmax() == main
    text = (tmp_path / "out" / "examples.json").read_text()
    assert not any(f'"p{number:02d}"' in text for number in range(12))
    assert str(tmp_path) not in text, "names without folders"


def test_without_groups_no_slides_are_listed_and_copies_are_no_neighbours(class_folders, tmp_path):
    source = class_folders / "blood" / "00.png"
    (class_folders / "blood" / "copy.png").write_bytes(source.read_bytes())
    labelled = load_labelled(str(class_folders), CONFIG)
    _, record = evaluate(labelled, tmp_path / "out", ("mean-colour",))
    assert (record.apart, record.unit, record.slides) == (None, None, ())
    model = record.models["mean-colour"]
    assert model.no_attention == "is a control."
    for query in model.queries:
        assert {query.tile} & {one.tile for one in query.neighbours} == set()
    file = tmp_path / "out" / "examples.json"
    assert read_examples(file.parent, record.split_digest) == record
    assert read_examples(file.parent, "another") is None
    assert json.loads(file.read_text())["format_version"] == 1


def test_attention_is_drawn_over_the_tile_and_refused_for_a_network_without_cls():
    image = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    vit = load_extractor("untrained:timm:vit_tiny_patch16_224", device=torch.device("cpu"))
    assert cls_attention_picture(vit, image).shape == (224 + 22, 224 + 4, 3)
    with pytest.raises(CheckpointError):
        cls_attention_picture(load_extractor("untrained:timm:resnet10t", device=torch.device("cpu")), image)


def test_queries_go_through_the_classes_and_prefer_new_slides():
    labels = np.array([0, 0, 0, 1, 1, 2])
    slides = ["a", "a", "b", "a", "b", "c"]
    queries = choose_queries(labels, slides, np.arange(6), seed=0)
    assert sorted(queries) == [0, 1, 2, 3, 4, 5]
    assert labels[queries[:3]].tolist() == [0, 1, 2]
    assert slides[queries[0]] != slides[queries[1]]


def test_fewer_images_elsewhere_than_neighbours_are_wanted():
    features = np.eye(4, dtype=np.float32)
    features[1] = [0.9, 0.1, 0, 0]
    numbers, similarity = nearest_elsewhere(features, 0, np.array([False, True, False, True]))
    assert numbers.tolist() == [1, 3]
    assert similarity == pytest.approx([0.9 / np.hypot(0.9, 0.1), 0], abs=1e-6)
    assert nearest_elsewhere(features, 0, np.zeros(4, bool))[0].size == 0

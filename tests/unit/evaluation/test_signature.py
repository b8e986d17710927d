import csv
import json

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from dino_path.config import EvaluationConfig
from dino_path.evaluation.labelled.datasets import LabelledSet, load_labelled
from dino_path.evaluation.protocols.signature import NEIGHBOURS, slide_signature
from dino_path.evaluation.results.table import evaluate_table

CPU = torch.device("cpu")


def made_up(labels, slides, content=None):
    """A set of which only what the signature reads is real."""
    names = np.array([f"{index:032d}" for index in range(len(labels))] if content is None else content, np.bytes_)
    classes = tuple(f"class{number}" for number in range(int(labels.max()) + 1))
    return LabelledSet(
        name="made up", source=None, labels=labels, classes=classes, groups=slides.astype(str), group_kind="slide",
        units=slides, unit_name="slides", split=np.full(len(labels), "train"), split_rule="", notes=(), content=names,
        split_digest="",
    )  # fmt: skip


@pytest.fixture
def tissue():
    """600 images of 3 classes on 10 slides, every slide with every class."""
    labels, slides = np.arange(600) % 3, np.arange(600) // 60
    return labels.astype(np.int64), slides.astype(np.int64)


def features_of(labels, slides, *, of_class, of_slide, noise=1.0):
    rng = np.random.default_rng(0)
    class_part, slide_part = rng.normal(size=(3, 32)), rng.normal(size=(10, 32))
    return (
        of_class * class_part[labels] + of_slide * slide_part[slides] + noise * rng.normal(size=(len(labels), 32))
    ).astype(np.float32)


def signature(features, labels, slides, **others):
    return slide_signature(features, made_up(labels, slides, **others), num_bootstrap=200, seed=0)


def test_features_of_tissue_alone_are_at_chance_for_slides_and_robust(tissue):
    result = signature(features_of(*tissue, of_class=3, of_slide=0), *tissue)
    assert result.identity.low < result.identity_chance < result.identity.high
    assert result.robustness.value == pytest.approx(0.9, abs=0.03)  # a tenth is of the same slide
    assert result.robustness_ratio > 0.99


def test_features_of_slides_alone_give_the_slide_away_and_are_not_robust(tissue):
    result = signature(features_of(*tissue, of_class=0, of_slide=3), *tissue)
    assert result.identity.value > 0.99
    assert result.robustness.value < 0.02
    assert result.robustness_ratio < 0.02


def test_noise_is_at_chance_in_both(tissue):
    result = signature(features_of(*tissue, of_class=0, of_slide=0), *tissue)
    assert result.identity.value == pytest.approx(result.identity_chance, abs=0.05)
    assert result.robustness.value == pytest.approx(result.robustness_chance, abs=0.02)
    assert result.identity_chance == pytest.approx(19 / 199)
    assert result.robustness_chance == pytest.approx(180 / 599)


def test_slide_identity_agrees_with_scikit_learn_leaving_one_out(tissue):
    labels, slides = (part[::5] for part in tissue)
    features = features_of(labels, slides, of_class=1, of_slide=0.7)
    found = []
    for index in range(len(labels)):
        others = (labels == labels[index]) & (np.arange(len(labels)) != index)
        classifier = KNeighborsClassifier(
            min(NEIGHBOURS, others.sum()), metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07)
        )
        found.append(classifier.fit(features[others], slides[others]).predict(features[[index]])[0] == slides[index])
    assert signature(features, labels, slides).identity.value == pytest.approx(np.mean(found))


def test_copies_of_an_image_do_not_give_its_slide_away(tissue):
    labels, slides = tissue
    features = features_of(labels, slides, of_class=0, of_slide=0)
    doubled = np.concatenate([features, features])
    content = [f"{index:032d}" for index in range(600)] * 2
    result = signature(doubled, np.tile(labels, 2), np.tile(slides, 2), content=content)
    assert result.num_images == 600
    assert result.identity.value == pytest.approx(signature(features, labels, slides).identity.value)


def test_equal_features_are_not_their_own_neighbours(tissue):
    result = signature(np.ones((600, 4), np.float32), *tissue)
    assert 0 <= result.identity.value <= 1


def test_slides_of_one_class_each_have_no_published_ratio():
    slides = np.repeat(np.arange(6), 20).astype(np.int64)
    labels = slides // 2
    result = signature(features_of(labels, slides, of_class=1, of_slide=1), labels, slides)
    assert result.robustness_ratio is None
    assert result.identity is not None


def test_a_class_of_one_slide_has_no_identity_to_find():
    labels = np.repeat([0, 1], 30).astype(np.int64)
    result = signature(features_of(labels, labels, of_class=1, of_slide=1), labels, labels)
    assert result.identity is None
    assert result.identity_chance is None
    assert result.robustness_chance == 0


def test_the_table_reports_it_where_slides_are_known_and_says_so_where_not(class_folders, tmp_path):
    config = EvaluationConfig(num_bootstrap=100, input_px=32)

    def table(name):
        return evaluate_table(
            ["mean-colour"], load_labelled(str(class_folders), config), config, device=CPU, out=tmp_path / name,
            protocols=("knn",), baseline=None, num_workers=0,
        )  # fmt: skip

    without = table("without")
    assert without.signatures == {}
    assert "slide signature: unknown without patients or slides" in without.notes
    rows = [
        (path.relative_to(class_folders), f"{path.parent.name}{int(path.stem) // 4}")
        for path in sorted(class_folders.rglob("*.png"))
    ]
    with (class_folders / "groups.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("path", "slide_id"), *rows])
    text = table("with").markdown()
    assert "| slide signature | slide found within its class | neighbours of the class, other slide |" in text
    assert "| chance | 0.273 | 0.229 |" in text
    record = json.loads((tmp_path / "with" / "results.json").read_text())
    assert record["slide_signature"]["mean-colour"]["identity_chance"] == pytest.approx(3 / 11)
    assert "slide_identity" in (tmp_path / "with" / "results.csv").read_text()

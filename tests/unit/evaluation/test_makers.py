"""Robustness index and CRoMa: numbers of the package `croma` 1.0.1, a slow reference, and what must hold."""

from dataclasses import replace

import numpy as np
import pytest
from made_up_centres import cohort_of, made_up

from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.evaluation.protocols import makers
from dino_path.evaluation.protocols.makers import CROMA_NEIGHBOURS, KS, cohorts, neighbourhood


def look(features, cohort):
    return neighbourhood(features, cohort, num_bootstrap=200, seed=0)


# RI.compute(k_candidates=KS) and CRoMa.compute() of `croma` 1.0.1 (design "all") on `made_up()` in float64, once.
CROMA_PACKAGE = {
    "k": 21, "index": 0.5816044260027663, "support": 0.98, "croma": 0.03528644077573966, "tail": -0.2569273460128189,
    "by_k": {5: 0.5813953488372093, 11: 0.57373046875, 21: 0.5816044260027663, 51: 0.5793023255813954,
             101: 0.5820721392228668},
}  # fmt: skip


def test_numbers_are_those_of_the_published_package():
    found = look(*made_up())
    assert (found.k, found.num_undefined) == (CROMA_PACKAGE["k"], 0)
    assert found.support == pytest.approx(CROMA_PACKAGE["support"], abs=1e-12)
    assert found.index.value == pytest.approx(CROMA_PACKAGE["index"], abs=1e-12)
    assert found.index_by_k == pytest.approx(CROMA_PACKAGE["by_k"], abs=1e-12)
    assert found.croma.value == pytest.approx(CROMA_PACKAGE["croma"], abs=1e-9)
    assert found.croma_tail.value == pytest.approx(CROMA_PACKAGE["tail"], abs=1e-9)


def slowly(features, cohort, k):
    """Robustness index at k, and CRoMa of each image, by loops."""
    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    wanted = confounded = 0
    margins = []
    for query in range(len(unit)):
        others = [n for n in range(len(unit)) if cohort.groups[n] != cohort.groups[query]]
        others.sort(key=lambda n: 1 - unit[query] @ unit[n])
        of = {(True, False): [], (False, True): []}
        for place, n in enumerate(others):
            pair = (cohort.labels[n] == cohort.labels[query], cohort.makers[n] == cohort.makers[query])
            if pair in of:
                of[pair].append(1 - unit[query] @ unit[n])
                wanted += place < k and pair[0]
                confounded += place < k and pair[1]
        same, other = (np.mean(of[pair][:CROMA_NEIGHBOURS]) for pair in ((True, False), (False, True)))
        margins.append((other - same) / (other + same))
    return wanted / (wanted + confounded), np.array(margins)


def test_a_slow_reference_gives_the_same():
    features, cohort = made_up(num_images=120, seed=3)
    found = look(features, cohort)
    index, margins = slowly(features, cohort, found.k)
    assert found.index.value == pytest.approx(index, abs=1e-12)
    assert found.croma.value == pytest.approx(np.median(margins), abs=1e-9)
    lowest = margins[margins <= np.quantile(margins, 0.1)]
    assert found.croma_tail.value == pytest.approx(lowest.mean(), abs=1e-9)


def test_chunks_of_queries_change_nothing(monkeypatch):
    whole = look(*made_up())
    monkeypatch.setattr(makers, "QUERIES_PER_CHUNK", 7)
    pieces = look(*made_up())
    assert pieces.index_by_k == whole.index_by_k
    assert pieces.croma.value == pytest.approx(whole.croma.value, abs=1e-12)


def test_features_of_tissue_alone_are_robust_and_of_the_centre_alone_are_not():
    tissue = look(*made_up(of_class=3, of_maker=0, of_patient=0))
    centre = look(*made_up(of_class=0, of_maker=3, of_patient=0))
    assert tissue.index.value > 0.99
    assert tissue.croma.score(lowest=-1).low > 0.3
    assert centre.index.value < 0.02
    assert centre.croma.score(lowest=-1).high < -0.3


def test_noise_has_no_side():
    features, cohort = made_up(of_class=0, of_maker=0, of_patient=0)
    found = look(features, cohort)
    everyone = np.tile(np.arange(600), (600, 1))
    others = np.where(cohort.groups[:, None] == cohort.groups, -1, everyone)
    wanted, confounded = makers._wanted_and_confounded(others, cohort)
    assert found.croma.score(lowest=-1).low < 0.01
    assert found.index.value == pytest.approx(wanted.sum() / (wanted + confounded).sum(), abs=0.02)


def test_spreads_are_those_of_patients_drawn_again():
    """The influence of each image, against 1,000 resamples of the patients of each image's own value."""
    features, cohort = made_up()
    found = look(features, cohort)
    _, margins = makers._look_around(features.astype(np.float64), cohort)
    of_patient = [np.flatnonzero(cohort.groups == n) for n in range(30)]
    rng, medians, tails = np.random.default_rng(1), [], []
    for _ in range(1000):
        drawn = margins[np.concatenate([of_patient[n] for n in rng.integers(0, 30, 30)])]
        medians.append(np.median(drawn))
        tails.append(drawn[drawn <= np.quantile(drawn, 0.1)].mean())
    assert found.croma.left_out.standard_error() == pytest.approx(np.std(medians), rel=0.15)
    assert found.croma_tail.left_out.standard_error() == pytest.approx(np.std(tails), rel=0.2)
    assert found.croma.draws.mean() == pytest.approx(found.croma.value, abs=0.005)


def test_the_spread_of_the_index_is_that_of_the_ratio_without_each_patient():
    features, cohort = made_up(num_images=200)
    found = look(features, cohort)
    neighbours, _ = makers._look_around(features.astype(np.float64), cohort)
    wanted, confounded = makers._wanted_and_confounded(neighbours[:, : found.k], cohort)
    for patient in range(30):
        rest = cohort.groups != patient
        without = wanted[rest].sum() / (wanted + confounded)[rest].sum()
        assert found.index.left_out.units[patient] == pytest.approx(without - found.index.value, abs=2e-3)


def test_images_of_the_same_patient_are_no_neighbours():
    """All of a patient's images are alike: neighbours within the patient would hide the centre."""
    found = look(*made_up(of_patient=50))
    everyone = made_up(of_patient=50)
    alone = replace(everyone[1], groups=np.arange(600))
    assert found.support > 0.9
    assert look(everyone[0], alone).support < 0.9


def test_a_class_of_one_centre_has_no_croma_and_is_counted():
    features, cohort = made_up()
    labels = np.where((cohort.labels == 2) & (cohort.makers != 0), 0, cohort.labels)
    found = look(features, cohort_of(labels, cohort.makers, cohort.groups))
    assert found.num_undefined == (labels == 2).sum()
    assert np.isfinite(found.croma.value)


def test_equal_features_have_no_croma_and_an_index_all_the_same():
    _, cohort = made_up()
    found = look(np.ones((600, 4), np.float32), cohort)
    assert found.num_undefined == 600 or abs(found.croma.value) < 1
    assert 0 <= found.index.value <= 1
    assert set(found.index_by_k) == set(KS)


def test_cohorts_take_each_content_once_and_only_where_two_makers_are_named():
    labels = np.array([0, 0, 1, 1, 0, 1])
    labelled = LabelledSet(
        name="made up", source=None, labels=labels, classes=("a", "b"), groups=None, group_kind=None, units=labels,
        unit_name="images", split=np.full(6, "train"), split_rule="", notes=(), split_digest="",
        content=np.array([b"0", b"1", b"2", b"3", b"1", b"5"]), centres=np.array(list("xxyyxy")),
        scanners=np.full(6, "one"),
    )  # fmt: skip
    (cohort,) = cohorts(labelled, seed=0)
    assert (cohort.kind, cohort.names, cohort.chosen.tolist()) == ("centre", ("x", "y"), [0, 1, 2, 3, 5])
    assert cohort.counts() == {"x": {"a": 2, "b": 0}, "y": {"a": 0, "b": 3}}
    assert cohort.units_by_maker() == {"x": 2, "y": 3}
    assert cohorts(replace(labelled, centres=None), seed=0) == []

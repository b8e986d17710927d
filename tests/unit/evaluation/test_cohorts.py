"""Tables of slide labels joined with feature files; folds of patients and centres; what is refused and what is said."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from cohort_files import write_cohort, write_slide, write_table

from dino_path.config import CohortConfig
from dino_path.errors import ConfigError, DataError
from dino_path.evaluation.cohorts.cohort import Cohort, Source, cohort_notes, read_cohort
from dino_path.evaluation.cohorts.folds import draw_cohort_folds, fold_notes
from dino_path.evaluation.cohorts.scan import scan, tiles_that_fit
from dino_path.features.bags import find_bags, open_bag

CONFIG = CohortConfig(folds=3, repeats=2)


def read(table: Path, *folders: Path, config: CohortConfig = CONFIG) -> tuple[Cohort, tuple[Source, ...]]:
    return read_cohort(table, [find_bags(folder) for folder in folders], config)


def rows_of(table: Path) -> list[list[str]]:
    return [line.split(",") for line in table.read_text().splitlines()[1:]]


def test_cases_have_labels_patients_and_the_features_of_every_extractor(tmp_path: Path) -> None:
    table, told, null = write_cohort(tmp_path, slides_each=2)
    cohort, sources = read(table, told, null)
    assert (len(cohort.cases), cohort.units.count, cohort.units.name) == (48, 24, "patients")
    assert cohort.classes == ("normal", "tumour")
    assert cohort.labels.tolist() == [patient % 2 for patient in range(24) for _ in range(2)]
    assert [(source.name, source.is_null, source.num_features) for source in sources] == [
        ("mine", False, 4), ("untrained-mine", True, 4),
    ]  # fmt: skip
    assert any("24 patients have 48 slides" in note for note in cohort_notes(cohort))
    by_patient, sources = read(table, told, config=CohortConfig(folds=3, unit="patient"))
    assert (len(by_patient.cases), by_patient.slides[5]) == (24, ("P005_1", "P005_2"))
    assert [len(bags) for bags in sources[0].bags] == [2] * 24


def test_slides_without_features_or_tiles_are_left_out_for_all_and_said(tmp_path: Path) -> None:
    table, told, null = write_cohort(tmp_path)
    (null / "P003_1.h5").unlink()
    write_slide(told / "P006_1.h5", np.zeros((0, 4)))
    text = table.read_text().replace("P008_1,", "P008_1.svs,").replace("P010_1,P010,normal", "P010_1,P010,")
    table.write_text(text)
    cohort, _ = read(table, told, null)
    assert cohort.left_out == {"P003_1": "no file in untrained-mine", "P006_1": "without tiles in mine"}
    assert len(cohort.cases) == 21
    assert "P008_1.svs" in cohort.cases
    assert any("2 slides of the table are left out" in note for note in cohort.notes)
    assert any("1 rows without label" in note for note in cohort.notes)


@pytest.mark.parametrize(
    ("header", "rows", "found"),
    [
        (("slide_id", "grade"), [("P000_1", 1)], "neither label nor time and event"),
        (("slide", "label"), [("P000_1", 1)], "did you mean `slide_id`"),
        (("slide_id", "label", "patient_id"), [("P000_1", "a", "P"), ("P001_1", "b", "")], "line 3 has no patient_id"),
        (("slide_id", "label"), [("P000_1", "a"), ("P000_1", "b")], "several rows"),
        (("slide_id", "label"), [("Q1", "a"), ("Q2", "b")], "none of its 24 files"),
        (("slide_id", "label"), [("P000_1", "a"), ("P001_1", "a")], "too few slides by class: a: 2"),
        (("slide_id", "label"), [("P000_1", "a"), ("P001_1", "a"), ("P002_1", "b")], "a: 2, b: 1"),
        (("slide_id", "label", "time", "event"), [("P000_1", "a", 1, 1)], "has label, time and event"),
        (("slide_id", "patient_id", "time", "event"), [("P000_1", "P", 1, 2)], "event '2' is neither"),
        (("slide_id", "patient_id", "time", "event"), [("P000_1", "P", "soon", 1)], "time 'soon' is no number"),
        (("slide_id", "patient_id", "time", "event"), [("P000_1", "P", -1, 1)], "below 0"),
        (("slide_id", "patient_id", "time", "event"), [("P000_1", "P", 3, 1)], "1 events among 1 patients"),
        (("slide_id", "time", "event"), [("P000_1", 3, 1)], "no column patient_id"),
        (
            ("slide_id", "patient_id", "time", "event"),
            [("P000_1", "P", 3, 1), ("P001_1", "P", 4, 1)],
            "slides of patient P have several times: 3.0, 4.0",
        ),
    ],
)
def test_tables_that_cannot_be_judged_are_refused_by_what_is_wrong(
    tmp_path: Path, header: Sequence[str], rows: list[tuple], found: str
) -> None:
    _, told, _ = write_cohort(tmp_path)
    with pytest.raises(DataError) as refusal:
        read(write_table(tmp_path / "table.csv", header, rows), told)
    assert found in str(refusal.value)


def test_files_of_two_extractors_in_one_folder_and_a_folder_given_twice_are_refused(tmp_path: Path) -> None:
    table, told, _ = write_cohort(tmp_path)
    with pytest.raises(ConfigError, match="given twice"):
        read(table, told, told)
    write_slide(told / "P002_1.h5", np.zeros((3, 4)), digest="another")
    with pytest.raises(DataError, match="from several extractors"):
        read(table, told)


def test_whole_numbers_have_an_order_and_other_classes_have_it_where_it_is_given(tmp_path: Path) -> None:
    table, told, _ = write_cohort(tmp_path)
    assert not read(table, told)[0].is_ordered
    with pytest.raises(ConfigError, match="has the classes normal, tumour"):
        read(table, told, config=CohortConfig(ordered_classes=("normal", "tumor")))
    ordered, _ = read(table, told, config=CohortConfig(ordered_classes=("tumour", "normal")))
    assert (ordered.classes, ordered.is_ordered) == (("tumour", "normal"), True)
    rows = [(slide, patient, (2, 10)[label == "tumour"]) for slide, patient, label in rows_of(table)]
    numbers, _ = read(write_table(tmp_path / "grades.csv", ("slide_id", "patient_id", "label"), rows), told)
    assert (numbers.classes, numbers.is_ordered) == (("2", "10"), True)


def test_no_patient_stands_on_both_sides_and_every_case_is_tested_once_in_each_repeat(tmp_path: Path) -> None:
    table, told, _ = write_cohort(tmp_path, slides_each=2)
    cohort, _ = read(table, told)
    folds = draw_cohort_folds(cohort, CONFIG)
    assert (folds.num_repeats, folds.num_folds, len(folds)) == (2, 3, 6)
    for fold in folds:
        assert not {*cohort.patients[fold.train]} & {*cohort.patients[fold.test]}
        assert np.bincount(cohort.labels[fold.test]).tolist() == [8, 8]
    tested = [np.sort(np.concatenate([f.test for f in folds if f.repeat == repeat])) for repeat in (1, 2)]
    assert all(cases.tolist() == list(range(48)) for cases in tested)
    assert (folds.fold_of[0] != folds.fold_of[1]).any()
    assert (draw_cohort_folds(cohort, CONFIG).fold_of == folds.fold_of).all()
    assert fold_notes(cohort, folds) == []


def test_centres_are_folds_and_what_they_give_away_is_said(tmp_path: Path) -> None:
    table, told, _ = write_cohort(tmp_path)
    centres = [
        (slide, patient, label, "north" if (label == "normal") != (number < 4) else "south")
        for number, (slide, patient, label) in enumerate(rows_of(table))
    ]
    header = ("slide_id", "patient_id", "label", "centre")
    cohort, _ = read(write_table(tmp_path / "centres.csv", header, centres), told)
    config = CohortConfig(by_centre=True)
    folds = draw_cohort_folds(cohort, config)
    assert (folds.names, folds.num_repeats) == (("north", "south"), 1)
    assert all(len({*cohort.centres[fold.test]}) == 1 for fold in folds)
    assert any("the centre alone gives the class of 20 of 24" in note for note in cohort_notes(cohort))
    with pytest.raises(DataError, match="no centre is given"):
        draw_cohort_folds(read(table, told)[0], config)
    apart = [(slide, patient, label, label) for slide, patient, label, _ in centres]
    with pytest.raises(DataError, match="in one centre only: normal, tumour"):
        draw_cohort_folds(read(write_table(tmp_path / "apart.csv", header, apart), told)[0], config)


def test_one_pass_gives_means_of_all_tiles_and_samples_that_fit(tmp_path: Path) -> None:
    table, told, _ = write_cohort(tmp_path, slides_each=2)
    _, (source,) = read(table, told, config=CohortConfig(folds=3, unit="patient"))
    whole = scan(source, memory_gb=1, seed=0)
    tiles = [np.concatenate([np.concatenate(list(bag.pieces())) for bag in of_case]) for of_case in source.bags]
    np.testing.assert_allclose(whole.means, [one.mean(axis=0) for one in tiles], atol=1e-6)
    assert all((kept == one).all() for kept, one in zip(whole.samples, tiles, strict=True))
    mean, std = whole.standard(np.arange(24))
    pooled = np.concatenate([one / len(one) ** 0.5 for one in tiles])
    np.testing.assert_allclose(std**2 + mean**2, (pooled**2).sum(axis=0) / 24, rtol=1e-4)
    room = 24 * 7 * 4 * 4 / 1e9  # of 7 tiles of each case
    part = scan(source, memory_gb=room, seed=0)
    assert max(map(len, part.samples)) <= 7
    for kept, one in zip(part.samples, tiles, strict=True):
        assert {row.tobytes() for row in kept} <= {row.tobytes() for row in one}
    np.testing.assert_array_equal(part.means, whole.means)
    assert scan(source, memory_gb=None, seed=0).samples == ()


def test_small_cases_leave_their_share_of_the_memory_to_large_ones() -> None:
    counts = np.array([10, 10, 1000, 4000])
    assert tiles_that_fit(counts, 1, 4 * 1020 / 1e9) == 500
    assert tiles_that_fit(counts, 1, 1) == 4000
    assert tiles_that_fit(counts, 1, 4e-12) == 1


def test_a_digest_in_a_feature_file_is_read(tmp_path: Path) -> None:
    write_slide(tmp_path / "a.h5", np.zeros((2, 3)), encoder="uni", digest="abc")
    bag = open_bag(tmp_path / "a.h5")
    assert (bag.encoder, bag.encoder_digest) == ("uni", "abc")

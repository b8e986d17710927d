import csv
import logging
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dino_path.config import EvaluationConfig
from dino_path.errors import DataError, TileStoreError
from dino_path.evaluation.labelled.datasets import load_labelled

CONFIG = EvaluationConfig()


def write_csv(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return str(path)


@pytest.fixture
def rows(class_folders):
    """path, label, patient of every image: three patients a class, four images each."""
    return [
        (f"data/{file.parent.name}/{file.name}", file.parent.name, f"{file.parent.name}-{int(file.stem) // 4}")
        for file in sorted(class_folders.rglob("*.png"))
    ]


@pytest.fixture
def manifest(tmp_path, rows):
    return write_csv(tmp_path / "manifest.csv", ["path", "label", "patient_id"], rows)


def test_class_folders_become_classes_and_say_that_no_groups_are_known(class_folders, caplog):
    with caplog.at_level(logging.INFO):
        labelled = load_labelled(str(class_folders), CONFIG)
    assert labelled.classes == ("blood", "leaf", "sea")
    assert labelled.counts()["test"] == {"blood": 4, "leaf": 4, "sea": 4}
    assert labelled.groups is None
    assert "no group ids: tiles of one slide may be on both sides of the split" in caplog.text
    assert all(labelled.classes[label] in labelled.source.name(i) for i, label in enumerate(labelled.labels))


def test_a_folder_of_unlabelled_images_is_no_class_and_the_log_says_so(class_folders, write_image, caplog):
    write_image(class_folders / "unlabelled" / "x.png", 999)
    with caplog.at_level(logging.INFO):
        labelled = load_labelled(str(class_folders), CONFIG)
    assert labelled.classes == ("blood", "leaf", "sea")
    assert "unlabelled: 1 images without label left out" in caplog.text


def test_a_table_beside_class_folders_groups_them(class_folders, rows):
    write_csv(class_folders / "groups.csv", ["path", "label", "patient_id"],
              [(path.removeprefix("data/"), *rest) for path, *rest in rows])  # fmt: skip
    labelled = load_labelled(str(class_folders), CONFIG)
    assert labelled.group_kind == "patient"
    train, test = (set(labelled.groups[labelled.part(name)]) for name in ("train", "test"))
    assert len(train) == 6
    assert len(test) == 3
    assert not train & test


def test_a_table_beside_class_folders_must_name_every_image_and_agree(class_folders, rows):
    short = [(path.removeprefix("data/"), *rest) for path, *rest in rows]
    write_csv(class_folders / "groups.csv", ["path", "label", "patient_id"], short[1:])
    with pytest.raises(DataError, match=r"1 of 36 images have no row, first blood/00\.png"):
        load_labelled(str(class_folders), CONFIG)
    short[0] = (short[0][0], "sea", "p")
    write_csv(class_folders / "groups.csv", ["path", "label", "patient_id"], short)
    with pytest.raises(DataError, match="label 'sea' and lies in the folder 'blood'"):
        load_labelled(str(class_folders), CONFIG)


def test_folders_named_train_and_test_are_the_split(tmp_path, write_image):
    for part, count in (("train", 3), ("valid", 1), ("test", 2)):
        for number, label in enumerate("ab"):
            for index in range(count):
                write_image(tmp_path / "set" / part / label / f"{index}.png", 100 * count + 10 * number + index)
    labelled = load_labelled(str(tmp_path / "set"), CONFIG)
    assert labelled.classes == ("a", "b")
    assert labelled.counts() == {"train": {"a": 3, "b": 3}, "val": {"a": 1, "b": 1}, "test": {"a": 2, "b": 2}}
    assert labelled.split_rule == "as given with the data"
    fit, validation = labelled.fit_and_validation(0.2, seed=0)
    assert (labelled.split[fit] == "train").all()
    assert (labelled.split[validation] == "val").all()


def test_a_manifest_is_split_by_patient(manifest):
    labelled = load_labelled(manifest, CONFIG)
    assert labelled.name == "manifest"
    assert len(labelled.source) == 36
    for patient in np.unique(labelled.groups):
        assert len(set(labelled.split[labelled.groups == patient])) == 1
    assert labelled.split_rule == "0.3 of the patients for testing, stratified by class, seed 0"
    fit, validation = labelled.fit_and_validation(0.3, seed=0)
    assert not set(labelled.groups[fit]) & set(labelled.groups[validation])
    assert sorted([*fit, *validation]) == labelled.part("train").tolist()


def test_parquet_and_csv_give_the_same_experiment(manifest, tmp_path, rows):
    columns = {name: [row[index] for row in rows] for index, name in enumerate(["path", "label", "patient_id"])}
    pq.write_table(pa.table(columns), tmp_path / "same.parquet")
    assert (
        load_labelled(str(tmp_path / "same.parquet"), CONFIG).split_digest
        == load_labelled(manifest, CONFIG).split_digest
    )


def test_the_digest_does_not_depend_on_order_or_place_but_on_seed_and_labels(manifest, tmp_path, rows):
    first = load_labelled(manifest, CONFIG)
    given = [
        (*row, {"train": "train", "test": "test"}[str(split)]) for row, split in zip(rows, first.split, strict=True)
    ]
    header = ["path", "label", "patient_id", "split"]
    reversed_rows = load_labelled(write_csv(tmp_path / "reversed.csv", header, given[::-1]), CONFIG)
    assert reversed_rows.split_digest == first.split_digest
    assert reversed_rows.content_digest != first.content_digest
    assert load_labelled(manifest, EvaluationConfig(seed=1)).split_digest != first.split_digest


def test_a_written_split_is_a_manifest_of_the_same_experiment(manifest, tmp_path):
    labelled = load_labelled(manifest, CONFIG)
    labelled.write_split(tmp_path / "elsewhere" / "split.csv")
    again = load_labelled(str(tmp_path / "elsewhere" / "split.csv"), EvaluationConfig(seed=5))
    assert again.split_digest == labelled.split_digest
    assert again.group_kind == "patient"
    assert again.content_digest == labelled.content_digest


def test_slides_group_where_no_patients_are_named(tmp_path, rows):
    path = write_csv(tmp_path / "slides.csv", ["path", "label", "slide_id"], rows)
    assert load_labelled(path, CONFIG).group_kind == "slide"


def test_numbers_as_labels_stay_text(tmp_path, rows):
    numbered = [(path, {"blood": 0, "leaf": 1, "sea": 10}[label]) for path, label, _ in rows]
    assert load_labelled(write_csv(tmp_path / "n.csv", ["path", "label"], numbered), CONFIG).classes == ("0", "1", "10")


def test_a_patient_on_both_sides_of_a_given_split_is_refused(tmp_path, rows):
    leaking = [(*row, "test" if int(row[0][-6:-4]) % 4 == 0 else "train") for row in rows]
    path = write_csv(tmp_path / "leak.csv", ["path", "label", "patient_id", "split"], leaking)
    with pytest.raises(DataError, match="9 patients are on several sides of the given split, first blood-0"):
        load_labelled(path, CONFIG)


def test_copies_of_test_images_in_training_are_refused_unless_allowed(tmp_path, rows):
    shutil.copy(tmp_path / "data/blood/00.png", tmp_path / "data/blood/copy.png")
    given = [(path, label, "test" if int(path[-6:-4]) < 4 else "train") for path, label, _ in rows]
    given.append(("data/blood/copy.png", "blood", "train"))
    path = write_csv(tmp_path / "copies.csv", ["path", "label", "split"], given)
    with pytest.raises(DataError, match=r"1 of 12 test images are exact copies .* first .*blood/00\.png"):
        load_labelled(path, CONFIG)
    allowed = load_labelled(path, EvaluationConfig(allow_duplicates=True))
    assert any("allowed by evaluation.allow_duplicates" in note for note in allowed.notes)


def test_a_drawn_split_keeps_copies_together(class_folders):
    for index in range(12):
        shutil.copy(class_folders / f"sea/{index:02d}.png", class_folders / f"sea/copy{index:02d}.png")
    for seed in range(5):
        labelled = load_labelled(str(class_folders), EvaluationConfig(seed=seed))
        train, test = (set(labelled.content[labelled.part(name)]) for name in ("train", "test"))
        assert not train & test
    assert any("12 images are exact copies of others" in note for note in labelled.notes)


def test_copies_with_another_label_are_reported(class_folders):
    shutil.copy(class_folders / "sea/00.png", class_folders / "leaf/wrong.png")
    notes = load_labelled(str(class_folders), CONFIG).notes
    assert "1 images are exact copies of images with another label" in notes


def test_nct_crc_takes_its_nine_classes_and_the_published_split(tmp_path, write_image):
    classes = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
    for part, count in (("NCT-CRC-HE-100K", 3), ("CRC-VAL-HE-7K", 2)):
        for number, label in enumerate(classes):
            for index in range(count):
                write_image(tmp_path / part / label / f"{label}-{index}.tif", 1000 * count + 10 * number + index)
    labelled = load_labelled(f"nct-crc:{tmp_path}", CONFIG)
    assert labelled.classes == classes
    assert set(labelled.counts()["train"].values()) == {3}
    assert set(labelled.counts()["test"].values()) == {2}
    alone = load_labelled(f"nct-crc:{tmp_path / 'NCT-CRC-HE-100K'}", CONFIG)
    assert set(alone.counts()["train"].values()) == {2}
    shutil.copytree(tmp_path / "NCT-CRC-HE-100K", tmp_path / "NCT-CRC-HE-100K-NONORM")
    with pytest.raises(DataError, match="One training set is needed"):
        load_labelled(f"nct-crc:{tmp_path}", CONFIG)


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("{tmp}/nowhere", "no such file or folder"),
        ("{tmp}/nowhere.csv", "no such file or folder"),
        ("nct_crc:{tmp}/data", "Did you mean 'nct-crc:"),
        ("store:{tmp}/data", "evaluation.regions is not set"),
        ("nct-crc:{tmp}/data", "The 9 classes ADI"),
        ("{tmp}/data/blood/00.png", "this is a file, but not a table"),
        ("{tmp}/data/blood", "it holds no class folders"),
    ],
)
def test_a_spec_that_names_nothing_is_refused_with_what_to_do(class_folders, tmp_path, spec, wanted):
    with pytest.raises(DataError, match=wanted):
        load_labelled(spec.format(tmp=tmp_path), CONFIG)


def test_an_empty_class_and_a_single_class_are_refused(class_folders):
    (class_folders / "desert").mkdir()
    with pytest.raises(DataError, match="desert: this class folder holds no images"):
        load_labelled(str(class_folders), CONFIG)
    for name in ("desert", "leaf", "sea"):
        shutil.rmtree(class_folders / name)
    with pytest.raises(DataError, match=r"only one class \(blood\)"):
        load_labelled(str(class_folders), CONFIG)


@pytest.mark.parametrize(
    ("header", "change", "wanted"),
    [
        (["file", "label"], lambda row: row[:2], r"`file` is unknown; did you mean `path`"),
        (["a", "label"], lambda row: row[:2], "no column 'path'; it has 'a', 'label'"),
        (["path", "label"], lambda row: (row[0], "NA"), "none of its 36 rows has a label"),
        (
            ["path", "label", "patient"],
            lambda row: (*row[:2], "NA" if row[1] == "sea" else "1"),
            r"'patient_id' is empty \(or NA\) in 12 of 36",
        ),
        (
            ["path", "label", "split"],
            lambda row: (*row[:2], "" if row[1] == "sea" else "train"),
            r"'split' is empty \(or NA\) in 12 of 36",
        ),
        (["path", "label", "pateint_id"], lambda row: row, "`pateint_id` is unknown; did you mean `patient_id`"),
        (["path", "label"], lambda row: ("gone/" + row[0], row[1]), "36 of 36 images are missing, first .*gone"),
        (["path", "label"], lambda row: ("data/sea/00.png", row[1]), "1 images have several rows: .*sea/00.png"),
        (["path", "label", "split"], lambda row: (*row[:2], "holdout"), "unknown split 'holdout'"),
        (["path", "label", "split"], lambda row: (*row[:2], "train"), "no test images of blood, leaf, sea"),
        (["path", "label"], lambda row: row, "line 2 has 3 cells, its header 2"),
        (["path", "label", "label"], lambda row: row, "names a column twice"),
    ],
)
def test_a_malformed_manifest_is_refused_with_the_fault(tmp_path, rows, header, change, wanted):
    path = write_csv(tmp_path / "bad.csv", header, [change(row) for row in rows])
    with pytest.raises(DataError, match=wanted):
        load_labelled(path, CONFIG)


def test_files_that_are_no_images_are_refused_by_name(class_folders):
    (class_folders / "sea" / "00.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"00\.png: the file is empty"):
        load_labelled(str(class_folders), CONFIG)
    (class_folders / "sea" / "00.png").write_text("<html>404</html>")
    with pytest.raises(DataError, match=r"00\.png: 16 bytes that are not an image"):
        load_labelled(str(class_folders), CONFIG)


def test_a_file_that_cannot_be_read_is_refused_by_name(class_folders):
    (class_folders / "sea" / "folder.png").mkdir()
    assert len(load_labelled(str(class_folders), CONFIG).source) == 36  # a folder is no image
    labelled = load_labelled(str(class_folders), CONFIG)
    (class_folders / "sea" / "00.png").unlink()
    with pytest.raises(TileStoreError, match=r"00\.png"):
        labelled.source.read_bytes(24)


def test_links_that_lead_nowhere_are_refused_by_name(class_folders):
    dead = class_folders / "sea" / "12.png"
    dead.symlink_to("/not_mounted/12.png")
    with pytest.raises(TileStoreError, match=r"1 folder.*12\.png: a link to /not_mounted/12\.png, which is not there"):
        load_labelled(str(class_folders), CONFIG)
    dead.unlink()
    (class_folders / "sky").symlink_to("/not_mounted/sky")
    with pytest.raises(DataError, match=r"1 link.*sky: a link to /not_mounted/sky"):
        load_labelled(str(class_folders), CONFIG)


@pytest.fixture
def parts(class_folders, tmp_path):
    """train/ and test/ that hold the three classes."""
    root = tmp_path / "parts"
    for name in ("train", "test"):
        for folder in class_folders.iterdir():
            (root / name / folder.name).mkdir(parents=True)
            for file in sorted(folder.iterdir()):
                if (int(file.stem) < 4) == (name == "test"):
                    shutil.copy(file, root / name / folder.name)
    return root


def test_unlabelled_images_beside_the_parts_are_left_out_and_counted(parts, write_image):
    write_image(parts / "unlabelled" / "u.png", 999)
    labelled = load_labelled(str(parts), CONFIG)
    assert labelled.classes == ("blood", "leaf", "sea")
    assert labelled.split_rule == "as given with the data"
    assert "unlabelled: 1 images without label left out" in labelled.notes


@pytest.mark.parametrize("name", ["test_external", "Test-2", "holdout", "sky", "train2", "validation.old"])
def test_a_folder_beside_the_parts_is_refused_and_never_a_class(parts, write_image, name):
    write_image(parts / name / "sea" / "u.png", 999)
    with pytest.raises(DataError, match=f"(?s){name}.*further test set"):
        load_labelled(str(parts), CONFIG)


def test_a_part_beside_class_folders_is_refused_and_so_are_two_of_one_kind(parts, class_folders, write_image):
    (parts / "test").rename(class_folders / "test")
    with pytest.raises(
        DataError, match="test: named like parts of the data, not like classes; beside blood, leaf, sea"
    ):
        load_labelled(str(class_folders), CONFIG)
    write_image(parts / "training" / "sea" / "u.png", 999)
    with pytest.raises(DataError, match="train and training mean the same part"):
        load_labelled(str(parts), CONFIG)


def test_a_class_whose_name_begins_like_a_part_stays_a_class(class_folders):
    (class_folders / "sea").rename(class_folders / "testis")
    assert load_labelled(str(class_folders), CONFIG).classes == ("blood", "leaf", "testis")


def test_rows_without_a_label_are_left_out_and_counted_whatever_word_they_use(tmp_path, rows):
    words = ["NA", "", "NaN", "null", "None", "#N/A"]
    some = [(path, words[i % 6] if i % 12 < 6 else label, patient) for i, (path, label, patient) in enumerate(rows)]
    labelled = load_labelled(write_csv(tmp_path / "m.csv", ["path", "label", "patient_id"], some), CONFIG)
    assert labelled.classes == ("blood", "leaf", "sea")
    assert len(labelled.source) == 18
    assert any(note.startswith("18 rows without a label") for note in labelled.notes)


def test_patients_that_are_missing_in_every_row_are_not_known_and_no_patient(tmp_path, rows):
    some = [(path, label, "NA", patient) for path, label, patient in rows]
    header = ["path", "label", "patient_id", "slide_id"]
    labelled = load_labelled(write_csv(tmp_path / "m.csv", header, some), CONFIG)
    assert labelled.group_kind == "slide"
    assert "column `patient_id` is empty in every row: treated as unknown" in labelled.notes


def test_blank_rows_aliases_and_strange_columns_of_a_manifest(tmp_path, rows):
    some = [[*row, "x"] for row in rows] + [["", "", "", ""]] * 2
    labelled = load_labelled(write_csv(tmp_path / "m.csv", ["path", "label", "patient", "site"], some), CONFIG)
    assert labelled.group_kind == "patient"
    assert len(labelled.source) == 36
    assert labelled.notes[:2] == ("column `patient` is read as `patient_id`", "columns that are not used: `site`")


def test_centres_and_scanners_of_a_manifest_are_known_and_come_back_from_the_split(tmp_path, rows):
    some = [(*row, f"C{index % 2}", "one") for index, row in enumerate(rows)]
    header = ["path", "label", "patient_id", "Medical Center", "scanner"]
    labelled = load_labelled(write_csv(tmp_path / "m.csv", header, some), CONFIG)
    assert "column `Medical Center` is read as `centre`" in labelled.notes
    assert labelled.centres.tolist() == [f"C{index % 2}" for index in range(36)]
    assert (set(labelled.scanners), labelled.has_makers) == ({"one"}, True)
    labelled.write_split(tmp_path / "split.csv")
    again = load_labelled(str(tmp_path / "split.csv"), CONFIG)
    assert again.split_digest == labelled.split_digest
    assert (again.centres == labelled.centres).all()
    assert (again.scanners == labelled.scanners).all()


def test_a_centre_that_is_missing_in_some_rows_is_refused_and_in_all_rows_not_known(tmp_path, rows):
    some = [(*row, "C0" if index else "") for index, row in enumerate(rows)]
    header = ["path", "label", "patient_id", "centre"]
    with pytest.raises(DataError, match=r"'centre' is empty \(or NA\) in 1 of 36 rows"):
        load_labelled(write_csv(tmp_path / "m.csv", header, some), CONFIG)
    none = load_labelled(write_csv(tmp_path / "m.csv", header, [(*row, "NA") for row in rows]), CONFIG)
    assert (none.centres, none.has_makers) == (None, False)


def test_a_table_beside_class_folders_names_centres_too(class_folders, rows):
    write_csv(class_folders / "groups.csv", ["path", "slide_id", "centre"],
              [(path.removeprefix("data/"), slide, label) for path, label, slide in rows])  # fmt: skip
    labelled = load_labelled(str(class_folders), CONFIG)
    assert labelled.centres.tolist() == [labelled.classes[label] for label in labelled.labels]


def test_a_semicolon_table_of_windows_names_the_same_images(tmp_path, rows):
    text = "path;label\n" + "".join(f"{path.replace('/', chr(92))};{label}\n" for path, label, _ in rows)
    (tmp_path / "m.csv").write_text(text, encoding="utf-16")
    assert load_labelled(str(tmp_path / "m.csv"), CONFIG).classes == ("blood", "leaf", "sea")


def test_a_training_part_too_small_for_validation_is_refused(tmp_path, rows):
    few = [(p, label, patient, "test" if patient.endswith("0") else "train") for p, label, patient in rows]
    few = [row for row in few if not (row[1] == "sea" and row[2] == "sea-2")]
    path = write_csv(tmp_path / "few.csv", ["path", "label", "patient_id", "split"], few)
    labelled = load_labelled(path, CONFIG)
    with pytest.raises(DataError, match=r"manifest|few \(training part\): too few patients to divide: sea \(1\)"):
        labelled.fit_and_validation(0.2, seed=0)


def test_real_lung_photos_are_split_by_source_photo(shared_data):
    labelled = load_labelled(str(shared_data / "lc25000-lung-dev"), CONFIG)
    assert labelled.classes == ("lung_aca", "lung_n", "lung_scc")
    train, test = (set(labelled.groups[labelled.part(name)]) for name in ("train", "test"))
    assert not train & test
    assert len(train) + len(test) == 149

"""Tiny generated files in the layouts of the published sets."""

import csv
import pickle

import h5py
import numpy as np
import pytest

from dino_path.config import EvaluationConfig
from dino_path.errors import DataError
from dino_path.evaluation.labelled.datasets import load_labelled

CONFIG = EvaluationConfig()
META = ["", "coord_y", "coord_x", "tumor_patch", "center_tumor_patch", "wsi"]


def write_table(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])


def write_pcam_part(folder, part, count, *, slides=None, first_seed=0, **options):
    stem = f"camelyonpatch_level_2_split_{part}"
    labels = np.arange(count) % 2
    images = np.random.default_rng([first_seed, len(part)]).integers(0, 256, (count, 96, 96, 3)).astype(np.uint8)
    with h5py.File(folder / f"{stem}_x.h5", "w") as stream:
        stream.create_dataset("x", data=images, **options)
    with h5py.File(folder / f"{stem}_y.h5", "w") as stream:
        stream["y"] = labels.astype(np.uint8).reshape(-1, 1, 1, 1)
    if slides is not None:
        rows = [(i, 0, 0, bool(labels[i]), bool(labels[i]), slides[i % len(slides)]) for i in range(count)]
        write_table(folder / f"{stem}_meta.csv", META, rows)
    return images


@pytest.fixture
def pcam(tmp_path):
    for part, count, slides in (("train", 12, ("t1", "t2", "t3")), ("valid", 4, ("v1",)), ("test", 6, ("e1", "e2"))):
        write_pcam_part(tmp_path, part, count, slides=slides, chunks=(4, 96, 96, 3), compression="gzip")
    return tmp_path


def test_pcam_brings_its_split_and_its_slides(pcam):
    labelled = load_labelled(f"pcam:{pcam}", CONFIG)
    assert labelled.classes == ("normal", "tumour")
    assert labelled.counts() == {
        "train": {"normal": 6, "tumour": 6}, "val": {"normal": 2, "tumour": 2}, "test": {"normal": 3, "tumour": 3}
    }  # fmt: skip
    assert labelled.group_kind == "slide"
    assert set(labelled.groups[labelled.part("test")]) == {"e1", "e2"}
    notes = " ".join(labelled.notes)
    assert "central 32 x 32 px" in notes
    assert "12 images in train, 262,144 were published" in notes
    assert "32,768 were published" in notes


def test_pcam_images_are_the_pixels_of_the_files_also_in_another_process(pcam):
    source = load_labelled(f"pcam:{pcam}", CONFIG).source
    with h5py.File(pcam / "camelyonpatch_level_2_split_test_x.h5") as stream:
        wanted = stream["x"][5]
    assert (source.read_image(12 + 4 + 5) == wanted).all()
    copy = pickle.loads(pickle.dumps(source))
    assert (copy.read_image(21) == wanted).all()
    assert copy.name(21).endswith("test_x.h5[5]")
    assert source.mpp == 0.97


def test_pcam_without_meta_tables_names_no_slides(pcam):
    (pcam / "camelyonpatch_level_2_split_train_meta.csv").unlink()
    labelled = load_labelled(f"pcam:{pcam}", CONFIG)
    assert labelled.groups is None
    assert "no camelyonpatch_level_2_split_train_meta.csv: slides are unknown" in labelled.notes


def test_pcam_meta_tables_that_contradict_the_labels_are_not_believed(pcam):
    rows = [(i, 0, 0, False, i % 3 == 0, "e1") for i in range(6)]
    write_table(pcam / "camelyonpatch_level_2_split_test_meta.csv", META, rows)
    labelled = load_labelled(f"pcam:{pcam}", CONFIG)
    assert labelled.groups is None
    assert "camelyonpatch_level_2_split_test_meta.csv disagrees with the labels: its slides are not used" in (
        labelled.notes
    )


def test_a_pcam_slide_in_training_and_test_is_refused(pcam):
    write_pcam_part(pcam, "test", 6, slides=("t1",), first_seed=9)
    with pytest.raises(DataError, match="1 slides are on several sides of the given split, first t1"):
        load_labelled(f"pcam:{pcam}", CONFIG)


def test_one_part_of_pcam_has_a_split_drawn_by_slide(tmp_path):
    write_pcam_part(tmp_path, "valid", 24, slides=tuple("abcdef"))
    labelled = load_labelled(f"pcam:{tmp_path}", CONFIG)
    train, test = (set(labelled.groups[labelled.part(name)]) for name in ("train", "test"))
    assert not train & test


def test_damaged_pcam_files_are_refused_by_name(pcam):
    file = pcam / "camelyonpatch_level_2_split_test_x.h5"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"test_x\.h5: cannot be read"):
        load_labelled(f"pcam:{pcam}", CONFIG)
    file.unlink()
    with h5py.File(file, "w") as stream:
        stream["x"] = np.zeros((6, 96, 96, 3), np.float32)
    with pytest.raises(DataError, match="holds float32 of the shape"):
        load_labelled(f"pcam:{pcam}", CONFIG)
    with h5py.File(file, "w") as stream:
        stream["x"] = np.zeros((5, 96, 96, 3), np.uint8)
    with pytest.raises(DataError, match="21 images and 22 labels"):
        load_labelled(f"pcam:{pcam}", CONFIG)


@pytest.fixture
def mhist(tmp_path, write_image):
    header = ["Image Name", "Majority Vote Label", "Number of Annotators who Selected SSA (Out of 7)", "Partition"]
    rows = [(f"MHIST_{i:03d}.png", ("HP", "SSA")[i % 2], 3, "train" if i < 6 else "test") for i in range(10)]
    write_table(tmp_path / "annotations.csv", header, rows)
    for index in range(10):
        write_image(tmp_path / "images" / f"MHIST_{index:03d}.png", index)
    return tmp_path


def test_mhist_brings_its_partition_and_names_no_patients(mhist):
    labelled = load_labelled(f"mhist:{mhist}", CONFIG)
    assert labelled.classes == ("HP", "SSA")
    assert labelled.counts() == {"train": {"HP": 3, "SSA": 3}, "test": {"HP": 2, "SSA": 2}}
    assert labelled.groups is None
    assert "not the published set: 6 images in train, 2,175 were published" in labelled.notes


def test_mhist_images_that_are_missing_are_counted(mhist):
    (mhist / "images" / "MHIST_000.png").unlink()
    labelled = load_labelled(f"mhist:{mhist}", CONFIG)
    assert "1 images of annotations.csv are missing and left out" in labelled.notes
    assert len(labelled.source) == 9


@pytest.fixture
def breakhis(tmp_path, write_image):
    """Two images of three cases of each type, at two magnifications; DC has a case that LC has too."""
    kinds = {"F": "B", "TA": "B", "A": "B", "DC": "M", "LC": "M", "MC": "M"}
    number = 0
    for kind, group in kinds.items():
        for case in (f"{100 + len(kind)}{kind}", "13412" if kind in ("DC", "LC") else f"2{number}", f"3{number}AB"):
            for magnification in (40, 200):
                for index in (1, 2):
                    number += 1
                    slide = f"SOB_{group}_{kind}_14-{case}"
                    name = f"SOB_{group}_{kind}-14-{case}-{magnification}-{index:03d}.png"
                    write_image(tmp_path / "breast" / kind / slide / f"{magnification}X" / name, number)
    return tmp_path


def test_breakhis_is_read_at_one_magnification_and_split_by_patient(breakhis):
    labelled = load_labelled(f"breakhis:{breakhis}", CONFIG)
    assert labelled.classes == ("DC", "F", "MC", "TA")
    assert len(labelled.source) == 24
    assert all("-40-" in labelled.source.name(index) for index in range(24))
    assert labelled.group_kind == "patient"
    assert not set(labelled.groups[labelled.part("train")]) & set(labelled.groups[labelled.part("test")])
    assert "types of fewer than 7 patients left out: A (6 images), LC (6 images)" in labelled.notes
    assert "not the published set: 36 images, 1,995 were published" in labelled.notes
    other = load_labelled(f"breakhis:{breakhis}", EvaluationConfig(breakhis_magnification="200X"))
    assert all("-200-" in other.source.name(index) for index in range(24))


def test_parts_of_one_breakhis_case_are_one_patient(tmp_path, write_image):
    for seed, name in enumerate(("F-14-29960AB", "TA-14-29960CD", "F-14-1", "TA-14-2", "F-14-3", "TA-14-4")):
        write_image(tmp_path / f"SOB_B_{name}-40-001.png", seed)
    labelled = load_labelled(f"breakhis:{tmp_path}", CONFIG)
    assert sorted(labelled.groups).count("29960") == 2


def test_bach_is_split_by_image_unless_a_table_names_patients(tmp_path, write_image):
    photos = tmp_path / "ICIAR2018_BACH_Challenge" / "Photos"
    for number, name in enumerate(("Benign", "InSitu", "Invasive", "Normal")):
        for index in range(6):
            write_image(photos / name / f"{name[0].lower()}{index:03d}.tif", 10 * number + index)
    labelled = load_labelled(f"bach:{tmp_path}", CONFIG)
    assert labelled.classes == ("Benign", "InSitu", "Invasive", "Normal")
    assert labelled.groups is None
    assert "no group ids: tiles of one slide may be on both sides of the split" in labelled.notes
    assert "not the published set: 24 images, 400 were published" in labelled.notes
    assert labelled.source.mpp == 0.42
    rows = [(path.relative_to(photos), f"p{index // 2}") for index, path in enumerate(sorted(photos.rglob("*.tif")))]
    write_table(photos / "groups.csv", ["path", "patient_id"], rows)
    assert load_labelled(f"bach:{tmp_path}", CONFIG).group_kind == "patient"


WILDS_HEADER = ["", "patient", "node", "x_coord", "y_coord", "tumor", "slide", "center", "split"]


def write_wilds(folder, write_image, *, skipped=()):
    """Two patients of each of the five centres with four images each; the last of a training patient is of id_val."""
    rows = []
    for number in range(40):
        patient, centre = f"{number // 4 + 4:03d}", number // 8
        is_id_val = int(centre in (0, 3, 4) and number % 4 == 3)
        rows.append([number, patient, 1, 32 * number, 64, number % 2, number // 4, centre, is_id_val])
        if number not in skipped:
            name = f"patch_patient_{patient}_node_1_x_{32 * number}_y_64.png"
            write_image(folder / "patches" / f"patient_{patient}_node_1" / name, number)
    write_table(folder / "metadata.csv", WILDS_HEADER, rows)
    return rows


def test_camelyon17_wilds_is_split_by_centre_and_leaves_id_val_out(tmp_path, write_image):
    write_wilds(tmp_path / "camelyon17_v1.0", write_image, skipped=(0,))
    labelled = load_labelled(f"camelyon17-wilds:{tmp_path}", CONFIG)
    centres = {part: set(labelled.centres[labelled.part(part)]) for part in ("train", "val", "test")}
    assert centres == {"train": {"centre 0", "centre 3", "centre 4"}, "val": {"centre 1"}, "test": {"centre 2"}}
    assert [len(labelled.part(part)) for part in ("train", "val", "test")] == [17, 8, 8]
    assert (labelled.group_kind, len(np.unique(labelled.groups)), labelled.source.mpp) == ("patient", 10, 0.97)
    assert labelled.classes == ("normal", "tumour")
    assert labelled.has_makers
    notes = "; ".join(labelled.notes)
    assert "6 images of id_val left out: they come from the slides of the training images" in notes
    assert "1 images of metadata.csv are missing and left out" in notes
    assert "not the published set: 17 images in train, 302,436 were published" in notes
    assert "the label is that of the central 32 x 32 px" in notes
    inside = load_labelled(f"camelyon17-wilds:{tmp_path / 'camelyon17_v1.0'}", CONFIG)
    assert inside.split_digest == labelled.split_digest


def test_a_camelyon17_wilds_of_other_values_or_without_images_is_refused(tmp_path, write_image):
    rows = write_wilds(tmp_path / "a", write_image)
    write_table(tmp_path / "a" / "metadata.csv", WILDS_HEADER, [[*row[:-1], 7] for row in rows])
    with pytest.raises(DataError, match=r"metadata\.csv has split or tumor '7'"):
        load_labelled(f"camelyon17-wilds:{tmp_path / 'a'}", CONFIG)
    (tmp_path / "b").mkdir()
    write_table(tmp_path / "b" / "metadata.csv", WILDS_HEADER, rows)
    with pytest.raises(DataError, match=r"none of the 34 images of metadata\.csv exists, first .*patch_patient_004"):
        load_labelled(f"camelyon17-wilds:{tmp_path / 'b'}", CONFIG)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("camelyon17-wilds", "metadata.csv"),
        ("pcam", "The published files camelyonpatch_level_2_split_PART_x.h5"),
        ("mhist", "annotations.csv"),
        ("breakhis", "0 images named as in BreakHis"),
        ("bach", "no class folders"),
    ],
)
def test_a_folder_of_something_else_is_refused_with_what_is_needed(tmp_path, name, wanted):
    with pytest.raises(DataError, match=wanted):
        load_labelled(f"{name}:{tmp_path}", CONFIG)
    with pytest.raises(DataError, match="no such file or folder"):
        load_labelled(f"{name}:{tmp_path / 'nowhere'}", CONFIG)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (np.array([0, 2] * 4, np.uint8), "other than 0 and 1"), (np.array([0.0, np.nan] * 4), "other than 0 and 1"),
        (np.array([b"0", b"1"] * 4), "other than 0 and 1"), ("text", "other than 0 and 1"), (None, "cannot be read"),
    ],
)  # fmt: skip
def test_pcam_labels_that_are_not_0_and_1_are_refused(pcam, labels, found):
    with h5py.File(pcam / "camelyonpatch_level_2_split_train_y.h5", "r+") as stream:
        del stream["y"]
        if labels is None:
            stream.create_group("y")
        else:
            stream["y"] = labels
    with pytest.raises(DataError, match=found):
        load_labelled(f"pcam:{pcam}", CONFIG)

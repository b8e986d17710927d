"""Tables of images and masks: what is read, what is refused, and the split."""

import csv
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dino_path.config import EvaluationConfig
from dino_path.errors import DataError
from dino_path.evaluation.labelled.masks import read_picture
from dino_path.evaluation.labelled.published_masks import load_masked
from dino_path.evaluation.measures.overlap import UNKNOWN

CONFIG = EvaluationConfig()


def write_table(folder: Path, count: int = 8, numbers: tuple[int, ...] = (0, 255), **columns: list[str]) -> Path:
    """`count` images of 12 x 10 px, masks whose columns have the class `numbers` in turn, and `table.csv`."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(count):
        cv2.imwrite(str(folder / f"image_{number}.png"), rng.integers(0, 256, (10, 12, 3)).astype(np.uint8))
        mask = np.array([numbers[(x + number) % len(numbers)] for x in range(12)], np.uint8)
        cv2.imwrite(str(folder / f"mask_{number}.png"), np.tile(mask, (10, 1)))
        rows.append([f"image_{number}.png", f"mask_{number}.png", *(values[number] for values in columns.values())])
    with (folder / "table.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["path", "mask", *columns], *rows])
    return folder / "table.csv"


def refusal_of(table: Path, config: EvaluationConfig = CONFIG) -> DataError:
    with pytest.raises(DataError) as refusal:
        load_and_check(table, config)
    return refusal.value


def load_and_check(table: Path, config: EvaluationConfig) -> None:
    masked = load_masked(str(table), config)
    masked.check_splits([masked.labelled], seed=0)


def test_0_and_255_alone_are_two_classes(tmp_path: Path) -> None:
    masked = load_masked(str(write_table(tmp_path)), CONFIG)
    assert (masked.classes, masked.counted) == (("background", "foreground"), (1,))
    assert masked.read_mask(0, (10, 12))[0].tolist() == [0, 1] * 6
    assert masked.pixels.tolist() == [[60, 60]] * 8


def test_other_numbers_are_classes_and_255_beside_them_is_nobodys(tmp_path: Path) -> None:
    masked = load_masked(str(write_table(tmp_path, numbers=(0, 3, 7, 255))), CONFIG)
    assert masked.classes == ("background", "class 3", "class 7")
    assert masked.read_mask(0, (10, 12))[0, :4].tolist() == [0, 1, 2, UNKNOWN]
    assert any("25.0 % of all pixels are 255" in note for note in masked.labelled.notes)


def test_classes_have_the_names_that_are_set_and_a_named_0_counts(tmp_path: Path) -> None:
    table = write_table(tmp_path, numbers=(0, 3))
    named = EvaluationConfig(segmentation_classes={"nucleus": 3})
    assert load_masked(str(table), named).classes == ("background", "nucleus")
    both = load_masked(str(table), EvaluationConfig(segmentation_classes={"stroma": 0, "tumour": 3}))
    assert (both.classes, both.counted) == (("stroma", "tumour"), (0, 1))


def test_a_number_without_a_name_is_refused_with_its_mask(tmp_path: Path) -> None:
    error = refusal_of(
        write_table(tmp_path, numbers=(0, 3, 4)), EvaluationConfig(segmentation_classes={"nucleus": 3})
    )  # fmt: skip
    assert "mask_0.png" in error.thing
    assert "numbers 4" in error.found
    assert "segmentation_classes" in error.remedy


def test_a_class_that_no_training_image_has_is_refused(tmp_path: Path) -> None:
    error = refusal_of(
        write_table(tmp_path, numbers=(0, 3)), EvaluationConfig(segmentation_classes={"nucleus": 3, "mitosis": 5})
    )
    assert "mitosis" in error.found


def test_too_few_images_to_choose_settings_on_are_refused(tmp_path: Path) -> None:
    error = refusal_of(write_table(tmp_path, count=2, split=["train", "test"]))
    assert "too few images to divide" in error.found


def test_masks_of_one_class_are_refused(tmp_path: Path) -> None:
    assert "only one class" in refusal_of(write_table(tmp_path, numbers=(1,))).found


def test_a_mask_of_another_size_than_its_image_is_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path)
    cv2.imwrite(str(tmp_path / "mask_3.png"), np.zeros((10, 13), np.uint8))
    error = refusal_of(table)
    assert "mask_3.png" in error.thing
    assert "13 x 10 px, but its image 12 x 10" in error.found


def test_a_palette_gives_its_numbers_and_not_its_colours(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 1], [2, 1]], np.uint8), mode="P")
    picture.putpalette([255, 255, 255, 200, 0, 0, 0, 0, 200])
    picture.save(tmp_path / "mask.png")
    assert read_picture(tmp_path / "mask.png").tolist() == [[0, 1], [2, 1]]


def test_tiffs_grey_rgb_and_one_bit_are_read(tmp_path: Path) -> None:
    numbers = np.array([[0, 1], [2, 1]], np.uint8)
    Image.fromarray(numbers).save(tmp_path / "grey.tif", compression="tiff_lzw")
    Image.fromarray(np.repeat(numbers[..., None], 3, axis=2)).save(tmp_path / "rgb.png")
    Image.fromarray(numbers > 0).save(tmp_path / "bit.png")
    assert read_picture(tmp_path / "grey.tif").tolist() == numbers.tolist()
    assert read_picture(tmp_path / "rgb.png").tolist() == numbers.tolist()
    assert read_picture(tmp_path / "bit.png").tolist() == [[0, 1], [1, 1]]


def test_colours_numbers_of_nuclei_and_damage_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[1, 2, 3]]], np.uint8)).save(tmp_path / "colour.png")
    Image.fromarray(np.array([[0, 312]], np.uint16)).save(tmp_path / "nuclei.png")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name, found in (("colour", "colour picture"), ("nuclei", "from 0 to 312"), ("torn", "cannot be read")):
        with pytest.raises(DataError) as refusal:
            read_picture(tmp_path / f"{name}.png")
        assert found in refusal.value.found


def test_a_missing_mask_and_a_mask_of_two_images_are_refused(tmp_path: Path) -> None:
    table = write_table(tmp_path)
    (tmp_path / "mask_5.png").unlink()
    assert "1 of 8 masks are missing" in refusal_of(table).found
    table.write_text(table.read_text().replace("mask_5.png", "mask_4.png"))
    assert "1 masks have several rows" in refusal_of(table).found


def test_a_table_without_masks_and_a_folder_are_refused(tmp_path: Path) -> None:
    write_table(tmp_path)
    (tmp_path / "plain.csv").write_text("path,label\nimage_0.png,a\n")
    assert "'mask'" in refusal_of(tmp_path / "plain.csv").found
    assert "not a table" in refusal_of(tmp_path).found
    assert "no such file" in refusal_of(Path("monusak:nowhere")).found


def test_patients_stay_together_and_a_leak_is_refused(tmp_path: Path) -> None:
    patients = [f"p{number // 2}" for number in range(8)]
    masked = load_masked(str(write_table(tmp_path / "a", patient_id=patients)), CONFIG)
    sides = {(patient, side) for patient, side in zip(patients, masked.labelled.split, strict=True)}
    assert len(sides) == 4
    assert masked.labelled.unit_name == "patients"
    split = ["train", "test"] * 4
    assert "4 patients are on several sides" in refusal_of(
        write_table(tmp_path / "b", patient_id=patients, split=split)
    ).found  # fmt: skip


def test_a_drawn_split_is_stratified_by_labels_with_enough_images(tmp_path: Path) -> None:
    labels = ["liver"] * 10 + ["spleen"] * 10 + ["lung"] * 2
    masked = load_masked(str(write_table(tmp_path, count=22, label=labels)), CONFIG)
    test = masked.labelled.part("test")
    assert sum(labels[index] == "spleen" for index in test) == 3
    assert masked.labels == tuple(labels)
    assert set(masked.labelled.classes) == {"liver", "spleen"}, "two images are too few for a stratum"


def test_the_written_split_is_the_same_experiment(tmp_path: Path) -> None:
    table = write_table(tmp_path, patient_id=list("aabbccdd"), centre=list("xxxxyyyy"), label=["nerve"] * 8)
    masked = load_masked(str(table), CONFIG)
    masked.write_split(tmp_path / "split.csv")
    again = load_masked(str(tmp_path / "split.csv"), CONFIG)
    assert again.labelled.split.tolist() == masked.labelled.split.tolist()
    assert (again.digest, again.labels, again.centres) == (masked.digest, masked.labels, tuple("xxxxyyyy"))


def test_a_mask_too_large_to_hold_is_refused_by_its_header(tmp_path: Path) -> None:
    for edge, found in ((9_100, "9,100 x 9,100 pixels"), (30_000, "more than 80,000,000 pixels")):
        head = struct.pack(">IIBBBBB", edge, edge, 8, 0, 0, 0, 0)
        checksum = struct.pack(">I", zlib.crc32(b"IHDR" + head))
        (tmp_path / "mask.png").write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + head + checksum)
        with (tmp_path / "mask.png").open("ab") as stream:
            stream.write(struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT")))
        with pytest.raises(DataError, match=found):
            read_picture(tmp_path / "mask.png")

"""Masks from patch vectors: the fit against scikit-learn, shares and votes by hand, and sets whose Dice is known."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from dino_path.checksum import is_intact
from dino_path.config import EvaluationConfig
from dino_path.errors import DataError
from dino_path.evaluation.labelled.published_masks import load_masked
from dino_path.evaluation.measures.overlap import UNKNOWN
from dino_path.evaluation.protocols.dense import Patches, class_shares, fit_linear, mask_of, vote
from dino_path.evaluation.results import segmentation
from dino_path.evaluation.results.earlier import refuse_to_lose_masks
from dino_path.evaluation.results.segmentation import evaluate_segmentation
from dino_path.records.segmentation import SEGMENTATION, SegmentationRecord
from dino_path.verify import verify

CPU = torch.device("cpu")
CONFIG = EvaluationConfig(num_bootstrap=100, segmentation_fit_tokens=400, segmentation_knn_tokens=200)
RED, BLUE = (200, 60, 60), (60, 60, 200)


def test_the_linear_layer_is_scikit_learns_with_a_row_for_each_class_of_a_patch() -> None:
    """A share is the weight of a row; scikit-learn's C multiplies the sum, ours the mean."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(3, 2, (60, 4)).astype(np.float32)
    shares = rng.dirichlet((1, 1, 1), 60).astype(np.float32)
    layer, num_iterations = fit_linear(Patches(vectors, shares), 0.01, device=CPU)
    standardised = (vectors - vectors.mean(axis=0)) / vectors.std(axis=0)
    reference = LogisticRegression(C=1 / (0.01 * 60), tol=1e-8, max_iter=1000).fit(
        np.repeat(standardised, 3, axis=0), np.tile([0, 1, 2], 60), sample_weight=shares.ravel()
    )
    mine = torch.softmax(torch.from_numpy(layer.logits(vectors)), dim=1).numpy()
    assert mine == pytest.approx(reference.predict_proba(standardised), abs=1e-3)
    assert num_iterations < 100


@pytest.mark.parametrize(("patch_px", "scale"), [(4, 1.0), (4, 0.5), (8, 2.0)])
def test_shares_are_of_the_known_pixels_of_a_patch(patch_px: int, scale: float) -> None:
    rng = np.random.default_rng(1)
    edge = round(patch_px / scale)
    mask = rng.choice(np.array([0, 1, 2, UNKNOWN], np.uint8), (3 * edge, 2 * edge))
    if scale > 1:
        mask = np.kron(mask[::edge, ::edge], np.ones((edge, edge), np.uint8))  # whole patches: enlarging blurs edges
    shares = class_shares(mask, 3, patch_px=patch_px, scale=scale)
    assert shares.shape == (3, 2, 3)
    for row in range(3):
        for column in range(2):
            pixels = mask[row * edge : (row + 1) * edge, column * edge : (column + 1) * edge]
            known = pixels[pixels != UNKNOWN]
            expected = [np.mean(known == number) for number in range(3)] if len(known) else [np.nan] * 3
            if scale <= 1:
                assert shares[row, column] == pytest.approx(expected, abs=1e-5, nan_ok=True)
            elif len(known):
                assert shares[row, column].argmax() == known[0]


def test_a_patch_of_nobodys_pixels_has_no_shares_and_a_part_of_a_patch_has_its_own() -> None:
    mask = np.full((4, 6), UNKNOWN, np.uint8)
    mask[:, 4:] = 1
    shares = class_shares(mask, 2, patch_px=4, scale=1.0)
    assert np.isnan(shares[0, 0]).all()
    assert shares[0, 1].tolist() == [0, 1]


def test_scores_are_taken_bilinearly_between_the_centres_of_patches() -> None:
    """The score of class 1 rises from -3 at px 2 to 1 at px 6: 0 is passed at px 5."""
    scores = np.array([[[0, -3], [0, 1]]], np.float32)
    assert mask_of(scores, (4, 8), patch_px=4, scale=1.0).tolist() == [[0] * 5 + [1] * 3] * 4
    assert mask_of(scores, (2, 4), patch_px=4, scale=2.0).shape == (2, 4)
    assert mask_of(scores, (3, 7), patch_px=4, scale=1.0).shape == (3, 7)


def test_votes_are_weighted_by_similarity_and_shared_by_the_classes_of_the_neighbour() -> None:
    similarity = np.array([[1.0, 0.5]], np.float32)
    shares = np.array([[[0.75, 0.25], [0.0, 1.0]]], np.float32)
    weights = np.exp(np.array([1.0, 0.5]) / 0.5)
    expected = weights @ shares[0] / weights.sum()
    assert vote(similarity, shares, 0.5)[0] == pytest.approx(expected)


# --- sets whose Dice is known -------------------------------------------------------------------------------------


def write_halves(folder: Path, *, test_shift_px: int = 0, count: int = 8, patients: bool = False) -> Path:
    """Images of 64 px, red on the left and blue on the right of a line on whole patches of 16 px; the mask is the blue
    part, in test images `test_shift_px` less of it.
    """
    folder.mkdir(parents=True)
    rows = [["path", "mask", "split", *(["patient_id"] if patients else [])]]
    for number in range(count):
        part = "test" if number % 4 == 3 else "train"
        line = 16 * (1 + number % 3)
        image = np.empty((64, 64, 3), np.uint8)
        image[:, :line], image[:, line:] = RED, BLUE
        image = np.clip(image + np.random.default_rng(number).integers(-9, 10, image.shape), 0, 255).astype(np.uint8)
        mask = np.zeros((64, 64), np.uint8)
        mask[:, line + (test_shift_px if part == "test" else 0) :] = 255
        cv2.imwrite(str(folder / f"{number}.png"), image[..., ::-1])
        cv2.imwrite(str(folder / f"{number}_mask.png"), mask)
        rows.append([f"{number}.png", f"{number}_mask.png", part, *([f"p{number // 4}{part}"] if patients else [])])
    with (folder / "halves.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return folder / "halves.csv"


def evaluated(table: Path, out: Path, *specs: str, config: EvaluationConfig = CONFIG) -> SegmentationRecord:
    evaluate_segmentation(
        specs or ("mean-colour",), load_masked(str(table), config), config, device=CPU, out=out, num_workers=0
    )
    return SEGMENTATION.read(out / "segmentation.json")


def test_masks_that_colour_tells_perfectly_have_a_dice_of_1(tmp_path: Path) -> None:
    record = evaluated(write_halves(tmp_path / "data"), tmp_path / "out")
    values = {row.protocol: row.overlap.mean["image"]["dice"].value for row in record.rows}
    assert values == {"linear": 1.0, "knn": 1.0}
    assert record.models["mean-colour"].patch_px == 16
    assert record.models["mean-colour"].best.mean["pooled"]["iou"].value == 1.0


def test_masks_that_end_elsewhere_than_the_colour_have_the_dice_of_the_shift(tmp_path: Path) -> None:
    """Test images 3 and 7 have lines at 16 and 32 px: 48 and 32 columns are predicted, and 4 fewer are true."""
    record = evaluated(write_halves(tmp_path / "data", test_shift_px=4), tmp_path / "out")
    linear = record.rows[0].overlap.mean
    assert linear["image"]["dice"].value == pytest.approx((2 * 44 / (44 + 48) + 2 * 28 / (28 + 32)) / 2)
    assert linear["pooled"]["iou"].value == pytest.approx((44 + 28) / (48 + 32))


def test_patients_are_what_intervals_are_over(tmp_path: Path) -> None:
    record = evaluated(write_halves(tmp_path / "data", count=16, patients=True), tmp_path / "out")
    assert "4 test patients" in record.rows[0].overlap.interval
    assert set(record.rows[0].overlap.mean) == {"image", "patient", "pooled"}


def test_all_files_are_written_and_the_first_of_all_controls_is_compared(tmp_path: Path) -> None:
    record = evaluated(write_halves(tmp_path / "data"), tmp_path / "out", "mean-colour", "colour-statistics")
    out = tmp_path / "out"
    assert {file.name for file in out.iterdir()} == {
        "segmentation", "segmentation.json", "segmentation.csv", "segmentation.md", "segmentation.jpg",
        "segmentation_images.csv", "split.csv",
    }  # fmt: skip
    assert record.rows[0].differences["colour-statistics"]["image"]["dice"].value == 0
    sheet = cv2.imread(str(out / "segmentation.jpg"))
    assert sheet.shape[1] > sheet.shape[0] / 2
    with (out / "segmentation_images.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 2 * 2 * 2, "models, protocols, test images, classes"
    assert {row["dice"] for row in rows} == {"1.000000"}


def test_called_again_only_new_models_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, out, fitted = write_halves(tmp_path / "data"), tmp_path / "out", []
    first = evaluated(table, out)
    fit_probe = segmentation.fit_probe
    monkeypatch.setattr(
        segmentation, "fit_probe",
        lambda model, *rest, **named: fitted.append(model.extractor.name) or fit_probe(model, *rest, **named),
    )  # fmt: skip
    again = evaluated(table, out, "mean-colour", "colour-statistics")
    assert fitted == ["colour-statistics"]
    assert again.rows[0].overlap == first.rows[0].overlap
    cut, flipped = sorted((out / "segmentation").iterdir())
    cut.write_bytes(cut.read_bytes()[:100])
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    (found,) = [one for one in verify(out) if "kept" in one.what]
    assert (found.count, len(found.damaged)) == (2, 2)
    evaluated(table, out, "mean-colour", "colour-statistics")
    assert sorted(fitted[1:]) == ["colour-statistics", "mean-colour"], "damaged files are made again"
    assert all(is_intact(file) for file in (cut, flipped))


def test_results_of_other_masks_or_more_models_are_not_overwritten(tmp_path: Path) -> None:
    table, out = write_halves(tmp_path / "data"), tmp_path / "out"
    evaluated(table, out, "mean-colour", "colour-statistics")
    masked = load_masked(str(table), CONFIG)
    refuse_to_lose_masks(out, ("mean-colour", "colour-statistics"), masked.labelled, masked.digest, CONFIG)
    with pytest.raises(DataError, match="colour-statistics is left out"):
        refuse_to_lose_masks(out, ("mean-colour",), masked.labelled, masked.digest, CONFIG)
    with pytest.raises(DataError, match="other images, masks"):
        refuse_to_lose_masks(out, ("mean-colour", "colour-statistics"), masked.labelled, "another", CONFIG)


def test_folds_test_every_image_once(tmp_path: Path) -> None:
    table = write_halves(tmp_path / "data")
    table.write_text("\n".join(line.rsplit(",", 1)[0] for line in table.read_text().splitlines()))
    config = CONFIG.model_copy(update={"cross_validation": 4})
    record = evaluated(table, tmp_path / "out", config=config)
    assert len(record.rows[0].settings["splits"]) == 4
    assert "8 test images" in record.rows[0].overlap.interval
    assert (tmp_path / "out" / "folds.csv").is_file()

"""Small copies of the published sets with masks, in their publishers' layouts."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
import tifffile

from dino_path.config import EvaluationConfig
from dino_path.errors import DataError
from dino_path.evaluation.labelled.published_masks import load_masked, read_consep, read_monusac, read_pannuke
from dino_path.evaluation.measures.overlap import UNKNOWN

CONFIG = EvaluationConfig()
SQUARES = {"Epithelial": (2, 2), "Lymphocyte": (12, 2), "Macrophage": (2, 12), "Neutrophil": (12, 12)}  # x, y


def image_of(seed: int, edge_px: int = 20) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (edge_px, edge_px, 3)).astype(np.uint8)


# --- MoNuSAC ------------------------------------------------------------------------------------------------------


def imagescope(squares: dict[str, tuple[int, int]]) -> str:
    """ImageScope's XML as MoNuSAC has it: the class is the name of the layer's attribute; squares of 5 px."""
    layers = "".join(
        f'<Annotation Id="{n}" Name="" ReadOnly="0"><Attributes><Attribute Name="{name}" Id="0" Value=""/></Attributes>'
        f'<Regions><RegionAttributeHeaders/><Region Id="1" Type="0" NegativeROA="0"><Attributes/><Vertices>'
        + "".join(f'<Vertex X="{x + dx}" Y="{y + dy}" Z="0"/>' for dx, dy in ((0, 0), (5, 0), (5, 5), (0, 5)))
        + "</Vertices></Region></Regions><Plots/></Annotation>"
        for n, (name, (x, y)) in enumerate(squares.items(), 1)
    )
    return f'<?xml version="1.0"?><Annotations MicronsPerPixel="0.2523">{layers}</Annotations>'


@pytest.fixture
def monusac(tmp_path: Path) -> Path:
    for part, patients in (
        ("MoNuSAC_images_and_annotations", ("TCGA-5P-A9K0-01Z-00-DX1", "TCGA-69-7760-01Z-00-DX1")),
        ("MoNuSAC Testing Data and Annotations", ("TCGA-2Z-A9JG-01Z-00-DX1",)),
    ):
        for seed, patient in enumerate(patients):
            folder = tmp_path / "monusac" / part / patient
            folder.mkdir(parents=True)
            tifffile.imwrite(folder / f"{patient}_1.tif", image_of(len(part) + seed), photometric="rgb")
            squares = SQUARES | ({"Ambiguous": (2, 2)} if "Testing" in part else {})
            (folder / f"{patient}_1.xml").write_text(imagescope(squares))
    return tmp_path / "monusac"


def test_monusac_paints_the_outlines_and_leaves_ambiguous_regions_to_nobody(monusac: Path) -> None:
    masked = load_masked(f"monusac:{monusac}", CONFIG)
    assert masked.classes == ("background", "epithelial", "lymphocyte", "macrophage", "neutrophil")
    assert masked.labelled.split.tolist() == ["train", "train", "test"]
    assert masked.labelled.groups.tolist() == ["TCGA-5P-A9K0", "TCGA-69-7760", "TCGA-2Z-A9JG"]
    training, test = (masked.read_mask(index, (20, 20)) for index in (0, 2))
    centres = {name: training[y + 2, x + 2] for name, (x, y) in SQUARES.items()}
    assert centres == {"Epithelial": 1, "Lymphocyte": 2, "Macrophage": 3, "Neutrophil": 4}
    assert test[4, 4] == UNKNOWN
    assert (training[0, 0], training[9, 9]) == (0, 0)
    assert masked.labelled.source.mpp == 0.25


def test_monusac_without_outlines_or_with_a_strange_layer_is_refused(monusac: Path) -> None:
    outlines = next(monusac.rglob("*.xml"))
    outlines.write_text(imagescope({"Fibroblast": (2, 2)}))
    with pytest.raises(DataError, match="Fibroblast"):
        load_masked(f"monusac:{monusac}", CONFIG)
    outlines.unlink()
    with pytest.raises(DataError, match="1 of 3 images have no labels"):
        read_monusac(monusac)


# --- CoNSeP -------------------------------------------------------------------------------------------------------


@pytest.fixture
def consep(tmp_path: Path) -> Path:
    for part, count in (("Train", 3), ("Test", 2)):
        for place in ("Images", "Labels"):
            (tmp_path / "consep" / part / place).mkdir(parents=True)
        for number in range(1, count + 1):
            name = f"{part.lower()}_{number}"
            cv2.imwrite(str(tmp_path / "consep" / part / "Images" / f"{name}.png"), image_of(10 * count + number, 16))
            types = np.repeat(np.arange(8.0), 2)[None].repeat(16, axis=0)  # as published: floats
            scipy.io.savemat(
                tmp_path / "consep" / part / "Labels" / f"{name}.mat",
                {"type_map": types, "inst_map": np.arange(256.0).reshape(16, 16)},
            )
    return tmp_path / "consep"


def test_consep_has_the_four_classes_of_the_paper(consep: Path) -> None:
    masked = load_masked(f"consep:{consep}", CONFIG)
    assert masked.classes == ("background", "miscellaneous", "inflammatory", "epithelial", "spindle-shaped")
    assert masked.read_mask(0, (16, 16))[0, ::2].tolist() == [0, 1, 2, 3, 3, 4, 4, 4]
    assert masked.labelled.split.tolist() == ["train"] * 3 + ["test"] * 2


def test_consep_without_labels_or_with_damaged_ones_is_refused(consep: Path) -> None:
    labels = consep / "Test" / "Labels" / "test_2.mat"
    labels.write_bytes(b"no MATLAB file")
    with pytest.raises(DataError, match="has no readable type_map"):
        load_masked(f"consep:{consep}", CONFIG)
    labels.unlink()
    with pytest.raises(DataError, match="1 of 5 images have no labels"):
        read_consep(consep)
    with pytest.raises(DataError, match="none of the published files"):
        read_consep(consep / "Train")


# --- PanNuke ------------------------------------------------------------------------------------------------------


def write_fold(folder: Path, number: int, count: int = 2) -> Path:
    """As published: float64 images and masks, five channels of numbered nuclei and one of background."""
    place = folder / f"Fold {number}"
    (place / "images" / f"fold{number}").mkdir(parents=True)
    (place / "masks" / f"fold{number}").mkdir(parents=True)
    masks = np.zeros((count, 12, 12, 6))
    for channel in range(5):
        masks[:, 2 * channel : 2 * channel + 2, :6, channel] = 7 + channel  # numbers of nuclei
    masks[..., 5] = masks[..., :5].sum(axis=-1) == 0
    images = np.stack([image_of(100 * number + one, 12) for one in range(count)]).astype(np.float64)
    np.save(place / "images" / f"fold{number}" / "images.npy", images)
    np.save(place / "images" / f"fold{number}" / "types.npy", np.array(["Breast", "Bile-duct"] * count)[:count])
    np.save(place / "masks" / f"fold{number}" / "masks.npy", masks)
    return place


def test_pannuke_has_five_kinds_of_nuclei_and_its_folds_are_the_split(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        write_fold(tmp_path, number)
    masked = load_masked(f"pannuke:{tmp_path}", CONFIG)
    assert masked.classes == ("background", "neoplastic", "inflammatory", "connective", "dead", "epithelial")
    assert masked.labelled.split.tolist() == ["train"] * 2 + ["val"] * 2 + ["test"] * 2
    mask = masked.read_mask(3, (12, 12))
    assert mask[::2, 0].tolist() == [1, 2, 3, 4, 5, 0]
    assert (mask[:, 6:] == 0).all()
    assert np.array_equal(masked.labelled.source.read_image(3), image_of(201, 12))
    assert masked.labels[3] == "Bile-duct"


def test_two_folds_of_pannuke_train_and_test_and_one_has_a_split_drawn(tmp_path: Path) -> None:
    write_fold(tmp_path / "two", 1)
    write_fold(tmp_path / "two", 3)
    assert read_pannuke(tmp_path / "two").listing.split == ("train", "train", "test", "test")
    write_fold(tmp_path / "one", 2, count=6)
    assert read_pannuke(tmp_path / "one").listing.split is None
    assert {*load_masked(f"pannuke:{tmp_path / 'one'}", CONFIG).labelled.split} == {"train", "test"}


def test_arrays_of_pannuke_that_do_not_fit_or_hold_objects_are_refused(tmp_path: Path) -> None:
    place = write_fold(tmp_path, 1)
    masks = place / "masks" / "fold1" / "masks.npy"
    np.save(masks, np.zeros((2, 12, 12, 5)))
    with pytest.raises(DataError, match="do not fit together"):
        read_pannuke(tmp_path)
    np.save(masks, np.array([{"an": "object"}]), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read as an array"):
        read_pannuke(tmp_path)
    with pytest.raises(DataError, match="none of the published files"):
        read_pannuke(place / "masks")

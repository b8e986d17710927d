"""Published sets with masks, read by name in the layout of their publishers, and `load_masked`, which reads any.

Where the layouts are described: MoNuSAC https://monusac-2020.grand-challenge.org/Data/ ; CoNSeP
https://warwick.ac.uk/fac/cross_fac/tia/data/hovernet/ and the README.txt in it; PanNuke
https://warwick.ac.uk/fac/cross_fac/tia/data/pannuke and the README.md of each fold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_path.config import EvaluationConfig
from dino_path.errors import DataError, TileStoreError
from dino_path.evaluation.labelled.layouts import Listing, subfolders
from dino_path.evaluation.labelled.masks import (
    BACKGROUND,
    Mask,
    MaskedSet,
    MaskListing,
    class_numbers,
    read_mask_manifest,
    split_masks,
)
from dino_path.evaluation.measures.overlap import UNKNOWN
from dino_path.slides.annotations.files import read_objects
from dino_path.slides.annotations.painting import paint_polygons
from dino_path.slides.slide import RgbImage
from dino_path.tiles.images import ImageFiles
from dino_path.tiles.tables import TABLE_SUFFIXES

LAYOUTS = ("monusac", "consep", "pannuke")
MPP = 0.25  # all three are at 40x
MONUSAC_PARTS = {"train": "MoNuSAC_images_and_annotations", "test": "MoNuSAC Testing Data and Annotations"}
MONUSAC_CLASSES = {1: "epithelial", 2: "lymphocyte", 3: "macrophage", 4: "neutrophil"}
AMBIGUOUS = "ambiguous"  # regions of the test part that nobody is asked about
TCGA_PATIENT = 12  # letters: TCGA-5P-A9K0
CONSEP_PARTS = {"train": "Train", "test": "Test"}
# Types 3 and 4 (healthy and dysplastic epithelium) and 5 to 7 (fibroblast, muscle, endothelium) are one class each, as
# in the paper (Graham et al. 2019).
CONSEP_CLASSES = {
    1: "miscellaneous", 2: "inflammatory", 3: "epithelial", 4: "epithelial", 5: "spindle-shaped", 6: "spindle-shaped",
    7: "spindle-shaped",
}  # fmt: skip
PANNUKE_CLASSES = ("neoplastic", "inflammatory", "connective", "dead", "epithelial")
PANNUKE_FOLDS = {1: "train", 2: "val", 3: "test"}  # of the three published splits the first


def load_masked(spec: str, config: EvaluationConfig) -> MaskedSet:
    """The images with masks that `spec` names, split and checked; every mask is opened once.

    Args:
        spec: a CSV, TSV or Parquet table (path, mask[, label][, patient_id][, slide_id][, split][, centre]) |
            `monusac:`, `consep:` or `pannuke:` + folder.

    Raises:
        DataError: nothing is there, it is malformed, or a given split leaks.
        TileStoreError: an image cannot be read.
    """
    return split_masks(list_masked(spec), spec, config)


def read_monusac(folder: Path) -> MaskListing:
    """MoNuSAC 2020 (Verma et al. 2021): per patient a folder of `.tif` images, each with an ImageScope `.xml` of the
    same name, in one folder for training and one for testing. Pixels of `Ambiguous` regions count nowhere.

    Raises:
        DataError: no such folders, or an image without its outlines.
    """
    _check_folder(folder)
    images: list[Path] = []
    split: list[str] = []
    for part, name in MONUSAC_PARTS.items():
        if not (folder / name).is_dir():
            continue
        of_part = [file for patient in subfolders(folder / name) for file in sorted(patient.glob("*.tif"))]
        images += of_part
        split += [part] * len(of_part)
    _refuse_none(folder, images, " and ".join(f"`{name}/PATIENT/*.tif`" for name in MONUSAC_PARTS.values()))
    outlines = [image.with_suffix(".xml") for image in images]
    _refuse_missing(f"monusac:{folder}", outlines)
    patients = tuple(image.parent.name[:TCGA_PATIENT] for image in images)
    listing = Listing(
        "monusac", ImageFiles(images, mpp=MPP), ("",) * len(images), groups=patients, group_kind="patient",
        split=_split_of(split),
    )  # fmt: skip
    return MaskListing(listing, _OutlineMasks(tuple(outlines)), {0: BACKGROUND, **MONUSAC_CLASSES})


def read_consep(folder: Path) -> MaskListing:
    """CoNSeP (Graham et al. 2019): `Train` and `Test` with `Images/NAME.png` and `Labels/NAME.mat`, whose `type_map` is
    read. Its seven types are the paper's four classes. Which of the 41 images share a patient is not published.

    Raises:
        DataError: no such folders, or an image without its labels.
    """
    _check_folder(folder)
    images: list[Path] = []
    split: list[str] = []
    for part, name in CONSEP_PARTS.items():
        of_part = sorted((folder / name / "Images").glob("*.png"))
        images += of_part
        split += [part] * len(of_part)
    _refuse_none(folder, images, "`Train/Images/*.png` and `Test/Images/*.png`")
    labels = [image.parent.parent / "Labels" / f"{image.stem}.mat" for image in images]
    _refuse_missing(f"consep:{folder}", labels)
    listing = Listing("consep", ImageFiles(images, mpp=MPP), ("",) * len(images), split=_split_of(split))
    return MaskListing(listing, _MatMasks(tuple(labels)), {0: BACKGROUND, **CONSEP_CLASSES})


def read_pannuke(folder: Path) -> MaskListing:
    """PanNuke (Gamper et al. 2020): `Fold N/images/foldN/{images,types}.npy` and `Fold N/masks/foldN/masks.npy`.

    Five channels of a mask number the nuclei of a class each, the sixth is the background. Fold 1 is for training, 2
    for validation, 3 for testing; of two folds the first trains and the last tests, one alone has a split drawn.
    Patients are not published. Nothing in an array is unpickled.

    Raises:
        DataError: no folds, or arrays that do not fit together.
    """
    _check_folder(folder)
    folds = {number: place for number in PANNUKE_FOLDS if (place := _fold(folder, number)) is not None}
    _refuse_none(folder, list(folds), "`Fold 1/images/fold1/images.npy` and the like")
    source = _PanNukeImages(tuple(_open(place / "images" / f"fold{n}" / "images.npy") for n, place in folds.items()))
    masks = tuple(_open(place / "masks" / f"fold{n}" / "masks.npy") for n, place in folds.items())
    types = [_open(place / "images" / f"fold{n}" / "types.npy")[:] for n, place in folds.items()]
    for images, of_masks, of_types in zip(source.arrays, masks, types, strict=True):
        wanted = (images.shape[0], images.shape[1], images.shape[2])
        if (
            images.shape[3:] != (3,)
            or of_masks.shape != (*wanted, len(PANNUKE_CLASSES) + 1)
            or len(of_types) != wanted[0]
        ):
            raise DataError(
                str(of_masks.file),
                f"images {images.shape}, masks {of_masks.shape} and {len(of_types)} types do not fit together.",
                "Images (N, H, W, 3), masks (N, H, W, 6) and N types are needed.",
                "Fetch the fold again.",
            )
    parts = PANNUKE_FOLDS if len(folds) == 3 else dict(zip(folds, ("train", "test"), strict=False))
    split = [parts[n] for n, of_types in zip(folds, types, strict=True) for _ in of_types]
    listing = Listing(
        "pannuke", source, tuple(str(one) for of_types in types for one in of_types), split=_split_of(split),
        notes=("patients are not published: images of one patient may be on both sides of the split",),
    )  # fmt: skip
    return MaskListing(listing, _PanNukeMasks(masks), dict(enumerate((BACKGROUND, *PANNUKE_CLASSES))))


@dataclass(frozen=True)
class _OutlineMasks:
    """ImageScope's outlines, one layer a class."""

    files: tuple[Path, ...]

    def read(self, index: int, shape: tuple[int, int]) -> Mask:
        numbers = {name: number for number, name in MONUSAC_CLASSES.items()} | {AMBIGUOUS: UNKNOWN}
        mask = np.zeros(shape, np.uint8)
        for one in read_objects(self.files[index], qupath_origin=(0, 0)):
            name = (one.class_name or "").strip().lower()
            if name not in numbers:
                raise DataError(
                    self.name(index),
                    f"has a layer {one.class_name!r}.",
                    f"The layers of MoNuSAC are {', '.join(numbers)}.",
                    "Fetch the file again, or save the masks as PNG and name them in a manifest.",
                )
            mask[paint_polygons(one.polygons, (0.0, 0.0), (1.0, 1.0), shape) > 0] = numbers[name]
        return mask

    def name(self, index: int) -> str:
        return str(self.files[index])


@dataclass(frozen=True)
class _MatMasks:
    """`type_map` of MATLAB files."""

    files: tuple[Path, ...]

    def read(self, index: int, shape: tuple[int, int]) -> Mask:
        from scipy.io import loadmat  # here, since scipy takes a second to import
        from scipy.io.matlab import MatReadError

        try:
            types = loadmat(self.files[index], variable_names=["type_map"])["type_map"]
        except (OSError, ValueError, TypeError, KeyError, NotImplementedError, MatReadError) as error:
            raise DataError(
                self.name(index),
                f"has no readable type_map ({type(error).__name__}: {' '.join(str(error).split())[:150]}).",
                "A .mat file of CoNSeP is needed.",
                "Fetch it again.",
            ) from None
        return class_numbers(types, self.name(index))

    def name(self, index: int) -> str:
        return str(self.files[index])


@dataclass(frozen=True)
class _Array:
    """An array on disk, opened for each access: processes share nothing, and memory holds only what is read."""

    file: Path
    shape: tuple[int, ...]

    def __getitem__(self, index: int | slice) -> NDArray[Any]:
        return np.array(np.load(self.file, mmap_mode="r", allow_pickle=False)[index])


@dataclass(frozen=True)
class _PanNukeImages:
    """The images of all folds, one after the other: a `TileSource`."""

    arrays: tuple[_Array, ...]
    mpp: float | None = MPP

    @property
    def digest(self) -> str:
        return hashlib.sha256(" ".join(f"{a.file}:{a.file.stat().st_size}" for a in self.arrays).encode()).hexdigest()[
            :16
        ]

    def __len__(self) -> int:
        return sum(array.shape[0] for array in self.arrays)

    def read_image(self, index: int) -> RgbImage:
        array, at = _place(self.arrays, index)
        pixels = array[at]
        if pixels.min() < 0 or pixels.max() > 255:
            raise TileStoreError(
                self.name(index),
                f"its numbers go from {pixels.min():g} to {pixels.max():g}.",
                "Colours from 0 to 255 are needed.",
                "Fetch the fold again.",
            )
        return np.ascontiguousarray(pixels, np.uint8)

    def read_bytes(self, index: int) -> bytes:
        return self.read_image(index).tobytes()

    def name(self, index: int) -> str:
        array, at = _place(self.arrays, index)
        return f"{array.file}[{at}]"


@dataclass(frozen=True)
class _PanNukeMasks:
    """Of the five channels of nuclei those that are not 0; where channels overlap, the later class."""

    arrays: tuple[_Array, ...]

    def read(self, index: int, shape: tuple[int, int]) -> Mask:
        array, at = _place(self.arrays, index)
        nuclei = array[at][..., : len(PANNUKE_CLASSES)]
        mask = np.zeros(nuclei.shape[:2], np.uint8)
        for number in range(len(PANNUKE_CLASSES)):
            mask[nuclei[..., number] > 0] = number + 1
        return mask

    def name(self, index: int) -> str:
        array, at = _place(self.arrays, index)
        return f"{array.file}[{at}]"


def _place(arrays: Sequence[_Array], index: int) -> tuple[_Array, int]:
    for array in arrays:
        if index < array.shape[0]:
            return array, index
        index -= array.shape[0]
    raise IndexError(index)


def _open(file: Path) -> _Array:
    """The shape of an array on the disk.

    Raises:
        DataError: no such file, or no array.
    """
    try:
        return _Array(file, np.load(file, mmap_mode="r", allow_pickle=False).shape)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            str(file),
            f"cannot be read as an array ({' '.join(str(error).split())[:150]}).",
            "An .npy file of PanNuke is needed.",
            "Fetch the fold again.",
        ) from None


def _fold(folder: Path, number: int) -> Path | None:
    """The folder of a fold: `Fold 1` as it is published, or `Fold_1`, `Fold1`, `fold1`, as it is often renamed."""
    names = (f"Fold {number}", f"Fold_{number}", f"Fold{number}", f"fold{number}")
    return next((folder / name for name in names if (folder / name / "images").is_dir()), None)


def list_masked(spec: str) -> MaskListing:
    """What `spec`, as of `load_masked`, lists; no mask is opened.

    Raises:
        DataError: nothing is there, or it is malformed.
    """
    name, colon, rest = spec.partition(":")
    if colon and not Path(spec).exists():
        match name:
            case "monusac":
                return read_monusac(Path(rest))
            case "consep":
                return read_consep(Path(rest))
            case "pannuke":
                return read_pannuke(Path(rest))
    if Path(spec).suffix.lower() in TABLE_SUFFIXES and Path(spec).is_file():
        return read_mask_manifest(Path(spec))
    raise DataError(
        spec,
        "is not a table of images and masks." if Path(spec).exists() else "no such file or layout.",
        f"A table ({' or '.join(TABLE_SUFFIXES)}) with the columns path and mask is needed, or NAME:FOLDER, where NAME"
        f" is {' or '.join(LAYOUTS)}.",
        "Write such a table: one row per image, paths relative to it.",
    )


def _split_of(split: list[str]) -> tuple[str, ...] | None:
    """None where only one part is there: a split is drawn then."""
    return tuple(split) if len(set(split)) > 1 else None


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(str(folder), "no such folder.", "The folder of the unpacked set is needed.", "Check the path.")


def _refuse_none(folder: Path, found: Sequence[object], wanted: str) -> None:
    if not found:
        raise DataError(
            str(folder),
            "holds none of the published files.",
            f"{wanted} are needed.",
            "Check the path; unpack archives.",
        )


def _refuse_missing(spec: str, files: Sequence[Path]) -> None:
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DataError(
            spec,
            f"{len(missing)} of {len(files)} images have no labels, first {missing[0]}.",
            "Every image needs the file of its labels.",
            "Download the set again, or remove the images.",
        )

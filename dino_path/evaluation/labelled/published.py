"""Published labelled sets, read by name in the layout of their publishers. Their traps: docs/evaluation.md."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from dino_path.errors import DataError
from dino_path.evaluation.labelled.h5_images import H5Images, read_h5
from dino_path.evaluation.labelled.layouts import Listing, join_parts, no_such_path, read_folder
from dino_path.tiles.images import ImageFiles, image_files
from dino_path.tiles.tables import read_table

NCT_CLASSES = ("ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM")
NCT_TRAIN = ("NCT-CRC-HE-100K", "NCT-CRC-HE-100K-NONORM")
NCT_TEST = "CRC-VAL-HE-7K"
NCT_MPP = 0.5
PCAM_CLASSES = ("normal", "tumour")
PCAM_PARTS = {"train": "train", "valid": "val", "test": "test"}
PCAM_NAME = "camelyonpatch_level_2_split_{part}_{what}"
PCAM_MPP = 0.97  # level 2 of CAMELYON16, 0.243 um/px at level 0 (0.226 in one of its two centres)
BACH_CLASSES = ("Benign", "InSitu", "Invasive", "Normal")
BACH_MPP = 0.42
WILDS_CENTRES = {"1": "val", "2": "test"}  # of the five (0 to 4): their images are validation and test, whole
WILDS_TRAIN, WILDS_ID_VAL = "0", "1"  # column `split` of the three others
WILDS_NAME = "patch_patient_{patient}_node_{node}_x_{x}_y_{y}.png"
WILDS_MPP = 0.97  # level 2 of CAMELYON17, 0.243 um/px at level 0 (0.23 to 0.25 in its five centres)
# SOB_M_DC-14-2523-40-001.png: procedure _ benign or malignant _ type - year - case - magnification - number.
BREAKHIS_NAME = re.compile(r"SOB_[BM]_(?P<type>[A-Z]+)-\d+-(?P<case>\d+)[A-Z]*-(?P<magnification>\d+)-\d+\.png")
# The other types come from 3 to 6 patients: no split by patient says anything about them (eva leaves them out too).
BREAKHIS_TYPES = ("DC", "F", "MC", "TA")

# Images as published; several numbers where either is whole. "all" where the set brings no split.
PUBLISHED: dict[str, dict[str, Collection[int]]] = {
    "nct-crc": {"train": {100_000}, "test": {7_180}, "all": {100_000, 7_180}},
    "pcam": {"train": {262_144}, "val": {32_768}, "test": {32_768}, "all": {262_144, 32_768}},
    "mhist": {"train": {2_175}, "test": {977}},
    "bach": {"all": {400}},
    "camelyon17-wilds": {"train": {302_436}, "val": {34_904}, "test": {85_054}},
    "breakhis 40X": {"all": {1_995}},
    "breakhis 100X": {"all": {2_081}},
    "breakhis 200X": {"all": {2_013}},
    "breakhis 400X": {"all": {1_820}},
}


def read_nct_crc(folder: Path) -> Listing:
    """NCT-CRC-HE (Kather et al. 2018): the folder of its nine class folders, or the one that holds the published sets.

    With NCT-CRC-HE-100K (or -NONORM) and CRC-VAL-HE-7K side by side, the published split is used. The training set
    names no patients.

    Raises:
        DataError: neither is there, or both training sets.
    """
    _check_folder(folder)
    train = [name for name in NCT_TRAIN if (folder / name).is_dir()]
    if len(train) > 1:
        raise DataError(
            f"nct-crc:{folder}",
            f"holds {' and '.join(train)}.",
            "One training set is needed: training with and without colour normalisation are different experiments.",
            f"Make a new folder that links to one of them and to {NCT_TEST}.",
        )
    if train and (folder / NCT_TEST).is_dir():
        parts = {"train": folder / train[0], "test": folder / NCT_TEST}
        listing = replace(join_parts(folder, parts), name=train[0])
    else:
        listing = replace(read_folder(folder / train[0] if train else folder), name="nct-crc")
    _check_classes(f"nct-crc:{folder}", listing, NCT_CLASSES)
    return _with_counts("nct-crc", _at_mpp(listing, NCT_MPP))


def read_pcam(folder: Path) -> Listing:
    """PatchCamelyon (Veeling et al. 2018): its unpacked HDF5 files, with the published split.

    The label says whether the central 32 x 32 px contain tumour; the surroundings do not count. Slides come from
    the meta tables where every part has one; one part alone has a split drawn.

    Raises:
        DataError: no part is there, or images and labels do not fit.
    """
    _check_folder(folder)
    parts = [part for part in PCAM_PARTS if (folder / f"{PCAM_NAME.format(part=part, what='x')}.h5").is_file()]
    if not parts:
        raise DataError(
            f"pcam:{folder}",
            f"holds no {PCAM_NAME.format(part='train', what='x')}.h5.",
            f"The published files {PCAM_NAME.format(part='PART', what='x')}.h5 and ..._y.h5 are needed, "
            f"PART being {', '.join(PCAM_PARTS)}.",
            "Check the path; unpack files that end in .gz.",
        )
    source = H5Images(
        [folder / f"{PCAM_NAME.format(part=part, what='x')}.h5" for part in parts], "x", mpp=PCAM_MPP
    )  # fmt: skip
    labels: list[str] = []
    split: list[str] = []
    slides: list[str] | None = []
    notes = ["the label is that of the central 32 x 32 px: a crop or a shift makes it wrong"]
    for part in parts:
        file = folder / f"{PCAM_NAME.format(part=part, what='y')}.h5"
        of_part = [PCAM_CLASSES[number] for number in _pcam_labels(file)]
        labels += of_part
        split += [PCAM_PARTS[part]] * len(of_part)
        of_slides, note = _pcam_slides(folder / f"{PCAM_NAME.format(part=part, what='meta')}.csv", of_part)
        slides = slides + of_slides if slides is not None and of_slides is not None else None
        notes += [note] if note else []
    if len(labels) != len(source):
        raise DataError(
            f"pcam:{folder}",
            f"{len(source)} images and {len(labels)} labels.",
            "Every image needs its label.",
            "Fetch the files again.",
        )
    listing = Listing(
        "pcam",
        source,
        tuple(labels),
        groups=None if slides is None else tuple(slides),
        group_kind=None if slides is None else "slide",
        split=tuple(split) if len(parts) > 1 else None,
        notes=tuple(notes),
    )
    return _with_counts("pcam", listing)


def read_mhist(folder: Path) -> Listing:
    """MHIST (Wei et al. 2021): `annotations.csv` and `images/`, with the published partition. It names no patients.

    Raises:
        DataError: no annotations, or none of their images.
    """
    _check_folder(folder)
    table = read_table(folder / "annotations.csv", needed=("Image Name", "Majority Vote Label", "Partition"))
    split_of = {"train": "train", "test": "test"}
    rows = zip(table["Image Name"], table["Majority Vote Label"], table["Partition"], strict=True)
    found = [
        (folder / "images" / name, label, part) for name, label, part in rows if (folder / "images" / name).is_file()
    ]
    unknown = sorted({part for *_, part in found if part not in split_of})
    if not found or unknown:
        raise DataError(
            f"mhist:{folder}",
            f"unknown partition {', '.join(unknown)}." if unknown else "none of the images in annotations.csv exists.",
            "`annotations.csv` (Partition: train or test) beside `images/` is needed.",
            "Check the path, or fetch the set again.",
        )
    missing = len(table["Image Name"]) - len(found)
    listing = Listing(
        "mhist",
        ImageFiles([path for path, *_ in found]),
        tuple(label for _, label, _ in found),
        split=tuple(split_of[part] for *_, part in found),
        notes=(f"{missing} images of annotations.csv are missing and left out",) if missing else (),
    )
    return _with_counts("mhist", listing)


def read_breakhis(folder: Path, magnification: str) -> Listing:
    """BreakHis (Spanhol et al. 2016) at one magnification: the four types of at least 7 patients, grouped by patient.

    All below `folder` is read by file name. Cases that differ by letters after the number (29960AB, 29960CD) count
    as one patient, and so does the case that has two types (13412): rather too few patients than one on both sides.

    Args:
        magnification: 40X, 100X, 200X or 400X.

    Raises:
        DataError: no such images.
    """
    _check_folder(folder)
    named = [(file, match) for file in image_files(folder) if (match := BREAKHIS_NAME.fullmatch(file.name))]
    at_magnification = [(file, match) for file, match in named if f"{match['magnification']}X" == magnification]
    chosen = [(file, match) for file, match in at_magnification if match["type"] in BREAKHIS_TYPES]
    if not chosen:
        raise DataError(
            f"breakhis:{folder}",
            f"{len(named)} images named as in BreakHis, none of them at {magnification} and of a supported type.",
            f"Files such as SOB_M_DC-14-2523-40-001.png are needed, in any folders, of {', '.join(BREAKHIS_TYPES)}.",
            "Check the path and evaluation.breakhis_magnification.",
        )
    others = Counter(match["type"] for _, match in at_magnification if match["type"] not in BREAKHIS_TYPES)
    listing = Listing(
        f"breakhis {magnification}",
        ImageFiles([file for file, _ in chosen]),
        tuple(match["type"] for _, match in chosen),
        groups=tuple(match["case"] for _, match in chosen),
        group_kind="patient",
        notes=("types of fewer than 7 patients left out: "
               + ", ".join(f"{name} ({count} images)" for name, count in sorted(others.items())),) if others else (),
    )  # fmt: skip
    return _with_counts(listing.name, listing, num_images=len(at_magnification))


def read_bach(folder: Path) -> Listing:
    """BACH (Aresta et al. 2019): the microscopy photos of its four class folders. No split of the data is public.

    Patients are not published either: `groups.csv` (path, patient_id) beside the class folders names them, for those
    who know; without it the split is by image and the notes say so.

    Raises:
        DataError: no such folders.
    """
    _check_folder(folder)
    places = (folder / "ICIAR2018_BACH_Challenge" / "Photos", folder / "Photos", folder)
    photos = next(path for path in places if path.is_dir())
    listing = replace(read_folder(photos), name="bach")
    _check_classes(f"bach:{folder}", listing, BACH_CLASSES)
    return _with_counts("bach", _at_mpp(listing, BACH_MPP))


def read_camelyon17_wilds(folder: Path) -> Listing:
    """Camelyon17-WILDS (Koh et al. 2021): `metadata.csv` and `patches/`, with the published split by centre.

    Training is of centres 0, 3 and 4, validation of centre 1 and test of centre 2. The images of `id_val` come from the
    slides of the training images and are left out. The label says whether the central 32 x 32 px hold tumour.

    Raises:
        DataError: no such table, a value of it is unknown, or none of its images is there.
    """
    _check_folder(folder)
    places = (folder / "camelyon17_v1.0", folder)
    root = next((place for place in places if (place / "metadata.csv").is_file()), folder)
    names = ("patient", "node", "x_coord", "y_coord", "tumor", "center", "split")
    table = read_table(root / "metadata.csv", needed=names)
    rows = list(zip(*(table[name] for name in names), strict=True))
    unknown = sorted({row[6] for row in rows} - {WILDS_TRAIN, WILDS_ID_VAL} | {row[4] for row in rows} - {"0", "1"})
    if unknown:
        raise DataError(
            f"camelyon17-wilds:{folder}",
            f"metadata.csv has split or tumor {', '.join(map(repr, unknown[:5]))}.",
            "`tumor` is 0 or 1, and `split` 0 (train) or 1 (id_val).",
            "Fetch metadata.csv of version 1.0 again.",
        )
    parts = [WILDS_CENTRES.get(row[5], "train" if row[6] == WILDS_TRAIN else None) for row in rows]
    wanted = [(_wilds_image(root, row), row, part) for row, part in zip(rows, parts, strict=True) if part is not None]
    found = [(path, row, part) for path, row, part in wanted if path.is_file()]
    if not found:
        raise DataError(
            f"camelyon17-wilds:{folder}",
            f"none of the {len(wanted):,} images of metadata.csv exists, first {wanted[0][0] if wanted else 'none'}.",
            "`metadata.csv` beside `patches/patient_*_node_*/` is needed, as WILDS unpacks it.",
            "Check the path, or fetch the set again.",
        )
    notes = [
        "the label is that of the central 32 x 32 px: a crop or a shift makes it wrong",
        f"{parts.count(None):,} images of id_val left out: they come from the slides of the training images",
    ]
    if num_missing := len(wanted) - len(found):
        notes.append(f"{num_missing:,} images of metadata.csv are missing and left out")
    listing = Listing(
        "camelyon17-wilds",
        ImageFiles([path for path, *_ in found], mpp=WILDS_MPP),
        tuple(PCAM_CLASSES[int(row[4])] for _, row, _ in found),
        groups=tuple(f"patient_{row[0].zfill(3)}" for _, row, _ in found),
        group_kind="patient",
        split=tuple(part for *_, part in found),
        notes=tuple(notes),
        centres=tuple(f"centre {row[5]}" for _, row, _ in found),
    )
    return _with_counts("camelyon17-wilds", listing)


def _wilds_image(root: Path, row: tuple[str, ...]) -> Path:
    patient, node, x, y = row[0].zfill(3), *row[1:4]
    name = WILDS_NAME.format(patient=patient, node=node, x=x, y=y)
    return root / "patches" / f"patient_{patient}_node_{node}" / name


def _pcam_labels(file: Path) -> list[int]:
    """0 or 1 for every image.

    Raises:
        DataError: the file holds something else.
    """
    values = read_h5(file, "y", with_values=True)[1].ravel()
    if values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise DataError(str(file), f"'y' holds {values.dtype} other than 0 and 1.", "Labels 0 and 1 are needed.",
                        "Fetch it again.")  # fmt: skip
    return [int(value) for value in values]


def _pcam_slides(file: Path, labels: list[str]) -> tuple[list[str] | None, str | None]:
    """The slide of each image, or None and why."""
    if not file.is_file():
        return None, f"no {file.name}: slides are unknown"
    table = read_table(file, needed=("center_tumor_patch", "wsi"))
    is_tumour = [value.lower() in ("true", "1", "1.0") for value in table["center_tumor_patch"]]
    if is_tumour != [label == PCAM_CLASSES[1] for label in labels]:
        return None, f"{file.name} disagrees with the labels: its slides are not used"
    return list(table["wsi"]), None


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise no_such_path(folder)


def _check_classes(spec: str, listing: Listing, classes: tuple[str, ...]) -> None:
    if set(listing.labels) != set(classes):
        raise DataError(
            spec,
            f"its class folders are {', '.join(sorted(set(listing.labels)))}.",
            f"The {len(classes)} classes {', '.join(classes)} are needed.",
            f"Check the path; other class folders are read without the name (--data {spec.partition(':')[2]}).",
        )


def _at_mpp(listing: Listing, mpp: float) -> Listing:
    assert isinstance(listing.source, ImageFiles)
    return replace(listing, source=ImageFiles(listing.source.paths, mpp=mpp))


def _with_counts(name: str, listing: Listing, *, num_images: int | None = None) -> Listing:
    """The listing with a note for every part that has not the published number of images."""
    if listing.split is None:
        counts: Mapping[str, int] = {"all": len(listing.source) if num_images is None else num_images}
    else:
        counts = Counter(listing.split)
    notes = [
        f"not the published set: {count:,} images{'' if part == 'all' else f' in {part}'}, "
        f"{' or '.join(f'{number:,}' for number in sorted(PUBLISHED[name][part]))} were published"
        for part, count in counts.items()
        if count not in PUBLISHED[name][part]
    ]
    return replace(listing, notes=(*listing.notes, *notes))

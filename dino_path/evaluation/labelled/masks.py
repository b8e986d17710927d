"""Images with a class number in every pixel, split into training and test parts as labelled images are.

Shape suffixes: N images, H and W edges in px, C classes.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dino_path.config import EvaluationConfig
from dino_path.errors import DataError
from dino_path.evaluation.labelled.datasets import VALIDATION_FRACTION, LabelledSet, split_listing
from dino_path.evaluation.labelled.layouts import Listing, files_of, listing_of
from dino_path.evaluation.measures.confusion import Ints
from dino_path.evaluation.measures.overlap import UNKNOWN
from dino_path.progress import meter
from dino_path.records.tables import LABELLED
from dino_path.slides.images.decoding import MOST_PIXELS
from dino_path.table_file import Vocabulary
from dino_path.tiles.tables import read_known_table

logger = logging.getLogger(__name__)

Mask = NDArray[np.uint8]
BACKGROUND = "background"
READING_THREADS = 4
# Images (patients, slides) that a label needs to be a stratum of its own: test, validation and two to fit on.
LEAST_OF_STRATUM = 4
MANIFEST = Vocabulary(
    ("path", "mask", "label", "patient_id", "slide_id", "split", "centre"), passed_over=("content",)
)  # fmt: skip


class Masks(Protocol):
    """The mask of each image, by number."""

    def read(self, index: int, shape: tuple[int, int]) -> Mask:
        """Class numbers (H, W) as in the file; UNKNOWN (255) for unlabelled pixels.

        Args:
            shape: (H, W) of the image, for masks that are drawn as outlines.

        Raises:
            DataError: it cannot be read, or holds no class numbers.
        """

    def name(self, index: int) -> str:
        """The mask's name for messages."""


@dataclass(frozen=True)
class MaskListing:
    """The images and masks of a layout, before any mask is opened.

    Attributes:
        listing: the images; its labels are by what a drawn split is stratified.
        names: class of each number in the masks, several numbers perhaps of one class; empty: what is found.
        centres: of each image; None: not known.
    """

    listing: Listing
    masks: Masks
    names: Mapping[int, str]
    centres: tuple[str, ...] | None = None


@dataclass(frozen=True)
class MaskedSet:
    """Images with masks, groups and a split.

    Attributes:
        labelled: the images; its classes are the labels by which a drawn split is stratified.
        labels: as the data have them, "" where they have none.
        classes: of pixels, by their number in `read_mask`.
        counted: classes in the means: all but the background.
        pixels: (N, C) of each class in each image.
        digest: of all masks and classes.
    """

    labelled: LabelledSet
    labels: tuple[str, ...]
    masks: Masks
    centres: tuple[str, ...] | None
    classes: tuple[str, ...]
    counted: tuple[int, ...]
    pixels: Ints
    digest: str
    lookup: Mask

    def read_mask(self, index: int, shape: tuple[int, int]) -> Mask:
        """(H, W) indices into `classes`; UNKNOWN for unlabelled pixels."""
        mask: Mask = self.lookup[self.masks.read(index, shape)]
        return mask

    def check_splits(self, splits: Sequence[LabelledSet], *, seed: int) -> None:
        """Check that every class can be learned, and that there are images to choose settings on.

        Raises:
            DataError: a class is in no training image of a split, or too few patients (slides, images) are there to
                carve validation images out of.
        """
        for split in splits:
            missing = np.flatnonzero(self.pixels[split.part("train")].sum(axis=0) == 0)
            if missing.size:
                raise DataError(
                    split.name,
                    f"no training image has a pixel of {', '.join(self.classes[one] for one in missing)}.",
                    "Every class must occur in the training images, or it cannot be learned.",
                    "Correct evaluation.segmentation_classes, give a split in which the training images have it, or"
                    " change evaluation.seed.",
                )
            split.fit_and_validation(VALIDATION_FRACTION, seed=seed)

    def write_split(self, file: Path) -> None:
        """Write one row per image. Where masks are files, given as `--data` it is the same experiment."""
        labelled = self.labelled
        groups = [] if labelled.groups is None else [f"{labelled.group_kind}_id"]
        optional = [(name, values) for name, values in (("label", self.labels), ("centre", self.centres))
                    if values is not None and any(values)]  # fmt: skip
        columns = ("path", "mask", *(name for name, _ in optional), *groups, "split", "content")
        rows = (
            [_full_path(labelled.source.name(index)), _full_path(self.masks.name(index)),
             *(values[index] for _, values in optional),
             *([] if labelled.groups is None else [labelled.groups[index]]), labelled.split[index],
             labelled.content[index].decode()]
            for index in range(len(labelled.labels))
        )  # fmt: skip
        LABELLED.write(file, columns, rows)


@dataclass(frozen=True)
class MaskFiles:
    """Pictures of class numbers: PNG or TIFF, grey or with a palette."""

    paths: tuple[Path, ...]

    def read(self, index: int, shape: tuple[int, int]) -> Mask:
        return read_picture(self.paths[index])

    def name(self, index: int) -> str:
        return str(self.paths[index])


def read_picture(file: Path) -> Mask:
    """Class numbers (H, W) of a picture; a palette's numbers, not its colours.

    Raises:
        DataError: damaged, in colour, or with numbers above 255.
    """
    try:
        with Image.open(file, formats=("PNG", "TIFF")) as picture:
            width, height = picture.size
            if width * height > MOST_PIXELS:
                raise bad_mask(str(file), f"has {width:,} x {height:,} pixels, more than {MOST_PIXELS:,}.")
            pixels: NDArray[Any] = np.asarray(picture)
    except Image.DecompressionBombError:  # Pillow's limit is twice ours
        raise bad_mask(str(file), f"has more than {MOST_PIXELS:,} pixels.") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise bad_mask(str(file), f"cannot be read ({' '.join(str(error).split())}).") from None
    if pixels.ndim == 3 and all(np.array_equal(pixels[..., 0], pixels[..., one]) for one in (1, 2)):
        pixels = pixels[..., 0]
    if pixels.ndim != 2:
        raise bad_mask(str(file), "is a colour picture.")
    return class_numbers(pixels, str(file))


def class_numbers(pixels: NDArray[Any], name: str) -> Mask:
    """The numbers of a mask as uint8.

    Raises:
        DataError: some are no whole numbers from 0 to 255.
    """
    if pixels.min(initial=0) < 0 or pixels.max(initial=0) > UNKNOWN or (pixels != np.rint(pixels)).any():
        raise bad_mask(
            name, f"its numbers go from {pixels.min():g} to {pixels.max():g}: possibly numbers of single nuclei."
        )
    return pixels.astype(np.uint8)


def bad_mask(name: str, found: str) -> DataError:
    return DataError(
        name,
        found,
        "A mask needs a class number from 0 to 254 in every pixel, 255 for unknown (or only 0 and 255).",
        "Save it in this form, as a grey PNG or TIFF, or remove its row.",
    )


def read_mask_manifest(file: Path) -> MaskListing:
    """A CSV, TSV or Parquet table: path, mask[, label][, patient_id][, slide_id][, split][, centre].

    Raises:
        DataError: as `layouts.read_manifest`, and where a mask is missing or stands in several rows.
    """
    table = read_known_table(file, MANIFEST, LABELLED, needed=("path", "mask"))
    columns: dict[str, Sequence[str]] = {
        name: cells for name, cells in table.columns.items() if any(cells) or name in ("path", "mask")
    }
    labels = columns.setdefault("label", [""] * len(columns["path"]))
    masks = files_of(file, columns["mask"], "masks")
    repeated = [str(path) for path, count in Counter(masks).items() if count > 1]
    if repeated:
        raise DataError(
            str(file),
            f"{len(repeated)} masks have several rows, first {repeated[0]}.",
            "Every image needs its own mask.",
            "Correct the column `mask`.",
        )
    listing = listing_of(file, {**columns, "label": labels}, table.notes)
    centres = tuple(columns["centre"]) if "centre" in columns else None
    return MaskListing(listing, MaskFiles(tuple(masks)), {}, centres)


def split_masks(found: MaskListing, spec: str, config: EvaluationConfig) -> MaskedSet:
    """The masks of a listing, all of them opened once, with a split.

    Raises:
        DataError: a mask cannot be read, has another size than its image or numbers without a name, or a given split
            leaks.
        TileStoreError: an image cannot be read.
    """
    listing = found.listing
    counts_NV, digest = _look_at_all(found)
    names = _class_names(found, counts_NV, config)
    classes = tuple(dict.fromkeys(names.values()))
    if len(classes) < 2:
        raise DataError(
            spec,
            f"its masks have only one class ({', '.join(classes)}).",
            "At least two classes are needed.",
            "Check the masks, and evaluation.segmentation_classes.",
        )
    lookup = np.full(256, UNKNOWN, np.uint8)
    for number, name in names.items():
        lookup[number] = classes.index(name)
    pixels_NC = np.stack([counts_NV[:, lookup == one].sum(axis=1) for one in range(len(classes))], axis=1)
    strata = _strata(listing)
    labelled = split_listing(
        replace(listing, labels=strata, notes=(*listing.notes, *_notes(found, counts_NV, names))),
        tuple(sorted(set(strata))), spec, config,
    )  # fmt: skip
    return MaskedSet(
        labelled=labelled,
        labels=listing.labels,
        masks=found.masks,
        centres=found.centres,
        classes=classes,
        counted=tuple(one for one, name in enumerate(classes) if name != BACKGROUND),
        pixels=pixels_NC,
        digest=hashlib.sha256(f"{digest} {sorted(names.items())}".encode()).hexdigest(),
        lookup=lookup,
    )


def _look_at_all(found: MaskListing) -> tuple[Ints, str]:
    """Pixels (N, 256) of each number in each mask, and a digest of all masks."""
    source, masks = found.listing.source, found.masks

    def look(index: int) -> tuple[Ints, bytes]:
        height, width = source.read_image(index).shape[:2]
        mask = masks.read(index, (height, width))
        if mask.shape != (height, width):
            raise DataError(
                masks.name(index),
                f"the mask has {mask.shape[1]} x {mask.shape[0]} px, but its image {width} x {height}"
                f" ({source.name(index)}).",
                "Every pixel of the image needs its class.",
                "Save the mask at the size of the image, or correct the row.",
            )
        counts = np.bincount(mask.ravel(), minlength=256).astype(np.int64)
        return counts, hashlib.sha256(mask.tobytes()).digest()

    looked: list[tuple[Ints, bytes]] = []
    with (
        meter(f"masks of {found.listing.name}", len(source), "masks") as counter,
        ThreadPoolExecutor(READING_THREADS) as pool,
    ):
        for start in range(0, len(source), 256):  # in pieces: an error must not wait for thousands of queued reads
            piece = list(pool.map(look, range(start, min(start + 256, len(source)))))
            looked += piece
            counter.advance(len(piece))
    digest = hashlib.sha256(b"".join(one for _, one in looked)).hexdigest()
    return np.stack([counts for counts, _ in looked]), digest


def _class_names(found: MaskListing, counts_NV: Ints, config: EvaluationConfig) -> Mapping[int, str]:
    """The class of each number: as set, as the layout says, or as found."""
    present = np.flatnonzero(counts_NV.sum(axis=0)).tolist()
    names = {number: name for name, number in config.segmentation_classes.items()} or dict(found.names)
    if not names:
        numbers = [number for number in present if number not in (0, UNKNOWN)]
        names = {number: f"class {number}" for number in numbers} or {UNKNOWN: "foreground"}
    if 0 not in names and 0 in present:
        names = {0: BACKGROUND, **names}
    nameless = [number for number in present if number not in names and number != UNKNOWN]
    if nameless:
        first = int(np.flatnonzero(counts_NV[:, nameless].sum(axis=1))[0])
        raise DataError(
            found.masks.name(first),
            f"has the class numbers {', '.join(map(str, nameless))}, which have no name"
            f" ({', '.join(f'{number}: {name}' for number, name in sorted(names.items()))}).",
            "Every number in the masks needs a class; 255 means unknown.",
            "Name them in evaluation.segmentation_classes, such as {nucleus: 1, stroma: 2}.",
        )
    return dict(sorted(names.items()))


def _strata(listing: Listing) -> tuple[str, ...]:
    """The strata of a drawn split: labels with enough patients (slides, images); rarer labels are merged into one."""
    if listing.split is not None:
        return ("image",) * len(listing.labels)
    labels = [label or "image" for label in listing.labels]
    units = listing.groups or tuple(map(str, range(len(labels))))
    num_units = Counter(label for label, _ in set(zip(labels, units, strict=True)))
    frequent = [label for label, count in num_units.most_common() if count >= LEAST_OF_STRATUM]
    rare_units = {unit for label, unit in zip(labels, units, strict=True) if label not in frequent}
    rest = frequent[0] if frequent and len(rare_units) < LEAST_OF_STRATUM else "other"
    return tuple(label if label in frequent else rest for label in labels)


def _notes(found: MaskListing, counts_NV: Ints, names: Mapping[int, str]) -> list[str]:
    total_V = counts_NV.sum(axis=0)
    unknown = 0 if UNKNOWN in names else int(total_V[UNKNOWN])
    shares = {
        name: sum(total_V[number] for number, other in names.items() if other == name) / (total_V.sum() - unknown)
        for name in dict.fromkeys(names.values())
    }
    notes = [f"pixels: {', '.join(f'{name} {100 * share:.1f} %' for name, share in shares.items())}"]
    if unknown:
        notes.append(
            f"{100 * unknown / total_V.sum():.1f} % of all pixels are 255 in the masks: unknown, and not counted"
        )
    return notes


def _full_path(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_file() else name

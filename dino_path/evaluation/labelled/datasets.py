"""Labelled images, split into training and test parts that share no patient, no slide and no image.

Shape suffixes: N images.
"""

from __future__ import annotations

import hashlib
import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_path.config import EvaluationConfig
from dino_path.errors import DataError
from dino_path.evaluation.labelled.layouts import (
    SPLITS,
    GroupKind,
    Listing,
    read_folder,
    read_manifest,
    refuse_unknown_layout,
)
from dino_path.evaluation.labelled.published import (
    read_bach,
    read_breakhis,
    read_camelyon17_wilds,
    read_mhist,
    read_nct_crc,
    read_pcam,
)
from dino_path.evaluation.labelled.regions import read_store
from dino_path.evaluation.labelled.splits import Ints, draw_labelled, draw_part, linked_units
from dino_path.evaluation.measures.sample import Units
from dino_path.progress import meter
from dino_path.records.tables import LABELLED
from dino_path.tiles.images import ImageFiles
from dino_path.tiles.source import TileSource
from dino_path.tiles.tables import TABLE_SUFFIXES

logger = logging.getLogger(__name__)

LAYOUTS = ("store", "nct-crc", "pcam", "mhist", "breakhis", "bach", "camelyon17-wilds")
READING_THREADS = 8
# Of the training units: what settings are chosen on where the data bring no validation images.
VALIDATION_FRACTION = 0.2
GIVEN_SPLIT = "as given with the data"
# JPEG, PNG, TIFF (both byte orders, and BigTIFF), BMP, WebP.
IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"BM", b"RIFF")


@dataclass(frozen=True)
class LabelledSet:
    """Images with labels, groups and a split. Arrays are as long as the source, in its order.

    Attributes:
        name: short name for tables.
        labels: class numbers, into `classes`.
        groups: patient or slide of each image (`group_kind`); None: the data name none.
        units: number of the unit of each image: what no split tears apart (same group or same content).
        unit_name: what the units are: "patients", "slides" or "images".
        split: "train", "val" or "test". "val" comes with the data or not at all: it then serves to choose settings.
            "unused" where only a fraction is labelled.
        centres, scanners: who made the slide of each image, and with which scanner; None: the data do not say.
        split_rule: how the split came about, in words.
        notes: what the user should know, as sentences.
        content: hash of each image file; byte for byte the same images have the same.
        split_digest: of contents, classes and split, whatever the order: equal for the same experiment.
    """

    name: str
    source: TileSource
    labels: Ints
    classes: tuple[str, ...]
    groups: NDArray[np.str_] | None
    group_kind: GroupKind | None
    units: Ints
    unit_name: str
    split: NDArray[np.str_]
    split_rule: str
    notes: tuple[str, ...]
    content: NDArray[np.bytes_]
    split_digest: str
    centres: NDArray[np.str_] | None = None
    scanners: NDArray[np.str_] | None = None

    @property
    def content_digest(self) -> str:
        """Of all image files in order: the key under which features may be kept."""
        return hashlib.sha256(self.content.tobytes()).hexdigest()

    @property
    def has_makers(self) -> bool:
        """Whether the data name two centres, or two scanners."""
        return any(one is not None and len(np.unique(one)) > 1 for one in (self.centres, self.scanners))

    def part(self, name: str) -> Ints:
        """Indices of the images of one split, ascending."""
        return np.flatnonzero(self.split == name).astype(np.int64)

    def test_units(self) -> Units:
        """The units of intervals over the test images: patients or slides, else images."""
        test = self.part("test")
        return Units.of(None if self.groups is None else self.groups[test], self.group_kind, len(test))

    def fit_and_validation(self, fraction: float, *, seed: int) -> tuple[Ints, Ints]:
        """Training images to fit on and to validate on: the data's own "val" split, else units carved from "train".

        Args:
            fraction: of the training images that a carved validation part takes.

        Raises:
            DataError: a class has too few training units to be carved.
        """
        train = self.part("train")
        if (validation := self.part("val")).size:
            return train, validation
        is_validation = draw_part(
            self.labels[train],
            np.unique(self.units[train], return_inverse=True)[1].astype(np.int64),
            fraction,
            seed=seed,
            what=f"{self.name} (training part)",
            classes=self.classes,
            unit_name=self.unit_name,
        )
        return train[~is_validation], train[is_validation]

    def label_draws(self, fraction: float, num_draws: int, *, seed: int) -> list[LabelledSet]:
        """The same set with only `fraction` of the training (and given validation) images labelled, drawn again each
        time, as `splits.draw_labelled` does; the test part stays whole. For 1: the set itself, once.
        """
        if fraction == 1:
            return [self]
        return [self._label_draw(fraction, draw, seed) for draw in range(num_draws)]

    def _label_draw(self, fraction: float, draw: int, seed: int) -> LabelledSet:
        split = self.split.astype("<U6")
        for number, name in enumerate(("train", "val")):
            if (part := self.part(name)).size:
                is_labelled = draw_labelled(self.labels[part], self.units[part], fraction, seed=[seed, number, draw])
                split[part[~is_labelled]] = "unused"
        drawn = replace(
            self,
            split=split,
            split_rule=f"{self.split_rule}; {fraction:g} of the training labels, draw {draw}",
            split_digest=digest_of_split(self.content, tuple(self.classes[label] for label in self.labels), split),
        )
        try:
            drawn.fit_and_validation(VALIDATION_FRACTION, seed=seed)
        except DataError:
            note = (
                f"so few {self.unit_name} are labelled that validation images come from the same {self.unit_name}"
                " as the training images"
            )
            units = linked_units(None, self.content)
            return replace(drawn, units=units, unit_name="images", notes=(*self.notes, note))
        return drawn

    def write_split(self, file: Path) -> None:
        """Write one row per image: path, label, the group's id, centre and scanner where known, split, and the hash of
        its content.

        For image files this is a manifest: given as `--data` it is the same experiment.
        """
        is_files = isinstance(self.source, ImageFiles)
        known = {
            name: values for name, values in
            ((f"{self.group_kind}_id", self.groups), ("centre", self.centres), ("scanner", self.scanners))
            if values is not None
        }  # fmt: skip
        names = map(self.source.name, range(len(self.labels)))
        rows = (
            [Path(name).resolve() if is_files else name, self.classes[self.labels[index]],
             *(values[index] for values in known.values()), self.split[index], self.content[index].decode()]
            for index, name in enumerate(names)
        )  # fmt: skip
        LABELLED.write(file, ("path", "label", *known, "split", "content"), rows)

    def counts(self) -> dict[str, dict[str, int]]:
        """Images per split and class."""
        return {
            name: {label: int((self.labels[part] == number).sum()) for number, label in enumerate(self.classes)}
            for name in SPLITS
            if (part := self.part(name)).size
        }

    def record(self) -> dict[str, Any]:
        """For JSON: the facts needed to repeat the split."""
        return {
            "name": self.name,
            "classes": list(self.classes),
            "num_images": self.counts(),
            "grouped_by": self.group_kind,
            "num_groups": None
            if self.groups is None
            else {name: len(np.unique(self.groups[part])) for name in SPLITS if (part := self.part(name)).size},
            "split_rule": self.split_rule,
            "notes": list(self.notes),
            "mpp": self.source.mpp,
            "content_digest": self.content_digest,
            "split_digest": self.split_digest,
        }


def load_labelled(spec: str, config: EvaluationConfig) -> LabelledSet:
    """The labelled images that `spec` names, split and checked.

    Args:
        spec: a folder of class folders | a CSV or Parquet table (path, label[, patient_id][, slide_id][, centre]
            [, scanner][, split]) | `store:` + tile store, labelled by `config.regions` | a published set by name:
            `nct-crc:`, `pcam:`, `mhist:`, `breakhis:`, `bach:` or `camelyon17-wilds:` + folder.

    Raises:
        DataError: nothing is there, it is malformed, or a given split leaks.
        TileStoreError: an image or a tile cannot be read.
    """
    return split_listing(*check_listing(spec, config), spec, config)


def split_listing(listing: Listing, classes: tuple[str, ...], spec: str, config: EvaluationConfig) -> LabelledSet:
    """A listing, split and checked, as `load_labelled` does with the listing of `spec`."""
    labels = np.array([classes.index(label) for label in listing.labels], np.int64)
    content = hash_contents(listing.source, listing.name)
    groups = None if listing.groups is None else np.array(listing.groups, np.str_)
    units = linked_units(groups, content)
    unit_name = f"{listing.group_kind}s" if listing.group_kind else "images"
    notes = [*listing.notes, *_notes_on_contents(listing, labels, groups, units, content)]
    if listing.split is None:
        is_test = draw_part(labels, units, config.test_fraction, seed=config.seed, what=spec, classes=classes,
                            unit_name=unit_name)  # fmt: skip
        split = np.where(is_test, "test", "train").astype(np.str_)
        rule = f"{config.test_fraction:g} of the {unit_name} for testing, stratified by class, seed {config.seed}"
    else:
        split = np.array(listing.split, np.str_)
        rule = GIVEN_SPLIT
        _check_given_split(spec, split, labels, classes)
        _refuse_leaking_groups(spec, split, groups, listing.group_kind)
        notes += _duplicates_across(spec, listing.source, split, content, is_allowed=config.allow_duplicates)
    for note in notes:
        logger.info("%s: %s", listing.name, note)
    return LabelledSet(
        name=listing.name,
        source=listing.source,
        labels=labels,
        classes=classes,
        groups=groups,
        group_kind=listing.group_kind,
        units=units,
        unit_name=unit_name,
        split=split,
        split_rule=rule,
        notes=tuple(notes),
        content=content,
        split_digest=digest_of_split(content, listing.labels, split),
        centres=None if listing.centres is None else np.array(listing.centres, np.str_),
        scanners=None if listing.scanners is None else np.array(listing.scanners, np.str_),
    )


def check_listing(spec: str, config: EvaluationConfig) -> tuple[Listing, tuple[str, ...]]:
    """What `spec` lists and the names of its classes; no image is opened.

    Raises:
        DataError: nothing is there, it is malformed, or has one class only.
    """
    listing = _read_listing(spec, config)
    classes = tuple(sorted(set(listing.labels)))
    if len(classes) < 2:
        raise DataError(
            spec,
            f"it has only one class ({classes[0]}).",
            "At least two classes are needed.",
            "Check the path: one folder per class, or a column `label`.",
        )
    return listing, classes


def hash_contents(source: TileSource, name: str) -> NDArray[np.bytes_]:
    """Hash (N,) of each encoded image; equal bytes have equal hashes.

    Raises:
        DataError: an image is empty, or no image.
        TileStoreError: an image cannot be read.
    """

    def hash_one(index: int) -> str:
        encoded = source.read_bytes(index)
        # Tile stores and HDF5 files give what they were made to hold, which may be raw pixels.
        if isinstance(source, ImageFiles) and not encoded.startswith(IMAGE_STARTS):
            raise DataError(
                source.name(index),
                f"{len(encoded)} bytes that are not an image." if encoded else "the file is empty.",
                "An image (JPEG, PNG, TIFF, BMP or WebP) is needed.",
                "Copy it again, or remove it from the data.",
            )
        return hashlib.blake2b(encoded, digest_size=16).hexdigest()

    hashes: list[str] = []
    with meter(f"reading {name}", len(source), "images") as counter, ThreadPoolExecutor(READING_THREADS) as pool:
        # In pieces: an error must not wait for a million queued reads.
        for start in range(0, len(source), 1024):
            piece = list(pool.map(hash_one, range(start, min(start + 1024, len(source)))))
            hashes += piece
            counter.advance(len(piece))
    return np.array(hashes, np.bytes_)


def _read_listing(spec: str, config: EvaluationConfig) -> Listing:
    name, colon, rest = spec.partition(":")
    path = Path(spec)
    if colon and not path.exists():
        match name:
            case "store":
                return read_store(Path(rest), config)
            case "nct-crc":
                return read_nct_crc(Path(rest))
            case "pcam":
                return read_pcam(Path(rest))
            case "mhist":
                return read_mhist(Path(rest))
            case "breakhis":
                return read_breakhis(Path(rest), config.breakhis_magnification)
            case "bach":
                return read_bach(Path(rest))
            case "camelyon17-wilds":
                return read_camelyon17_wilds(Path(rest))
            case _:
                raise refuse_unknown_layout(spec, LAYOUTS)
    if path.suffix.lower() in TABLE_SUFFIXES:
        return read_manifest(path)
    if (path / "store.json").is_file():
        return read_store(path, config)
    if path.is_file():
        raise DataError(
            spec,
            "this is a file, but not a table.",
            f"A folder of class folders, or a table ({' or '.join(TABLE_SUFFIXES)}), is needed.",
            "Check the path.",
        )
    return read_folder(path)


def _notes_on_contents(
    listing: Listing, labels: Ints, groups: NDArray[np.str_] | None, units: Ints, content: NDArray[np.bytes_]
) -> list[str]:
    notes = []
    if groups is None:
        notes.append("no group ids: tiles of one slide may be on both sides of the split")
    elif (num_linked := len(np.unique(groups)) - len(np.unique(units))) > 0:
        notes.append(f"{num_linked} {listing.group_kind}s share identical images with others and stay together")
    _, first_N, number_N = np.unique(content, return_index=True, return_inverse=True)
    if num_copies := len(content) - len(first_N):
        notes.append(f"{num_copies} images are exact copies of others")
    if num_contradictions := int((labels != labels[first_N][number_N]).sum()):
        notes.append(f"{num_contradictions} images are exact copies of images with another label")
    return notes


def _check_given_split(spec: str, split: NDArray[np.str_], labels: Ints, classes: tuple[str, ...]) -> None:
    for side in ("train", "test"):
        missing = [name for number, name in enumerate(classes) if not ((labels == number) & (split == side)).any()]
        if missing:
            raise DataError(
                spec,
                f"the given split has no {side} images of {', '.join(missing)}.",
                "Every class needs images in train and in test.",
                "Correct the split, leave the class out, or remove the split to have one drawn.",
            )


def _refuse_leaking_groups(
    spec: str, split: NDArray[np.str_], groups: NDArray[np.str_] | None, kind: str | None
) -> None:
    if groups is None:
        return
    pairs = np.unique(np.stack([groups, split.astype(groups.dtype)], axis=1), axis=0)
    names, counts = np.unique(pairs[:, 0], return_counts=True)
    if (leaking := names[counts > 1]).size:
        raise DataError(
            spec,
            f"{leaking.size} {kind}s are on several sides of the given split, first {leaking[0]}.",
            f"A {kind} must be in one of {', '.join(SPLITS)} only; otherwise the test measures memory.",
            "Correct the column `split`, or remove it to have a split drawn.",
        )


def _duplicates_across(
    spec: str, source: TileSource, split: NDArray[np.str_], content: NDArray[np.bytes_], *, is_allowed: bool
) -> list[str]:
    is_test = split == "test"
    leaking = np.flatnonzero(is_test & np.isin(content, content[~is_test]))
    if not leaking.size:
        return []
    found = f"{leaking.size} of {is_test.sum()} test images are exact copies of images outside the test part"
    if is_allowed:
        return [f"{found} (allowed by evaluation.allow_duplicates)"]
    raise DataError(
        spec,
        f"{found}, first {source.name(int(leaking[0]))}.",
        "Test images must be new to the model.",
        "Remove the copies, or accept them with evaluation.allow_duplicates=true.",
    )


def digest_of_split(content: NDArray[np.bytes_], labels: tuple[str, ...], split: NDArray[np.str_]) -> str:
    """Digest of contents, classes and split, independent of the order of the images."""
    rows = sorted(f"{c.decode()} {s} {label}" for c, label, s in zip(content, labels, split, strict=True))
    return hashlib.sha256("\n".join(rows).encode()).hexdigest()

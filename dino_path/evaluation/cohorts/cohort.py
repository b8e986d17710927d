"""A cohort: the table of labels joined with the feature files of one or several extractors. Known without torch.

Shape suffixes: N cases (slides, or patients with all their slides).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dino_path.config import CaseUnit, CohortConfig, Task
from dino_path.errors import ConfigError, DataError
from dino_path.evaluation.measures.confusion import Floats, Ints
from dino_path.evaluation.measures.sample import Units
from dino_path.features.bags import Bag, BagFolder, Features, open_bag
from dino_path.features.layouts import TridentLayout
from dino_path.features.specs import CONTROL_NAMES
from dino_path.identity import stamp_of
from dino_path.records.tables import SLIDE_LABELS
from dino_path.table_file import PATIENTS, Table, Vocabulary, bad_table, number
from dino_path.tiles.tables import read_known_table
from dino_path.walk import name_some

COLUMNS = Vocabulary(
    ("slide_id", "patient_id", "centre", "label", "time", "event"),
    aliases={**PATIENTS, "center": "centre"},
    passed_over=("path", "split", "mpp"),
)
EVENTS = {"1": 1, "0": 0, "1.0": 1, "0.0": 0, "true": 1, "false": 0}
FEWEST_EVENTS = 5
FEW_PATIENTS = 10  # of a class: then the page says so
TCGA_PATIENT = re.compile(r"TCGA-\w\w-\w{4}(?=-)")
NULLS = ("untrained", *CONTROL_NAMES)


@dataclass(frozen=True)
class Source:
    """One extractor's features of the cases.

    Attributes:
        name: in tables; `encoder` and `encoder_digest` as the files say it.
        bags: of each case, one for each of its slides.
    """

    name: str
    path: Path
    encoder: str | None
    encoder_digest: str | None
    num_features: int
    bags: tuple[tuple[Bag, ...], ...]

    @property
    def is_null(self) -> bool:
        """Whether it is a control (an untrained network or colour), which a trained network must beat."""
        plain = self.encoder or self.name
        return plain.startswith(NULLS)

    @property
    def num_tiles(self) -> Ints:
        """Of each case (N,)."""
        return np.array([sum(bag.num_tiles for bag in of_case) for of_case in self.bags], np.int64)

    def pieces(self, case: int) -> Iterator[Features]:
        """The tiles (n, D) of a case, slide after slide, read piece by piece."""
        for bag in self.bags[case]:
            yield from bag.pieces()

    def digest(self) -> str:
        """Of the files, by their sizes and times."""
        stamps = [stamp_of(bag.path) for of_case in self.bags for bag in of_case]
        return hashlib.sha256(" ".join(stamps).encode()).hexdigest()


@dataclass(frozen=True)
class Cohort:
    """Cases with their labels or survival times.

    Attributes:
        name: of the table.
        cases: ids of slides or of patients.
        slides: the slides of each case.
        patients: (N,) patient of each case; the slide where none are known.
        centres: (N,); None: the table names none.
        classes: in the order of `labels`; of survival, `censored` and `event`.
        labels: (N,) class of each case.
        times: (N,) of survival, in the table's unit; None: classes are predicted.
        is_ordered: whether the classes have an order, from low to high.
        left_out: slide of the table -> why it takes no part.
        notes: what the user should know, as sentences.
    """

    name: str
    task: Task
    unit: CaseUnit
    cases: tuple[str, ...]
    slides: tuple[tuple[str, ...], ...]
    patients: NDArray[np.str_]
    has_patients: bool
    centres: NDArray[np.str_] | None
    classes: tuple[str, ...]
    labels: Ints
    times: Floats | None
    is_ordered: bool
    left_out: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def units(self) -> Units:
        """The units of intervals and folds: patients, else slides."""
        return Units.of(self.patients, "patient" if self.has_patients else "slide", len(self.cases))

    def digest(self) -> str:
        """Of cases, patients, slides and labels."""
        times = [""] * len(self.cases) if self.times is None else self.times.tolist()
        rows = zip(self.cases, self.patients, self.slides, self.labels.tolist(), times, strict=True)
        content = repr([self.classes, [tuple(map(str, row)) for row in rows]])
        return hashlib.sha256(content.encode()).hexdigest()


@dataclass(frozen=True)
class _Row:
    """One slide of the table that has a label; `outcome` is the class, or event and time."""

    line: int
    slide: str
    patient: str
    centre: str | None
    label: str
    time: float | None


def read_labels(table: Path) -> Table:
    """The columns of a table of slide labels.

    Raises:
        DataError: the table is none, or names no slides.
        NewerFormat: a later dino_path wrote it.
    """
    if not table.is_file():
        raise DataError(
            str(table), "no such file." if not table.exists() else "is a folder.", _needed(), "Check --labels."
        )
    return read_known_table(table, COLUMNS, SLIDE_LABELS, needed=("slide_id",))


def read_cohort(table: Path, folders: Sequence[BagFolder], config: CohortConfig) -> tuple[Cohort, tuple[Source, ...]]:
    """The cases that have a label and features of every extractor; the others are listed in `left_out`.

    A slide is looked for by its `slide_id`, with or without the extension of a slide file.

    Raises:
        DataError: the table is none, contradicts itself, or leaves too little: fewer than two classes of two patients
            each, or fewer than five events; or a feature file cannot be read.
        ConfigError: settings do not fit the table, or a folder is given twice.
    """
    known = read_labels(table)
    task = _task(known, config)
    notes = [*known.notes]
    rows, has_patients = _rows(known, task, notes)
    names = _names(folders)
    files, left_out = _match(table, rows, folders, names)
    bags: dict[str, tuple[Bag, ...]] = {}
    for row in rows:
        if row.slide in left_out:
            continue
        opened = tuple(open_bag(file) for file in files[row.slide])
        empty = [name for name, bag in zip(names, opened, strict=True) if bag.num_tiles == 0]
        if empty:
            left_out[row.slide] = f"without tiles in {', '.join(empty)}"
        else:
            bags[row.slide] = opened
    kept = [row for row in rows if row.slide in bags]
    unit: CaseUnit = "patient" if task == "survival" else config.unit
    if unit == "patient" and not has_patients:
        raise _no_patients(table, task)
    groups: dict[str, list[_Row]] = {}
    for row in kept:
        groups.setdefault(row.patient if unit == "patient" else row.slide, []).append(row)
    _refuse_contradictions(table, groups)
    first = [of_case[0] for of_case in groups.values()]
    classes, is_ordered = _classes(table, [row.label for row in first], task, config)
    if left_out:
        some = name_some([f"{slide} ({why})" for slide, why in left_out.items()])
        notes.append(f"{len(left_out)} slides of the table are left out for all extractors: {some}")
    cohort = Cohort(
        name=table.stem,
        task=task,
        unit=unit,
        cases=tuple(groups),
        slides=tuple(tuple(row.slide for row in of_case) for of_case in groups.values()),
        patients=np.array([row.patient for row in first], np.str_),
        has_patients=has_patients,
        centres=np.array([row.centre for row in first], np.str_) if all(row.centre for row in first) else None,
        classes=classes,
        labels=np.array([classes.index(row.label) for row in first], np.int64),
        times=np.array([row.time for row in first], np.float64) if task == "survival" else None,
        is_ordered=is_ordered,
        left_out=left_out,
        notes=tuple(notes),
    )
    _refuse_too_few(table, cohort, config)
    sources = tuple(
        _source(folder, name, [tuple(bags[slide][number] for slide in slides) for slides in cohort.slides])
        for number, (folder, name) in enumerate(zip(folders, names, strict=True))
    )
    return cohort, sources


def cohort_notes(cohort: Cohort) -> list[str]:
    """Notes on the cases for readers of the numbers, as sentences."""
    notes = [*cohort.notes]
    if cohort.task == "label":
        small = {label: count for label, count in patients_by_class(cohort).items() if count < FEW_PATIENTS}
        if small:
            counted = ", ".join(f"{label} ({count})" for label, count in small.items())
            notes.append(
                f"few {cohort.units.name} of {counted}: results of so few may be chance, whatever the interval"
            )
    if cohort.centres is not None:
        notes += _confounding(cohort, cohort.centres)
    several = len(cohort.cases) - cohort.units.count
    if several and cohort.has_patients:
        notes.append(
            f"{cohort.units.count} patients have {len(cohort.cases)} slides, and each slide is classified by itself;"
            f" if the label belongs to the patient, cohort.unit=patient classifies all slides of a patient together"
        )
    return notes


def patients_by_class(cohort: Cohort) -> dict[str, int]:
    """How many patients (else slides) have a case of each class."""
    return {
        label: len(np.unique(cohort.patients[cohort.labels == number])) for number, label in enumerate(cohort.classes)
    }


def _task(table: Table, config: CohortConfig) -> Task:
    has: dict[Task, bool] = {"label": "label" in table.columns, "survival": {"time", "event"} <= table.columns.keys()}
    if config.task is not None and has[config.task]:
        return config.task
    if config.task is None and sum(has.values()) == 1:
        return "label" if has["label"] else "survival"
    found = "has label, time and event" if all(has.values()) else "has neither label nor time and event"
    if config.task is not None:
        found = f"lacks the columns of cohort.task={config.task}"
    raise DataError(
        str(table.path),
        f"{found} (columns: {', '.join(table.columns)}).",
        _needed(),
        "Set cohort.task=label or cohort.task=survival." if all(has.values()) else "Rename or add the columns.",
    )


def _rows(table: Table, task: Task, notes: list[str]) -> tuple[list[_Row], bool]:
    """The rows with an outcome, and whether the table names patients."""
    columns = table.columns
    outcome = ("label",) if task == "label" else ("time", "event")
    has_patients, has_centres = any(columns.get("patient_id", ())), any(columns.get("centre", ()))
    rows: list[_Row] = []
    for number_of_row, line in enumerate(table.lines):
        cells = {name: values[number_of_row] for name, values in columns.items()}
        if not all(cells[name] for name in outcome):
            continue
        for name, is_there in (("slide_id", True), ("patient_id", has_patients), ("centre", has_centres)):
            if is_there and not cells[name]:
                raise bad_table(table.path, f"line {line} has no {name}.")
        slide = cells["slide_id"]
        label, time = cells.get("label", ""), None
        if task == "survival":
            label, time = _event_and_time(table, line, cells)
        patient = cells["patient_id"] if has_patients else slide
        rows.append(_Row(line, slide, patient, cells["centre"] if has_centres else None, label, time))
    repeated = [slide for slide, count in Counter(row.slide for row in rows).items() if count > 1]
    if repeated:
        raise bad_table(table.path, f"{len(repeated)} slides have several rows: {name_some(repeated)}.")
    if num_without := len(table.lines) - len(rows):
        notes.append(f"{num_without:,} rows without {' or '.join(outcome)} left out")
    if not has_patients and rows:
        barcodes = {match[0] for row in rows if (match := TCGA_PATIENT.match(row.slide))}
        looks = (
            f" (the names look like those of {len(barcodes)} TCGA patients)" if 0 < len(barcodes) < len(rows) else ""
        )
        notes.append(f"no patient_id in the table: slides of one patient may be on both sides of a fold{looks}")
    return rows, has_patients


def _event_and_time(table: Table, line: int, cells: Mapping[str, str]) -> tuple[str, float]:
    event = EVENTS.get(cells["event"].casefold())
    if event is None:
        raise bad_table(table.path, f"line {line}: event {cells['event']!r} is neither 1 (seen) nor 0 (censored).")
    try:
        time = number(cells["time"])
    except ValueError:
        raise bad_table(table.path, f"line {line}: time {cells['time']!r} is no number.") from None
    if time < 0:
        raise bad_table(table.path, f"line {line}: time {cells['time']} is below 0.")
    return SURVIVAL_CLASSES[event], time


SURVIVAL_CLASSES = ("censored", "event")


def _names(folders: Sequence[BagFolder]) -> list[str]:
    """The extractors' names in tables: the folder's name, with its parent's if two are equal."""
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        names = [f"{folder.path.absolute().parent.name}/{folder.name}" for folder in folders]
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ConfigError(
            repeated[0],
            "is given twice.",
            "Each folder of features is one row, named after the folder.",
            "Give it once, or rename one.",
        )
    return names


def _match(
    table: Path, rows: Sequence[_Row], folders: Sequence[BagFolder], names: Sequence[str]
) -> tuple[dict[str, tuple[Path, ...]], dict[str, str]]:
    """The file of each slide in each folder, and why slides have none."""
    files: dict[str, tuple[Path, ...]] = {}
    left_out: dict[str, str] = {}
    for row in rows:
        found = [_file_of(row.slide, folder) for folder in folders]
        lacking = [name for name, file in zip(names, found, strict=True) if file is None]
        if lacking:
            left_out[row.slide] = f"no file in {', '.join(lacking)}"
        else:
            files[row.slide] = tuple(file for file in found if file is not None)
    for folder, name in zip(folders, names, strict=True):
        if rows and all(_file_of(row.slide, folder) is None for row in rows):
            raise DataError(
                str(folder.path),
                f"none of its {len(folder.files)} files belongs to a slide in {table.name}.",
                "A file must be named like its slide: <slide_id>.h5.",
                f"Compare the names: the files have names such as {next(iter(folder.files))}, the table of"
                f" {rows[0].slide} "
                f"({name}).",
            )
    return files, left_out


def _file_of(slide: str, folder: BagFolder) -> Path | None:
    return folder.files.get(slide) or folder.files.get(TridentLayout.name_for_reader(slide))


def _refuse_contradictions(table: Path, groups: Mapping[str, Sequence[_Row]]) -> None:
    for case, of_case in groups.items():
        for what, values in (
            ("labels", {row.label for row in of_case}),
            ("times", {str(row.time) for row in of_case}),
            ("centres", {str(row.centre) for row in of_case}),
        ):
            if len(values) > 1:
                raise DataError(
                    str(table),
                    f"the slides of patient {case} have several {what}: {', '.join(sorted(values))}.",
                    "A patient needs one label if all slides of a patient form one case.",
                    "Correct the table, or set cohort.unit=slide.",
                )


def _classes(table: Path, labels: Sequence[str], task: Task, config: CohortConfig) -> tuple[tuple[str, ...], bool]:
    """The classes, and whether they have an order: the one that is given, or that of whole numbers."""
    if task == "survival":
        return SURVIVAL_CLASSES, False
    found = sorted(set(labels))
    if config.ordered_classes:
        if set(config.ordered_classes) != set(found) or len(config.ordered_classes) != len(found):
            raise ConfigError(
                f"cohort.ordered_classes={list(config.ordered_classes)}",
                f"{table.name} has the classes {', '.join(found)}.",
                "All classes are needed, each once, from low to high.",
                "Correct cohort.ordered_classes, or leave it out.",
            )
        return config.ordered_classes, True
    if found and all(re.fullmatch(r"-?\d+", label) for label in found):
        return tuple(sorted(found, key=int)), True
    return tuple(found), False


def _refuse_too_few(table: Path, cohort: Cohort, config: CohortConfig) -> None:
    what = cohort.units.name if cohort.cases else "patients"
    counts = patients_by_class(cohort)
    listed = ", ".join(f"{label}: {count}" for label, count in counts.items()) or "none"
    left = f" ({len(cohort.left_out)} slides are without features)" if cohort.left_out else ""
    remedy = "Add slides, leave the class out, or embed what is missing."
    if cohort.task == "survival" and int(cohort.labels.sum()) < FEWEST_EVENTS:
        raise DataError(
            str(table),
            f"{int(cohort.labels.sum())} events among {len(cohort.cases)} patients{left}.",
            f"At least {FEWEST_EVENTS} events are needed, and tens of them for a meaningful result.",
            "Follow up longer, or add patients.",
        )
    if cohort.task == "label" and (len(counts) < 2 or min(counts.values()) < 2):
        raise DataError(
            str(table),
            f"too few {what} by class: {listed}{left}.",
            f"At least two classes are needed, each with at least two {what}, one for each side of a fold.",
            remedy,
        )
    if not config.by_centre and cohort.units.count < config.folds:
        raise DataError(
            str(table),
            f"{cohort.units.count} {what} for {config.folds} folds{left}.",
            f"Each fold needs at least one of the {what}.",
            "Lower cohort.folds, or add slides.",
        )


def _confounding(cohort: Cohort, centres: NDArray[np.str_]) -> Iterator[str]:
    """How well the centre alone predicts the class: in-sample accuracy of each centre's most frequent class."""
    if cohort.task != "label":
        return
    hits = sum(int(np.bincount(cohort.labels[centres == centre]).max()) for centre in np.unique(centres))
    commonest = int(np.bincount(cohort.labels).max())
    if hits > commonest:
        yield (
            f"the centre alone gives the class of {hits} of {len(cohort.cases)} {cohort.unit}s (the commonest class: "
            f"{commonest}): a model may predict stain and scanner instead of disease; cohort.by_centre=true tests"
            f" across centres"
        )


def _source(folder: BagFolder, name: str, bags: Sequence[tuple[Bag, ...]]) -> Source:
    every = [bag for of_case in bags for bag in of_case]
    first = every[0]
    other = next(
        (bag for bag in every if (bag.num_features, bag.encoder_digest) != (first.num_features, first.encoder_digest)),
        None,
    )
    if other is not None:
        raise DataError(
            str(folder.path),
            f"its files come from several extractors: {first.path.name} ({first.num_features} features) and "
            f"{other.path.name} ({other.num_features}).",
            "One folder holds the features of one extractor.",
            "Embed the slides again into a separate folder.",
        )
    return Source(name, folder.path, first.encoder, first.encoder_digest, first.num_features, tuple(bags))


def _no_patients(table: Path, task: Task) -> DataError:
    asked = "survival belongs to patients" if task == "survival" else "cohort.unit=patient"
    return DataError(
        str(table),
        f"no column patient_id, and {asked}.",
        _needed(),
        "Add patient_id; if each slide is a patient, repeat the slide_id.",
    )


def _needed() -> str:
    return "A CSV with slide_id, and label or time and event, is needed; patient_id and centre if known."

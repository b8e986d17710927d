"""Facts from the files of run folders, evaluations, tile stores and model folders, for the report.

Everything here tolerates missing files and fields: a report is asked for in the middle of a run, and after accidents.
What is there but cannot be read becomes a line in the report.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import yaml

from dino_path.errors import CheckpointError, DataError, NewerFormat
from dino_path.moved_settings import lift_settings
from dino_path.records.best import BestRecord, read_best
from dino_path.records.environment import ENVIRONMENT, read_environment
from dino_path.records.metrics import StepRecord, read_metrics
from dino_path.records.model_folder import CONFIG_NAME, WEIGHTS_NAME, ModelRecord, read_model_record
from dino_path.records.slide import SlideRecord, read_slide_record
from dino_path.records.start import read_start
from dino_path.records.store import read_store_record
from dino_path.records.verdict import VerdictRecord, read_verdict
from dino_path.reporting.evaluations import AnyEvaluation, Plain, find_evaluations
from dino_path.reporting.images import SUFFIXES, Picture, inline_picture
from dino_path.run import RunFolder
from dino_path.sharing import shared_settings, without_folders
from dino_path.walk import files_like

R = TypeVar("R")
MACHINE = ("command", "platform")  # of environment.json: what tells of the machine and its folders
FIGURE_EDGE_PX = 1600
# Edges of the slides' pictures: the first at which all of them stay within the bytes below, by what tissue takes.
OVERLAY_EDGES_PX = (1200, 900, 640, 420)
OVERLAY_BYTES, BYTES_PER_PX = 5_000_000, 0.22
STEP_SKIPPED = re.compile(r"step (\d+): the loss is not finite.*Tiles of this rank: \[([\d, ]*)\]")
REMEDY = re.compile(r"the teacher has collapsed \(([^)]*)\)\. Try this: (.+)\.")
LOG_TIME = re.compile(r"^(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) ")
DEVICE = re.compile(r"; (\S+ on \S+, \d+ process\(es\))")


@dataclass(frozen=True)
class Run:
    """The contents of one run folder."""

    name: str
    config: Plain
    config_text: str
    metrics: Sequence[StepRecord]
    environment: Plain
    started_from: str | None
    """The runs that it continues, in words; None if there are none."""
    evaluations: Sequence[AnyEvaluation]
    figures: Sequence[Picture]
    troubles: Sequence[str] = field(default_factory=tuple)
    best: BestRecord | None = None
    """Its best checkpoint, where checkpoints were compared."""
    verdict: VerdictRecord | None = None
    """Whether it beat its start, where that is known."""
    log: Log = field(default_factory=lambda: Log())
    disk_bytes: int = 0
    """Of all files in its folder."""


@dataclass(frozen=True)
class Log:
    """Facts that are only in a run's log.txt.

    Attributes:
        advice: given at its start, each sentence once, those of a continued run too.
        skipped: step -> numbers of the tiles whose loss was not finite.
        remedies: mode of collapse -> what was advised against it.
        started, ended: local time of the first and the last step's line.
        device: precision, device and processes of the last start, in words.
    """

    advice: tuple[str, ...] = ()
    skipped: Mapping[int, Sequence[int]] = field(default_factory=dict)
    remedies: Mapping[str, str] = field(default_factory=dict)
    started: str | None = None
    ended: str | None = None
    device: str | None = None


@dataclass(frozen=True)
class Store:
    """The slides of a tile store; `slides` are the records, those with problems first."""

    name: str
    tiles: Plain
    slides: Sequence[SlideRecord]
    overlays: Sequence[Picture]
    num_without_picture: int
    """Slides that have an overlay in the store, and none here."""
    disk_bytes: int

    def count(self, status: str) -> int:
        return sum(slide.status == status for slide in self.slides)

    @property
    def num_tiles(self) -> int:
        return sum(slide.num_tiles for slide in self.slides)


@dataclass(frozen=True)
class Model:
    """A model folder: its name, description, expected input in words, and size of its weights."""

    folder: str
    record: ModelRecord
    expects: str
    weights_bytes: int


def read_run(path: Path, *, name: str, shows_machine: bool = False) -> Run:
    """Read a run folder.

    Args:
        shows_machine: with its command, its operating system and all settings, which name folders of this machine; the
            page is meant to be shared without.

    Raises:
        CheckpointError: neither a config nor metrics lie there.
    """
    folder, troubles = RunFolder(path), list[str]()
    if not folder.config_file.exists() and not folder.metrics_file.exists():
        raise CheckpointError(
            str(path),
            "holds neither config.yaml nor metrics.jsonl." if path.is_dir() else "no such folder.",
            "A run folder written by `dino-path pretrain` is needed.",
            "Check the path.",
        )
    config_text = _text_of(folder.config_file) or ""
    config = _parse_yaml(config_text, troubles)
    environment = _read_environment(folder.environment_file, troubles)
    if not shows_machine:
        config = shared_settings(config)
        config_text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else ""
        environment = {key: value for key, value in environment.items() if key not in MACHINE}
    return Run(
        name=name,
        config=config,
        config_text=config_text,
        metrics=_read_metrics(folder.metrics_file, troubles),
        environment=environment,
        started_from=_read_started_from(folder.start_file, troubles),
        evaluations=tuple(find_evaluations(folder.evaluation, troubles)),
        figures=tuple(_read_figures(folder.figures, troubles)),
        best=_tolerant(read_best, folder, folder.best_file, troubles),
        verdict=_tolerant(read_verdict, folder, folder.verdict_file, troubles),
        troubles=tuple(map(without_folders, troubles)),
        log=_read_log(folder.log_file),
        disk_bytes=disk_bytes(path),
    )


def read_store(path: Path) -> Store:
    """Read the records of a tile store's slides, and some of their overlays.

    Raises:
        TileStoreError: no store there, or a damaged file in it.
    """
    tiles = read_store_record(path / "store.json").tiles
    slides = [read_slide_record(file) for file in files_like(path / "slides", "[!.]*.json")]
    slides.sort(key=lambda slide: {"failed": 0, "empty": 1}.get(slide.status, 2 if slide.flags else 3))
    pictures, num_left = _read_overlays(path, slides)
    return Store(path.resolve().name, tiles, slides, pictures, num_left, disk_bytes(path))


def read_model(path: Path) -> Model:
    """What a model folder says.

    Raises:
        CheckpointError: no model folder there. NewerFormat: a later dino_path wrote it.
    """
    record = read_model_record(path / CONFIG_NAME)
    try:
        weights_bytes = (path / WEIGHTS_NAME).stat().st_size
    except OSError as error:
        raise CheckpointError(
            str(path),
            f"holds no weights of a model folder ({error}).",
            "A folder written by `dino-path export` is needed.",
            "Check the path, or export again.",
        ) from None
    return Model(path.resolve().name, record, record.preprocessing.text().replace("um/px", "µm/px"), weights_bytes)


def run_names(paths: Sequence[Path]) -> list[str]:
    """A short name for each run folder: its own, with its parent's where names repeat."""
    resolved = [path.resolve() for path in paths]
    names = [path.name for path in resolved]
    return [
        name if names.count(name) == 1 else f"{path.parent.name}/{name}"
        for name, path in zip(names, resolved, strict=True)
    ]


def _parse_yaml(text: str, troubles: list[str]) -> Plain:
    try:
        tree = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:  # `!!int x` and its like
        troubles.append(f"config.yaml cannot be read ({' '.join(str(error).split())})")
        return {}
    if not isinstance(tree, dict | None):
        troubles.append("config.yaml cannot be read (it holds no settings)")
    return lift_settings(tree)[0] if isinstance(tree, dict) else {}


def _read_metrics(file: Path, troubles: list[str]) -> Sequence[StepRecord]:
    try:
        found = read_metrics(file)
    except (DataError, NewerFormat) as error:
        troubles.append(f"{file.name} cannot be used: it {error.found}")
        return ()
    troubles.extend(f"{file.name} cannot be read completely: {line}" for line in found.unreadable)
    return found.records


def _text_of(file: Path) -> str | None:
    """A file's text, with marks for invalid UTF-8; None if the file does not exist."""
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else None


def _read_log(file: Path) -> Log:
    text = _text_of(file) or ""
    steps = [line for line in text.splitlines() if " step " in line]
    times = [match[1] for line in steps if (match := LOG_TIME.match(line))]
    skipped = {
        int(step): [int(tile) for tile in tiles.replace(" ", "").split(",") if tile]
        for step, tiles in STEP_SKIPPED.findall(text)
    }
    return Log(
        advice=tuple(dict.fromkeys(map(without_folders, re.findall(r"\badvice: (.+)", text)))),
        skipped=skipped,
        remedies=dict(REMEDY.findall(text)),
        started=times[0] if times else None,
        ended=times[-1] if times else None,
        device=(DEVICE.findall(text) or [None])[-1],
    )


def disk_bytes(path: Path) -> int:
    """Of all files in a folder; one that goes away meanwhile counts as nothing."""
    sizes = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):
                sizes += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118  # Path costs twice the time
    return sizes


def _read_environment(file: Path, troubles: list[str]) -> Plain:
    try:
        record = read_environment(file)
    except (DataError, NewerFormat) as error:
        troubles.append(f"{file.name} cannot be used: it {error.found}")
        return {}
    return {} if record is None else ENVIRONMENT.plain(record)


def _read_started_from(file: Path, troubles: list[str]) -> str | None:
    try:
        record = read_start(file)
    except (DataError, NewerFormat) as error:
        troubles.append(f"{file.name} cannot be used: it {error.found}")
        return None
    return None if record is None else record.started_from


def _tolerant(read: Callable[[RunFolder], R | None], folder: RunFolder, file: Path, troubles: list[str]) -> R | None:
    try:
        return read(folder)
    except (DataError, NewerFormat) as error:
        troubles.append(f"{file.name} cannot be used: it {error.found}")
        return None


def _read_figures(folder: Path, troubles: list[str]) -> Iterator[Picture]:
    """Pictures of `folder` by name; a caption is the text file of the same name, else the file name in words."""
    for file in files_like(folder, "*"):
        if file.suffix.lower() not in SUFFIXES or file.name.startswith("."):
            continue
        sidecar = file.with_suffix(".txt")
        caption = _text_of(sidecar) or file.stem.replace("_", " ")
        picture = inline_picture(file, caption=caption.strip(), max_edge_px=FIGURE_EDGE_PX)
        if picture is None:
            troubles.append(f"figures/{file.name} cannot be read")
        else:
            yield picture


def _read_overlays(path: Path, slides: Sequence[SlideRecord]) -> tuple[tuple[Picture, ...], int]:
    """The slides' overlays, flagged slides first, and how many are left out.

    The more there are the smaller they are; beyond what the budget takes, flagged ones and others spread evenly.
    """
    with_overlay = [slide for slide in slides if (path / "overlays" / f"{slide.slide_id}.jpg").is_file()]
    rooms = {edge: int(OVERLAY_BYTES / (edge * edge * BYTES_PER_PX)) for edge in OVERLAY_EDGES_PX}
    edge_px = next((edge for edge, room in rooms.items() if len(with_overlay) <= room), OVERLAY_EDGES_PX[-1])
    flagged = [slide for slide in with_overlay if slide.flags][: rooms[edge_px]]
    plain = [slide for slide in with_overlay if not slide.flags]
    room = rooms[edge_px] - len(flagged)
    every = max(1, math.ceil(len(plain) / room)) if room else len(plain) + 1
    pictures = []
    for slide in [*flagged, *(plain[::every] if room else ())]:
        file = path / "overlays" / f"{slide.slide_id}.jpg"
        notes = [slide.slide_id, f"{slide.num_tiles:,} tiles", *slide.flags]
        picture = inline_picture(file, caption=" · ".join(notes), max_edge_px=edge_px)
        if picture is not None:
            pictures.append(picture)
    return tuple(pictures), len(with_overlay) - len(pictures)

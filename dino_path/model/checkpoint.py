"""The checkpoint file of a pretraining run: contents, versions and reading."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError
from pydantic.dataclasses import dataclass
from torch import Tensor

from dino_path.errors import CheckpointError
from dino_path.model.torch_file import UNREADABLE, load_torch_file
from dino_path.moved_settings import lift_settings

FORMAT = "dino_path checkpoint"
VERSION = 2
Weights = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Start:
    """The state of another run from which a run started."""

    run: str
    """Name of its folder."""
    step: int
    """Its updates by then, as it counted them."""
    tiles_seen: int
    """By then, since its step 0."""
    weights: str | None
    """The weights from which that run started: the name of `model.weights`; None: random weights, or another run."""
    schedules: Literal["extend", "restart"]
    """Whether the new run counts on from `step`, or from 0."""
    stream_start: int
    tiles_before: int
    """The clock of the new run: see `Clock`."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(arbitrary_types_allowed=True, strict=True, extra="forbid"))
class Checkpoint:
    """The contents of a checkpoint. Tensors are complete, even if the run was sharded."""

    step: int
    """Optimizer updates done."""
    config: dict[str, Any]
    """All settings, as plain values."""
    num_tiles: int
    num_slides: int | None
    """None: the tiles are a folder of images."""
    tiles_digest: str | None
    """Of the tiles' names and places; None in the oldest files."""
    contents_digest: str
    """Digest of the contents of images or slides; empty if unknown."""
    tile_mpp: float | None
    """Microns per pixel, where known."""
    tile_px: int | None = None
    """Edge of the stored tiles; None: images of any size, or a file from before it was kept."""
    world_size: int
    global_batch_size: int
    num_skipped: int
    student: dict[str, Weights]
    """`backbone` and `head`, each under the module's own names."""
    teacher: dict[str, Weights]
    objective: dict[str, Weights]
    """The state of each objective term, by its name, such as DINO's `center`."""
    optimizer: dict[str, Any]
    starts: list[Start] = field(default_factory=list)
    """The chain of runs that this run continues, oldest first."""

    @property
    def tiles_seen(self) -> int:
        """In this run, and in runs whose step count it continues."""
        stream_start, tiles_before = (
            (self.starts[-1].stream_start, self.starts[-1].tiles_before) if self.starts else (0, 0)
        )
        return tiles_before + (self.step - stream_start) * self.global_batch_size


def as_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """The written record: the fields, with the format's name and version."""
    starts = [dict(vars(start)) for start in checkpoint.starts]
    return {"format": FORMAT, "version": VERSION, **vars(checkpoint), "starts": starts}


def lineage(starts: Sequence[Start]) -> str:
    """The origin of a run with these `starts`, in words, newest first."""
    states = [f"step {start.step:,} of run {start.run} ({start.tiles_seen:,} tiles)" for start in reversed(starts)]
    return ", that one from ".join([*states, starts[0].weights or "random weights"])


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint file of dino_path, on the CPU; only tensors and plain values are unpickled.

    A file of an earlier version is lifted, and so are its settings.

    Raises:
        CheckpointError: not a file that torch.load(weights_only=True) reads, not one of ours, one of a later version,
            or one that lacks something.
    """
    try:
        record = load_torch_file(path)
    except UNREADABLE as error:
        raise _not_ours(path, f"cannot be read as a checkpoint ({' '.join(str(error).split())[:160]}).") from None
    return checkpoint_in(record, path)


def is_ours(record: object) -> bool:
    """Whether the contents of a torch file are a dino_path checkpoint."""
    return isinstance(record, dict) and record.get("format") == FORMAT


def checkpoint_in(record: object, path: Path) -> Checkpoint:
    """As `read_checkpoint`, from a record that has already been loaded.

    Raises:
        CheckpointError: it is none of ours, of a later version, or lacks something.
    """
    if not isinstance(record, dict) or not is_ours(record):
        raise _not_ours(path, "is a torch file, but not a checkpoint of dino_path.")
    version = record.get("version")
    if not isinstance(version, int) or version < 1:
        raise _not_ours(path, f"has checkpoint version {version!r}.")
    if version > VERSION:
        raise CheckpointError(
            str(path),
            f"has checkpoint version {version}.",
            f"This dino_path reads versions up to {VERSION}.",
            "Install the dino_path that wrote it (environment.json in the run folder names it), or a later one.",
        )
    try:
        fields = {key: value for key, value in _lifted(record).items() if key not in ("format", "version")}
        return Checkpoint(**fields)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, each['loc'][:3]))}: {each['msg']}" for each in error.errors()]
        raise _not_ours(path, f"has invalid contents ({'; '.join(faults[:5])}).") from None


def _lifted(record: dict[str, Any]) -> dict[str, Any]:
    """The record as the present version has it, its settings under their present names."""
    if record["version"] == 1:
        record = _version_2_from_1(record)
    config = record.get("config")
    return {**record, "config": lift_settings(config)[0]} if isinstance(config, dict) else record


def _version_2_from_1(record: dict[str, Any]) -> dict[str, Any]:
    """Networks by their parts, and the center with the term that it belongs to."""
    networks = {
        network: {part: record[key] for part in ("backbone", "head") if (key := f"{network}_{part}") in record}
        for network in ("student", "teacher")
    }
    moved = {"center", *(f"{network}_{part}" for network in networks for part in ("backbone", "head"))}
    kept = {key: value for key, value in record.items() if key not in moved}
    objective = {"dino": {"center": record["center"]}} if "center" in record else {}
    return {
        "num_slides": None,
        "tiles_digest": None,
        "contents_digest": "",
        **kept,
        **networks,
        "objective": objective,
    }


def _not_ours(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        str(path),
        found,
        "A file written by `dino-path pretrain` is needed; other files are never unpickled.",
        "Check the path; if the file is damaged, use the previous checkpoint.",
    )

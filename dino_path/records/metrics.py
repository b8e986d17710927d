"""The measurements of a run: `RUN/metrics.jsonl`, one JSON object per line, each with its format version.

pandas reads it with `read_json(file, lines=True)`. A run that a later version goes on with may hold lines of both.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict

from dino_path.atomic import atomic_write
from dino_path.disk import parse_json
from dino_path.errors import DataError
from dino_path.records.format import Format, Record


class StepRecord(Record):
    """One line: the steps since the previous line up to `step`; means unless stated otherwise.

    Every further number has the name that a term of the objective, a schedule or a part of the student gave it: see
    `numbers`.

    Attributes:
        step: number of the last step, from 0.
        loss, feature_std, rankme, grad_norm: None where no step of the interval was taken. Spread and effective rank
            are of the teacher's features (the student's, where the teacher has no pass), over a window; the norm is of
            all gradients, before clipping.
        lr, weight_decay, momentum: of the last step.
        num_steps: length of the run. None in lines from before it was noted.
        epoch, tiles_seen: since the run began, after the last step.
        tiles_per_s: of all processes together.
        data_wait: share of the time spent waiting for tiles.
        eta_s: seconds until the last step of the run.
        peak_memory_gb: 10^9 bytes; of the GPU, without one of the process.
        num_skipped: steps since the start whose loss was not finite.
        num_unreadable: tiles of the interval whose places others took. None in lines from before they were counted.
        collapse: how the teacher has collapsed; None: it has not.
        knn_accuracy: of the teacher; None where it was not due.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None]

    step: int
    loss: float | None
    feature_std: float | None
    rankme: float | None
    grad_norm: float | None
    lr: float
    weight_decay: float
    momentum: float
    num_steps: int | None = None
    epoch: float
    tiles_seen: int
    tiles_per_s: float
    data_wait: float
    eta_s: float
    peak_memory_gb: float
    num_skipped: int
    num_unreadable: int | None = None
    collapse: str | None
    knn_accuracy: float | None = None

    def numbers(self) -> dict[str, float]:
        """Every number of the line by its name, those that are None left out."""
        return {name: value for name, value in self if isinstance(value, int | float)}

    def number(self, name: str) -> float | None:
        """One of `numbers`; None if the line has no such name."""
        value = getattr(self, name, None)
        return value if isinstance(value, int | float) else None


METRICS = Format(
    "metrics",
    StepRecord,
    DataError,
    "A file as `dino-path pretrain` writes it is needed.",
    "Remove the line; the same command continues from the last checkpoint.",
)


@dataclass(frozen=True)
class Metrics:
    """The readable records.

    Attributes:
        records: in the order of the file.
        unreadable: which lines could not be read, and why.
        is_cut_off: the last line has no end: it is being written, or its writer was killed. It is no record.
    """

    records: tuple[StepRecord, ...] = ()
    unreadable: tuple[str, ...] = ()
    is_cut_off: bool = False


def read_metrics(file: Path) -> Metrics:
    """The records of a run; empty if the file does not exist yet.

    A damaged line is skipped; the others are read.

    Raises:
        DataError: the file cannot be opened. NewerFormat: a later dino_path wrote a line.
    """
    try:
        *lines, rest = file.read_bytes().split(b"\n")
    except FileNotFoundError:
        return Metrics()
    except OSError as error:
        raise METRICS.damaged(file, str(error)) from None
    records, unreadable = list[StepRecord](), list[str]()
    for number, line in enumerate(lines, 1):
        try:
            records.append(METRICS.parse(parse_json(line), file))
        except ValueError:  # no JSON, no UTF-8
            unreadable.append(f"line {number} is not JSON")
        except DataError as error:
            unreadable.append(f"line {number} {error.found.removesuffix('.')}")
    return Metrics(tuple(records), tuple(unreadable), is_cut_off=bool(rest))


def cut_metrics(file: Path, step: int) -> Metrics:
    """Keep only the readable records before `step`, so that a resumed run repeats none. Returns all earlier ones.

    Raises as `read_metrics`.
    """
    found = read_metrics(file)
    if file.exists():
        with atomic_write(file) as stream:
            stream.writelines(metrics_line(record) for record in found.records if record.step < step)
    return found


def metrics_line(record: StepRecord) -> str:
    """A record as its line, to be appended to the file."""
    return json.dumps(METRICS.plain(record)) + "\n"

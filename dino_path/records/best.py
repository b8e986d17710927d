"""Which checkpoint of a run is the best so far, and by what: `RUN/best.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from dino_path.errors import CheckpointError, DataError
from dino_path.records.format import Format, Record
from dino_path.run import RunFolder

Measure = Literal["knn_accuracy", "rankme"]
NAMES: dict[Measure, str] = {"knn_accuracy": "k-NN", "rankme": "RankMe"}


class BestRecord(Record):
    """The comparison of a run's checkpoints, as far as it has come.

    Attributes:
        measure: of the teacher: accuracy of the running k-NN (0 to 1), or effective rank of its features (1 or more).
        data: `monitor.knn_data` of that k-NN; None for the effective rank.
        step, value: updates of the best checkpoint, and its measure.
        last_step: updates of the newest checkpoint that was compared.
        num_without_gain: how many were compared since the best.
    """

    measure: Measure
    data: str | None
    step: int
    value: float
    last_step: int
    num_without_gain: int

    @property
    def measured(self) -> str:
        """`k-NN 0.831`, `RankMe 42.1`."""
        return f"{NAMES[self.measure]} {self.value:.{3 if self.measure == 'knn_accuracy' else 1}f}"

    def __str__(self) -> str:
        return f"step {self.step} ({self.measured})"


BEST = Format(
    "best checkpoint",
    BestRecord,
    DataError,
    "A file as `dino-path pretrain` writes it is needed.",
    "Move it away: the comparison then starts again, and the checkpoints are kept.",
)


def write_best(run: RunFolder, record: BestRecord) -> None:
    """Write which checkpoint is the best so far."""
    BEST.write(run.best_file, record)


def read_best(run: RunFolder) -> BestRecord | None:
    """The best checkpoint so far; None if none was compared.

    Raises:
        DataError: damaged. NewerFormat: a later dino_path wrote it.
    """
    return BEST.find(run.best_file)


def is_exhausted(record: BestRecord | None, stop_after: int | None) -> bool:
    """Whether the last `stop_after` comparisons brought no gain; None: as many as there are may."""
    return record is not None and stop_after is not None and record.num_without_gain >= stop_after


def best_checkpoint(path: Path) -> Path:
    """The best checkpoint of a run folder.

    Raises:
        CheckpointError: no run folder, none was compared, or the file is gone. DataError: see `read_best`.
    """
    run = RunFolder(path)
    record = read_best(run) if path.is_dir() else None
    if record is None:
        raise CheckpointError(
            str(path),
            "holds no best.json." if path.is_dir() else "is not a run folder.",
            "--best needs a run folder whose checkpoints were compared (monitor.keep_best).",
            "Leave --best out for the newest checkpoint, or name a checkpoint file.",
        )
    file = run.checkpoint_file(record.step)
    if not file.is_file():
        raise CheckpointError(
            str(file),
            f"is missing, but best.json names it as the best: {record}.",
            "The checkpoint itself is needed.",
            "Restore it from a backup, or leave --best out for the newest checkpoint.",
        )
    return file

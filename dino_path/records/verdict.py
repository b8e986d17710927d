"""Whether a run beat the weights that it started from: `RUN/verdict.json`.

Written when the run starts, with the predictions of its start, and again at its end.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from dino_path.errors import DataError
from dino_path.records.format import Format, Record
from dino_path.records.labelled import ScoreRecord
from dino_path.run import RunFolder

Protocol = Literal["knn", "linear"]
TITLES: dict[Protocol, str] = {"knn": "k-NN", "linear": "linear"}


class JudgedRecord(Record):
    """One state of the teacher: accuracy by protocol, and accuracy minus the start's on the same images.

    Attributes:
        step: updates done by then.
        minus_start: empty for the start.
    """

    name: Literal["start", "best", "end"]
    step: int
    accuracy: dict[Protocol, ScoreRecord]
    minus_start: dict[Protocol, ScoreRecord] = Field({})


class VerdictRecord(Record):
    """The predictions of the start, and the result of the run.

    Attributes:
        data: name of the labelled images.
        digest: of the images, their labels and how they are asked; equal digests may be compared.
        num_neighbours: images that k-NN and the linear probe learn from.
        num_images: validation images that are classified.
        start_step: updates of the state that the run started from, as it counts them.
        start: classes that the start gave the validation images, as numbers, by protocol.
        interval: what the intervals are over, in words. Empty until the run has ended.
        rows: start, best where another checkpoint than the end is the best, and end. Empty until the run has ended.
        sentence: what they say. Empty until the run has ended.
    """

    data: str
    digest: str
    num_neighbours: int
    num_images: int
    start_step: int
    start: dict[Protocol, tuple[int, ...]]
    interval: str = ""
    rows: tuple[JudgedRecord, ...] = Field(())
    sentence: str = ""

    @model_validator(mode="after")
    def _one_class_per_image(self) -> Self:
        for protocol, classes in self.start.items():
            if len(classes) != self.num_images or min(classes, default=0) < 0:
                raise ValueError(f"start: {protocol} has {len(classes)} classes for {self.num_images} images")
        return self


VERDICT = Format(
    "verdict",
    VerdictRecord,
    DataError,
    "A file as `dino-path pretrain` writes it is needed.",
    "Move it away: the run then ends without a verdict.",
)


def write_verdict(run: RunFolder, record: VerdictRecord) -> None:
    """Write the verdict so far."""
    VERDICT.write(run.verdict_file, record)


def read_verdict(run: RunFolder) -> VerdictRecord | None:
    """The verdict so far; None if the run started from random weights, or had no labelled images.

    Raises:
        DataError: damaged. NewerFormat: a later dino_path wrote it.
    """
    return VERDICT.find(run.verdict_file)


def interval(score: ScoreRecord) -> str:
    """An accuracy with its interval: `0.830 (0.790-0.860)`."""
    if score.low is None or score.high is None:
        return f"{score.value:.3f} (no interval)"
    return f"{score.value:.3f} ({score.low:.3f}-{score.high:.3f})"


def signed(score: ScoreRecord) -> str:
    """A difference with its interval: `+0.030 (+0.010 to +0.050)`."""
    if score.low is None or score.high is None:
        return f"{score.value:+.3f} (no interval)"
    return f"{score.value:+.3f} ({score.low:+.3f} to {score.high:+.3f})"

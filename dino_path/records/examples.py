"""Tiles that illustrate an evaluation: `examples.json`, beside its `results.json`."""

from __future__ import annotations

from pathlib import Path

from dino_path.errors import DataError
from dino_path.records.format import Format, Record

FILE_NAME = "examples.json"


class TileRecord(Record):
    """One image: its name without folders, its slide (None: not known), its class, and a JPEG of it as base64."""

    name: str
    slide: str | None
    label: str
    jpeg: str


class NeighbourRecord(Record):
    """Number of a tile, and its cosine similarity to the query."""

    tile: int
    similarity: float


class QueryRecord(Record):
    """A test image and those most like it, most similar first."""

    tile: int
    neighbours: tuple[NeighbourRecord, ...]


class MistakeRecord(Record):
    """A misclassified test image, and the score (0 to 1) of the predicted class."""

    tile: int
    predicted: str
    score: float


class AttentionRecord(Record):
    """A picture of what [CLS] attends to in a tile: a JPEG as base64."""

    tile: int
    jpeg: str


class ModelExamplesRecord(Record):
    """The examples of one model; `no_attention` says why attention is missing, if it is."""

    queries: tuple[QueryRecord, ...]
    mistakes: tuple[MistakeRecord, ...]
    attention: tuple[AttentionRecord, ...] = ()
    no_attention: str | None = None


class SlideResultRecord(Record):
    """One test slide: how many images were tested, and the share of them that each model named rightly."""

    name: str
    num_images: int
    accuracy: dict[str, float]


class ExamplesRecord(Record):
    """`examples.json`.

    Attributes:
        split_digest: of the results that it belongs to.
        protocol: whose answers the mistakes and the results of slides are.
        apart: `slides` or `patients`: neighbours are from others than the query's; None where the data name none.
        unit: what `slides` lists: `slide` or `patient`; None where it lists nothing.
        tiles: all images that the other fields name by number.
        models: by the name that the results use.
    """

    split_digest: str
    protocol: str
    apart: str | None
    unit: str | None
    tiles: tuple[TileRecord, ...]
    models: dict[str, ModelExamplesRecord]
    slides: tuple[SlideResultRecord, ...] = ()


EXAMPLES = Format(
    "examples",
    ExamplesRecord,
    DataError,
    "A file that `dino-path evaluate` has written is needed.",
    "Run the evaluation again.",
)


def read_examples(folder: Path, split_digest: str) -> ExamplesRecord | None:
    """The examples of the results in a folder; None where there are none, or where they are of another split.

    Raises:
        DataError: damaged. NewerFormat: a later dino_path wrote it.
    """
    file = folder / FILE_NAME
    if not file.exists():
        return None
    record = EXAMPLES.read(file)
    return record if record.split_digest == split_digest else None

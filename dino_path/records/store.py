"""The description of a tile store: its settings (`store.json`), and its expected slides (`expected.json`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dino_path.errors import TileStoreError
from dino_path.records.format import Format, Record, Tree


class StoreRecord(Record):
    """`store.json`. `tiles` are the settings that there were when the store was made, `digest` is of those."""

    digest: str = ""
    tiles: dict[str, Any]


class ExpectedRecord(Record):
    """`expected.json`: id -> file of every slide that `tile` was called with."""

    slides: dict[str, str]


def _expected_2_from_1(tree: Tree) -> Tree:
    """Version 1 was the slides and nothing else."""
    return {"slides": tree}


STORE = Format(
    "tile store",
    StoreRecord,
    TileStoreError,
    "A tile store that this version of dino_path reads is needed.",
    "Check the path, or make one with `dino-path tile`.",
    oldest=2,
)
EXPECTED = Format(
    "list of expected slides",
    ExpectedRecord,
    TileStoreError,
    "A file as `dino-path tile` writes it is needed.",
    "Delete it and run `dino-path tile` again: it makes what is missing.",
    lifts=(_expected_2_from_1,),
)


def read_store_record(file: Path) -> StoreRecord:
    """How the tiles of a store were made.

    Raises:
        TileStoreError: no store here, a damaged one, or one of format 1.
        NewerFormat: a later dino_path made it.
    """
    return STORE.read(file)


def write_store_record(file: Path, record: StoreRecord) -> None:
    """Write `store.json`."""
    STORE.write(file, record)


def read_expected(file: Path) -> dict[str, str]:
    """Id -> file of the slides that a store should hold; empty for a store of an earlier version without this list.

    Raises:
        TileStoreError: damaged. NewerFormat: a later dino_path wrote it.
    """
    return EXPECTED.read(file).slides if file.exists() else {}


def write_expected(file: Path, slides: dict[str, str]) -> None:
    """Write `expected.json`."""
    EXPECTED.write(file, ExpectedRecord(slides=slides))

"""Which pseudonym stands for whom (`MAPPING`, a CSV of mode 600), and which key a store's names were made with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from dino_path.errors import ConfigError, TileStoreError
from dino_path.records.format import Format, Record
from dino_path.records.tables import TableFormat

ONLY_OWNER = 0o600


@dataclass(frozen=True)
class Entry:
    """One row of a mapping; `patient_pseudonym` and `patient_id` are "" where no patient is known.

    Attributes:
        slide_id: the slide's id as it would be without pseudonyms.
        path: of the slide's file, absolute.
    """

    pseudonym: str
    slide_id: str
    patient_pseudonym: str
    patient_id: str
    path: str


COLUMNS = tuple(field.name for field in fields(Entry))
MAPPING = TableFormat(
    "mapping of pseudonyms",
    ConfigError,
    f"A table as `dino-path tile --pseudonymise` writes it is needed, with the columns {', '.join(COLUMNS)}.",
    "Restore it from a backup. With the key alone, `dino-path tile --pseudonymise` makes the same names again.",
)


class PseudonymsRecord(Record):
    """`STORE/pseudonyms.json`: `key_check` tells keys apart, and says nothing else of the key."""

    key_check: str


PSEUDONYMS = Format(
    "note of pseudonyms",
    PseudonymsRecord,
    TileStoreError,
    "A file as `dino-path tile --pseudonymise` writes it is needed.",
    "Restore it from a backup.",
)


def read_mapping(file: Path) -> list[Entry]:
    """All rows of a mapping.

    Raises:
        ConfigError: missing or damaged. NewerFormat: a later dino_path wrote it.
    """
    columns = MAPPING.read(file)
    if missing := [name for name in COLUMNS if name not in columns]:
        raise MAPPING.damaged(file, f"no column {', '.join(missing)}")
    return [Entry(*row) for row in zip(*(columns[name] for name in COLUMNS), strict=True)]


def write_mapping(file: Path, entries: Iterable[Entry]) -> None:
    """Write a mapping, which its owner alone may read."""
    MAPPING.write(file, COLUMNS, map(astuple, entries), mode=ONLY_OWNER)

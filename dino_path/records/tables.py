"""CSV files that a command writes and a command reads back, each with its version in a last column, `format_version`.

So pandas, R and spreadsheets read them as ever, rows may be sorted and taken out, and users may add columns of their
own. A table without that column is of version 1, as all of earlier releases are.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_path.atomic import atomic_write
from dino_path.errors import DataError, DinoPathError, TileStoreError
from dino_path.records.baseline import NEEDED, REMEDY
from dino_path.records.format import VERSION_KEY, newer_format
from dino_path.table_file import plain_cells, stored_cell

Columns = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class TableFormat:
    """One kind of table.

    Attributes:
        name: what messages call such a file.
        error: which refusal a damaged file is; needed, remedy: its last two parts.
        lifts: of all columns, from version 1 to the next, and so on up to the present one.
    """

    name: str
    error: type[DinoPathError]
    needed: str
    remedy: str
    lifts: tuple[Callable[[Columns], Columns], ...] = ()

    @property
    def version(self) -> int:
        return 1 + len(self.lifts)

    def write(
        self, file: Path, columns: Sequence[str], rows: Iterable[Sequence[object]], *, mode: int | None = None
    ) -> None:
        """Write the table, whole or not at all; `mode`: who may read it, where that is not everybody."""
        with atomic_write(file) as stream:
            if mode is not None:
                os.fchmod(stream.fileno(), mode)
            table = csv.writer(stream, lineterminator="\n")
            table.writerow([*columns, VERSION_KEY])
            table.writerows([*plain_cells(row), self.version] for row in rows)

    def read(self, file: Path) -> Columns:
        """The columns of a table that no user edits, as the present version has them.

        Raises:
            DinoPathError: of the kind `error`: missing, damaged, or no such table.
            NewerFormat: a later dino_path wrote it.
        """
        try:
            with file.open(encoding="utf-8", newline="") as stream:
                header, *rows = ([stored_cell(cell) for cell in row] for row in csv.reader(stream, strict=True))
                columns = dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(header, ())
        except (OSError, ValueError, csv.Error) as error:
            raise self.damaged(file, str(error)) from None
        return self.lifted(columns, file)

    def lifted(self, columns: Columns, file: Path) -> Columns:
        """The columns of a table, however it was read, as the present version has them; without that of the version.

        Raises:
            DinoPathError: of the kind `error`: rows of several versions, or none that there was.
            NewerFormat: a later dino_path wrote it.
        """
        versions = {cell for cell in columns.get(VERSION_KEY, ()) if cell} or {"1"}
        try:
            (version,) = {int(float(cell)) for cell in versions}  # pandas writes 1.0 where a row has none
        except ValueError:
            raise self.damaged(file, f"{VERSION_KEY} {', '.join(sorted(versions))}") from None
        if version > self.version:
            raise newer_format(file, self.name, version, self.version)
        if version < 1:
            raise self.damaged(file, f"{VERSION_KEY} {version}")
        columns = {name: cells for name, cells in columns.items() if name != VERSION_KEY}
        try:
            for lift in self.lifts[version - 1 :]:
                columns = lift(columns)
        except (KeyError, ValueError) as error:  # a lift looked for what is not there
            raise self.damaged(file, f"{type(error).__name__}: {error}") from None
        return columns

    def damaged(self, file: Path, found: str) -> DinoPathError:
        """The refusal of a file that cannot be read as this table."""
        return self.error(str(file), f"is damaged ({' '.join(found.split())}).", self.needed, self.remedy)


SLIDES = TableFormat(
    "table of slides",
    DataError,
    "A CSV of slides is needed, as users write it, or as `dino-path tile` wrote it to STORE/slides.csv.",
    "Give all rows of one version, or leave the column format_version out of a table of your own.",
)
LABELLED = TableFormat(
    "table of labelled images",
    DataError,
    "A table of images is needed, as users write it, or as `dino-path evaluate` wrote it to split.csv or folds.csv.",
    "Give all rows of one version, or leave the column format_version out of a table of your own.",
)
SLIDE_LABELS = TableFormat(
    "table of slide labels",
    DataError,
    "A CSV of slides with a label, or a time and an event, is needed, as users write it.",
    "Give all rows of one version, or leave the column format_version out of a table of your own.",
)
PREDICTIONS = TableFormat(
    "predictions of a baseline",
    DataError,
    NEEDED,
    REMEDY,
)
IMAGE_LIST = TableFormat(
    "list of images",
    TileStoreError,
    "The list of images with which this run started is needed, as `dino-path pretrain` wrote it.",
    "Restore it from a backup; or delete it if no image has changed since.",
)

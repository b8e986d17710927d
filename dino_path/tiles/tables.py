"""CSV and Parquet tables that users write, as columns of text."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from dino_path.errors import DataError

TABLE_SUFFIXES = (".csv", ".parquet")


def read_table(path: Path, *, needed: Sequence[str]) -> dict[str, list[str]]:
    """All columns of a CSV or Parquet file as stripped text, equally long; missing values are empty.

    Raises:
        DataError: no such file, not a table, no rows, or a needed column is missing.
    """
    columns = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    missing = [name for name in needed if name not in columns]
    if missing:
        raise DataError(
            str(path),
            f"no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, columns)) or 'none'}.",
            f"The columns {', '.join(needed)} are needed, in a first line, separated by commas.",
            "Rename the columns, or save the table again with commas as separators.",
        )
    if not columns[needed[0]]:
        raise DataError(str(path), "the table has no rows.", "One row per image is needed.", "Check the file.")
    return columns


def _read_csv(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            header, *rows = [row for row in csv.reader(stream) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from None
    names = [name.strip() for name in header]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(
            str(path), f"the column {repeated[0]!r} is there twice.", "One of each is needed.", "Rename one."
        )
    for number, row in enumerate(rows, start=2):
        if len(row) != len(names):
            raise DataError(
                str(path),
                f"row {number} has {len(row)} values, the first line names {len(names)} columns.",
                "Every row needs one value per column; a value with commas stands in double quotes.",
                "Mend the row.",
            )
    return {name: [row[index].strip() for row in rows] for index, name in enumerate(names)}


def _read_parquet(path: Path) -> dict[str, list[str]]:
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from None
    return {
        name: ["" if value is None else str(value).strip() for value in table[name].to_pylist()]
        for name in table.column_names
    }


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(
        str(path),
        f"cannot be read as a table ({' '.join(str(error).split())[:200]}).",
        "A CSV file in UTF-8, or a Parquet file, is needed.",
        "Check the path and save the table again.",
    )

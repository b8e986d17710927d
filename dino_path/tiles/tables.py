"""CSV, TSV and Parquet tables that users write, as columns of text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from dino_path.errors import DataError
from dino_path.records.tables import TableFormat
from dino_path.table_file import CSV_SUFFIXES, MISSING, Table, Vocabulary, read_csv_table, settle_columns

TABLE_SUFFIXES = (*CSV_SUFFIXES, ".parquet")


def read_table(path: Path, *, needed: Sequence[str]) -> dict[str, Sequence[str]]:
    """All columns of a table as stripped text, equally long; missing values (also NA, NaN, null) are empty.

    Columns come under their names as `needed` writes them, whatever case the file has.

    Raises:
        DataError: no such file, not a table, no rows, or a needed column is missing.
    """
    table = _read(path)
    wanted = {name.casefold(): name for name in needed}
    columns = {wanted.get(name.casefold(), name): cells for name, cells in table.columns.items()}
    _refuse_lacking(path, columns, needed, list(table.columns))
    return columns


def read_known_table(path: Path, vocabulary: Vocabulary, kind: TableFormat, *, needed: Sequence[str]) -> Table:
    """The columns of `vocabulary` as `read_table` gives them, with notes on what is odd and what is not read.

    Args:
        kind: what a table of ours is here, should it be one.

    Raises:
        DataError: as there; or a column may mean a known one that is not there.
        NewerFormat: a later dino_path wrote it.
    """
    table = _read(path)
    table = replace(table, columns=kind.lifted(table.columns, path))
    settled = settle_columns(table, vocabulary)
    _refuse_lacking(path, settled.columns, needed, list(table.columns))
    return settled


def _refuse_lacking(path: Path, columns: Mapping[str, Sequence[str]], needed: Sequence[str], there: list[str]) -> None:
    missing = [name for name in needed if name not in columns]
    if missing:
        raise DataError(
            str(path),
            f"no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, there)) or 'none'}.",
            f"The columns {', '.join(needed)} are needed, in a first line.",
            "Rename the columns.",
        )
    if not any(columns.values()):
        raise DataError(str(path), "the table has no rows.", "One row per image is needed.", "Check the file.")


def _read(path: Path) -> Table:
    return _read_parquet(path) if path.suffix.lower() == ".parquet" else read_csv_table(path)


def _read_parquet(path: Path) -> Table:
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            str(path),
            f"cannot be read as a table ({' '.join(str(error).split())[:200]}).",
            "A Parquet file is needed.",
            "Check the path and save the table again.",
        ) from None
    columns = {name.strip(): [_text(value) for value in table[name].to_pylist()] for name in table.column_names}
    return Table(path, columns, range(1, table.num_rows + 1))


def _text(value: object) -> str:
    text = "" if value is None else str(value).strip()
    return "" if text in MISSING else text

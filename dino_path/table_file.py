"""Text tables written by users: CSV and TSV, as saved by spreadsheets, R, pandas and QuPath.

An unusual table is read, with a note, if its meaning is certain; otherwise it is refused, with cause and line.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dino_path.errors import DataError

CSV_SUFFIXES = (".csv", ".tsv")
SEPARATORS = (",", ";", "\t")
# What pandas, R and spreadsheets write for a value that is not there: pandas' list, with its case. `none`, `na` and
# `normal` are not among them: they may be classes.
MISSING = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "#NULL!", "#VALUE!", "#REF!", "#DIV/0!", "#NAME?", "-1.#IND", "-1.#QNAN", "-NaN",
     "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "NAN", "None", "n/a", "nan", "null")
)  # fmt: skip
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # .xlsx and .ods; .xls
# Names that others give to patients, and that mean nothing else.
PATIENTS = {"patient": "patient_id", "patientid": "patient_id", "case_id": "patient_id"}
# Names that others give to the place that made a slide (`medical_center`: PathoROB).
CENTRES = {"center": "centre", "medical_center": "centre", "medical_centre": "centre"}
# Names that may mean a column of ours, or something else (`case` is often "case or control"): never passed over.
DOUBTFUL = {
    "case": "patient_id", "case_submitter_id": "patient_id", "subject": "patient_id", "subject_id": "patient_id",
    "participant": "patient_id", "participant_id": "patient_id", "donor_id": "patient_id",
    "pixel_size": "mpp", "pixel_size_um": "mpp", "microns_per_pixel": "mpp", "um_per_pixel": "mpp", "mpp_x": "mpp",
    "slide": "slide_id", "slide_name": "slide_id", "wsi": "slide_id",
    "fold": "split", "subset": "split", "partition": "split",
    "file": "path", "filename": "path", "file_name": "path", "file_path": "path", "filepath": "path", "image": "path",
    "slide_path": "path", "image_path": "path",
    "class": "label", "target": "label", "diagnosis": "label", "category": "label",
}  # fmt: skip
FORMULA = re.compile(r"'*[=+\-@\t\r]")
PLAIN_NUMBER = re.compile(r"[+-]+|[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
NEAR = 0.8  # difflib's ratio from which a name is taken for a slip of the pen
WINDOWS_DRIVE = re.compile(r"[A-Za-z]:[\\/]|\\\\")


@dataclass(frozen=True)
class Table:
    """A table as text: cells are stripped, missing ones are "", blank rows and columns are gone.

    Attributes:
        columns: name -> cells, all equally long.
        lines: the line of the file (from 1) on which each row ends; the row's number in a table of another kind.
        notes: what the user should know, as sentences.
        has_decimal_commas: the separator is no comma, so that `0,5` may be a number.
    """

    path: Path
    columns: Mapping[str, Sequence[str]]
    lines: Sequence[int]
    notes: tuple[str, ...] = ()
    has_decimal_commas: bool = False


@dataclass(frozen=True)
class Vocabulary:
    """The columns that tables of one kind have.

    Attributes:
        aliases: what else a column may be called -> its name.
        prefix: of further columns, such as `tiles.`.
        passed_over: names that mean something to others, and are never mistaken for ours.
    """

    known: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=lambda: PATIENTS | CENTRES)
    prefix: str | None = None
    passed_over: Collection[str] = field(default=())


def plain_cells(row: Iterable[object]) -> list[object]:
    """A row as written: text that a spreadsheet would run as a formula gets an apostrophe in front."""
    return [f"'{cell}" if isinstance(cell, str) and _is_formula(cell) else cell for cell in row]


def stored_cell(cell: str) -> str:
    """A cell of a file as it was before `plain_cells`."""
    return cell[1:] if cell.startswith("'") and _is_formula(cell[1:]) else cell


def _is_formula(cell: str) -> bool:
    """Whether a spreadsheet may run it, or its apostrophe would be taken for ours; signed numbers and `-` are text."""
    return bool(FORMULA.match(cell)) and not PLAIN_NUMBER.fullmatch(cell)


def read_csv_table(path: Path) -> Table:
    """Read a CSV or TSV: UTF-8, UTF-16 or Windows-1252 (Latin-1); separated by commas, semicolons or tabs.

    Names of columns stay as they are written, stripped.

    Raises:
        DataError: no table, no header, a column named twice, or a row of another length than the header.
    """
    text, notes = _decode(path)
    start, separator = _first_line_and_separator(text)
    reader = csv.reader(io.StringIO(text[start:], newline=""), delimiter=separator, strict=True)
    lines_before = text.count("\n", 0, start)
    header: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for cells in reader:
            row = [stored_cell(cell.strip()) for cell in cells]
            if not any(row):
                continue
            if not header:
                header = row
                continue
            row = _as_long_as(header, row, path, reader.line_num + lines_before)
            rows.append(["" if cell in MISSING else cell for cell in row])
            lines.append(reader.line_num + lines_before)
    except csv.Error as error:
        raise bad_table(path, f"line {reader.line_num + lines_before} cannot be read ({error}).") from None
    if not header:
        raise bad_table(path, "is empty.")
    columns = {index: [row[index] for row in rows] for index in range(len(header))}
    nameless = [index for index, name in enumerate(header) if not name]
    if any(any(columns[index]) for index in nameless):
        notes.append("a column without a name is not used")
    named = [index for index in columns if index not in nameless]
    _refuse_twice(path, [header[index] for index in named])
    return Table(path, {header[index]: columns[index] for index in named}, lines, tuple(notes), separator != ",")


def settle_columns(table: Table, vocabulary: Vocabulary) -> Table:
    """The table with only the columns of `vocabulary`, under its names; notes say which are not used, or are empty.

    Case, spaces and hyphens in names do not matter, and aliases are read as what they mean.

    Raises:
        DataError: two columns mean the same, or one is not known and may mean a known one that is not there.
    """
    found: dict[str, str] = {}  # ours -> as written
    notes = [*table.notes]
    strange: list[str] = []
    exact = {_plain(name) for name in table.columns}
    for name in table.columns:
        plain = _plain(name)
        ours = vocabulary.aliases.get(plain, plain)
        is_known = ours in vocabulary.known or (vocabulary.prefix and ours.startswith(vocabulary.prefix))
        if not is_known or (ours != plain and ours in exact):
            strange.append(name)
            continue
        if ours in found:
            raise bad_table(table.path, f"the columns `{found[ours]}` and `{name}` are both {ours}.")
        if ours != plain:
            notes.append(f"column `{name}` is read as `{ours}`")
        found[ours] = name
    strange = [name for name in strange if _plain(name) not in vocabulary.passed_over]
    _refuse_near(table.path, strange, found, vocabulary)
    if strange:
        notes.append(f"columns that are not used: {', '.join(f'`{name}`' for name in strange)}")
    columns = {ours: table.columns[name] for ours, name in found.items()}
    return Table(table.path, columns, table.lines, tuple(notes), table.has_decimal_commas)


def number(text: str) -> float:
    """A finite number, with a decimal point or (as many spreadsheets write) a decimal comma.

    Raises:
        ValueError: it is none.
    """
    value = float(text.replace(",", ".") if text.count(",") == 1 and "." not in text else text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def path_of(cell: str, folder: Path) -> Path:
    """The path in a cell: absolute, or relative to `folder`; `~`, file:// and backslashes are understood."""
    if cell.casefold().startswith("file://"):
        from urllib.parse import unquote, urlsplit

        cell = unquote(urlsplit(cell).path)
    path = folder / Path(cell).expanduser() if cell.startswith("~") else folder / cell
    if "\\" in cell and not WINDOWS_DRIVE.match(cell) and not path.exists():
        path = folder / cell.replace("\\", "/")
    return path


def why_no_file(cell: str) -> str:
    """Why a path is not a file, as the end of a sentence; "" if there is no obvious reason."""
    return " (a Windows path; this machine has no drives)" if WINDOWS_DRIVE.match(cell) else ""


def bad_table(path: Path, found: str) -> DataError:
    return DataError(
        str(path),
        found,
        "A table is needed: a first line that names the columns, and one line for each row.",
        "Correct the table, or save it again as CSV (UTF-8).",
    )


def _decode(path: Path) -> tuple[str, list[str]]:
    """The file's text, and notes on how it was read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise bad_table(path, f"cannot be read ({(error.strerror or str(error)).lower()}).") from None
    if content.startswith(WORKBOOKS):
        raise bad_table(path, "is a workbook of Excel or LibreOffice, not a CSV.")
    encoding = "utf-8-sig"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
    elif b"\0" in content[:2]:
        encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
    try:
        text = content.decode(encoding)
        notes = []
    except UnicodeDecodeError as error:
        if encoding != "utf-8-sig":
            raise bad_table(path, f"is not valid {encoding.upper()} ({error.reason}).") from None
        try:
            text = content.decode("cp1252")
        except UnicodeDecodeError:
            line = content.count(b"\n", 0, error.start) + 1
            raise bad_table(path, f"line {line} is neither UTF-8 nor Windows-1252.") from None
        notes = ["is not in UTF-8: read as Windows-1252 (Latin-1)"]
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise bad_table(path, f"line {line} holds zero bytes: not a text file.")
    return text.replace("\r\n", "\n").replace("\r", "\n"), notes


def _first_line_and_separator(text: str) -> tuple[int, str]:
    """The start of the header, and its separator: the one that gives the most cells, else a comma."""
    start = len(text) - len(text.lstrip("\n "))
    line = text[start:].split("\n", 1)[0]
    if re.fullmatch(r"sep=.", line):  # Excel's own first line
        return start + len(line), line[-1]
    return start, max(SEPARATORS, key=lambda separator: len(next(csv.reader([line], delimiter=separator), [])))


def _as_long_as(header: Sequence[str], row: list[str], path: Path, line: int) -> list[str]:
    """The row without the empty cells that spreadsheets put behind the last column.

    Raises:
        DataError: it still has another length than the header.
    """
    while len(row) > len(header) and not row[-1]:
        row.pop()
    if len(row) != len(header):
        raise bad_table(
            path,
            f"line {line} has {len(row)} cells, its header {len(header)}"
            + (" (put a value that contains separators in double quotes)." if len(row) > len(header) else "."),
        )
    return row


def _plain(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.casefold())


def _refuse_twice(path: Path, names: Sequence[str]) -> None:
    plain = [_plain(name) for name in names]
    for name in names:
        if plain.count(_plain(name)) > 1:
            raise bad_table(path, f"names a column twice (`{name}`; case does not matter).")


def _refuse_near(path: Path, strange: Sequence[str], found: Collection[str], vocabulary: Vocabulary) -> None:
    """Refuse names that resemble a known column: an ignored `patient_idd` would let patients leak."""
    lacking = [name for name in vocabulary.known if name not in found]
    meant_by: dict[str, str] = {}
    for name in strange:
        close = difflib.get_close_matches(_plain(name), lacking, n=1, cutoff=NEAR)
        meant = close[0] if close else DOUBTFUL.get(_plain(name))
        if meant in lacking:
            meant_by[name] = meant
    if meant_by:
        name, meant = next(iter(meant_by.items()))
        raise DataError(
            str(path),
            "; ".join(f"the column `{name}` is unknown; did you mean `{meant}`?" for name, meant in meant_by.items()),
            f"The columns {', '.join(vocabulary.known)} are read.",
            f"Call it `{meant}`, or `other_{_plain(name)}` if it is something else.",
        )

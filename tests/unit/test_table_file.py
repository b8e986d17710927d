import codecs
from pathlib import Path

import pytest

from dino_path.errors import DataError
from dino_path.table_file import (
    MISSING,
    Table,
    Vocabulary,
    number,
    path_of,
    plain_cells,
    read_csv_table,
    settle_columns,
    stored_cell,
)

WORDS = Vocabulary(
    ("path", "label", "patient_id", "slide_id", "split", "mpp"), prefix="tiles.", passed_over=("content",)
)


def table_of(tmp_path: Path, content: str | bytes) -> Table:
    file = tmp_path / "t.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_csv_table(file)


@pytest.mark.parametrize(
    "content",
    [
        "path,mpp\nMüller.svs,0.5\n".encode(),
        "path,mpp\r\nMüller.svs,0.5\r\n".encode("utf-8-sig"),
        "path;mpp\nMüller.svs;0.5\n".encode(),
        "path\tmpp\nMüller.svs\t0.5\n".encode(),
        "sep=;\npath;mpp\nMüller.svs;0.5\n".encode(),
        '"path","mpp"\n"Müller.svs","0.5"\n'.encode(),
        "path , mpp\n Müller.svs , 0.5 \n".encode(),
        "\n\npath,mpp\n,\nMüller.svs,0.5\n,\n\n".encode(),
        "path,mpp,,\nMüller.svs,0.5,,\n".encode(),
        "path,mpp\nMüller.svs,0.5,,,\n".encode(),
        codecs.BOM_UTF16_LE + "path,mpp\nMüller.svs,0.5\n".encode("utf-16-le"),
        codecs.BOM_UTF16_BE + "path,mpp\nMüller.svs,0.5\n".encode("utf-16-be"),
        "path,mpp\nMüller.svs,0.5\n".encode("utf-16-le"),
        "path,mpp\nMüller.svs,0.5\n".encode("cp1252"),
        "path,mpp\rMüller.svs,0.5\r".encode(),  # old Macs
    ],
)
def test_every_encoding_and_separator_gives_the_same_table(tmp_path: Path, content: bytes) -> None:
    table = table_of(tmp_path, content)
    assert table.columns == {"path": ["Müller.svs"], "mpp": ["0.5"]}


def test_windows_1252_is_noted_and_utf_8_is_not(tmp_path: Path) -> None:
    assert table_of(tmp_path, "path\nü\n").notes == ()
    assert "Windows-1252" in table_of(tmp_path, "path\nü\n".encode("cp1252")).notes[0]


def test_lines_are_those_of_the_file_whatever_stands_between_the_rows(tmp_path: Path) -> None:
    table = table_of(tmp_path, 'path,note\na,"two\nlines"\n\nb,\n')
    assert table.lines == [3, 5]
    assert table_of(tmp_path, "\nsep=,\npath\na\n").lines == [4]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"\n,,\n", "is empty"),
        (b"path,mpp\na\n", "line 2 has 1 cells, its header 2"),
        (b"path,mpp\n\na,b,0.5\n", "line 3 has 3 cells, its header 2.*double quotes"),
        (b"path,Path\na,b\n", "names a column twice"),
        (b'path\n"a\n', "line 2 cannot be read"),
        (b"path\na\n\x81\xff\n", "line 3 is neither UTF-8 nor Windows-1252"),
        (b"path\na\0b\n", "line 2 holds zero bytes"),
        (b"PK\x03\x04\x14", "workbook"),
        (codecs.BOM_UTF16_LE + b"p\0a", "is not valid UTF-16"),
    ],
)
def test_what_is_no_table_is_refused_with_cause_and_line(tmp_path: Path, content: bytes, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        table_of(tmp_path, content)


@pytest.mark.parametrize("word", sorted(MISSING))
def test_missing_values_of_r_pandas_and_spreadsheets_are_empty(tmp_path: Path, word: str) -> None:
    assert table_of(tmp_path, f"path,label\na,{word}\n").columns["label"] == [""]


@pytest.mark.parametrize("word", ["none", "na", "normal", "NORMAL", "N", "0", "N/A tissue"])
def test_what_may_be_a_class_is_kept(tmp_path: Path, word: str) -> None:
    assert table_of(tmp_path, f"path,label\na,{word}\n").columns["label"] == [word]


def test_a_nameless_column_is_noted_where_it_holds_something(tmp_path: Path) -> None:
    table = table_of(tmp_path, ",path\n0,a\n1,b\n")  # pandas' index
    assert table.columns == {"path": ["a", "b"]}
    assert table.notes == ("a column without a name is not used",)


@pytest.mark.parametrize(
    "name", ["patient_id", "Patient_ID", "patient", "Patient ID", "patient-id", "PatientID", "case_id"]
)
def test_patients_are_read_under_their_common_names(tmp_path: Path, name: str) -> None:
    table = settle_columns(table_of(tmp_path, f"path,{name}\na,P1\n"), WORDS)
    assert table.columns == {"path": ["a"], "patient_id": ["P1"]}


def test_aliases_are_noted_and_give_way_to_the_name_itself(tmp_path: Path) -> None:
    alias = settle_columns(table_of(tmp_path, "path,Case ID\na,1\n"), WORDS)
    assert alias.notes == ("column `Case ID` is read as `patient_id`",)
    both = settle_columns(table_of(tmp_path, "path,patient,patient_id\na,x,P1\n"), WORDS)
    assert both.columns["patient_id"] == ["P1"]
    assert both.notes == ("columns that are not used: `patient`",)


def test_columns_that_are_not_read_are_named_in_one_line(tmp_path: Path) -> None:
    table = settle_columns(table_of(tmp_path, "path,site,tiles.mpp,age,content\na,x,1,7,ff\n"), WORDS)
    assert table.notes == ("columns that are not used: `site`, `age`",)
    assert set(table.columns) == {"path", "tiles.mpp"}


@pytest.mark.parametrize(
    ("name", "meant"),
    [("patiend_id", "patient_id"), ("patient_ids", "patient_id"), ("case", "patient_id"), ("labels", "label"),
     ("pixel_size_um", "mpp"), ("slide", "slide_id"), ("fold", "split"), ("wsi", "slide_id")],
)  # fmt: skip
def test_a_column_that_may_mean_one_of_ours_is_refused(tmp_path: Path, name: str, meant: str) -> None:
    with pytest.raises(DataError, match=f"`{name}` is unknown; did you mean `{meant}`"):
        settle_columns(table_of(tmp_path, f"path,{name}\na,x\n"), WORDS)
    settled = settle_columns(table_of(tmp_path, f"path,{name},{meant}\na,x,y\n"), WORDS)
    assert settled.notes == (f"columns that are not used: `{name}`",)


def test_all_doubtful_columns_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`case` is unknown; did you mean `patient_id`.*`pixel_size` is unknown"):
        settle_columns(table_of(tmp_path, "path,case,pixel_size\na,x,1\n"), WORDS)


def test_two_columns_that_mean_the_same_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="`patient` and `case_id` are both patient_id"):
        settle_columns(table_of(tmp_path, "path,patient,case_id\na,x,y\n"), WORDS)


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), ("0,5", 0.5), ("1e-1", 0.1), ("2", 2.0)])
def test_numbers_may_have_decimal_commas(text: str, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize("text", ["half", "nan", "inf", "1,000.5", "1,2,3", ""])
def test_other_text_is_no_number(text: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        number(text)


def test_paths_in_cells_mean_what_their_writer_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a b.svs").touch()
    assert path_of("s/a b.svs", tmp_path) == tmp_path / "s/a b.svs"
    assert path_of("s\\a b.svs", tmp_path) == tmp_path / "s/a b.svs"
    assert path_of("/x/a.svs", tmp_path) == Path("/x/a.svs")
    assert path_of("file:///x/a%20b.svs", tmp_path) == Path("/x/a b.svs")
    assert path_of("~/a.svs", tmp_path) == Path("/home/ann/a.svs")


@pytest.mark.parametrize("text", ["=cmd()", "+cmd", "-cmd", "@SUM(1)", "'=1+1", "''-x", "\tx"])
def test_text_that_a_spreadsheet_would_run_is_written_with_an_apostrophe_and_read_without(text: str) -> None:
    (written,) = plain_cells([text])
    assert written == f"'{text}"
    assert stored_cell(str(written)) == text


@pytest.mark.parametrize("cell", ["tumour", "-", "+", "-1.5", "+3e-4", "it's", "'quoted'", -1.5, None])
def test_other_cells_are_written_as_they_are(cell: object) -> None:
    assert plain_cells([cell]) == [cell]
    assert cell is None or stored_cell(str(cell)) == str(cell)

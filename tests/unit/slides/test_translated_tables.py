import csv
import stat
from pathlib import Path

import pytest

from dino_path.cli import main
from dino_path.errors import DataError
from dino_path.records.pseudonyms import Entry, write_mapping
from dino_path.slides.translated_tables import from_pseudonyms, to_pseudonyms

ENTRIES = [
    Entry("s-0000-0000-0001", "ward__one", "p-0000-0000-0001", "Doe^John", "/slides/ward/one.svs"),
    Entry("s-0000-0000-0002", "ward__two", "p-0000-0000-0001", "Doe^John", "/slides/ward/two.svs"),
    Entry("s-0000-0000-0003", "lab__two", "", "", "/slides/lab/two.svs"),
]


def table(file: Path, *rows: str) -> Path:
    file.write_text("".join(f"{row}\n" for row in rows))
    return file


def rows_of(file: Path) -> list[list[str]]:
    with file.open(newline="") as stream:
        return list(csv.reader(stream))


@pytest.mark.parametrize(
    ("column", "cell", "becomes"),
    [
        ("slide_id", "ward__one", "s-0000-0000-0001"),
        ("Slide ID", "one", "s-0000-0000-0001"),
        ("filename", "one.svs", "s-0000-0000-0001.svs"),
        ("path", "/slides/lab/two.svs", "s-0000-0000-0003.svs"),
        ("case_id", "Doe^John", "p-0000-0000-0001"),
        ("patient", "", ""),
    ],
)
def test_ids_paths_and_file_names_become_pseudonyms(column: str, cell: str, becomes: str, tmp_path: Path) -> None:
    labels = table(tmp_path / "labels.csv", f"{column},label", f"{cell},tumour", ",")
    to_pseudonyms(labels, ENTRIES, tmp_path / "out.csv")
    assert rows_of(tmp_path / "out.csv") == [[column, "label"], [becomes, "tumour"]]


def test_a_table_goes_to_pseudonyms_and_back(tmp_path: Path) -> None:
    labels = table(
        tmp_path / "labels.csv", "slide_id;patient_id;label", "ward__one;Doe^John;0,5", "ward__two;Doe^John;1"
    )
    told = to_pseudonyms(labels, ENTRIES, tmp_path / "out.csv")
    assert (told.num_rows, told.translated, told.copied) == (2, ("slide_id", "patient_id"), ("label",))
    assert "Doe" not in (tmp_path / "out.csv").read_text()
    from_pseudonyms(tmp_path / "out.csv", ENTRIES, tmp_path / "back.csv")
    assert rows_of(tmp_path / "back.csv") == [row.split(";") for row in labels.read_text().splitlines()]
    assert stat.S_IMODE((tmp_path / "back.csv").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        (("slide_id", "ward__one", "two"), "does not know what stands on line 3"),  # two files are called so
        (("patient_id,label", "Roe,a"), "does not know what stands on line 2"),
        (("name,label", "one,a"), "no column of slides or patients"),
        (("slide_id,remark", "ward__one,see Doe^John"), "column `remark` holds names"),
    ],
)
def test_what_would_leave_a_name_is_refused(rows: tuple[str, ...], found: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=found):
        to_pseudonyms(table(tmp_path / "labels.csv", *rows), ENTRIES, tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_the_command_leaves_columns_out_and_refuses_a_mapping_that_others_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mapping(tmp_path / "map.csv", ENTRIES)
    labels = table(tmp_path / "labels.csv", "slide_id,remark,label", "ward__one,see Doe^John,a")
    words = ["dino-path", "pseudonyms", str(labels), "--mapping", str(tmp_path / "map.csv"), "--out"]
    monkeypatch.setattr("sys.argv", [*words, str(tmp_path / "out.csv"), "--drop", "remark"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "copied as they are: label" in capsys.readouterr().out
    assert rows_of(tmp_path / "out.csv") == [["slide_id", "label"], ["s-0000-0000-0001", "a"]]
    (tmp_path / "map.csv").chmod(0o644)
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "others may read or write it" in capsys.readouterr().err

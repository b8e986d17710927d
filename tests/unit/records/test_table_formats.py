"""The CSV files that commands read back: their versions, and tables of earlier releases."""

import csv
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dino_path.config import EvaluationConfig
from dino_path.errors import DataError, DinoPathError, NewerFormat, SlideError
from dino_path.evaluation.labelled.datasets import load_labelled
from dino_path.records.pseudonyms import MAPPING
from dino_path.records.tables import IMAGE_LIST, LABELLED, PREDICTIONS, SLIDE_LABELS, SLIDES, TableFormat
from dino_path.slides.slide_table import read_slide_table

FORMATS = [SLIDES, LABELLED, SLIDE_LABELS, PREDICTIONS, IMAGE_LIST, MAPPING]
OLD_FILES = Path(__file__).parents[2] / "fixtures" / "files_of_f2a0018.tar.xz"
CUPS = TableFormat(
    "table of cups", DataError, "Cups are needed.", "Make some.",
    (
        lambda columns: {**columns, "colour": ["white"] * len(columns["volume_cl"])},
        lambda columns: {"volume_ml": [f"{cl}0" for cl in columns["volume_cl"]], "colour": columns["colour"]},
    ),
)  # fmt: skip


def write_rows(file: Path, *lines: str) -> Path:
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


@pytest.mark.parametrize(
    "lines",
    [
        ("volume_cl", "20"),
        ("volume_cl,format_version", "20,1"),
        ("format_version,volume_cl,colour", "2.0,20,white"),
        ("volume_ml,colour,format_version", "200,white,3"),
    ],
)
def test_every_version_is_read_as_the_present_one_has_it(tmp_path: Path, lines: tuple[str, ...]) -> None:
    columns = CUPS.read(write_rows(tmp_path / "cups.csv", *lines))
    assert {name: [*cells] for name, cells in columns.items()} == {"volume_ml": ["200"], "colour": ["white"]}


def test_what_is_written_is_read_and_has_a_version_in_every_row(tmp_path: Path) -> None:
    CUPS.write(tmp_path / "cups.csv", ("volume_ml", "colour"), [(200, 'red, "old"'), (300, None)])
    with (tmp_path / "cups.csv").open(newline="") as stream:
        assert [row["format_version"] for row in csv.DictReader(stream)] == ["3", "3"]
    assert CUPS.read(tmp_path / "cups.csv") == {"volume_ml": ("200", "300"), "colour": ('red, "old"', "")}
    IMAGE_LIST.write(tmp_path / "none.csv", ("path", "bytes"), [])
    assert IMAGE_LIST.read(tmp_path / "none.csv") == {"path": (), "bytes": ()}


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        (("volume_cl,format_version", "20,1", "volume_cl,2"), "format_version 1, 2"),
        (("volume_cl,format_version", "20,new"), "format_version new"),
        (("volume_cl,format_version", "20,0"), "format_version 0"),
        (("volume_cl,format_version", "20"), "argument"),
        (("volume_l", "2"), "KeyError: 'volume_cl'"),
        ((), "not enough values"),
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path: Path, lines: tuple[str, ...], found: str) -> None:
    with pytest.raises(DataError, match=found) as refusal:
        CUPS.read(write_rows(tmp_path / "cups.csv", *lines))
    assert (refusal.value.needed, refusal.value.remedy) == ("Cups are needed.", "Make some.")


@pytest.mark.parametrize("each", FORMATS, ids=lambda one: one.name)
def test_a_table_of_a_newer_version_is_refused_by_name(each: TableFormat, tmp_path: Path) -> None:
    later = replace(each, lifts=(*each.lifts, lambda columns: columns))
    later.write(tmp_path / "later.csv", ("path", "bytes"), [("a", 1)])
    with pytest.raises(NewerFormat) as refusal:
        each.read(tmp_path / "later.csv")
    assert refusal.value.found == f"was written by a newer dino_path ({each.name}, format {later.version})."
    with pytest.raises(DinoPathError) as missing:
        each.read(tmp_path / "nowhere.csv")
    assert type(missing.value) is each.error


@pytest.mark.parametrize(
    "read", [read_slide_table, lambda file: load_labelled(str(file), EvaluationConfig())], ids=["slides", "images"]
)
def test_commands_refuse_newer_tables_and_mixed_ones(read: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / "a.svs").touch()
    with pytest.raises(NewerFormat, match="newer dino_path"):
        read(write_rows(tmp_path / "new.csv", "path,label,invented,format_version", "a.svs,x,1,9"))
    with pytest.raises((DataError, SlideError), match="format_version 1, 9"):
        read(write_rows(tmp_path / "mixed.csv", "path,label,format_version", "a.svs,x,1", "a.svs,x,9"))


def test_a_users_own_columns_and_rows_are_no_newer_version(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.svs").touch()
    (tmp_path / "b.svs").touch()
    file = write_rows(tmp_path / "mine.csv", "path,stainer,format_version", "a.svs,AT2,1", "b.svs,GT450,")
    assert [row.path.name for row in read_slide_table(file)] == ["a.svs", "b.svs"]
    assert "columns that are not used: `stainer`" in caplog.text
    assert "format_version" not in caplog.text


def test_tables_of_an_earlier_release_are_read(tmp_path: Path) -> None:
    with tarfile.open(OLD_FILES) as archive:
        archive.extractall(tmp_path, filter="data")
    for file in ("store/slides.csv", "run/eval/split.csv"):
        (tmp_path / file).write_text((tmp_path / file).read_text().replace("/somewhere", str(tmp_path)))
    rows = read_slide_table(tmp_path / "store" / "slides.csv")
    assert [(row.slide_id, row.patient_id, row.split) for row in rows] == [("s0", "p0", "train"), ("s1", "p1", "test")]
    labelled = load_labelled(str(tmp_path / "run" / "eval" / "split.csv"), EvaluationConfig())
    assert labelled.counts() == {"train": {"a": 4, "b": 4}, "test": {"a": 2, "b": 2}}
    assert len(PREDICTIONS.read(tmp_path / "baseline" / "predictions.csv")["score_a"]) == 4


def test_folds_and_lists_of_images_of_earlier_releases_are_read(tmp_path: Path) -> None:
    images = write_rows(tmp_path / "images.csv", "path,bytes", "a.png,12")
    assert IMAGE_LIST.read(images) == {"path": ("a.png",), "bytes": ("12",)}
    folds = write_rows(tmp_path / "folds.csv", "path,label,patient_id,content,fold_of_repeat_1", "a.png,a,p0,0f,1")
    assert LABELLED.read(folds)["fold_of_repeat_1"] == ("1",)

"""The run folder: complete files or none, and metrics without repeats."""

import json
from pathlib import Path

import pytest

from dino_path.errors import CheckpointError
from dino_path.run import RunFolder, atomic_write, environment_record, newest_checkpoint, write_json


def test_a_file_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "file.txt"
    with atomic_write(file) as stream:
        stream.write("whole, µm")
        stream.flush()
        assert not file.exists()
    assert file.read_text(encoding="utf-8") == "whole, µm"
    assert [*file.parent.iterdir()] == [file]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "file.bin"
    file.write_bytes(b"old")

    def write_half() -> None:
        with atomic_write(file, "wb") as stream:
            stream.write(b"half of the new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert file.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [file]


def test_json_keeps_its_order_and_ends_with_a_line_end(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"z": 1, "a": None})
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("}\n")
    assert [*json.loads(text)] == ["z", "a"]


def test_checkpoints_are_listed_oldest_first_and_without_unfinished_ones(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.checkpoints.mkdir()
    for name in ("step_00000100.pt", "step_00000020.pt", ".step_00000200.pt.77.tmp", "notes.txt"):
        (run.checkpoints / name).touch()
    assert run.checkpoint_files() == [run.checkpoint_file(20), run.checkpoint_file(100)]
    assert newest_checkpoint(tmp_path) == run.checkpoint_file(100)
    assert newest_checkpoint(run.checkpoint_file(20)) == run.checkpoint_file(20)


@pytest.mark.parametrize(
    ("name", "found"), [("nowhere", "no such file or folder"), ("", "holds no checkpoints/step_*.pt")]
)
def test_a_path_without_checkpoint_is_refused(tmp_path: Path, name: str, found: str) -> None:
    with pytest.raises(CheckpointError) as refusal:
        newest_checkpoint(tmp_path / name)
    assert found in refusal.value.found


def test_the_environment_says_what_a_reader_needs_to_repeat_a_run() -> None:
    record = environment_record()
    assert json.loads(json.dumps(record)) == record
    assert record["versions"]["torch"]
    assert record["versions"]["numpy"]
    assert record["command"]
    assert record["git_commit"] is None or len(record["git_commit"]) == 40


@pytest.mark.parametrize("name", ["x" * 255, "ö" * 127], ids=["ascii", "two bytes a letter"])
def test_a_name_as_long_as_a_file_system_takes_can_be_written(tmp_path: Path, name: str) -> None:
    with atomic_write(tmp_path / name) as stream:
        stream.write("whole")
    assert [file.name for file in tmp_path.iterdir()] == [name]

"""The run folder: complete files or none, and metrics without repeats."""

import json
from pathlib import Path

import pytest

from dino_path.errors import CheckpointError
from dino_path.run import RunFolder, environment_record, newest_checkpoint


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

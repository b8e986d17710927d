"""Files and folders appear whole or not at all, and what killed processes left goes."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from leftovers import left_by_a_kill

from dino_path import atomic
from dino_path.atomic import atomic_write, is_abandoned, one_at_a_time, remove_abandoned, whole_folder, write_json

KILLED = """
import os, signal, sys
from pathlib import Path
from dino_path import atomic

out = Path(sys.argv[1])
if sys.argv[2] == "file":
    with atomic.atomic_write(out / "a.txt") as stream:
        stream.write("half")
        os.kill(os.getpid(), signal.SIGKILL)
with atomic.whole_folder(out / "model", replaced=("config", "weights", "graph")) as building:
    (building / "config").write_text("new")
    if sys.argv[2] == "folder":
        os.kill(os.getpid(), signal.SIGKILL)
    (building / "weights").write_text("new")
    if sys.argv[2] == "before exchange":
        atomic._exchange = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[2] == "after exchange":
        atomic.shutil.rmtree = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
"""


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


@pytest.mark.parametrize("name", ["x" * 255, "ö" * 127], ids=["ascii", "two bytes a letter"])
def test_a_name_as_long_as_a_file_system_takes_can_be_written(tmp_path: Path, name: str) -> None:
    with atomic_write(tmp_path / name) as stream:
        stream.write("whole")
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_a_temporary_file_is_abandoned_only_when_nobody_writes_it(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.txt") as stream:
        stream.write("half")
        (temporary,) = tmp_path.glob(".*.tmp")
        assert not is_abandoned(temporary)
        remove_abandoned(tmp_path)
        assert temporary.exists()
    assert not is_abandoned(temporary)
    assert is_abandoned(left_by_a_kill(tmp_path / "a.txt"))


def test_what_another_machine_left_goes_after_an_hour_without_a_change(tmp_path: Path) -> None:
    left = left_by_a_kill(tmp_path / "a.txt", host="other")
    assert not is_abandoned(left)
    os.utime(left, (time.time() - 4000,) * 2)
    assert is_abandoned(left)


def test_files_of_others_are_no_leftovers(tmp_path: Path) -> None:
    names = [".git.tmp", ".a.b12.tmp", "notes.1-abcdabcd.tmp", ".x.1-abcdabcd.txt"]
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
    remove_abandoned(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(names)


def test_a_temporary_file_that_is_taken_for_abandoned_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = atomic.fcntl.flock, []

    def remove_first(stream: object, how: int) -> None:
        if not calls:
            (temporary,) = tmp_path.glob(".*.tmp")
            temporary.unlink()
        calls.append(how)
        original(stream, how)  # type: ignore[arg-type]

    monkeypatch.setattr(atomic.fcntl, "flock", remove_first)
    with atomic_write(tmp_path / "a.txt") as stream:
        stream.write("whole")
    assert (tmp_path / "a.txt").read_text() == "whole"
    assert len(calls) == 2


def test_of_many_that_wait_for_a_lock_one_at_a_time_is_inside(tmp_path: Path) -> None:
    inside, most, turns = set[int](), [0], 40

    def enter(number: int) -> None:
        for _ in range(turns):
            with one_at_a_time(tmp_path / ".lock"):
                inside.add(number)
                most[0] = max(most[0], len(inside))
                time.sleep(0.0005)
                inside.discard(number)

    with ThreadPoolExecutor(6) as pool:
        assert len([*pool.map(enter, range(6))]) == 6
    assert most == [1]
    assert [*tmp_path.iterdir()] == []


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An older folder with a file and a folder of the user's in it."""
    folder = tmp_path / "model"
    (folder / "notes").mkdir(parents=True)
    for name in ("config", "weights", "graph", "mine", "notes/1"):
        (folder / name).write_text("old")
    (folder / "link").symlink_to("mine")
    return folder


def write_new(model: Path) -> None:
    with whole_folder(model, replaced=("config", "weights", "graph")) as building:
        (building / "config").write_text("new")
        (building / "weights").write_text("new")


def read(model: Path) -> dict[str, str]:
    return {str(file.relative_to(model)): file.read_text() for file in sorted(model.rglob("*")) if file.is_file()}


REPLACED = {"config": "new", "link": "old", "mine": "old", "notes/1": "old", "weights": "new"}


@pytest.mark.parametrize("can_exchange", [True, False])
def test_a_folder_replaces_an_older_one_and_keeps_what_others_put_there(
    model: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(atomic.ctypes, "CDLL", lambda *_, **__: object())
    write_new(model)
    assert read(model) == REPLACED
    assert (model / "link").is_symlink()
    assert [*model.parent.iterdir()] == [model]


def test_a_folder_that_fails_leaves_the_old_one_and_nothing_else(model: Path) -> None:
    before = read(model)

    def write_half() -> None:
        with whole_folder(model, replaced=("config",)) as building:
            (building / "config").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert read(model) == before
    assert [*model.parent.iterdir()] == [model]


def test_a_kill_between_the_two_renames_loses_nothing(model: Path) -> None:
    model.rename(model.with_name("model.replaced"))
    write_new(model)
    assert read(model) == REPLACED
    assert [*model.parent.iterdir()] == [model]


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["file", "folder", "before exchange", "after exchange"])
def test_what_a_killed_process_leaves_is_whole_and_goes_with_the_next_write(model: Path, moment: str) -> None:
    before = read(model)
    ended = subprocess.run([sys.executable, "-c", KILLED, model.parent, moment], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert read(model) == (REPLACED if moment == "after exchange" else before)
    write_new(model)
    assert [*model.parent.iterdir()] == [model]
    assert read(model) == REPLACED

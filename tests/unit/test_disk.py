"""What the disk refuses is said in four parts, and places that cannot be written are refused before the work."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dino_path.atomic import atomic_write, whole_folder
from dino_path.cli import program
from dino_path.disk import REASONS, disk_error, parse_json, refuse_unwritable, refuse_unwritable_file
from dino_path.errors import LONGEST_LINE, ConfigError, DiskError


@pytest.mark.parametrize("number", REASONS)
def test_every_known_error_of_the_system_says_what_is_wrong_and_what_to_do(number: int) -> None:
    refusal = disk_error(OSError(number, os.strerror(number), "store/x"))
    assert refusal is not None
    assert (refusal.thing, refusal.found) == ("store/x", REASONS[number][0])
    assert all(part.endswith(".") for part in (refusal.found, refusal.needed, refusal.remedy))


def test_a_full_disk_is_told_without_a_name_and_other_errors_without_one_are_bugs() -> None:
    full = disk_error(OSError(errno.ENOSPC, "No space left on device"))
    assert full is not None
    assert full.found == "the disk is full."
    assert disk_error(OSError(errno.ENOENT, "No such file or directory")) is None
    assert disk_error(OSError("h5py: unable to open")) is None
    assert disk_error(ConnectionRefusedError(errno.ECONNREFUSED, "refused")) is None


def test_the_command_line_ends_with_2_for_the_disk_and_keeps_the_traceback_of_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "out/results.json")

    def bug() -> None:
        raise OSError("nothing known")

    monkeypatch.setattr(program, "app", full)
    with pytest.raises(SystemExit) as end:
        program.main()
    assert end.value.code == program.EXIT_REFUSED
    assert capsys.readouterr().err.startswith("DiskError: out/results.json: the disk is full.\n  ")
    monkeypatch.setattr(program, "app", bug)
    with pytest.raises(OSError, match="nothing known"):
        program.main()


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Places where no folder can be made."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere/at/all")
    os.mkfifo(tmp_path / "fifo")
    return {
        "is a file": tmp_path / "file" / "x", "loop": tmp_path / "loop" / "x", "leads nowhere": tmp_path / "loop",
        "nowhere": tmp_path / "dangling" / "x", "too long": tmp_path / ("n" * 256),
        "path is too long": tmp_path / "/".join(["p" * 200] * 25), "device or pipe": tmp_path / "fifo",
        "is a device": Path("/dev/null/x"), "zero byte": tmp_path / "a\0b",
    }  # fmt: skip


def test_places_where_no_folder_can_be_made_are_refused_and_say_why(places: dict[str, Path]) -> None:
    for found, place in places.items():
        with pytest.raises(ConfigError, match=found):
            refuse_unwritable(place)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="Linux's /proc")
def test_a_folder_of_the_kernel_is_refused_for_root_too() -> None:
    with pytest.raises(ConfigError, match="nothing can be written here"):
        refuse_unwritable(Path("/proc/x"))


def test_places_that_can_be_written_are_let_through_and_nothing_is_left_there(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("x")
    (tmp_path / "link").symlink_to("not-there-yet")
    refuse_unwritable(tmp_path / "new" / "a" / "b")
    for name in ("old", "new.html", "é" * 100, "a\nb", "link"):
        refuse_unwritable_file(tmp_path / name)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link", "old"]


def test_a_file_to_be_written_is_no_folder_pipe_or_device(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for place, found in (
        (tmp_path, "a folder"),
        (tmp_path / "fifo", "device or pipe"),
        (tmp_path / ("n" * 256), "long"),
    ):
        with pytest.raises(ConfigError, match=found):
            refuse_unwritable_file(place)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB that is full."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_full_disk_names_the_file_that_was_to_be_written_and_leaves_the_older_one(full_disk: Path) -> None:
    (full_disk / "old").write_text("as it was")
    with pytest.raises(OSError, match="No space left") as raised, atomic_write(full_disk / "old", "wb") as stream:
        stream.write(bytes(100_000))
    refusal = disk_error(raised.value)
    assert isinstance(refusal, DiskError)
    assert refusal.thing == str(full_disk / "old")
    assert (full_disk / "old").read_text() == "as it was"
    with pytest.raises(OSError, match="No space left") as raised, whole_folder(full_disk / "m", replaced=()) as folder:
        (folder / "x").write_bytes(bytes(100_000))
    assert str(raised.value.filename) == str(full_disk / "m")
    assert [file.name for file in full_disk.iterdir()] == ["old"]


def test_json_that_is_nested_too_deep_is_no_json() -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        parse_json("[" * 100_000)
    assert parse_json(b'{"a": [1]}') == {"a": [1]}


def test_of_a_line_that_is_too_long_a_refusal_leaves_the_middle_out() -> None:
    error = ConfigError("x", f"{'9' * 5000} is given.\nand short", "y", "z")
    first, second = error.found.split("\n")
    assert first == "9" * (LONGEST_LINE // 2) + " [... 4,010 characters ...] " + f"{'9' * 490} is given."
    assert second == "and short"

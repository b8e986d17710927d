import os
from pathlib import Path

import pytest

from dino_path.errors import DataError
from dino_path.walk import NUM_NAMED, Found, files_below, files_like, folders_in, name_some, without_names


def is_svs(name: str) -> bool:
    return name.endswith(".svs")


def make(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def names(found: Found, root: Path) -> list[str]:
    return [file.relative_to(root).as_posix() for file in found.files]


def test_wanted_files_of_all_subfolders_come_sorted_and_hidden_ones_do_not(tmp_path: Path) -> None:
    make(tmp_path / "b/x.svs", tmp_path / "a.svs", tmp_path / "b/x.txt", tmp_path / ".h/y.svs", tmp_path / ".z.svs")
    found = files_below(tmp_path, is_svs)
    assert names(found, tmp_path) == ["a.svs", "b/x.svs"]
    assert found.unreadable == ()


def test_links_are_followed_and_every_folder_is_looked_at_once(tmp_path: Path) -> None:
    make(tmp_path / "disk/a.svs")
    (tmp_path / "disk/loop").symlink_to(tmp_path)
    (tmp_path / "another").symlink_to(tmp_path / "disk")
    (tmp_path / "b.svs").symlink_to(tmp_path / "disk/a.svs")
    assert names(files_below(tmp_path, is_svs), tmp_path) == ["another/a.svs", "b.svs"]


def test_dead_links_count_when_they_look_wanted_or_may_have_been_folders(tmp_path: Path) -> None:
    for name in ("a.svs", "study", "notes.txt", ".hidden"):
        (tmp_path / name).symlink_to(f"/not_mounted/{name}")
    (tmp_path / "loop.svs").symlink_to("loop.svs")
    found = files_below(tmp_path, is_svs)
    assert found.files == ()
    reasons = {one.path.name: one.reason for one in found.unreadable}
    assert reasons["a.svs"] == "a link to /not_mounted/a.svs, which is not there"
    assert reasons["study"] == "a link to /not_mounted/study, which is not there"
    assert "loop.svs" in reasons["loop.svs"]
    assert set(reasons) == {"a.svs", "study", "loop.svs"}
    assert [one.path.name for one in without_names(found.unreadable, ["study", "a.svs"])] == ["loop.svs"]


@pytest.mark.parametrize(("mode", "what"), [(0o000, "listed"), (0o444, "entered")])
def test_folders_that_may_not_be_read_are_named(tmp_path: Path, mode: int, what: str) -> None:
    make(tmp_path / "colleague/a.svs", tmp_path / "mine/b.svs")
    (tmp_path / "colleague").chmod(mode)
    try:
        if os.access(tmp_path / "colleague", os.X_OK):
            pytest.skip(f"this user (root) may read every folder: none cannot be {what}")
        found = files_below(tmp_path, is_svs)
    finally:
        (tmp_path / "colleague").chmod(0o755)
    assert names(found, tmp_path) == ["mine/b.svs"]
    assert [(one.path.name, one.reason) for one in found.unreadable] == [("colleague", "permission denied")]


def test_a_folder_that_fails_while_it_is_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "colleague/a.svs", tmp_path / "mine/b.svs")
    list_folder = os.scandir

    def refuse(folder: Path) -> object:
        if folder.name == "colleague":
            raise PermissionError(13, "Permission denied")
        return list_folder(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    found = files_below(tmp_path, is_svs)
    assert names(found, tmp_path) == ["mine/b.svs"]
    assert [(one.path.name, one.reason) for one in found.unreadable] == [("colleague", "permission denied")]


def test_files_like_a_pattern_are_none_without_a_folder_and_a_refusal_without_permission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / "b.json", tmp_path / "a.json", tmp_path / "c.txt")
    assert [file.name for file in files_like(tmp_path, "*.json")] == ["a.json", "b.json"]
    assert files_like(tmp_path / "none", "*") == []

    def refuse(_folder: Path) -> object:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot be read \(permission denied\)"):
        files_like(tmp_path, "*.json")


def test_folders_in_a_folder_come_with_links_and_dead_links(tmp_path: Path) -> None:
    make(tmp_path / "b/x.svs", tmp_path / "a/deep/x.svs", tmp_path / "file.svs")
    (tmp_path / "c").symlink_to(tmp_path / "a")
    (tmp_path / "d").symlink_to("/not_mounted")
    found = folders_in(tmp_path)
    assert [folder.name for folder in found.files] == ["a", "b", "c"]
    assert [one.path.name for one in found.unreadable] == ["d"]


def test_long_lists_are_shortened_and_counted() -> None:
    assert name_some(["a", "b"]) == "a; b"
    assert name_some([*range(NUM_NAMED + 2)]) == "0; 1; 2; 3; 4; and 2 more"

import json
import multiprocessing
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from test_tiling import TILES

from dino_path.errors import NewerFormat, TileStoreError
from dino_path.slides.find import SlideRow
from dino_path.tiles.handles import FileHandles
from dino_path.tiles.store import TileStore
from dino_path.tiles.tiling import tile_slides


def test_split_and_exclude_choose_slides(store_path: Path) -> None:
    assert [record.slide_id for record in TileStore.open(store_path).slides] == ["a", "b"]
    assert [record.slide_id for record in TileStore.open(store_path, split="test").slides] == ["b"]
    assert [record.slide_id for record in TileStore.open(store_path, exclude=["a"]).slides] == ["b"]
    assert [record.slide_id for record in TileStore.open(store_path, exclude=["b.tif"]).slides] == ["a"]


def test_columns_belong_to_their_slides(store_path: Path) -> None:
    store, b = TileStore.open(store_path), TileStore.open(store_path, split="test")
    assert len(store) == 64 + len(b)
    assert store.starts.tolist() == [0, 64, len(store)]
    assert [store.slide_id(index) for index in (0, 63, 64, len(store) - 1)] == ["a", "a", "b", "b"]
    np.testing.assert_array_equal(store.x_level0[64:], b.x_level0)
    assert store.read_bytes(70) == b.read_bytes(6)
    assert store.name(70) == f"b x={b.x_level0[6]} y={b.y_level0[6]}" == b.name(6)
    assert (store.size_px, store.mpp) == (64, 0.5)


def test_the_digest_changes_with_the_tiles_and_only_with_them(store_path: Path, tmp_path: Path) -> None:
    store = TileStore.open(store_path)
    assert TileStore.open(store_path).digest == store.digest
    assert TileStore.open(shutil.copytree(store_path, tmp_path / "copy")).digest == store.digest
    assert TileStore.open(store_path, exclude=["a"]).digest != store.digest


@pytest.mark.parametrize("split", [None, "test"])
def test_a_pickled_store_is_small_and_reads_the_same(store_path: Path, split: str | None) -> None:
    store = TileStore.open(store_path, split=split)
    store.read_bytes(0)
    data = pickle.dumps(store)
    assert len(data) < 4000
    copy = pickle.loads(data)
    assert (copy.digest, len(copy)) == (store.digest, len(store))
    assert copy.read_bytes(3) == store.read_bytes(3)


def test_a_store_that_changed_since_is_refused_when_it_is_unpickled(store_path: Path, tmp_path: Path) -> None:
    path = shutil.copytree(store_path, tmp_path / "store")
    data = pickle.dumps(TileStore.open(path))
    with (path / "tiles/a.tar").open("ab") as tar:
        tar.write(b"\0" * 512)
    with pytest.raises(TileStoreError, match="changed while it was in use"):
        pickle.loads(data)


def test_no_store_no_tiles_and_no_such_split_are_refused_with_what_is_there(store_path: Path, tmp_path: Path) -> None:
    with pytest.raises(TileStoreError, match=r"no store\.json"):
        TileStore.open(tmp_path)
    with pytest.raises(TileStoreError, match=r"(?s)splits: test, train.*in split 'val'"):
        TileStore.open(store_path, split="val")
    path = shutil.copytree(store_path, tmp_path / "store")
    for slide_id in ("a", "b"):
        (path / f"slides/{slide_id}.json").unlink()
    with pytest.raises(TileStoreError, match="0 slides done, 1 slides empty, 0 slides failed"):
        TileStore.open(path)


@pytest.mark.parametrize("file", ["store.json", "slides/a.json", "expected.json"])
def test_a_store_of_a_newer_dino_path_is_refused_and_not_made_anew(
    file: str, store_path: Path, rows: list[SlideRow], tmp_path: Path
) -> None:
    path = shutil.copytree(store_path, tmp_path / "store")
    record = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps({**record, "format_version": 7, "invented": 1}))
    with pytest.raises(NewerFormat, match=r"newer dino_path \(.*, format 7\)"):
        tile_slides(rows, TILES, path, num_workers=0)
    assert json.loads((path / file).read_text())["format_version"] == 7


def test_a_store_of_the_first_format_is_refused(store_path: Path, tmp_path: Path) -> None:
    path = shutil.copytree(store_path, tmp_path / "store")
    config = path / "store.json"
    config.write_text(config.read_text().replace('"format_version": 2', '"format_version": 1'))
    with pytest.raises(TileStoreError, match="format_version 1"):
        TileStore.open(path)


@pytest.mark.parametrize(
    ("file", "keep", "complaint"),
    [
        ("tiles/a.tar", 5000, "fewer than its table lists"),
        ("tiles/a.parquet", 200, "damaged"),
        ("tiles/a.tar", None, "No such"),
    ],
)
def test_cut_or_missing_files_are_named_when_the_store_is_opened(
    store_path: Path, tmp_path: Path, file: str, keep: int | None, complaint: str
) -> None:
    path = shutil.copytree(store_path, tmp_path / "store")
    if keep is None:
        (path / file).unlink()
    else:
        os.truncate(path / file, keep)
    with pytest.raises(TileStoreError, match=complaint) as refusal:
        TileStore.open(path)
    assert "dino-path tile" in refusal.value.remedy


def test_a_tar_cut_while_in_use_is_named_with_the_tile(store_path: Path, tmp_path: Path) -> None:
    path = shutil.copytree(store_path, tmp_path / "store")
    store = TileStore.open(path)
    os.truncate(path / "tiles/a.tar", 5000)
    with pytest.raises(TileStoreError, match="ends before a x="):
        store.read_bytes(63)


def test_few_files_stay_open(tmp_path: Path) -> None:
    handles = FileHandles(most_open=3)
    for number in range(10):
        (tmp_path / str(number)).write_bytes(b"0123456789%d" % number)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in [*range(10), 9, 0, 9]:
        assert handles.read(tmp_path / str(number), 8, 3) == b"89%d" % number
        assert handles.num_open <= 3
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= 3


def read_in_child(handles: FileHandles, path: Path) -> tuple[bytes, int]:
    return handles.read(path, 2, 3), handles.num_open


@pytest.mark.slow
def test_handles_reach_another_process_closed(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abcdef")
    handles = FileHandles()
    handles.read(tmp_path / "f", 0, 1)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(read_in_child, (handles, tmp_path / "f")) == (b"cde", 1)


def test_a_forked_child_starts_with_no_handles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in "fg":
        (tmp_path / name).write_bytes(b"abcdef")
    handles = FileHandles()
    handles.read(tmp_path / "f", 0, 1)
    monkeypatch.setattr(os, "getpid", lambda: -7)
    assert handles.read(tmp_path / "g", 1, 1) == b"b"
    assert handles.num_open == 1

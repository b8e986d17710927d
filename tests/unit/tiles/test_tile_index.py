"""Large stores: the places of the tiles are mapped from one file that follows the slides' tables."""

import logging
import os
import pickle
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from leftovers import left_by_a_kill

from dino_path.errors import TileStoreError
from dino_path.tiles import index
from dino_path.tiles import store as store_module
from dino_path.tiles.store import TileStore
from dino_path.tiles.tile_table import TileTable

COLUMNS = ("x_level0", "y_level0", "size_level0", "offset", "length")


@pytest.fixture
def path(store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the store, for which every store is a large one."""
    monkeypatch.setattr(index, "MIN_INDEXED_TILES", 1)
    return Path(shutil.copytree(store_path, tmp_path / "store"))


def index_files(path: Path) -> list[Path]:
    return sorted((path / "index").iterdir())


def check_same_tiles(one: TileStore, other: TileStore) -> None:
    assert one.digest == other.digest
    assert one.starts.tolist() == other.starts.tolist()
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.read_bytes(70) == other.read_bytes(70)


def is_mapped(store: TileStore) -> bool:
    base = store.offset.base
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return True
        base = base.base
    return False


def test_a_mapped_store_has_the_tiles_of_one_in_memory(store_path: Path, path: Path) -> None:
    mapped = TileStore.open(path)
    index.MIN_INDEXED_TILES = 1_000_000  # the fixture puts it back
    in_memory = TileStore.open(store_path)
    assert is_mapped(mapped)
    assert not is_mapped(in_memory)
    check_same_tiles(mapped, in_memory)
    assert not (store_path / "index").exists(), "small stores get no file"


def test_the_second_opener_reads_no_table(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = TileStore.open(path)
    (file,) = index_files(path)
    monkeypatch.setattr(index, "read_tile_table", lambda _: pytest.fail("a table was read"))
    check_same_tiles(TileStore.open(path), first)
    check_same_tiles(pickle.loads(pickle.dumps(first)), first)
    assert index_files(path) == [file]


def test_a_slide_tiled_again_makes_a_new_index_and_removes_the_old_one(path: Path) -> None:
    TileStore.open(path)
    (old,) = index_files(path)
    TileStore.open(path, split="test")
    (test_split,) = {*index_files(path)} - {old}
    record = path / "slides/a.json"
    record.write_text(record.read_text().replace('"seconds": ', '"seconds": 1'))
    TileStore.open(path)
    assert test_split in index_files(path), "it is of other slides"
    assert old not in index_files(path)
    assert len(index_files(path)) == 2


def test_what_killed_openers_left_is_removed(path: Path) -> None:
    (path / "index").mkdir()
    left_by_a_kill(path / "index/0123_4567.npy")
    TileStore.open(path)
    assert [file.suffix for file in index_files(path)] == [".npy"]


def test_an_index_that_was_cut_is_made_again(path: Path) -> None:
    first = TileStore.open(path)
    (file,) = index_files(path)
    content = file.read_bytes()
    file.unlink()  # its pages stay mapped
    for length in (0, 40, len(content) - 8):
        file.write_bytes(content[:length])
        check_same_tiles(TileStore.open(path), first)
        assert file.read_bytes() == content


def test_a_store_where_nothing_can_be_written_is_held_in_memory_and_the_log_says_so(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path / "index").write_text("a file where the folder should be; root may write everywhere")
    with caplog.at_level(logging.WARNING, logger="dino_path"):
        store = TileStore.open(path)
    assert not is_mapped(store)
    assert "cannot be written" in caplog.text
    assert "in memory instead" in caplog.text
    check_same_tiles(pickle.loads(pickle.dumps(store)), store)


def test_many_openers_at_once_see_the_same_tiles(path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(TileStore.open, [path] * 8)
    for store in others:
        check_same_tiles(store, first)
    assert len(index_files(path)) == 1


def test_of_many_openers_at_once_one_reads_the_tables(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    read = index.read_tile_table

    def slow(file: Path) -> TileTable:
        reads.append(file)
        time.sleep(0.1)  # the others come meanwhile
        return read(file)

    monkeypatch.setattr(index, "read_tile_table", slow)
    with ThreadPoolExecutor(4) as pool:
        first, *others = pool.map(TileStore.open, [path] * 4)
    assert len(reads) == len({*reads}) == len(first.slides)
    for store in others:
        check_same_tiles(store, first)
    assert [file.suffix for file in index_files(path)] == [".npy"], "no lock is left"


def test_when_the_process_that_builds_dies_the_next_one_builds(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_building, builder_told = os.pipe()
    builder = os.fork()
    if builder == 0:

        def build_for_ever(*_: object) -> None:
            os.write(builder_told, b"!")
            time.sleep(1000)

        try:
            monkeypatch.setattr(index, "_build", build_for_ever)
            TileStore.open(path)
        finally:
            os._exit(1)
    assert os.read(is_building, 1) == b"!"
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(TileStore.open, path)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        os.kill(builder, signal.SIGKILL)
        os.waitpid(builder, 0)
        assert is_mapped(waiting.result(timeout=60))
    assert [file.suffix for file in index_files(path)] == [".npy"]


def test_damage_is_named_before_and_after_indexing(path: Path) -> None:
    table = (path / "tiles/a.parquet").read_bytes()
    (path / "tiles/a.parquet").write_bytes(table[:200])
    with pytest.raises(TileStoreError, match=r"a\.parquet: is missing or damaged"):
        TileStore.open(path)
    assert index_files(path) == []
    (path / "tiles/a.parquet").write_bytes(table)
    TileStore.open(path)
    os.truncate(path / "tiles/a.tar", 5000)
    with pytest.raises(TileStoreError, match=r"a\.tar: is missing or damaged \(5000 bytes"):
        TileStore.open(path)


@pytest.mark.parametrize("is_large", [False, True])
def test_a_tile_costs_one_read_and_one_decode(path: Path, is_large: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_large:
        monkeypatch.setattr(index, "MIN_INDEXED_TILES", 1_000_000)
    store = TileStore.open(path)
    calls: list[str] = []

    def counted(name: str, function: object) -> object:
        return lambda *arguments: (calls.append(name), function(*arguments))[1]  # type: ignore[operator]

    for name in ("pread", "read", "open"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    monkeypatch.setattr(store_module, "decode_image", counted("decode", store_module.decode_image))
    store.read_image(3)
    assert calls == ["open", "pread", "decode"]
    calls.clear()
    for tile in (0, 63, 17):
        store.read_image(tile)
    assert calls == ["pread", "decode"] * 3

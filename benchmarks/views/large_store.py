"""A store of 100 M tiles: time and memory of opening it, of jumping to a step, and of the order of the tiles.

uv run python benchmarks/views/large_store.py [--folder FOLDER]

Makes a store in FOLDER (needs 7 GB, removed at the end): 20,000 slides with 5,000 tiles each, their records and tables
real ones, their tars holes of the right size. So reading a tile opens its tar and reads its bytes, and what is measured
is everything but JPEGs and views. `in memory` is what a store without an index does: it reads every table. Memory is
that of all processes together, shared pages counted once; what is mapped from files the system may drop at any time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_path.config import TilesConfig, ViewsConfig
from dino_path.records.slide import SlideRecord
from dino_path.tiles import index
from dino_path.tiles.layout import StoreFolder
from dino_path.tiles.store import TileStore
from dino_path.tiles.tile_table import COLUMNS, TileTable, limits_of, write_tile_table
from dino_path.views.sampling import BalancedTiles, ShuffledTiles, TileOrder

BATCH, NUM_RANDOM, NUM_RANKS, NUM_WORKERS, NUM_BATCHES = 64, 20_000, 4, 4, 200
SPAWN = multiprocessing.get_context("spawn")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slides", type=int, default=20_000)
    parser.add_argument("--tiles", type=int, default=5_000, help="per slide")
    parser.add_argument("--folder", type=Path, default=None, help="default: a temporary one")
    arguments = parser.parse_args()
    path = Path(tempfile.mkdtemp(dir=arguments.folder)) / "store"
    try:
        make_store(path, arguments.slides, arguments.tiles)
        print(f"{arguments.slides:,} slides, {arguments.slides * arguments.tiles:,} tiles")
        header("opening, above an idle process", "CPU s", "wall s", "MB", "mapped MB")
        for name, least in (("in memory", 10**12), ("first, makes the index", 0), ("later", 0), ("later", 0)):
            show(name, alone(opened, path, least))
        header(f"{NUM_RANKS} processes, {NUM_RANDOM:,} places", "MB", "mapped MB", "us a place")
        for name, least in (("in memory", 10**12), ("mapped", 0)):
            show(name, ranks(path, least))
        header("loader, from step 781,250", "first, s", "tiles/s", "MB", "mapped MB")
        for num_workers in (0, NUM_WORKERS):
            show(f"{num_workers} workers", alone(loaded, path, num_workers))
        header("order, CPU time", "make, us", "64, us", "1e6, ms", "kB held")
        sizes = [arguments.tiles] * arguments.slides
        total, numbers = sum(sizes), range(arguments.slides)
        show("shuffled", order_costs(lambda: ShuffledTiles(total, seed=0)))
        show("balanced by slide", order_costs(lambda: BalancedTiles(sizes, numbers, seed=0)))
        show("by patient", order_costs(lambda: BalancedTiles(sizes, [number // 2 for number in numbers], seed=0)))
    finally:
        shutil.rmtree(path.parent)


def header(name: str, *columns: str) -> None:
    print(f"\n{name:32s}" + "".join(f"{column:>11s}" for column in columns))


def show(name: str, values: tuple[float, ...]) -> None:
    print(f"{name:32s}" + "".join(f"{value:11.2f}" for value in values), flush=True)


def make_store(path: Path, num_slides: int, num_tiles: int) -> None:
    """A store as tiling writes it, but without pixels."""
    folder, config = StoreFolder(path), TilesConfig(mpp=0.5)
    folder.prepare(config)
    rng = np.random.default_rng(0)
    lengths = rng.integers(8_000, 30_000, num_tiles)
    columns: dict[str, Any] = {name: rng.random(num_tiles) for name in COLUMNS}
    columns |= {"x_level0": np.arange(num_tiles) % 100 * 512, "y_level0": np.arange(num_tiles) // 100 * 512}
    columns |= {"size_level0": np.full(num_tiles, 512), "kept": np.ones(num_tiles)}
    columns |= {"length": lengths, "offset": np.cumsum(lengths + 1024) - lengths}
    table = TileTable(**{name: np.asarray(columns[name], dtype) for name, dtype in COLUMNS.items()})
    (path / "slides").mkdir()
    write_tile_table(folder.table_file("first"), table)
    encoded = folder.table_file("first").read_bytes()
    folder.table_file("first").unlink()
    tar_bytes = int(table.offset[-1] + table.length[-1])
    record = SlideRecord(
        "", "/slides/cohort/slide.svs", "done", patient_id="P", split="train", file_bytes=10**9, mpp=0.25,
        mpp_source="aperio.MPP", tile_mpp=0.5, width_level0=100_000, height_level0=80_000, read_px=512, shrink=2,
        reader="native", mask="otsu", limits=limits_of(config), num_tiles=num_tiles, num_candidates=num_tiles,
    )  # fmt: skip
    for number in range(num_slides):
        slide_id = f"cohort_{number:05d}_diagnostic_slide_1"
        folder.table_file(slide_id).write_bytes(encoded)
        with folder.tar_file(slide_id).open("wb") as tar:
            tar.truncate(tar_bytes)
        folder.record_file(slide_id).write_text(json.dumps({**asdict(record), "slide_id": slide_id}, indent=2))


Memory = NDArray[np.float64]


def memory_mb(process: int | str = "self") -> Memory:
    """(2,) memory of its own, and of mapped files, where pages that several processes map count once over all."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    kb = {line.split(":")[0]: float(line.split()[1]) for line in lines[1:]}
    return np.array([kb["Pss_Anon"], kb["Pss_File"]]) / 1024


def alone(function: Callable[..., tuple[float, ...]], *arguments: object) -> tuple[float, ...]:
    """Run in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        return pool.submit(function, *arguments).result()


def opened(path: Path, least: int) -> tuple[float, ...]:
    index.MIN_INDEXED_TILES = least
    before_mb, cpu_s, wall_s = memory_mb(), time.process_time(), time.perf_counter()
    store = TileStore.open(path)
    times = time.process_time() - cpu_s, time.perf_counter() - wall_s
    assert len(store)
    return (*times, *(memory_mb() - before_mb))


def ranks(path: Path, least: int) -> tuple[float, ...]:
    with SPAWN.Manager() as manager, ProcessPoolExecutor(NUM_RANKS, mp_context=SPAWN) as pool:
        barrier = manager.Barrier(NUM_RANKS)
        results = [*pool.map(rank, [path] * NUM_RANKS, [least] * NUM_RANKS, [barrier] * NUM_RANKS, range(NUM_RANKS))]
    memory, times = zip(*results, strict=True)
    return (*sum(memory), sorted(times)[NUM_RANKS // 2])


def rank(path: Path, least: int, barrier: Barrier, number: int) -> tuple[Memory, float]:
    index.MIN_INDEXED_TILES = least
    before_mb = memory_mb()
    store = TileStore.open(path)
    tiles = np.random.default_rng(number).integers(0, len(store), NUM_RANDOM).tolist()
    start_s = time.perf_counter()
    for tile in tiles:
        assert store.slide_id(tile)
        assert store.offset[tile] + store.length[tile]
    time_us = (time.perf_counter() - start_s) / NUM_RANDOM * 1e6
    barrier.wait()
    memory = memory_mb() - before_mb
    barrier.wait()
    return memory, time_us


class WithoutPixels:
    """Reads the bytes of tiles (zeros here) without decoding them."""

    def __init__(self, store: TileStore) -> None:
        self.store, self.mpp, self.digest = store, store.mpp, store.digest
        self.read_bytes, self.name = store.read_bytes, store.name

    def __len__(self) -> int:
        return len(self.store)

    def read_image(self, tile: int) -> NDArray[np.uint8]:
        return np.full((16, 16, 3), self.store.read_bytes(tile)[0], dtype=np.uint8)


def loaded(path: Path, num_workers: int) -> tuple[float, ...]:
    from dino_path.views.batches import ViewBatches, iterate_batches

    multiprocessing.set_start_method("fork", force=True)  # the default on Linux, but not of a spawned process
    source = WithoutPixels(TileStore.open(path))
    config = ViewsConfig(global_px=16, num_local=0)
    batches = ViewBatches(
        source, config, balance=None, seed=0, batch_size_per_gpu=BATCH, rank=0, world_size=1, accumulate_steps=1
    )
    start = 781_250  # the middle of the first epoch of 100 M
    start_s = time.perf_counter()
    stream = iterate_batches(
        batches, start=start, num_steps=start + NUM_BATCHES, num_workers=num_workers, pin_memory=False
    )
    next(stream)
    first_s, memory = time.perf_counter() - start_s, np.zeros(2)
    for number, _ in enumerate(stream, start=2):
        if number == NUM_BATCHES - 8:  # workers end with the stream
            children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
            memory = np.sum([memory_mb(process) for process in ("self", *children)], axis=0)
    return first_s, NUM_BATCHES * BATCH / (time.perf_counter() - start_s), *memory


def order_costs(make: Callable[[], TileOrder]) -> tuple[float, ...]:
    tracemalloc.start()
    order = make()
    held_kb = tracemalloc.get_traced_memory()[0] / 1000
    tracemalloc.stop()
    middle = np.arange(BATCH) + 50_000_000
    return (
        median_s(make, 20) * 1e6,
        median_s(lambda: order(middle), 50) * 1e6,
        median_s(lambda: order(np.arange(10**6)), 1) * 1e3,
        held_kb,
    )


def median_s(function: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(5):
        start_s = time.process_time()
        for _ in range(repeats):
            function()
        times.append((time.process_time() - start_s) / repeats)
    return sorted(times)[2]


if __name__ == "__main__":
    main()

"""Memory and open files over many short steps, many slides, and one very large slide.

python benchmarks/reliability/flat.py --work DIR [--steps 100000] [--slides 10000] [--edge 100000] [--seconds 600]

Steps and slides stop after the seconds, and the table says how many there were. From the third quarter of the work to
the fourth, the largest memory must not grow by 5 MB, nor the usual number of open files (the median: a file that is
open while a checkpoint or a slide is written is in some samples and not in others, and no leak). `tile` keeps each
slide's record until its end, about 3 kB; these are counted apart, and so is what follows the last slide or step: then
`tile` writes a table and contact sheets of all slides.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median_low

import cv2
import numpy as np
import tifffile
from commands import TINY, prepare, program, start, wait

from dino_path.records.slide import read_slide_record

# Of the smallest step that goes through everything: what a step leaks does not depend on the size of its matrices.
STEP = (
    *TINY, "views.global_px=16", "views.local_px=8", "views.num_local=1",
    "model.arguments={img_size: 16, patch_size: 8, embed_dim: 8, depth: 1, num_heads: 1}",
    "objective.dino.num_prototypes=2", "objective.dino.head_hidden=8", "objective.dino.head_bottleneck=4",
    "training.batch_size_per_gpu=2", "training.checkpoint_every_steps=500", "training.num_workers=0",
    "monitor.log_every_steps=10",
)  # fmt: skip
GROWTH_MB = 5.0
RECORD_MB = 0.003  # of one slide
TILE_PX = 512
LARGE_MB, LARGE_S = 1500.0, 300.0  # bounds for the large slide
MB = 1e6


def memory_mb(process: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / MB


class Sampler(threading.Thread):
    """Seconds (of time.time), memory and open files of a process, every half second."""

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.process, self.samples = process, list[tuple[float, float, int]]()

    def run(self) -> None:
        while True:
            try:
                number = len([*Path(f"/proc/{self.process}/fd").iterdir()])
                self.samples.append((time.time(), memory_mb(self.process), number))
            except (OSError, IndexError):
                return
            time.sleep(0.5)

    def growth(self, until_s: float) -> tuple[float, int, float]:
        """From the third quarter of the work to the fourth, and what memory grew by after it, at `until_s`.

        Of the largest memory, and of the median number of files.
        """
        work = [(memory, files) for at_s, memory, files in self.samples if at_s <= until_s]
        half = work[len(work) // 2 :]
        before, after = half[: len(half) // 2], half[len(half) // 2 :]
        most = max(memory for memory, _ in after)
        return (
            most - max(memory for memory, _ in before),
            median_low(files for _, files in after) - median_low(files for _, files in before),
            max(memory for _, memory, _ in self.samples) - most,
        )


def sampled(body: Callable[[], int], said: Path, seconds: float) -> tuple[int, Sampler]:
    """Run in a forked process, which is stopped after so many seconds (SIGINT); its exit code, and what was seen."""
    child = start(body, said)
    sampler = Sampler(child)
    sampler.start()
    timer = threading.Timer(seconds, os.kill, (child, 2))
    timer.start()
    code = wait(child, seconds + 120)
    timer.cancel()
    sampler.join()
    with said.with_suffix(".csv").open("w") as stream:  # what to look at where it is not flat
        stream.writelines(
            ["s,mb,files\n", *(f"{at_s:.1f},{memory:.1f},{files}\n" for at_s, memory, files in sampler.samples)]
        )
    return code, sampler


def write_small_slides(folder: Path, count: int) -> None:
    """Slides of 512 px: tissue with a number on it, and a margin of glass."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    base = np.clip(rng.normal((243, 243, 243), 1, (512, 512, 3)), 0, 255).astype(np.uint8)
    base[40:472, 40:472] = np.clip(rng.normal((200, 110, 170), 25, (432, 432, 3)), 0, 255)
    for number in range(len([*folder.iterdir()]), count):
        image = base.copy()
        cv2.putText(image, str(number), (50, 250), cv2.FONT_HERSHEY_SIMPLEX, 3, (60, 20, 90), 8)
        with tifffile.TiffWriter(folder / f"{number:05d}.tif") as file:
            file.write(
                image, tile=(256, 256), photometric="rgb", compression="jpeg", resolution=(20000, 20000),
                resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip


def write_large_slide(file: Path, edge_px: int) -> None:
    """A pyramid whose level 0 has edges of `edge_px`: glass, and tissue in the middle tenth of each edge."""
    rng = np.random.default_rng(0)
    tissue = np.clip(rng.normal((200, 110, 170), 25, (TILE_PX, TILE_PX, 3)), 0, 255).astype(np.uint8)
    glass = np.clip(rng.normal((243, 243, 243), 1, (TILE_PX, TILE_PX, 3)), 0, 255).astype(np.uint8)
    streams = [
        cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x221111])[
            1
        ].tobytes()
        for image in (glass, tissue)
    ]

    def tiles(edge: int) -> Iterator[bytes]:
        count = -(-edge // TILE_PX)
        for row in range(count):
            for column in range(count):
                yield streams[all(0.45 <= place / count < 0.55 for place in (row, column))]

    with tifffile.TiffWriter(file, bigtiff=True) as tiff:
        for factor in (1, 4, 16, 64):
            edge = edge_px // factor
            per_cm = 1e4 / (0.5 * factor)
            tiff.write(
                tiles(edge), shape=(edge, edge, 3), dtype=np.uint8, tile=(TILE_PX, TILE_PX), photometric="ycbcr",
                subsampling=(2, 2), compression="jpeg", resolution=(per_cm, per_cm), resolutionunit="CENTIMETER",
                subfiletype=int(factor > 1), metadata=None,
            )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--slides", type=int, default=10_000)
    parser.add_argument("--edge", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=600)
    options = parser.parse_args()
    work = options.work.resolve()
    inputs, arena = prepare(work), work / "flat"
    shutil.rmtree(arena, ignore_errors=True)
    arena.mkdir()
    is_flat = True
    if options.steps:
        settings = {one.partition("=")[0]: one for one in (*STEP, f"training.num_steps={options.steps}")}
        words = ["pretrain", f"store={inputs / 'images'}", f"out={arena / 'run'}", *settings.values()]
        code, sampler = sampled(program(words), work / "said" / "steps.txt", options.seconds)
        metrics = arena / "run" / "metrics.jsonl"
        lines = metrics.read_text().count("\n")
        memory, files, at_end = sampler.growth(metrics.stat().st_mtime)
        is_flat = is_flat and code in (0, 85) and memory < GROWTH_MB and files <= 0
        print(
            f"{10 * lines:,} steps: {memory:+.1f} MB, {files:+d} files in the last quarter; at the end"
            f" {at_end:+.1f} MB; code {code}"
        )
    if options.slides:
        write_small_slides(work / "small", options.slides)
        words = [
            "tile", str(work / "small"), "--out", str(arena / "store"), "tiles.mpp=0.5", "tiles.size_px=256",
            "tiles.mask_mpp=4", "tiles.min_area_um2=500", "--workers", "1", "--quiet",
        ]  # fmt: skip
        code, sampler = sampled(program(words), work / "said" / "slides.txt", options.seconds)
        made = [*(arena / "store" / "slides").glob("*.json")]
        count, num_tiles = len(made), sum(read_slide_record(file).num_tiles for file in made)
        memory, files, at_end = sampler.growth(max(file.stat().st_mtime for file in made))
        beside = memory - RECORD_MB * count / 4
        is_flat = is_flat and code in (0, 130) and num_tiles >= count and beside < GROWTH_MB and files <= 0
        print(
            f"{count:,} slides, {num_tiles:,} tiles: {memory:+.1f} MB ({beside:+.1f} MB beside the slides' records),"
            f" {files:+d} files in the last quarter; at the end {at_end:+.1f} MB; code {code}"
        )
    if options.edge:
        write_large_slide(work / "large.tif", options.edge)
        words = [
            "tile", str(work / "large.tif"), "--out", str(arena / "large"), "tiles.mpp=0.5", "tiles.size_px=256",
            "--workers", "1", "--quiet",
        ]  # fmt: skip
        start_s = time.monotonic()
        code, sampler = sampled(program(words), work / "said" / "large.txt", options.seconds)
        seconds, peak = time.monotonic() - start_s, max(memory for _, memory, _ in sampler.samples)
        print(
            f"{options.edge:,} x {options.edge:,} px: code {code}, {seconds:.0f} s, {peak:.0f} MB at most,"
            f" {sampler.samples[0][1]:.0f} MB before it began"
        )
        is_flat = is_flat and code == 0 and peak - sampler.samples[0][1] < LARGE_MB and seconds < LARGE_S
    shutil.rmtree(arena, ignore_errors=True)
    return int(not is_flat)


if __name__ == "__main__":
    sys.exit(main())

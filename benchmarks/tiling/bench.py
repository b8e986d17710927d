"""Tiling per core: slides to tiles, against the bare OpenSlide loop and against the file's own limits.

    uv run python benchmarks/tiling/bench.py [--slide SLIDE] [--rounds N] [--without-large]

Reading: the same tiles of one run of rows by the native reader, by `read_region` (and resize) as everyone writes it,
and by two limits that no reader passes: getting the compressed bytes, and getting and decoding them. End to end:
`tile_slides` on the whole slide in a fresh process (tissue mask, quality numbers, encoding, overlay, everything
stored), with its peak memory, Python and libraries included. Rates are of CPU seconds, which a busy machine disturbs
less than wall time; the rounds are interleaved, and medians are given. Slides: one real slide (default: the colon
section beside a developer's checkout) and a synthetic one of 40,960 x 40,960 px, written to a temporary folder.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile

from dino_path.config import TilesConfig
from dino_path.slides.find import SlideRow
from dino_path.slides.readers.native import NativeReader, NotNative, decode_tile, native_reader
from dino_path.slides.slide import Slide
from dino_path.slides.synthetic import stain_image
from dino_path.slides.textures import PAINTERS
from dino_path.slides.tissue import tissue_mask
from dino_path.tiles.geometry import Corners, TileSpec, corner_on_level, covered_fractions, tile_grid, tile_spec
from dino_path.tiles.reading import TileReader
from dino_path.tiles.tiling import tile_slides

COLON = Path(__file__).parents[3] / "shared/data/slides/p2_0039_section1.tif"
NUM_READ = 240  # tiles of one reading round
LARGE_BLOCKS, BLOCK_PX, TILE_PX = 40, 1024, 256  # the large slide: 40 x 40 blocks of 1,024 px
TISSUE_RADIUS = 0.29  # of the large slide's edge: tissue is a quarter of it


@dataclass(frozen=True)
class Case:
    """One slide at one mpp."""

    name: str
    path: Path
    mpp: float


@dataclass(frozen=True)
class Tiled:
    """Time and memory of one end-to-end run."""

    num_candidates: int
    cpu_s: float
    peak_mib: float
    reader: str


def write_large_slide(path: Path) -> None:
    """40,960 x 40,960 px, levels 1, 1/4 and 1/16: four painted textures in blocks, glass around them."""
    glass = np.full((BLOCK_PX, BLOCK_PX, 3), 243, dtype=np.uint8)
    glass += np.random.default_rng(0).integers(0, 4, glass.shape[:2], dtype=np.uint8)[..., None]
    blocks = [glass]
    for number, paint in enumerate(list(PAINTERS.values())[:4]):
        rng = np.random.default_rng(number)
        blocks.append(stain_image(*paint(BLOCK_PX, BLOCK_PX, rng), rng))
    ys, xs = np.mgrid[0:LARGE_BLOCKS, 0:LARGE_BLOCKS]
    is_tissue = np.hypot(ys - LARGE_BLOCKS / 2, xs - LARGE_BLOCKS / 2) < TISSUE_RADIUS * LARGE_BLOCKS
    which = np.where(is_tissue, 1 + (ys + 3 * xs) % 4, 0)
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for level in range(3):
            small = [shrunk(block, 4**level) for block in blocks]
            edge = LARGE_BLOCKS * BLOCK_PX // 4**level
            file.write(
                jpeg_tiles(small, which),
                shape=(edge, edge, 3),
                dtype=np.uint8,
                tile=(TILE_PX, TILE_PX),
                photometric="ycbcr",
                subsampling=(2, 2),
                compression="jpeg",
                resolution=(1e4 / 0.25 / 4**level, 1e4 / 0.25 / 4**level),
                resolutionunit="CENTIMETER",
                subfiletype=1 if level else 0,
                metadata=None,
            )


def shrunk(image: np.ndarray, factor: int) -> np.ndarray:
    return cv2.resize(image, None, fx=1 / factor, fy=1 / factor, interpolation=cv2.INTER_AREA)


def jpeg_tiles(blocks: Sequence[np.ndarray], which: np.ndarray) -> Iterator[bytes]:
    """The JPEG tiles of one level, row by row; each distinct one is encoded once."""
    block_px = blocks[0].shape[0]
    known: dict[tuple[int, ...], bytes] = {}
    for y in range(0, len(which) * block_px, TILE_PX):
        for x in range(0, len(which) * block_px, TILE_PX):
            rows, columns = (range(at // block_px, -(-(at + TILE_PX) // block_px)) for at in (y, x))
            key = (y % block_px, x % block_px, *(int(which[row, column]) for row in rows for column in columns))
            if key not in known:
                whole = np.concatenate([np.concatenate([blocks[which[r, c]] for c in columns], axis=1) for r in rows])
                tile = whole[y % block_px :, x % block_px :][:TILE_PX, :TILE_PX]
                options = [cv2.IMWRITE_JPEG_QUALITY, 85]
                known[key] = cv2.imencode(".jpg", cv2.cvtColor(tile, cv2.COLOR_RGB2BGR), options)[1].tobytes()
            yield known[key]


def candidate_tiles(slide: Slide, config: TilesConfig) -> tuple[TileSpec, Corners]:
    """The spec, and the corners of tiles with enough tissue."""
    size_px = config.size_px
    spec = tile_spec(slide.levels, name="", mpp=config.mpp, size_px=size_px, stride_px=size_px, tolerance=0.05)
    grid = tile_grid(spec, width_level0=slide.width_level0, height_level0=slide.height_level0, edge="drop")
    mask = tissue_mask(slide, config)
    fractions = covered_fractions(mask.tissue, mask.overview.px_level0, grid, spec.size_level0)
    return spec, grid[fractions >= config.min_tissue_fraction]


def native_jpegs(native: NativeReader, spec: TileSpec, corners: Corners) -> Iterator[bytes]:
    """The compressed native tiles under these tiles, each as a JPEG file."""
    step = native.level.tile_width
    for corner in corners.tolist():
        x, y = corner_on_level(spec, tuple(corner))
        for down in range(y, y + spec.read_px, step):
            for right in range(x, x + spec.read_px, step):
                yield native.whole_tile_jpeg((right // step * step, down // step * step))


def reading_contenders(case: Case, config: TilesConfig) -> tuple[int, dict[str, Callable[[], object]]]:
    """The number of tiles that each reads, and the contenders by name."""
    slide = Slide.open(case.path)
    spec, candidates = candidate_tiles(slide, config)
    corners = candidates[len(candidates) // 3 :][:NUM_READ]
    size = (spec.read_px, spec.read_px)
    tile_size = (spec.size_px, spec.size_px)

    def openslide_loop() -> None:
        slide.close()  # no tile of the round before in its cache
        for x, y in corners.tolist():
            pixels = slide.read_region((x, y), spec.level, size)
            if size != tile_size:
                cv2.resize(pixels, tile_size, interpolation=cv2.INTER_AREA)

    reader = TileReader.choose(slide, spec, corners, config.model_copy(update={"copy_native_jpeg": False}))

    def our_reader() -> None:
        reader.close()
        for _ in reader.read_all(corners):
            pass

    contenders: dict[str, Callable[[], object]] = {
        f"dino_path ({reader.reader})": our_reader,
        "bare OpenSlide loop": openslide_loop,
    }
    try:
        native = native_reader(slide, spec.level)
    except NotNative:
        return len(corners), contenders
    shrink = spec.shrink
    contenders["limit: raw bytes"] = lambda: sum(len(jpeg) for jpeg in native_jpegs(native, spec, corners))
    contenders["limit: raw bytes, decoded"] = lambda: [
        None for jpeg in native_jpegs(native, spec, corners) if decode_tile(jpeg, shrink) is None
    ]
    return len(corners), contenders


def tile_once(path: Path, config: TilesConfig) -> Tiled:
    """Tile a slide into a fresh store; for a process of its own."""
    cv2.setNumThreads(1)
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        start_s = time.process_time()
        summary = tile_slides([SlideRow(path, "slide")], config, Path(folder) / "store", num_workers=0)
        cpu_s = time.process_time() - start_s
    record = summary.records[0]
    return Tiled(record.num_candidates, cpu_s, peak_mib(), record.reader)


def peak_mib() -> float:
    """Largest resident size of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage keeps the parent's peak through fork and exec
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def compare_reading(case: Case, rounds: int) -> None:
    """Print tiles/s/core of reading alone."""
    num_tiles, contenders = reading_contenders(case, TilesConfig(mpp=case.mpp))
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            start_s = time.process_time()
            run()
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - start_s)
    base = statistics.median(seconds["bare OpenSlide loop"])
    print(f"\n{case.name}: reading {num_tiles} tiles")
    print(f"{'':34s} tiles/s/core   ms/tile (min - max)   against OpenSlide")
    for name, values in seconds.items():
        ms = [1e3 * value / num_tiles for value in (statistics.median(values), min(values), max(values))]
        print(f"{name:34s} {1e3 / ms[0]:12,.0f}   {ms[0]:7.3f} ({ms[1]:.3f} - {ms[2]:.3f})   "
              f"{base / statistics.median(values):7.1f} x", flush=True)  # fmt: skip


def compare_end_to_end(case: Case, rounds: int) -> None:
    """Print tiles/s/core and peak memory of tiling the whole slide."""
    contenders = {
        "dino_path": TilesConfig(mpp=case.mpp),
        "dino_path, encoding every tile": TilesConfig(mpp=case.mpp, copy_native_jpeg=False),
        "dino_path through OpenSlide": TilesConfig(mpp=case.mpp, reader="openslide", copy_native_jpeg=False),
    }
    runs: dict[str, list[Tiled]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, config in contenders.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                runs[name].append(pool.apply(tile_once, (case.path, config)))
    base = statistics.median(run.cpu_s for run in runs["dino_path through OpenSlide"])
    print(f"\n{case.name}: end to end, {runs['dino_path'][0].num_candidates} candidate tiles, all stored")
    print(f"{'':34s} tiles/s/core   CPU s (min - max)   peak MiB   against OpenSlide")
    for name, tiled in runs.items():
        seconds = [run.cpu_s for run in tiled]
        median, peak = statistics.median(seconds), max(run.peak_mib for run in tiled)
        print(f"{name:34s} {tiled[0].num_candidates / median:12,.0f}   {median:5.2f} ({min(seconds):.2f} - "
              f"{max(seconds):.2f})   {peak:8.0f}   {base / median:7.1f} x", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path, default=COLON, help="a JPEG pyramid with its mpp")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--without-large", action="store_true")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        cases = []
        if arguments.slide.exists():
            level0_mpp = Slide.open(arguments.slide).mpp
            cases += [Case(f"{arguments.slide.name} at {mpp:g} um/px", arguments.slide, mpp)
                      for mpp in (level0_mpp, 2 * level0_mpp)]  # fmt: skip
        if not arguments.without_large:
            large = Path(folder) / "large.tif"
            write_large_slide(large)
            cases += [Case(f"synthetic 40,960 x 40,960 at {mpp:g} um/px", large, mpp) for mpp in (0.25, 0.5)]
        for case in cases:
            compare_reading(case, arguments.rounds)
            compare_end_to_end(case, 1 if "synthetic" in case.name else min(3, arguments.rounds))


if __name__ == "__main__":
    main()

"""How long the viewer takes to open a slide of 100,000 x 100,000 px, and to answer for its squares.

    uv run python benchmarks/viewing/bench.py [--squares 200]

The slide is a pyramidal TIFF of 512 px JPEG tiles, nearly all of them never written, with tissue in its middle. Opening
is what the page asks for first: the list of slides, the slide, its layers, its thumbnail and the squares that fill a
window of 1280 x 800 px. The processor's time stands beside the clock's: it says what a machine that does nothing else
would take.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

EDGE_PX, TILE_PX, TISSUE_PX = 100_000, 512, 8192
DOWNSAMPLES = (1, 4, 16, 64)
GLASS = 243


def tissue(size: int) -> NDArray[np.uint8]:
    """Pink noise, (size, size, 3)."""
    noise = np.random.default_rng(0).normal(0, 25, (size, size, 1)).astype(np.float32)
    return np.clip(np.array([205, 120, 170]) + noise, 0, 255).astype(np.uint8)


def level(downsample: int) -> Iterator[bytes]:
    """JPEG tiles of one level, row by row; empty ones are not stored."""
    edge, tile = -(-EDGE_PX // downsample), tissue(TILE_PX)
    half = TISSUE_PX / downsample / 2
    for top in range(0, edge, TILE_PX):
        for left in range(0, edge, TILE_PX):
            start = [max(0, round(edge / 2 - half) - corner) for corner in (left, top)]
            stop = [min(TILE_PX, round(edge / 2 + half) - corner) for corner in (left, top)]
            if any(a >= b for a, b in zip(start, stop, strict=True)):
                yield b""
                continue
            picture = np.full((TILE_PX, TILE_PX, 3), GLASS, np.uint8)
            picture[start[1] : stop[1], start[0] : stop[0]] = tile[start[1] : stop[1], start[0] : stop[0]]
            yield cv2.imencode(".jpg", picture[..., ::-1])[1].tobytes()


def write_slide(path: Path) -> Path:
    """The slide, at 0.25 um/px."""
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for number, downsample in enumerate(DOWNSAMPLES):
            edge = -(-EDGE_PX // downsample)
            file.write(
                level(downsample), shape=(edge, edge, 3), dtype=np.uint8, tile=(TILE_PX, TILE_PX),
                photometric="ycbcr", subsampling=(2, 2), compression="jpeg", subfiletype=int(number > 0),
                resolution=(40_000, 40_000), resolutionunit="CENTIMETER", metadata=None,
            )  # fmt: skip
    return path


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the clock, and of this process's processor time."""
    clock, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squares", type=int, default=200, help="at random places around the tissue, zooms 0 to 3")
    squares = parser.parse_args().squares
    from dino_path.config import TilesConfig
    from dino_path.slides.find import SlideRow
    from dino_path.tiles.tiling import tile_slides
    from dino_path.viewing.viewer import Viewer

    with tempfile.TemporaryDirectory() as folder:
        slide = write_slide(Path(folder) / "large.tif")
        print(f"{slide.stat().st_size / 1e6:.1f} MB, {EDGE_PX:,} x {EDGE_PX:,} px at 0.25 um/px")
        store = Path(folder) / "store"
        config = TilesConfig(mpp=0.5, size_px=224, coordinates_only=True)
        print("tiling: {:.1f} s, {:.1f} s of processor".format(
            *timed(lambda: tile_slides([SlideRow(slide, "large")], config, store, num_workers=0))))  # fmt: skip

        def first_view() -> None:
            viewer = Viewer(store)
            for path in ("slides.json", "slide/0/about.json", "slide/0/layers.json", "slide/0/thumbnail.jpg"):
                viewer.answer(path)
            for place in ("8/0/0", "7/0/0", "7/1/0", "7/0/1", "7/1/1"):  # what 800 px of window show of it
                viewer.answer(f"slide/0/square/{place}.jpg")

        print("open: {:.3f} s, {:.3f} s of processor".format(*timed(first_view)))
        viewer, random, seconds = Viewer(store), np.random.default_rng(0), []
        viewer.answer("slide/0/about.json")
        paths = set()
        while len(paths) < squares:  # none twice: the second time it would come from memory
            zoom = int(random.integers(0, 4))
            column, row = ((EDGE_PX / 2 + random.uniform(-8192, 8192, 2)) // (512 * 2**zoom)).astype(int)
            paths.add(f"slide/0/square/{zoom}/{column}/{row}.jpg")
        for path in sorted(paths):
            seconds.append(timed(lambda path=path: viewer.answer(path)))
        clock, processor = np.array(seconds).T * 1000
        print(f"square: median {np.median(clock):.1f} ms, 95 % within {np.percentile(clock, 95):.1f} ms;"
              f" processor {np.median(processor):.1f} and {np.percentile(processor, 95):.1f} ms")  # fmt: skip


if __name__ == "__main__":
    main()

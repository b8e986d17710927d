"""Tiling end to end, tiles stored as JPEG: dino_path against hs2p and TRIDENT, each in its own Python.

    uv run python benchmarks/tiling/peers.py --hs2p-python PATH --trident CHECKOUT --trident-python PATH
        [--slide SLIDE] [--rounds N] [--without-large]

A peer that is not named is left out. Peers live outside the tree:

    uv venv --python 3.11 HS2P && uv pip install --python HS2P/bin/python \\
        "hs2p[openslide,vips,turbojpeg]==6.1.0" pyvips-binary "PyTurboJPEG<2"
    git clone https://github.com/mahmoodlab/TRIDENT CHECKOUT       # the index's `trident` is astrophysics
    uv venv --python 3.11 TRIDENT && uv pip install --python TRIDENT/bin/python \\
        torch torchvision numpy pandas tqdm h5py matplotlib opencv-python-headless scikit-image openslide-python \\
        openslide-bin pillow geopandas shapely requests huggingface_hub "transformers<5" timm==0.9.16 einops \\
        einops_exts scipy segmentation-models-pytorch safetensors

PyTurboJPEG looks for the system's libturbojpeg (or in LD_LIBRARY_PATH): 1.x wants 2.x of it, 2.x wants 3.

One run is one fresh process with one slide, one worker and one thread per library: the tool's own tissue mask on the
CPU, its grid of 256 px tiles, every tile read, resampled, encoded (JPEG, quality 90) and written, in the tool's form.
Settings are the tool's own defaults, but for what makes a peer faster:

- dino_path: `tile_slides` as `dino-path tile` calls it: Otsu mask, tiles of at least half tissue, quality numbers of
  every tile, tar, table, overlay and contours. A second row encodes every tile, where the default stores the slide's
  own JPEG tiles as they are wherever the grid meets them.
- hs2p: `tile_slides` with `save_tiles`: mask `hsv` at 1/64, tiles of at least 1 % tissue, no filters, no previews (its
  CLI would draw two), regions of up to 8 x 8 tiles per read, TurboJPEG (4:2:0, default is Pillow), tar and
  coordinates. One row through libvips (its first choice on a CPU), one through OpenSlide.
- TRIDENT: `segment_tissue` (`otsu`, no network, at 8 um/px; thumbnail, contours), `extract_tissue_coords` (any tissue)
  and `dump_patches` (`jpg`; Pillow, `optimize=True` is wired in), OpenSlide, one file per tile, no data-loader
  processes, no picture of the grid, no features.

The masks, the least fractions and the grids differ (hs2p's starts at each piece of tissue, so it seldom meets the
slide's own JPEG tiles), and with them the number of tiles: rates are of tiles that are stored, counted in the files.
CPU seconds are user + system of the whole process less those of a process that only starts and imports the same, run
just before; that start-up has its own column, and is no part of the rates. Wall seconds are treated alike. Rounds are
interleaved, medians given. Peak memory is the process's own, libraries included (Linux). A peer that fails is a row
with its reason: libvips without OpenSlide (`pyvips-binary`) finds no mpp in SVS files.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench import Case  # this file runs in the peers' Pythons too: there is no dino_path in those

TILE_PX, JPEG_QUALITY = 256, 90
SINGLE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1",
                 "VIPS_CONCURRENCY": "1"}  # fmt: skip
Tiler = Callable[[Path, float, Path], None]  # slide, mpp, an empty folder for everything that is written


@dataclass(frozen=True)
class Contender:
    """One tool with its settings: a name in `TILERS`, the Python that has the tool, and where to import it from."""

    name: str
    python: Path
    import_from: Path | None = None


@dataclass(frozen=True)
class Run:
    """Time of one run: tiling without start-up, and start-up (interpreter and imports) separately."""

    num_tiles: int
    cpu_s: float
    wall_s: float
    start_up_cpu_s: float
    peak_mib: float


class PeerFailed(Exception):
    """A contender's process ended with an error; the message is the last line that it wrote."""


def dino_path_tiler(*, copy_native_jpeg: bool) -> Tiler:
    import cv2

    from dino_path.config import TilesConfig
    from dino_path.slides.find import SlideRow
    from dino_path.tiles.tiling import tile_slides

    cv2.setNumThreads(1)

    def tile(slide: Path, mpp: float, folder: Path) -> None:
        config = TilesConfig(mpp=mpp, size_px=TILE_PX, jpeg_quality=JPEG_QUALITY, copy_native_jpeg=copy_native_jpeg)
        tile_slides([SlideRow(slide, "slide")], config, folder / "store", num_workers=0)

    return tile


def hs2p_tiler(*, backend: str) -> Tiler:
    import openslide  # noqa: F401
    import pyvips  # noqa: F401
    import turbojpeg  # noqa: F401  (hs2p imports these three when it tiles: they belong to start-up)
    from hs2p import SegmentationConfig, SlideSpec, TilingConfig, tile_slides
    from hs2p.api import BatchPartialFailureWarning

    warnings.simplefilter("error", BatchPartialFailureWarning)  # a slide that failed is only a warning to hs2p

    def tile(slide: Path, mpp: float, folder: Path) -> None:
        tiling = TilingConfig(
            backend=backend, requested_spacing_um=mpp, requested_tile_size_px=TILE_PX, tolerance=0.05, overlap=0.0
        )
        tile_slides(
            [SlideSpec(sample_id="slide", image_path=slide)],
            tiling=tiling,
            segmentation=SegmentationConfig(method="hsv"),
            output_dir=folder,
            num_workers=1,
            save_tiles=True,
            jpeg_backend="turbojpeg",
        )

    return tile


def trident_tiler() -> Tiler:
    import pyogrio.geopandas  # noqa: F401  (TRIDENT imports these four when it tiles: they belong to start-up)
    from skimage.color import rgb2gray  # noqa: F401
    from skimage.filters import threshold_otsu  # noqa: F401
    from skimage.morphology import remove_small_holes, remove_small_objects  # noqa: F401
    from trident import load_wsi
    from trident.segmentation_models import segmentation_model_factory

    def tile(slide: Path, mpp: float, folder: Path) -> None:
        model = segmentation_model_factory("otsu")
        with load_wsi(slide_path=str(slide), reader_type="openslide", lazy_init=False, max_workers=0) as wsi:
            wsi.segment_tissue(model, target_mag=model.target_mag, job_dir=str(folder), device="cpu", num_workers=0)
            coordinates = wsi.extract_tissue_coords(
                target_mag=round(10 / mpp), patch_size=TILE_PX, save_coords=str(folder)
            )
            wsi.dump_patches(coordinates, str(folder / "patch_images"), image_format="jpg", jpeg_quality=JPEG_QUALITY)

    return tile


TILERS: dict[str, Callable[[], Tiler]] = {
    "dino_path": partial(dino_path_tiler, copy_native_jpeg=True),
    "dino_path, encoding every tile": partial(dino_path_tiler, copy_native_jpeg=False),
    "hs2p, libvips": partial(hs2p_tiler, backend="vips"),
    "hs2p, OpenSlide": partial(hs2p_tiler, backend="openslide"),
    "TRIDENT": trident_tiler,
}


def run_here(name: str, job: Sequence[str]) -> None:
    """The work of a contender's process: import, tile if there is a job (slide, mpp, folder), print the peak in MiB."""
    tile = TILERS[name]()
    if job:
        slide, mpp, folder = job
        tile(Path(slide), float(mpp), Path(folder))
    status = Path("/proc/self/status").read_text()  # getrusage keeps the parent's peak through fork and exec
    peak_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps(peak_kib / 2**10))


def run_apart(contender: Contender, *job: str) -> tuple[float, float, float]:
    """CPU seconds, wall seconds and peak MiB of a process that does a job (slide, mpp, folder), or only imports."""
    environment = {**os.environ, **SINGLE_THREAD}
    if contender.import_from is not None:
        environment["PYTHONPATH"] = str(contender.import_from)
    command = [str(contender.python), __file__, "--child", contender.name, *job]
    before, start_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    wall_s, after = time.perf_counter() - start_s, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise PeerFailed((done.stderr.strip() or f"exit {done.returncode}").splitlines()[-1])
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu_s, wall_s, json.loads(done.stdout.splitlines()[-1])


def tile_apart(contender: Contender, case: Case) -> Run:
    """Tile one slide in a process of its own, and count its tiles; start-up is measured separately."""
    start_up_cpu_s, start_up_wall_s, _ = run_apart(contender)
    with tempfile.TemporaryDirectory() as folder:
        cpu_s, wall_s, peak_mib = run_apart(contender, str(case.path), str(case.mpp), folder)
        num_tiles = num_stored(Path(folder))
    if num_tiles == 0:
        raise PeerFailed("no tiles stored")
    return Run(num_tiles, cpu_s - start_up_cpu_s, wall_s - start_up_wall_s, start_up_cpu_s, peak_mib)


def num_stored(folder: Path) -> int:
    """JPEG tiles in the tar files of a folder, or one by one in its `patch_images`."""
    num_tiles = sum(1 for _ in folder.glob("patch_images/*/*.jpg"))
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as tar:
            num_tiles += sum(name.endswith(".jpg") for name in tar.getnames())
    return num_tiles


def compare(case: Case, contenders: Sequence[Contender], rounds: int) -> None:
    """Print the table of one slide at one mpp."""
    runs: dict[str, list[Run]] = {contender.name: [] for contender in contenders}
    failures: dict[str, str] = {}
    case.path.read_bytes()  # the first contender should not pay for the disk
    for _ in range(rounds):
        for contender in contenders:
            if contender.name not in failures:
                try:
                    runs[contender.name].append(tile_apart(contender, case))
                except PeerFailed as failure:
                    failures[contender.name] = str(failure)
    print(f"\n{case.name}, medians of {rounds} interleaved rounds\n")
    print("| | tiles stored | tiles/s/core | CPU s (min - max) | wall s | start-up CPU s | peak MiB "
          "| dino_path against it |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    our_rate = None
    for name, done in runs.items():
        if name in failures:
            print(f"| {name} | failed: {failures[name]} | | | | | | |")
            continue
        cpu_s = [run.cpu_s for run in done]
        median = statistics.median(cpu_s)
        rate = done[0].num_tiles / median
        our_rate = our_rate or rate  # dino_path is the first contender
        wall_s = statistics.median(run.wall_s for run in done)
        start_up_cpu_s = statistics.median(run.start_up_cpu_s for run in done)
        peak_mib = max(run.peak_mib for run in done)
        spread = f"{median:.2f} ({min(cpu_s):.2f} - {max(cpu_s):.2f})"
        print(f"| {name} | {done[0].num_tiles:,} | {rate:,.0f} | {spread} | {wall_s:.2f} | {start_up_cpu_s:.2f} "
              f"| {peak_mib:,.0f} | {our_rate / rate:.1f} x |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hs2p-python", type=Path, help="a Python that has hs2p")
    parser.add_argument("--trident", type=Path, metavar="CHECKOUT", help="a checkout of mahmoodlab/TRIDENT")
    parser.add_argument("--trident-python", type=Path, help="a Python that has what TRIDENT needs")
    parser.add_argument("--slide", type=Path, help="a pyramid with its mpp (default: the colon section of bench.py)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--without-large", action="store_true")
    arguments = parser.parse_args()

    from bench import COLON, Case, write_large_slide

    from dino_path.slides.slide import Slide

    contenders = [Contender(name, Path(sys.executable)) for name in TILERS if name.startswith("dino_path")]
    if arguments.hs2p_python:
        contenders += [Contender(name, arguments.hs2p_python) for name in TILERS if name.startswith("hs2p")]
    if arguments.trident and arguments.trident_python:
        contenders.append(Contender("TRIDENT", arguments.trident_python, arguments.trident))
    for contender in contenders:
        run_apart(contender)  # warms up: files into the page cache, compiled modules onto the disk
    with tempfile.TemporaryDirectory() as folder:
        cases = []
        slide = arguments.slide or COLON
        if slide.exists():
            with Slide.open(slide) as opened:
                level0_mpp = opened.mpp
            cases += [Case(f"{slide.name} at {mpp:g} um/px", slide, mpp) for mpp in (level0_mpp, 2 * level0_mpp)]
        if not arguments.without_large:
            large = Path(folder) / "large.tif"
            write_large_slide(large)
            cases += [Case(f"synthetic 40,960 x 40,960 at {mpp:g} um/px", large, mpp) for mpp in (0.25, 0.5)]
        for case in cases:
            compare(case, contenders, arguments.rounds)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_here(sys.argv[2], sys.argv[3:])
    else:
        main()

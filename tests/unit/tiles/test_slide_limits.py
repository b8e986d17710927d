"""Limits of one slide: refused by its header if possible, otherwise stopped at its time limit."""

import contextlib
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from slide_files import tissue_image, write_slide_file

from dino_path.config import TilesConfig
from dino_path.errors import SlideError
from dino_path.slides.find import SlideRow
from dino_path.slides.slide import Level
from dino_path.tiles.geometry import MOST_CORNERS, refuse_endless_grid, tile_spec
from dino_path.tiles.tiling import tile_slides
from dino_path.tiles.workers import Failure, Limits, work_in_processes

TILES = TilesConfig(mpp=0.5, size_px=64, mask_mpp=4.0)
WIDTH_TAG, HEIGHT_TAG = 256, 257


def slide_that_declares(path: Path, width: int, height: int) -> Path:
    """A slide of 1024 x 768 px whose header gives other sizes."""
    write_slide_file(path, [tissue_image()])
    with tifffile.TiffFile(path) as file:
        tags = [(file.pages[0].tags[code], size) for code, size in ((WIDTH_TAG, width), (HEIGHT_TAG, height))]
        places = [(tag.offset, size) for tag, size in tags]
    with path.open("r+b") as stream:
        for offset, size in places:
            stream.seek(offset + 2)
            stream.write(struct.pack("<HII", 4, 1, size))  # one LONG
    return path


@pytest.mark.parametrize(
    ("size", "found"),
    [
        ((11_700_000, 160), "5,850 mm of glass"),
        ((3_000, 11_700_000), "5,850 mm of glass"),
        ((250_000, 250_000), "At most 120,000,000 pixels|A level of at most 40,000,000,000 pixels"),
    ],
)
def test_a_header_that_declares_a_gigantic_slide_fails_it_before_any_pixel_is_read(
    tmp_path: Path, size: tuple[int, int], found: str
) -> None:
    path = slide_that_declares(tmp_path / "a.tif", *size)
    start = time.process_time()
    for mask_mpp in (4.0, 16.0):
        config = TILES.model_copy(update={"mask_mpp": mask_mpp, "size_px": 256})
        (record,) = tile_slides([SlideRow(path, "a")], config, tmp_path / f"{mask_mpp}", num_workers=0).records
        assert record.status == "failed"
        assert any(one in record.reason for one in found.split("|"))
    assert time.process_time() - start < 5


def test_a_grid_of_more_tiles_than_a_list_can_hold_is_refused_before_it_is_made() -> None:
    spec = tile_spec((Level(100_000, 100_000, 1.0, 0.5),), name="a.svs", mpp=0.5, size_px=256, stride_px=1, tolerance=0)
    with pytest.raises(SlideError, match=rf"(?s)room for 10,000,200,001 tiles.*At most {MOST_CORNERS:,}.*stride_px"):
        refuse_endless_grid(spec, name="a.svs", width_level0=100_000, height_level0=100_000)


def idle_or_greedy(what: str) -> str:
    if what == "sleeps":
        time.sleep(60)
    if what == "catches all":
        while True:
            with contextlib.suppress(Exception):  # as decoders do
                time.sleep(60)
    if what == "takes memory":
        np.ones(3 * 10**9, np.uint8)
    return f"{what} done"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the memory of a process is limited on Linux alone")
def test_what_takes_too_long_or_too_much_memory_fails_alone() -> None:
    items = ["quick", "sleeps", "catches all", "takes memory", "quick too"]
    answers = dict(work_in_processes(idle_or_greedy, items, num_workers=2, limits=Limits(1.0, 2.5)))
    too_long = Failure("it was not done after 1 s (slides.max_seconds)")
    assert answers == {
        "quick": "quick done",
        "quick too": "quick too done",
        "sleeps": too_long,
        "catches all": too_long,
        "takes memory": Failure("it needs more memory than 2.5 GB (slides.max_memory_gb)"),
    }

"""What goes wrong on clusters: damaged slides, lost slides, full disks, killed and doubled runs."""

import ctypes
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from slide_files import stained_image, tissue_image, write_jpeg_slide, zero_ends_of_tiles
from test_tiling import TILES, contents

from dino_path.errors import TileStoreError
from dino_path.run import is_abandoned
from dino_path.slides.find import SlideRow
from dino_path.tiles import one_slide, tiling
from dino_path.tiles.layout import SlideRecord
from dino_path.tiles.one_slide import SlideWork, tile_one_slide
from dino_path.tiles.store import TileStore
from dino_path.tiles.tiling import tile_slides
from dino_path.tiles.writing import TileWriter

KILLED_RUN = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = sys.argv[4:]
from test_tiling import TILES
from dino_path.slides.find import SlideRow
from dino_path.tiles import one_slide, writing
from dino_path.tiles.tiling import tile_slides

steps_left = int(sys.argv[3])
def step():
    global steps_left
    steps_left -= 1
    if steps_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
def counted(function):
    def call(*arguments, **options):
        step()
        return function(*arguments, **options)
    return call
os.fsync = counted(os.fsync)
writing.TileWriter.add = counted(writing.TileWriter.add)
one_slide.write_record = counted(one_slide.write_record)
tile_slides([SlideRow(Path(sys.argv[1]), "a")], TILES, Path(sys.argv[2]), num_workers=0)
"""


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jpeg_slide(tmp_path_factory.mktemp("faults") / "a.tif", [tissue_image()], tile_px=64)


@pytest.fixture(scope="module")
def undisturbed(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("faults") / "store"
    tile_slides([SlideRow(slide, "a")], TILES, store, num_workers=0)
    return store


def record_of(path: Path, store: Path) -> SlideRecord:
    """The only record, of a slide that fails and leaves no tiles; its good neighbour is tiled in the same call."""
    neighbour = write_jpeg_slide(path.parent / "good.tif", [tissue_image(640, 512)], tile_px=64)
    rows = [SlideRow(path, "a"), SlideRow(neighbour, "good")]
    bad, good = tile_slides(rows, TILES, store, num_workers=0).records
    assert good.status == "done"
    assert [slide.slide_id for slide in TileStore.open(store).slides] == ["good"]
    assert not list((store / "tiles").glob("a.*"))
    assert not list((store / "tiles").glob(".*"))
    return bad


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size * 3 // 10)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def call_a_png_slide(path: Path) -> None:
    path.write_bytes(cv2.imencode(".png", np.full((64, 64, 3), 200, np.uint8))[1].tobytes())


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(cut_short, "cannot be read"), (empty, "does not know"), (call_a_png_slide, "does not know"), (remove, "no such")],
)
def test_a_bad_file_is_a_failed_slide_with_its_reason_and_costs_no_other(
    slide: Path, tmp_path: Path, damage: Callable[[Path], None], reason: str
) -> None:
    path = Path(shutil.copy(slide, tmp_path / "a.svs"))
    damage(path)
    record = record_of(path, tmp_path / "store")
    assert record.status == "failed"
    assert reason in record.reason


def test_a_slide_that_is_deleted_or_cut_while_it_is_tiled_is_done_or_failed_and_never_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    levels = [tissue_image(), tissue_image()[::8, ::8]]  # the mask is read from the second: level 0 is not in a cache
    slide = write_jpeg_slide(tmp_path / "a.tif", levels, tile_px=64)
    tile_slides([SlideRow(slide, "a")], TILES, tmp_path / "undisturbed", num_workers=0)
    measure = one_slide.measure_quality
    for damage in (remove, cut_short, empty):
        path = Path(shutil.copy(slide, tmp_path / f"{damage.__name__}.tif"))
        calls = []

        def spoil(
            *arguments: object, path: Path = path, damage: Callable[[Path], None] = damage, calls=calls, **settings
        ):  # type: ignore[no-untyped-def]
            calls.append(1)
            if len(calls) == 5:
                damage(path)
            return measure(*arguments, **settings)  # type: ignore[arg-type]

        monkeypatch.setattr(one_slide, "measure_quality", spoil)
        store = tmp_path / f"store_{damage.__name__}"
        (record,) = tile_slides([SlideRow(path, "a")], TILES, store, num_workers=0).records
        if record.status == "done":  # deleted, but open: the file is there until it is closed
            assert damage is remove, record
            assert (store / "tiles/a.tar").read_bytes() == (tmp_path / "undisturbed/tiles/a.tar").read_bytes()
        else:
            assert record.status == "failed"
            assert record.reason
            assert not [
                file for folder in ("tiles", "thumbnails", "overlays", "contours") for file in store.glob(f"{folder}/*")
            ]


def test_a_full_disk_stops_the_run_with_a_remedy_and_it_goes_on_when_there_is_room(
    slide: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(TileWriter, "add", no_space)
        with pytest.raises(TileStoreError, match=r"(?s)No space left.*call again"):
            tile_slides([SlideRow(slide, "a")], TILES, tmp_path / "store", num_workers=0)
    assert not list((tmp_path / "store/tiles").iterdir())
    tile_slides([SlideRow(slide, "a")], TILES, tmp_path / "store", num_workers=0)
    assert contents(tmp_path / "store") == contents(undisturbed)


def test_two_runs_on_one_store_do_not_disturb_each_other(
    slide: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, calls = one_slide.measure_quality, []

    def run_the_other_in_between(*arguments: object, **settings: float):  # type: ignore[no-untyped-def]
        calls.append(1)
        if len(calls) == 5:
            (record,) = tile_slides([SlideRow(slide, "a")], TILES, tmp_path / "store", num_workers=0).records
            assert record.status == "done"
        return measure(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(one_slide, "measure_quality", run_the_other_in_between)
    (record,) = tile_slides([SlideRow(slide, "a")], TILES, tmp_path / "store", num_workers=0).records
    assert (record.status, len(calls)) == ("done", 2 * record.num_candidates)
    assert contents(tmp_path / "store") == contents(undisturbed)


def test_a_temporary_file_is_abandoned_only_when_nobody_writes_it(tmp_path: Path) -> None:
    from dino_path.run import atomic_write

    with atomic_write(tmp_path / "a.txt") as stream:
        stream.write("half")
        (temporary,) = tmp_path.glob(".*.tmp")
        assert not is_abandoned(temporary)
        shutil.copy(temporary, tmp_path / ".left.txt.1.tmp")
    assert is_abandoned(tmp_path / ".left.txt.1.tmp")
    assert not is_abandoned(temporary)
    assert (tmp_path / "a.txt").read_text() == "half"


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 30, 66, 67, 68, 69, 70, 71, 72, 73, 74])
def test_a_run_killed_at_any_step_and_called_again_makes_the_store_of_an_undisturbed_one(
    slide: Path, undisturbed: Path, tmp_path: Path, step: int
) -> None:
    paths = [str(Path(__file__).parents[2]), str(Path(__file__).parent), str(Path(__file__).parents[3])]
    command = [sys.executable, "-c", KILLED_RUN, str(slide), str(tmp_path / "store"), str(step), *paths]
    killed = subprocess.run(command, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    tile_slides([SlideRow(slide, "a")], TILES, tmp_path / "store", num_workers=0)
    assert contents(tmp_path / "store") == contents(undisturbed)


def crash_on_bad(work: SlideWork) -> SlideRecord:
    if work.row.slide_id == "bad":
        ctypes.string_at(0)
    return tile_one_slide(work)


@pytest.mark.slow
def test_a_segmentation_fault_in_a_c_library_costs_one_slide(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [SlideRow(Path(shutil.copy(slide, tmp_path / f"{name}.tif")), name) for name in ("a", "bad", "c")]
    monkeypatch.setattr(tiling, "tile_one_slide", crash_on_bad)
    records = tile_slides(rows, TILES, tmp_path / "store", num_workers=2).records
    assert [(record.slide_id, record.status) for record in records] == [("a", "done"), ("bad", "failed"), ("c", "done")]
    assert "worker process died" in records[1].reason
    assert not list((tmp_path / "store/tiles").glob("*bad*"))


MEASURED_RUN = """
import resource, sys
from pathlib import Path
from dino_path.config import TilesConfig
from dino_path.slides.find import SlideRow
from dino_path.tiles.tiling import tile_slides
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
config = TilesConfig(mpp=0.5, size_px=512)
(record,) = tile_slides([SlideRow(Path(sys.argv[1]), "a")], config, Path(sys.argv[2]), num_workers=0).records
print(record.status, record.num_tiles, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_a_gigantic_slide_of_one_level_is_tiled_in_little_memory(tmp_path: Path) -> None:
    edge_px, tile_px = 20_480, 512  # 1.3 GB as RGB
    kinds = [np.full((tile_px, tile_px, 3), 243, np.uint8), tissue_image(3 * tile_px, 3 * tile_px)[:512, 600:1112]]
    encoded = [cv2.imencode(".jpg", np.ascontiguousarray(kind[..., ::-1]))[1].tobytes() for kind in kinds]
    columns = edge_px // tile_px
    is_tissue = [10 <= x < 16 and 10 <= y < 16 for y in range(columns) for x in range(columns)]
    with tifffile.TiffWriter(tmp_path / "a.tif", bigtiff=True) as file:
        file.write(
            (encoded[kind] for kind in is_tissue),
            shape=(edge_px, edge_px, 3),
            dtype=np.uint8,
            tile=(tile_px, tile_px),
            photometric="ycbcr",
            subsampling=(2, 2),
            compression="jpeg",
            resolution=(20_000, 20_000),
            resolutionunit="CENTIMETER",
            metadata=None,
        )
    command = [sys.executable, "-c", MEASURED_RUN, str(tmp_path / "a.tif"), str(tmp_path / "store")]
    done = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert done[:2] == ["done", "36"]
    assert int(done[2]) < 300 * 1024  # KiB more than Python and its libraries


@pytest.mark.parametrize("copies", [True, False])
@pytest.mark.parametrize("mpp", [0.5, 1.0])  # as they are, and divided by two while they are decoded
def test_damaged_jpeg_tiles_are_counted_and_many_of_them_fail_the_slide(
    tmp_path: Path, mpp: float, copies: bool
) -> None:
    image = stained_image(2048, 1536)
    file = write_jpeg_slide(tmp_path / "a.tif", [image, np.ascontiguousarray(image[::8, ::8])], tile_px=64)
    config = TILES.model_copy(update={"mpp": mpp, "copy_native_jpeg": copies, "tissue": "saturation"})
    (whole,) = tile_slides([SlideRow(file, "a")], config, tmp_path / "whole", num_workers=0).records
    assert (whole.reader, whole.num_unreadable) == ("native", 0)

    shutil.copy(file, tmp_path / "few.tif")
    zero_ends_of_tiles(tmp_path / "few.tif", every=311)
    (few,) = tile_slides([SlideRow(tmp_path / "few.tif", "a")], config, tmp_path / "few", num_workers=0).records
    assert (few.reader, few.num_unreadable, few.flags[-1]) == ("native", 3, "unreadable tiles")
    assert few.num_candidates == whole.num_candidates

    shutil.copy(file, tmp_path / "many.tif")
    zero_ends_of_tiles(tmp_path / "many.tif", every=5)
    (many,) = tile_slides([SlideRow(tmp_path / "many.tif", "a")], config, tmp_path / "many", num_workers=0).records
    assert many.status == "failed"
    assert "cannot be read" in many.reason

"""Failures on clusters: damaged slides, lost slides, full disks, killed and doubled runs."""

import ctypes
import errno
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from slide_files import stained_image, tissue_image, write_jpeg_slide, zero_ends_of_tiles
from test_tiling import TILES, contents

from dino_path.errors import TileStoreError
from dino_path.records.slide import SlideRecord
from dino_path.slides.find import SlideRow
from dino_path.tiles import one_slide, tiling
from dino_path.tiles.expected import refuse_unfinished
from dino_path.tiles.one_slide import SlideWork, tile_one_slide
from dino_path.tiles.store import TileStore
from dino_path.tiles.tiling import tile_slides
from dino_path.tiles.workers import DIED
from dino_path.tiles.writing import TileWriter

SETTINGS = ("tiles.mpp=0.5", "tiles.size_px=64", "tiles.mask_mpp=4.0", "tiles.min_area_um2=500")

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
    [(cut_short, "cannot be read"), (empty, "is empty"), (call_a_png_slide, "does not recognise"), (remove, "no such")],
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


# Python imports this module when it starts, in worker processes too.
ON_OPENING_A = """
import os, signal
from dino_path.slides.slide import Slide
opened = Slide.open
def fail_or_open(path, **settings):
    if path.name == "a.tif":
        {fault}
    return opened(path, **settings)
Slide.open = fail_or_open
"""


def with_an_error_that_nobody_foresaw(path: Path) -> None:
    on_opening(path, 'raise TypeError("from a library")')


def with_a_crash_of_its_process(path: Path) -> None:
    """As the kernel ends a process that wants too much memory, or a decoder written in C ends its own."""
    on_opening(path, "os.kill(os.getpid(), signal.SIGKILL)")


def on_opening(path: Path, fault: str) -> None:
    (path.parent / "python").mkdir()
    (path.parent / "python/sitecustomize.py").write_text(ON_OPENING_A.format(fault=fault))


def with_a_byte_count_of_a_terabyte(path: Path) -> None:
    """A library that allocates what a tile is said to need would end the process."""
    write_jpeg_slide(path, [tissue_image()], tile_px=64, bigtiff=True)
    with tifffile.TiffFile(path) as file:
        tag = file.pages[0].tags["TileByteCounts"]  # type: ignore[union-attr]
    end, is_long8 = path.stat().st_size, 16
    write_into(path, end, struct.pack("<Q", 2**40) * tag.count)
    write_into(path, tag.offset, struct.pack("<HHQQ", tag.code, is_long8, tag.count, end))


def write_into(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(at)
        stream.write(data)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "workers", "said"),
    [
        (with_an_error_that_nobody_foresaw, 0, ("unexpected TypeError", "Traceback", "from a library")),
        (with_an_error_that_nobody_foresaw, 2, ("unexpected TypeError", "Traceback", "from a library")),
        (with_a_crash_of_its_process, 1, (DIED,)),
        (with_a_byte_count_of_a_terabyte, 0, ("lists a tile of 1,099,511,627,776 bytes",)),
    ],
)
def test_whatever_one_slide_does_it_is_a_failed_slide_and_the_others_are_tiled(
    slide: Path, tmp_path: Path, damage: Callable[[Path], None], workers: int, said: tuple[str, ...]
) -> None:
    """As a user calls it: the next slides are tiled, slides.csv is written, the exit code says that some failed."""
    for name in ("a", "b", "z"):
        copy = shutil.copy(slide, tmp_path / f"{name}.tif")
        write_into(copy, copy.stat().st_size, name.encode())  # another content: a copy is tiled once
    damage(tmp_path / "a.tif")
    words = ["tile", str(tmp_path), "--out", str(tmp_path / "store"), "--workers", str(workers), *SETTINGS]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path / "python"), str(Path(__file__).parents[3])]),
    }
    answer = subprocess.run(
        [sys.executable, "-m", "dino_path", *words], capture_output=True, text=True, check=False, env=environment
    )
    assert answer.returncode == 3, answer.stderr
    rows = [line.split()[:2] for line in answer.stdout.splitlines() if line.split()[:1] in (["failed"], ["done"])]
    assert rows == [["failed", "a"], ["done", "b"], ["done", "z"]]
    assert said[0] in answer.stdout
    assert all(part in answer.stderr for part in said[1:]), answer.stderr
    assert len((tmp_path / "store/slides.csv").read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_single_slide_that_ends_its_process_is_a_failed_slide(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = SlideRow(Path(shutil.copy(slide, tmp_path / "bad.tif")), "bad")
    monkeypatch.setattr(tiling, "tile_one_slide", crash_on_bad)
    (record,) = tile_slides([row], TILES, tmp_path / "store", num_workers=1).records
    assert (record.status, record.reason) == ("failed", DIED)


def test_an_error_of_the_slides_disk_costs_one_slide_and_one_of_the_stores_ends_the_call(
    slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_disk(path: Path, **_: object) -> None:
        raise OSError(errno.EIO, "Input/output error", str(path))

    with monkeypatch.context() as patched:
        patched.setattr(one_slide.Slide, "open", broken_disk)
        (record,) = tile_slides([SlideRow(slide, "a")], TILES, tmp_path / "store", num_workers=0).records
    assert record.status == "failed"
    assert "Input/output error" in record.reason
    monkeypatch.setattr(one_slide, "write_thumbnail", lambda path, *_: broken_disk(path))
    with pytest.raises(TileStoreError, match=r"(?s)cannot be written \(Input/output error\)"):
        tile_slides([SlideRow(slide, "a")], TILES, tmp_path / "store", num_workers=0)


# --- slides that no task has tiled --------------------------------------------------------------------------------


def test_a_store_in_which_a_task_left_slides_without_a_record_is_refused_until_tile_is_called_again(
    slide: Path, tmp_path: Path
) -> None:
    rows = [SlideRow(Path(shutil.copy(slide, tmp_path / f"{name}.tif")), name) for name in ("a", "b")]
    store = tmp_path / "store"
    tile_slides(rows, TILES, store, shard=(0, 2), num_workers=0)
    with pytest.raises(TileStoreError, match=r"tiling has not ended for 1 slide\(s\): b\."):
        refuse_unfinished(store)
    tile_slides(rows[:1], TILES, store, num_workers=0)
    with pytest.raises(TileStoreError, match=r"tiling has not ended for 1 slide\(s\): b\."):
        refuse_unfinished(store)
    tile_slides(rows, TILES, store, shard=(1, 2), num_workers=0)
    refuse_unfinished(store)


def test_a_slide_that_was_removed_before_it_was_tiled_is_not_waited_for(slide: Path, tmp_path: Path) -> None:
    rows = [SlideRow(Path(shutil.copy(slide, tmp_path / f"{name}.tif")), name) for name in ("a", "b")]
    tile_slides(rows, TILES, tmp_path / "store", shard=(0, 2), num_workers=0)
    rows[1].path.unlink()
    tile_slides(rows[:1], TILES, tmp_path / "store", num_workers=0)
    refuse_unfinished(tmp_path / "store")


# --- Ctrl-C -------------------------------------------------------------------------------------------------------

SLOW_WORK = """
import os, time
def start_and_wait(number):
    os.write(1, b"started\\n")  # in one piece: two processes write at once
    time.sleep(60)
"""
SLOW_SCRIPT = """
from dino_path.tiles.workers import work_in_processes
from slow_work import start_and_wait
if __name__ == "__main__":
    try:
        list(work_in_processes(start_and_wait, [1, 2, 3], num_workers=2))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_at_once_with_ctrl_c_and_with_a_parent_that_is_killed(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "slow_work.py").write_text(SLOW_WORK)
    (tmp_path / "slow.py").write_text(SLOW_SCRIPT)
    command = [sys.executable, str(tmp_path / "slow.py")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert [process.stdout.readline() for _ in range(2)] == ["started\n"] * 2
        start_s = time.monotonic()
        if number is signal.SIGINT:
            os.killpg(process.pid, number)  # a terminal sends it to all of them
        else:
            process.kill()
        left = process.stdout.read()  # ends when no process has the pipe any more
    assert left == ("interrupted\n" if number is signal.SIGINT else "")
    assert time.monotonic() - start_s < 30


# --- damaged JPEG tiles ---------------------------------------------------------------------------------------------


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

"""A slide is its content: replaced under its name it is tiled again; moved, copied or touched it is the same."""

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from slide_files import tissue_image, write_slide_file
from test_tiling import TILES
from typer.testing import CliRunner

from dino_path.cli import app
from dino_path.errors import TileStoreError
from dino_path.identity import content_digest
from dino_path.records.slide import read_slide_record
from dino_path.slides.find import SlideRow
from dino_path.tiles.layout import StoreFolder
from dino_path.tiles.store import TileStore
from dino_path.tiles.tiling import TilingSummary, tile_slides


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The command line configures logging; afterwards it is as it was."""
    logger = logging.getLogger("dino_path")
    before = logger.handlers[:], logger.propagate, logger.level
    yield
    logger.handlers, logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


COORDINATES = TILES.model_copy(update={"coordinates_only": True})


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_slide_file(tmp_path / "slides/a.tif", [tissue_image()])


@pytest.fixture
def store(slide: Path, tmp_path: Path) -> Path:
    tile(slide, tmp_path / "store")
    return tmp_path / "store"


def tile(slide: Path, store: Path) -> TilingSummary:
    return tile_slides([SlideRow(slide, "a")], TILES, store, num_workers=0)


def scan_again(slide: Path) -> None:
    """Other pixels, of which as many are tissue: the same number of tiles."""
    write_slide_file(slide, [255 - tissue_image()[::-1] // 2])


def forget_identity(store: Path) -> None:
    """Make the record one of an older version."""
    file = store / "slides/a.json"
    record = json.loads(file.read_text())
    del record["content_digest"], record["stamp"]
    file.write_text(json.dumps(record))


def test_a_replaced_slide_is_tiled_again_and_said(slide: Path, store: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = (store / "tiles/a.tar").read_bytes()
    scan_again(slide)
    assert tile(slide, store).num_done == 1
    assert "a: the slide was replaced by another" in caplog.text
    assert (store / "tiles/a.tar").read_bytes() != before
    assert read_slide_record(store / "slides/a.json").content_digest == content_digest(slide)
    assert tile(slide, store).num_skipped == 1


def test_nothing_of_the_old_slide_is_left_while_the_new_one_waits(
    slide: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan_again(slide)
    monkeypatch.setattr("dino_path.tiles.tiling.work_in_processes", lambda *_, **__: iter(()))
    with pytest.raises(KeyError):  # killed before the work
        tile(slide, store)
    assert [*(store / "tiles").iterdir(), *(store / "slides").iterdir()] == []


def test_a_touched_moved_or_copied_slide_is_the_same_and_its_place_is_brought_up_to_date(
    slide: Path, store: Path, tmp_path: Path
) -> None:
    before = (store / "tiles/a.tar").stat().st_mtime_ns
    os.utime(slide, (1, 1))
    assert tile(slide, store).num_skipped == 1
    copy = tmp_path / "elsewhere/a.tif"
    copy.parent.mkdir()
    shutil.copy(slide, copy)
    slide.unlink()
    assert tile(copy, store).num_skipped == 1
    assert read_slide_record(store / "slides/a.json").path == str(copy)
    assert (store / "tiles/a.tar").stat().st_mtime_ns == before


def test_an_old_record_is_compared_by_size_and_gets_its_digest(slide: Path, store: Path) -> None:
    forget_identity(store)
    assert tile(slide, store).num_skipped == 1
    assert read_slide_record(store / "slides/a.json").content_digest == content_digest(slide)
    forget_identity(store)
    write_slide_file(slide, [tissue_image(1280, 768)])
    assert tile(slide, store).num_done == 1


def test_finished_slides_are_not_read_again(slide: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dino_path.identity.content_digest", lambda _: pytest.fail("it was read"))
    assert tile(slide, store).num_skipped == 1


def test_a_slide_that_cannot_be_looked_at_keeps_its_tiles(
    slide: Path, store: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> str:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("dino_path.identity.stamp_of", refuse)
    assert tile(slide, store).num_skipped == 1
    assert "its tiles are kept unchanged" in caplog.text
    assert len(TileStore.open(store)) > 0


def test_tiles_of_coordinates_are_not_read_from_a_slide_that_was_replaced(slide: Path, tmp_path: Path) -> None:
    image = tissue_image()
    write_slide_file(slide, [image], compression=None)
    tile_slides([SlideRow(slide, "a")], COORDINATES, tmp_path / "store", num_workers=0)
    content = slide.read_bytes()
    TileStore.open(tmp_path / "store").read_image(0)
    slide.write_bytes(content)  # written again: the same
    TileStore.open(tmp_path / "store").read_image(0)
    write_slide_file(slide, [image[::-1]], compression=None)
    assert slide.stat().st_size == len(content)
    with pytest.raises(TileStoreError, match="not the file that was tiled"):
        TileStore.open(tmp_path / "store").read_image(0)


def test_a_renamed_slide_and_a_copy_are_not_taken_in_twice(slide: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"

    def run(*words: str) -> str:
        settings = ("tiles.mpp=0.5", "tiles.size_px=64", "tiles.mask_mpp=4", "tiles.min_area_um2=500")
        result = CliRunner().invoke(app, ["tile", *words, *settings, "--out", str(store), "--workers", "0"])
        return f"{result.output} {result.exception}"

    run(str(slide.parent))
    renamed = slide.rename(slide.with_name("b.tif"))
    assert f"its content is that of {slide}" in run(str(renamed.parent))
    assert "1 already there" in run(str(_csv(tmp_path / "slides.csv", renamed, "a")))
    write_slide_file(slide, [np.ascontiguousarray(tissue_image()[:, ::-1])])
    assert "1 done" in run(str(slide.rename(slide.with_name("c.tif"))))
    assert sorted(file.stem for file in StoreFolder(store).record_files()) == ["a", "c"]


def _csv(file: Path, slide: Path, slide_id: str) -> Path:
    file.write_text(f"path,slide_id\n{slide},{slide_id}\n")
    return file


def test_new_limits_and_a_new_place_go_together(slide: Path, store: Path) -> None:
    moved = slide.rename(slide.with_name("moved.tif"))
    stricter = TILES.model_copy(update={"min_sharpness": 1.0})
    summary = tile_slides([replace(SlideRow(moved, "a"))], stricter, store, num_workers=0)
    assert summary.num_judged_again == 1
    assert read_slide_record(store / "slides/a.json").path == str(moved)

"""Damaged images in a run are skipped, named and limited in number; each remedy lets the run continue."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from runs import keep_only_step, state_in
from slide_files import tissue_image, write_slide_file
from test_pretraining_run import strict_records
from tiny import ALONE, differences, tiny_config, write_tiles

from dino_path.config import TilesConfig
from dino_path.errors import CheckpointError, TileStoreError
from dino_path.run import RunFolder
from dino_path.slides.find import SlideRow
from dino_path.tiles.images import image_files
from dino_path.tiles.source import open_tiles
from dino_path.tiles.tiling import tile_slides
from dino_path.training.loop import pretrain

BAD = "007.png"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve tiles, of which one is cut."""
    folder = write_tiles(tmp_path / "tiles", 12)
    shutil.copy(folder / BAD, tmp_path / "good.png")
    (folder / BAD).write_bytes((folder / BAD).read_bytes()[:300])
    return folder


def test_a_damaged_image_is_passed_over_named_and_counted(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path / "run")
    pretrain(tiny_config(folder, run.path), ALONE)
    lines = [json.loads(line) for line in run.unreadable_file.read_text().splitlines()]
    assert [line["tile"] for line in lines] == [BAD]
    assert "damaged PNG" in lines[0]["reason"]
    assert sum(record["num_unreadable"] for record in strict_records(run.path)) in (3, 4)  # 40 places, 12 tiles
    assert "1 tiles of rank 0 could not be read" in caplog.text
    assert run.images_file.read_text().splitlines()[0] == "path,bytes,format_version"


def test_a_run_with_a_damaged_image_resumes_exactly(folder: Path, tmp_path: Path) -> None:
    whole = pretrain(tiny_config(folder, tmp_path / "whole"), ALONE)
    config = tiny_config(folder, tmp_path / "resumed", "training.num_workers=1")
    pretrain(config, ALONE)
    keep_only_step(RunFolder(tmp_path / "resumed"), 5)
    assert differences(state_in(whole), state_in(pretrain(config, ALONE))) == []
    counts = [[one["num_unreadable"] for one in strict_records(tmp_path / name)] for name in ("whole", "resumed")]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("remedy", ["fetched again", "taken out", "excluded"])
def test_the_run_goes_on_after_each_remedy(
    folder: Path, tmp_path: Path, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunFolder(tmp_path / "run")
    passed_over = state_in(pretrain(tiny_config(folder, run.path), ALONE))
    keep_only_step(run, 5)
    settings: tuple[str, ...] = ()
    if remedy == "fetched again":
        shutil.copy(tmp_path / "good.png", folder / BAD)
    elif remedy == "taken out":
        (folder / BAD).unlink()
    else:
        settings = (f"slides.exclude=[{BAD}]",)
    again = state_in(pretrain(tiny_config(folder, run.path, *settings), ALONE))
    assert bool(differences(passed_over, again)) == (remedy == "fetched again")
    assert f"({BAD})" in caplog.text
    assert "changed in size" in caplog.text if remedy == "fetched again" else "other images replace them" in caplog.text


@pytest.mark.parametrize("change", ["a new one", "two others changed", "two others gone"])
def test_other_images_are_still_other_tiles(folder: Path, tmp_path: Path, change: str) -> None:
    run = RunFolder(tmp_path / "run")
    pretrain(tiny_config(folder, run.path), ALONE)
    keep_only_step(run, 5)
    if change == "a new one":
        shutil.copy(folder / "001.png", folder / "new.png")
    for name in ("001.png", "002.png"):
        if change == "two others changed":
            shutil.copy(folder / "003.png", folder / name)
        if change == "two others gone":
            (folder / name).unlink()
    with pytest.raises(CheckpointError, match="the tiles"):
        pretrain(tiny_config(folder, run.path), ALONE)


def test_too_many_damaged_images_end_the_run_and_repairing_them_lets_it_go_on(folder: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    config = tiny_config(folder, run.path, "training.checkpoint_every_steps=1")
    second = folder / "003.png"
    whole = second.read_bytes()
    second.write_bytes(whole[:200])
    with pytest.raises(TileStoreError, match=r"number 2 of 12 tiles that cannot be read(?s:.*)continues"):
        pretrain(config, ALONE)
    assert run.checkpoint_files()
    second.write_bytes(whole)
    shutil.copy(tmp_path / "good.png", folder / BAD)
    assert pretrain(config, ALONE) == run.checkpoint_file(10)


def test_a_list_of_a_start_that_failed_binds_nobody(folder: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    pretrain(tiny_config(folder, run.path), ALONE)
    shutil.rmtree(run.checkpoints)
    for name in ("001.png", "002.png"):
        (folder / name).unlink()
    pretrain(tiny_config(folder, run.path), ALONE)
    assert len(run.images_file.read_text().splitlines()) == 1 + len(image_files(folder)) == 11


def test_a_damaged_tile_of_a_store_is_passed_over_too(tmp_path: Path) -> None:
    store, slide = tmp_path / "store", write_slide_file(tmp_path / "a.tif", [tissue_image()])
    config = TilesConfig(mpp=0.5, size_px=64, mask_mpp=4.0, min_area_um2=500)
    tile_slides([SlideRow(slide, "a")], config, store, num_workers=0)
    tiles = open_tiles(store)
    tar = store / "tiles" / f"{tiles.slide_id(5)}.tar"  # type: ignore[attr-defined]
    with tar.open("r+b") as stream:
        stream.seek(int(tiles.offset[5] + tiles.length[5] // 2))  # type: ignore[attr-defined]
        stream.write(bytes(int(tiles.length[5]) // 2))  # type: ignore[attr-defined]
    with pytest.raises(
        TileStoreError, match=r"a x=\d+ y=\d+: cannot be read \(its checksum is wrong(?s:.*)run `dino-path tile` again"
    ):
        tiles.read_image(5)
    steps = len(tiles) // 4 + 1
    run = RunFolder(tmp_path / "run")
    pretrain(tiny_config(store, run.path, f"training.num_steps={steps}", "monitor.log_every_steps=100"), ALONE)
    (line,) = run.unreadable_file.read_text().splitlines()
    assert json.loads(line)["tile"] == tiles.name(5)
    assert np.isfinite(strict_records(run.path)[-1]["loss"])  # type: ignore[call-overload]

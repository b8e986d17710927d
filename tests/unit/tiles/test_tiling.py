import hashlib
import json
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from leftovers import left_by_a_kill
from slide_files import PINK, tissue_image, write_jpeg_slide, write_slide_file

from dino_path.config import TilesConfig
from dino_path.errors import TileStoreError
from dino_path.features.coordinates import write_coordinate_files
from dino_path.records.slide import SlideRecord, read_slide_record
from dino_path.slides.find import SlideRow, find_slides
from dino_path.slides.slide import Slide
from dino_path.tiles.layout import StoreFolder, write_record
from dino_path.tiles.store import TileStore
from dino_path.tiles.summary import write_summary
from dino_path.tiles.tiling import TilingSummary, tile_slides
from dino_path.tiles.workers import DIED, Failure, work_in_processes

TILES = TilesConfig(mpp=0.5, size_px=64, mask_mpp=4.0, min_area_um2=500)


def contents(store: Path) -> dict[str, str]:
    """Hash of every file of a store; of the records and the summary without their seconds, and not what calls named."""
    hashes = {}
    for file in sorted(path for path in store.rglob("*") if path.is_file() and path.name != "expected.json"):
        data = file.read_bytes()
        if file.parent.name == "slides":
            data = json.dumps({**json.loads(data), "seconds": 0}).encode()
        if file.name == "slides.csv":
            data = b"\n".join(line.rsplit(b",", 2)[0] for line in data.splitlines())
        hashes[str(file.relative_to(store))] = hashlib.sha256(data).hexdigest()
    return hashes


def test_the_store_holds_every_tile_of_the_tissue_and_its_pixels(store_path: Path) -> None:
    store = TileStore.open(store_path, split="train")
    image = tissue_image()
    corners = {(int(x), int(y)) for x, y in zip(store.x_level0, store.y_level0, strict=True)}
    assert corners == {(x, y) for x in range(256, 768, 64) for y in range(128, 640, 64)}
    for index in (0, 17, len(store) - 1):
        x, y = int(store.x_level0[index]), int(store.y_level0[index])
        tile = store.read_image(index)
        assert np.abs(tile.astype(int) - image[y : y + 64, x : x + 64]).mean() < 6  # JPEG
    assert (store.measured("tissue_fraction") > 0.5).all()
    assert (store.measured("sharpness") > 0).all()


def test_records_say_what_became_of_each_slide(store_path: Path) -> None:
    folder = StoreFolder(store_path)
    done, empty = read_slide_record(folder.record_file("a")), read_slide_record(folder.record_file("glass"))
    assert (done.status, done.num_tiles, done.num_candidates, done.patient_id, done.split) == (
        "done",
        64,
        64,
        "P1",
        "train",
    )
    assert (done.mpp, done.mpp_source, done.tile_mpp) == (0.5, "openslide.mpp-x", 0.5)
    assert done.tissue_percent == pytest.approx(100 / 3, abs=1)
    assert (empty.status, empty.num_tiles, empty.flags) == ("empty", 0, ("tissue near 0 %",))
    assert "no tile has enough tissue" in empty.reason
    assert not folder.tar_file("glass").exists()
    assert folder.overlay_file("glass").exists()


def test_webdataset_finds_one_sample_per_tile_in_the_tar(store_path: Path) -> None:
    store = TileStore.open(store_path)
    with tarfile.open(store_path / "tiles/a.tar") as tar:
        members = tar.getmembers()
        assert [member.name for member in members] == [
            f"a_x{x}_y{y}.jpg" for x, y in zip(store.x_level0[:64], store.y_level0[:64], strict=True)
        ]
        assert all(member.name.count(".") == 1 and member.mtime == 0 and member.uid == 0 for member in members)
        assert tar.extractfile(members[5]).read() == store.read_bytes(5)  # type: ignore[union-attr]


def test_a_second_call_touches_nothing_and_a_fresh_store_is_equal_byte_for_byte(
    rows: list[SlideRow], store_path: Path, tmp_path: Path
) -> None:
    times = {file: file.stat().st_mtime_ns for file in store_path.rglob("*")}
    summary = tile_slides(rows, TILES, store_path, num_workers=0)
    assert (summary.num_skipped, summary.num_done, summary.num_empty, summary.num_failed) == (3, 0, 0, 0)
    assert summary.num_tiles == sum(record.num_tiles for record in summary.records) > 64
    assert {file: file.stat().st_mtime_ns for file in store_path.rglob("*")} == times
    tile_slides(rows, TILES, tmp_path / "fresh", num_workers=0)
    assert contents(tmp_path / "fresh") == contents(store_path)


@pytest.mark.slow
def test_worker_processes_make_the_same_store(rows: list[SlideRow], store_path: Path, tmp_path: Path) -> None:
    summary = tile_slides(rows, TILES, tmp_path / "store", num_workers=2)
    assert (summary.num_done, summary.num_empty) == (2, 1)
    assert [record.slide_id for record in summary.records] == ["a", "b", "glass"]
    assert contents(tmp_path / "store") == contents(store_path)


def test_shards_share_the_slides_out_and_make_the_same_store(
    rows: list[SlideRow], store_path: Path, tmp_path: Path
) -> None:
    done = [tile_slides(rows, TILES, tmp_path / "s", shard=(i, 2), num_workers=0).records for i in (0, 1)]
    assert [[record.slide_id for record in records] for records in done] == [["a", "glass"], ["b"]]
    assert contents(tmp_path / "s") == contents(store_path)


def test_a_task_ends_well_while_another_tiles_slides_anew(
    rows: list[SlideRow], store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other removes a record that was in the list a moment ago, and then the slide's files."""
    shutil.copytree(store_path, tmp_path / "store")
    folder = StoreFolder(tmp_path / "store")
    listed = folder.record_files()
    folder.record_file("a").unlink()
    folder.remove_outputs("a")
    monkeypatch.setattr(StoreFolder, "record_files", lambda _: listed)
    summary = tile_slides([one for one in rows if one.slide_id != "a"], TILES, folder.path, num_workers=0)
    assert [record.slide_id for record in summary.records] == ["b", "glass"]
    folder.summary_file.unlink()
    write_summary(folder)
    assert [line.split(",")[1] for line in folder.summary_file.read_text().splitlines()] == ["slide_id", "b", "glass"]
    assert write_coordinate_files(folder.path, ["clam"], tmp_path / "clam").written == ("b",)


def test_a_killed_task_is_continued_and_leaves_nothing_behind(
    rows: list[SlideRow], store_path: Path, tmp_path: Path
) -> None:
    store = shutil.copytree(store_path, tmp_path / "store")
    (store / "slides/a.json").unlink()  # killed before the record was written
    (store / "tiles/a.parquet").unlink()
    left_by_a_kill(store / "tiles/a.tar")
    summary = tile_slides(rows, TILES, store, num_workers=0)
    assert (summary.num_done, summary.num_skipped) == (1, 2)
    assert contents(store) == contents(store_path)


def test_a_slide_that_cannot_be_read_fails_alone_and_is_tried_again(rows: list[SlideRow], tmp_path: Path) -> None:
    slide = tmp_path / "slides/broken.tif"
    slide.parent.mkdir()
    slide.write_bytes(b"half a download")
    all_rows = [SlideRow(slide, "broken", patient_id="P9"), rows[0]]
    first = tile_slides(all_rows, TILES, tmp_path / "store", num_workers=0)
    assert (first.num_done, first.num_failed) == (1, 1)
    assert "does not recognise this file" in first.records[0].reason
    assert first.records[0].patient_id == "P9"
    shutil.copy(rows[1].path, slide)
    second = tile_slides([replace(all_rows[0], path=slide), rows[0]], TILES, tmp_path / "store", num_workers=0)
    assert (second.num_done, second.num_failed, second.num_skipped) == (1, 0, 1)


def test_centre_and_scanner_stand_in_the_record_and_change_without_tiling_again(
    rows: list[SlideRow], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    first = tile_slides([replace(rows[0], centre="A", scanner="S")], TILES, store, num_workers=0)
    assert (first.records[0].centre, first.records[0].scanner) == ("A", "S")
    second = tile_slides([replace(rows[0], centre="B", scanner="S")], TILES, store, num_workers=0)
    assert (second.num_done, second.num_skipped, second.records[0].centre) == (0, 1, "B")
    header, line = (store / "slides.csv").read_text().splitlines()
    written = dict(zip(header.split(","), line.split(","), strict=True))
    assert (written["centre"], written["scanner"]) == ("B", "S")
    assert [(row.centre, row.scanner) for row in find_slides([store / "slides.csv"])] == [("B", "S")]


def test_mpp_of_the_csv_overrules_and_a_changed_one_tiles_anew(rows: list[SlideRow], tmp_path: Path) -> None:
    tile_slides(rows[:1], TILES, tmp_path / "store", num_workers=0)
    finer = [replace(rows[0], mpp=0.25)]
    summary = tile_slides(finer, TILES, tmp_path / "store", num_workers=0)
    assert (summary.num_done, summary.records[0].mpp_source) == (1, "slides CSV")
    assert TileStore.open(tmp_path / "store").size_level0.tolist() == [128] * 16
    assert tile_slides(finer, TILES, tmp_path / "store", num_workers=0).num_skipped == 1


def test_a_changed_split_is_taken_over_without_tiling(rows: list[SlideRow], store_path: Path, tmp_path: Path) -> None:
    store = shutil.copytree(store_path, tmp_path / "store")
    summary = tile_slides([replace(rows[0], split="val")], TILES, store, num_workers=0)
    assert summary.num_skipped == 1
    assert [record.slide_id for record in TileStore.open(store, split="val").slides] == ["a"]


def test_a_store_of_another_config_is_refused_and_the_difference_named(rows: list[SlideRow], store_path: Path) -> None:
    with pytest.raises(TileStoreError, match=r"tiles\.jpeg_quality 90 there, 80 now"):
        tile_slides(rows, TILES.model_copy(update={"jpeg_quality": 80}), store_path, num_workers=0)


def test_a_folder_that_holds_something_else_is_refused(rows: list[SlideRow], tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(TileStoreError, match="not a tile store"):
        tile_slides(rows, TILES, tmp_path, num_workers=0)


def test_a_slide_under_two_ids_and_an_id_for_two_slides_are_refused(
    rows: list[SlideRow], store_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(TileStoreError, match="under the id 'a'; now its id would be 'folder__a'"):
        tile_slides([replace(rows[0], slide_id="folder__a")], TILES, store_path, num_workers=0)
    other = write_slide_file(tmp_path / "other/a.tif", [tissue_image(640, 640)])
    with pytest.raises(TileStoreError, match="slide id 'a' stands for"):
        tile_slides([SlideRow(other, "a")], TILES, store_path, num_workers=0)
    moved = shutil.copy(rows[0].path, tmp_path / "a.tif")
    copy = shutil.copytree(store_path, tmp_path / "store")
    assert tile_slides([replace(rows[0], path=Path(moved))], TILES, copy, num_workers=0).num_skipped == 1


def test_tiles_with_pen_or_black_or_blur_are_not_kept_and_counted(tmp_path: Path) -> None:
    image = tissue_image()
    image[192:256, 320:384] = (30, 60, 170)
    image[192:256, 448:488] = (10, 6, 8)
    image[320:384, 320:384] = PINK  # nothing to see
    path = write_slide_file(tmp_path / "a.tif", [image])
    config = TILES.model_copy(update={"min_tissue_fraction": 0.3, "min_sharpness": 1.0, "max_hole_um2": 5_000})
    (record,) = tile_slides([SlideRow(path, "a")], config, tmp_path / "store", num_workers=0).records
    assert (record.num_pen, record.num_black, record.num_blurred) == (1, 1, 1)
    assert record.num_tiles == record.num_candidates - 3 == 61


def test_a_slide_with_a_few_unreadable_tiles_is_kept_and_flagged_and_one_with_many_fails(tmp_path: Path) -> None:
    import tifffile

    path = write_slide_file(tmp_path / "a.tif", [tissue_image(2048, 2048), tissue_image(2048, 2048)[::8, ::8]])
    with tifffile.TiffFile(path) as file:
        places = list(zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True))
    config = TILES.model_copy(update={"size_px": 256, "mask_mpp": 8.0})

    def spoil(number: int) -> None:
        with path.open("r+b") as stream:
            stream.seek(places[number][0])
            stream.write(b"\0" * places[number][1])

    spoil(8 * 3 + 3)
    (record,) = tile_slides([SlideRow(path, "a")], config, tmp_path / "store", num_workers=0).records
    assert (record.status, record.num_unreadable, record.flags) == ("done", 1, ("unreadable tiles",))
    for number in range(8 * 4, 8 * 6):
        spoil(number)
    (record,) = tile_slides([SlideRow(path, "a")], config, tmp_path / "other", num_workers=0).records
    assert record.status == "failed"
    assert "tiles cannot be read" in record.reason
    assert not StoreFolder(tmp_path / "other").tar_file("a").exists()


def test_contours_are_closed_level0_rings_that_enclose_the_tissue(store_path: Path) -> None:
    collection = json.loads((store_path / "contours/a.geojson").read_text())
    assert collection["type"] == "FeatureCollection"
    (feature,) = collection["features"]
    assert feature["properties"]["objectType"] == "annotation"
    assert feature["properties"]["classification"]["name"] == "Tissue"
    (ring,) = feature["geometry"]["coordinates"]
    assert ring[0] == ring[-1]
    xs, ys = np.array(ring).T
    for value, expected in ((xs.min(), 256), (xs.max(), 768), (ys.min(), 128), (ys.max(), 640)):
        assert abs(value - expected) <= 8  # a mask pixel


def test_the_overlay_is_the_slide_with_marks_and_a_caption(store_path: Path) -> None:
    overlay = cv2.imread(str(store_path / "overlays/a.jpg"))
    assert overlay.shape == (768 + 44 + 128 + 22, 1024, 3)
    assert np.abs(overlay[20:100, 20:200].astype(int) - 243).max() < 12  # glass stays as it is
    assert (overlay[768 : 768 + 44] < 60).all(axis=2).sum() > 200  # letters
    assert (overlay[-150:-22].min(axis=2) < 200).mean() > 0.8  # tiles below


def test_label_and_macro_pictures_reach_no_output(shared_data: Path, tmp_path: Path) -> None:
    import openslide

    slide = shared_data / "slides/CMU-1-Small-Region.svs"
    tile_slides(find_slides([slide]), TilesConfig(mpp=0.5), tmp_path / "store", num_workers=0)
    with openslide.OpenSlide(slide) as handle:
        label = np.asarray(handle.associated_images["label"].convert("L"), dtype=np.float32)
    for file in (tmp_path / "store").rglob("*.jpg"):
        picture = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2GRAY).astype(np.float32)
        for scale in (1.0, 0.5):
            template = cv2.resize(label, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            if template.shape[0] < picture.shape[0] and template.shape[1] < picture.shape[1]:
                assert cv2.matchTemplate(picture, template, cv2.TM_CCOEFF_NORMED).max() < 0.5


def double_unless_fatal(number: int) -> int:
    if number == 3:
        os._exit(1)
    return 2 * number


@pytest.mark.slow
def test_an_item_that_kills_its_process_costs_no_other_item() -> None:
    answers = dict(work_in_processes(double_unless_fatal, range(7), num_workers=2))
    assert answers == {0: 0, 1: 2, 2: 4, 3: Failure(DIED), 4: 8, 5: 10, 6: 12}


def test_a_damaged_record_is_named(store_path: Path, tmp_path: Path) -> None:
    store = shutil.copytree(store_path, tmp_path / "store")
    (store / "slides/a.json").write_text("{half")
    with pytest.raises(TileStoreError, match=r"a\.json: is damaged"):
        TileStore.open(store)
    record = read_slide_record(store / "slides/b.json")
    write_record(StoreFolder(store), replace(record, slide_id="a"))
    assert read_slide_record(store / "slides/a.json") == replace(record, slide_id="a")


@pytest.mark.parametrize(("num_spoiled", "status"), [(1, "done"), (20, "failed")])
def test_damage_where_the_tissue_is_looked_for_costs_no_more_than_itself(
    tmp_path: Path, num_spoiled: int, status: str
) -> None:
    import tifffile

    path = write_slide_file(tmp_path / "a.tif", [tissue_image(2048, 2048)])  # one level: the mask is made from it
    with tifffile.TiffFile(path) as file:
        places = list(zip(file.pages[0].dataoffsets, file.pages[0].databytecounts, strict=True))
    with path.open("r+b") as stream:
        for offset, length in places[3 * 8 + 3 : 3 * 8 + 3 + num_spoiled]:
            stream.seek(offset)
            stream.write(b"\0" * length)
    config = TILES.model_copy(update={"size_px": 256, "mask_mpp": 8.0, "min_tissue_fraction": 0.9})
    (record,) = tile_slides([SlideRow(path, "a")], config, tmp_path / "store", num_workers=0).records
    assert record.status == status
    if status == "done":
        store = TileStore.open(tmp_path / "store")
        corners = {(int(x), int(y)) for x, y in zip(store.x_level0, store.y_level0, strict=True)}
        assert corners == {(x, y) for x in range(256, 1792, 256) for y in range(256, 1792, 256)} - {(768, 768)}
        assert record.flags == ("unreadable areas",)


def stored_pixels(store: Path) -> dict[str, np.ndarray]:
    tiles = TileStore.open(store)
    return {tiles.name(index): tiles.read_image(index) for index in range(len(tiles))}


def test_native_jpeg_tiles_are_copied_byte_for_byte_where_the_grid_is_theirs(tmp_path: Path) -> None:
    image = tissue_image()
    path = write_jpeg_slide(tmp_path / "a.tif", [image], tile_px=64, has_shared_tables=True, quality=97)
    rows = [SlideRow(path, "a")]
    (copied,) = tile_slides(rows, TILES, tmp_path / "copied", num_workers=0).records
    assert (copied.reader, copied.num_tiles, copied.num_passed_through) == ("native", 64, 64)
    encoded_config = TILES.model_copy(update={"copy_native_jpeg": False})
    (encoded,) = tile_slides(rows, encoded_config, tmp_path / "encoded", num_workers=0).records
    assert (encoded.reader, encoded.num_tiles, encoded.num_passed_through) == ("native", 64, 0)
    with Slide.open(path) as slide:
        store = TileStore.open(tmp_path / "copied")
        for index in (0, 20, 63):
            corner = (int(store.x_level0[index]), int(store.y_level0[index]))
            pixels = store.read_image(index)
            np.testing.assert_array_equal(pixels, slide.read_region(corner, 0, (64, 64)))
    ours, theirs = stored_pixels(tmp_path / "copied"), stored_pixels(tmp_path / "encoded")
    assert list(ours) == list(theirs)
    assert all(0 < np.abs(ours[name].astype(int) - theirs[name]).mean() < 4 for name in ours)


@pytest.mark.parametrize("mpp_level0", [0.5, 0.25, 0.3])
def test_both_readers_keep_the_same_tiles_with_nearly_the_same_pixels_and_numbers(
    tmp_path: Path, mpp_level0: float
) -> None:
    image = cv2.resize(tissue_image(), None, fx=0.5 / mpp_level0, fy=0.5 / mpp_level0)
    path = write_jpeg_slide(tmp_path / "a.tif", [image], mpp=mpp_level0)
    for reader in ("auto", "openslide"):
        config = TILES.model_copy(update={"reader": reader})
        (record,) = tile_slides([SlideRow(path, "a")], config, tmp_path / reader, num_workers=0).records
        assert record.reader == ("native" if reader == "auto" else "openslide: tiles.reader")
        assert record.num_passed_through == 0
    ours, theirs = stored_pixels(tmp_path / "auto"), stored_pixels(tmp_path / "openslide")
    assert len(ours) > 30
    assert list(ours) == list(theirs)
    assert max(np.abs(ours[name].astype(int) - theirs[name]).mean() for name in ours) < 2.5


@pytest.mark.slow
def test_natively_read_slides_make_the_same_store_in_any_number_of_processes(tmp_path: Path) -> None:
    rows = [
        SlideRow(write_jpeg_slide(tmp_path / f"{name}.tif", [tissue_image()], mpp=mpp, tile_px=tile_px), name)
        for name, mpp, tile_px in (("a", 0.5, 64), ("b", 0.25, 240), ("c", 0.31, 256))
    ]
    for num_workers in (0, 2, 3):
        records = tile_slides(rows, TILES, tmp_path / f"store{num_workers}", num_workers=num_workers).records
        assert [record.reader for record in records] == ["native"] * 3
        assert contents(tmp_path / f"store{num_workers}") == contents(tmp_path / "store0")


def test_native_tiles_that_were_never_written_are_left_out_and_the_rest_is_copied(tmp_path: Path) -> None:
    path = write_jpeg_slide(tmp_path / "a.tif", [tissue_image()], tile_px=64, missing=[16 * 4 + 6, 16 * 4 + 7])
    (record,) = tile_slides([SlideRow(path, "a")], TILES, tmp_path / "store", num_workers=0).records
    assert (record.reader, record.num_tiles, record.num_passed_through) == ("native", 62, 62)
    assert not any((pixels == 255).all() for pixels in stored_pixels(tmp_path / "store").values())


def test_the_commonest_reason_counts_reasons_that_differ_in_numbers_alone_as_one() -> None:
    reasons = ["none of 12 tiles passed: 12 pen", "the slide is smaller than one tile", "none of 7 tiles passed: 7 pen"]
    records = [SlideRecord(str(n), f"{n}.svs", "empty", reason) for n, reason in enumerate(reasons)]
    records.append(SlideRecord("d", "d.svs", "done"))
    assert TilingSummary(records, frozenset()).commonest_reason == "2 because none of 12 tiles passed: 12 pen"

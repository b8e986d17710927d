"""What a user can choose: limits after tiling, settings and masks of single slides, edges, coordinates only."""

import csv
import json
import pickle
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from slide_files import tissue_image, write_jpeg_slide, write_slide_file
from test_tiling import TILES, contents

from dino_path.config import TilesConfig
from dino_path.errors import ConfigError, TileStoreError
from dino_path.records.slide import SlideRecord, read_slide_record, write_slide_record
from dino_path.slides.find import SlideRow, find_slides
from dino_path.slides.images.jpeg import is_subsampled
from dino_path.tiles import one_slide
from dino_path.tiles.layout import StoreFolder
from dino_path.tiles.source import Subset
from dino_path.tiles.store import TileStore
from dino_path.tiles.summary import write_summary
from dino_path.tiles.tile_table import read_tile_table
from dino_path.tiles.tiling import tile_slides
from dino_path.tiles.writing import encode_jpeg


def with_settings(**settings: object) -> TilesConfig:
    return TILES.model_copy(update=settings)


def no_reading(*_: object, **__: object) -> None:
    raise AssertionError("a slide was opened")


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> SlideRow:
    """A slide of 64 tiles of tissue: one three quarters of pen, one half black."""
    image = tissue_image()
    image[192:256, 320:368] = (30, 60, 170)
    image[192:256, 448:488] = (10, 6, 8)
    path = write_slide_file(tmp_path_factory.mktemp("spoiled") / "a.tif", [image])
    return SlideRow(path, "a", overrides={"tiles.max_hole_um2": "5000", "tiles.min_tissue_fraction": "0.3"})


def test_other_limits_give_the_store_that_they_would_have_given_and_open_no_slide(
    spoiled: SlideRow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = with_settings(max_pen_fraction=0.05, max_black_fraction=0.25)
    lax = with_settings(max_pen_fraction=0.9, max_black_fraction=1.0)
    (before,) = tile_slides([spoiled], strict, tmp_path / "store", num_workers=0).records
    assert (before.num_tiles, before.num_pen, before.num_black) == (before.num_candidates - 2, 1, 1)
    tile_slides([spoiled], lax, tmp_path / "lax", num_workers=0)
    shutil.copytree(tmp_path / "store", tmp_path / "strict")
    monkeypatch.setattr(one_slide.Slide, "open", no_reading)
    for config, like in ((lax, "lax"), (strict, "strict")):
        summary = tile_slides([spoiled], config, tmp_path / "store", num_workers=0)
        assert (summary.num_judged_again, summary.num_skipped) == (1, 0)
        assert contents(tmp_path / "store") == contents(tmp_path / like)
        assert len(TileStore.open(tmp_path / "store")) == summary.num_tiles
    assert TileStore.open(tmp_path / "lax").digest != TileStore.open(tmp_path / "strict").digest


def test_a_slide_with_ink_is_tiled_anew_when_ink_becomes_tissue_and_others_are_only_judged_again(
    rows: list[SlideRow], spoiled: SlideRow, tmp_path: Path
) -> None:
    mine = [replace(spoiled, slide_id="inked"), rows[1]]
    strict, stained = with_settings(max_pen_fraction=0.05), with_settings(max_pen_fraction=1.0)
    first = tile_slides(mine, strict, tmp_path / "store", num_workers=0).records
    assert first[0].ink_percent == pytest.approx(100 * 48 * 64 / (512 * 512), abs=0.5)
    assert first[1].ink_percent == 0
    tile_slides(mine, stained, tmp_path / "stained", num_workers=0)
    second = tile_slides(mine, stained, tmp_path / "store", num_workers=0)
    assert second.num_judged_again == 1
    assert contents(tmp_path / "store") == contents(tmp_path / "stained")


def test_a_blue_stain_is_named_as_what_makes_a_slide_empty_and_its_remedy_helps(tmp_path: Path) -> None:
    image = tissue_image()
    noise = np.random.default_rng(0).integers(-20, 21, (512, 512, 1))
    image[128:-128, 256:-256] = np.array((50, 90, 190)) + noise
    row = SlideRow(write_slide_file(tmp_path / "blue.tif", [image]), "blue")
    (empty,) = tile_slides([row], TILES, tmp_path / "store", num_workers=0).records
    assert empty.status == "empty"
    assert (
        "100% of the area that is not glass looks like blue pen: if this is a blue stain, set tiles.max_pen"
        in empty.reason
    )
    assert "more ink than tissue" in empty.flags
    (done,) = tile_slides([row], with_settings(max_pen_fraction=1), tmp_path / "store", num_workers=0).records
    assert (done.num_tiles, done.flags) == (64, ())


def test_a_limit_that_refuses_every_tile_makes_the_slide_empty_and_a_laxer_one_brings_it_back(
    spoiled: SlideRow, tmp_path: Path
) -> None:
    (empty,) = tile_slides([spoiled], with_settings(min_sharpness=1e9), tmp_path / "s", num_workers=0).records
    assert (empty.status, empty.num_tiles, empty.num_blurred) == ("empty", 0, empty.num_candidates - 2)
    assert "passed the quality limits" in empty.reason
    (done,) = tile_slides([spoiled], TILES, tmp_path / "s", num_workers=0).records
    assert (done.status, done.num_tiles, done.reason) == ("done", done.num_candidates - 2, "")


def test_a_store_half_of_which_was_judged_by_other_limits_is_refused_until_tile_is_called_again(
    rows: list[SlideRow], store_path: Path, tmp_path: Path
) -> None:
    store = shutil.copytree(store_path, tmp_path / "store")
    other = with_settings(min_sharpness=1.0)
    tile_slides(rows[:1], other, store, num_workers=0)
    with pytest.raises(TileStoreError, match=r"b was judged by other quality limits.*(?s:.*)dino-path tile"):
        TileStore.open(store)
    tile_slides(rows, other, store, num_workers=0)
    assert len(TileStore.open(store).slides) == 2


@pytest.mark.parametrize(("file", "kept_bytes"), [("tiles/a.parquet", 200), ("thumbnails/a.jpg", 300)])
def test_a_slide_that_is_judged_again_and_has_a_damaged_file_is_tiled_again(
    spoiled: SlideRow, tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, kept_bytes: int
) -> None:
    tile_slides([spoiled], TILES, tmp_path / "store", num_workers=0)
    damaged = tmp_path / "store" / file
    damaged.write_bytes(damaged.read_bytes()[:kept_bytes])
    other = with_settings(max_pen_fraction=0.9)
    (record,) = tile_slides([spoiled], other, tmp_path / "store", num_workers=0).records
    assert record.status == "done"
    assert file.rpartition("/")[2] in caplog.text
    tile_slides([spoiled], other, tmp_path / "undisturbed", num_workers=0)
    assert contents(tmp_path / "store") == contents(tmp_path / "undisturbed")


def test_the_table_holds_the_numbers_of_every_tile_and_says_which_are_kept(spoiled: SlideRow, tmp_path: Path) -> None:
    (record,) = tile_slides([spoiled], TILES, tmp_path / "store", num_workers=0).records
    table = read_tile_table(tmp_path / "store/tiles/a.parquet")
    assert (len(table), int(table.kept.sum())) == (record.num_candidates, record.num_tiles)
    assert table.pen_fraction.max() > 0.7
    assert table.black_fraction.max() == pytest.approx(40 / 64, abs=0.02)
    store = TileStore.open(tmp_path / "store")
    np.testing.assert_array_equal(store.measured("pen_fraction"), table.pen_fraction[table.kept])


# --- settings of single slides ------------------------------------------------------------------------------------


def csv_rows(path: Path, header: str, *lines: str) -> list[SlideRow]:
    path.write_text("\n".join([header, *lines]) + "\n")
    return find_slides([path])


def test_a_csv_sets_what_holds_for_one_slide_and_changing_it_tiles_that_slide_alone(
    rows: list[SlideRow], tmp_path: Path
) -> None:
    paths = [row.path for row in rows[:2]]
    header = "path,tiles.min_saturation,tiles.max_pen_fraction"
    lines = [f"{paths[0]},,", f"{paths[1]},0.9,"]
    first = tile_slides(csv_rows(tmp_path / "s.csv", header, *lines), TILES, tmp_path / "store", num_workers=0)
    assert [record.status for record in first.records] == ["done", "empty"]
    assert first.records[1].overrides == {"tiles.min_saturation": "0.9"}
    lines[1] = f"{paths[1]},,"
    second = tile_slides(csv_rows(tmp_path / "s.csv", header, *lines), TILES, tmp_path / "store", num_workers=0)
    assert (second.num_done, second.num_skipped) == (1, 1)
    lines[1] = f"{paths[1]},,0.5"  # a limit: no slide is read
    third = tile_slides(csv_rows(tmp_path / "s.csv", header, *lines), TILES, tmp_path / "store", num_workers=0)
    assert (third.num_judged_again, third.num_skipped) == (1, 1)
    assert third.records[1].limits["max_pen_fraction"] == 0.5
    assert len(TileStore.open(tmp_path / "store").slides) == 2
    # A call that names the files alone says nothing of settings: they stay.
    plain = [replace(row, overrides=None) for row in find_slides([tmp_path / "s.csv"])]
    assert tile_slides(plain, TILES, tmp_path / "store", num_workers=0).num_skipped == 2


def test_settings_that_one_slide_cannot_have_are_refused_before_any_work(rows: list[SlideRow], tmp_path: Path) -> None:
    for overrides, complaint in (
        ({"tiles.mpp": "1.0"}, r"slide a: tiles\.mpp cannot be set for one slide"),
        ({"tiles.min_saturation": "much"}, "'min_saturation'"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            tile_slides([replace(rows[0], overrides=overrides)], TILES, tmp_path / "store", num_workers=0)
        assert not (tmp_path / "store").exists()


def test_the_summary_lists_every_slide_and_can_be_edited_and_given_back(rows: list[SlideRow], tmp_path: Path) -> None:
    broken = tmp_path / "broken.tif"
    broken.write_bytes(b"no slide")
    store = tmp_path / "store"
    tile_slides([*rows[:2], SlideRow(broken, "broken", mpp=0.4)], TILES, store, num_workers=0)
    with (store / "slides.csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert [(row["slide_id"], row["status"], row["patient_id"]) for row in table] == [
        ("a", "done", "P1"),
        ("b", "done", "P2"),
        ("broken", "failed", ""),
    ]
    assert table[0]["num_tiles"] == str(read_slide_record(StoreFolder(store).record_file("a")).num_tiles)
    assert (table[0]["mpp"], table[0]["mpp_found"]) == ("", "0.5")
    assert "does not recognise this file" in table[2]["reason"]
    broken.unlink()
    edited = tmp_path / "edited.csv"
    with edited.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(table[0]))
        writer.writeheader()
        writer.writerows([{**table[0], "tiles.min_saturation": "0.9"}, table[1]])
    summary = tile_slides(find_slides([edited]), TILES, store, num_workers=0)
    assert [(record.slide_id, record.status) for record in summary.records] == [("a", "empty"), ("b", "done")]
    assert summary.num_skipped == 1


def test_the_contact_sheet_shows_every_slide(rows: list[SlideRow], store_path: Path) -> None:
    sheet = cv2.imread(str(store_path / "contact_sheet_001.jpg"))
    assert sheet.shape == (240, 3 * 260, 3)
    for column, has_tiles in enumerate((True, True, False)):
        cell = sheet[:200, 260 * column : 260 * (column + 1)].astype(int)
        pink = (cell[..., 2] - cell[..., 1] > 40).mean()
        assert (pink > 0.1) == has_tiles
        assert (sheet[206:, 260 * column : 260 * (column + 1)] < 128).all(axis=2).sum() > 20  # letters


def test_the_contact_sheet_says_why_a_slide_failed(tmp_path: Path) -> None:
    folder = StoreFolder(tmp_path)
    folder.prepare(TILES)
    sheets = []
    for reason in ("no mpp in the file", "no mpp in the file; " + "its TIFF tags give no resolution either, " * 12):
        write_slide_record(folder.record_file("broken"), SlideRecord("broken", "broken.svs", "failed", reason=reason))
        folder.summary_file.unlink(missing_ok=True)
        write_summary(folder)
        sheets.append(cv2.imread(str(folder.contact_sheet_file(1))))
    red = [(sheet[..., 2].astype(int) - sheet[..., 1] > 60)[:200].sum() for sheet in sheets]
    assert 50 < red[0] < red[1] / 4, "letters in the place of the picture"
    assert (sheets[1][200:206] > 200).all(), "a long reason stays clear of the slide's name"


# --- masks of other tools -----------------------------------------------------------------------------------------


def test_a_mask_from_elsewhere_decides_where_the_tiles_are_and_a_changed_one_tiles_anew(
    rows: list[SlideRow], tmp_path: Path
) -> None:
    mask = np.zeros((96, 128), np.uint8)  # 1/8 of the slide
    mask[16:32, 32:64] = 255
    masks = tmp_path / "masks"
    masks.mkdir()
    (masks / "a.png").write_bytes(cv2.imencode(".png", mask)[1].tobytes())
    found = find_slides([rows[0].path], masks=masks)
    (record,) = tile_slides(found, TILES, tmp_path / "store", num_workers=0).records
    store = TileStore.open(tmp_path / "store")
    corners = {(int(x), int(y)) for x, y in zip(store.x_level0, store.y_level0, strict=True)}
    assert corners == {(x, y) for x in range(256, 512, 64) for y in range(128, 256, 64)}
    assert record.mask == str(masks / "a.png")
    assert tile_slides(found, TILES, tmp_path / "store", num_workers=0).num_skipped == 1
    mask[:] = 255
    (masks / "a.png").write_bytes(cv2.imencode(".png", mask)[1].tobytes())
    (whole,) = tile_slides(found, TILES, tmp_path / "store", num_workers=0).records
    assert whole.num_candidates == 16 * 12
    assert whole.flags == ("tissue near 100 %",)


def test_a_slide_whose_mask_is_missing_fails_and_says_which(rows: list[SlideRow], tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    found = find_slides([rows[0].path], masks=tmp_path / "masks")
    (record,) = tile_slides(found, TILES, tmp_path / "store", num_workers=0).records
    assert record.status == "failed"
    assert "masks/a.png" in record.reason


# --- edges --------------------------------------------------------------------------------------------------------


def test_tiles_over_the_edge_are_left_out_or_padded_with_the_background_as_the_setting_says(tmp_path: Path) -> None:
    image = np.ascontiguousarray(tissue_image(1024, 768)[128:500, 256:600])  # tissue to the edges: 344 x 372
    path = write_jpeg_slide(tmp_path / "a.tif", [image], tile_px=64)
    rows = [SlideRow(path, "a")]
    (dropped,) = tile_slides(rows, with_settings(), tmp_path / "drop", num_workers=0).records
    padded_config = with_settings(edge="pad", min_tissue_fraction=0.3)
    (padded,) = tile_slides(rows, padded_config, tmp_path / "pad", num_workers=0).records
    assert (dropped.num_candidates, padded.num_candidates) == (5 * 5, 6 * 6 - 1)  # the corner is a tenth tissue
    store = TileStore.open(tmp_path / "pad")
    over = int(np.flatnonzero((store.x_level0 == 320) & (store.y_level0 == 0))[0])
    assert (store.read_image(over)[:, 40:] > 240).all()  # beyond the slide: white
    assert store.read_image(over)[:, :20].mean() < 220
    fractions = store.measured("tissue_fraction")
    assert fractions[over] == pytest.approx(24 / 64, abs=0.08)


# --- coordinates only ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mpp_level0", "reader"), [(0.5, "auto"), (0.25, "auto"), (0.3, "openslide")])
def test_a_store_of_coordinates_reads_the_pixels_from_the_slides(
    tmp_path: Path, mpp_level0: float, reader: str
) -> None:
    image = cv2.resize(tissue_image(), None, fx=0.5 / mpp_level0, fy=0.5 / mpp_level0)
    rows = [SlideRow(write_jpeg_slide(tmp_path / f"{name}.tif", [image], mpp=mpp_level0), name) for name in "ab"]
    config = with_settings(coordinates_only=True, reader=reader)
    (first, _) = tile_slides(rows, config, tmp_path / "c", num_workers=0).records
    assert not list((tmp_path / "c/tiles").glob("*.tar"))
    assert (first.status, first.num_passed_through) == ("done", 0)
    tile_slides(rows, with_settings(reader=reader), tmp_path / "pixels", num_workers=0)
    stored, read = TileStore.open(tmp_path / "pixels"), TileStore.open(tmp_path / "c")
    np.testing.assert_array_equal(stored.x_level0, read.x_level0)
    order = np.random.default_rng(0).permutation(len(read))[:20]
    for index in order.tolist():
        image = cv2.imdecode(np.frombuffer(encode_jpeg(read.read_image(index), 90, "420"), np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(image[..., ::-1], stored.read_image(index))
    sent = pickle.loads(pickle.dumps(Subset(read, order)))
    np.testing.assert_array_equal(sent.read_image(3), read.read_image(int(order[3])))
    assert sent.read_bytes(3) == sent.read_image(3).tobytes()


def test_few_slides_are_open_at_a_time_and_one_that_has_changed_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dino_path.tiles import slide_tiles

    monkeypatch.setattr(slide_tiles, "MOST_OPEN_SLIDES", 2)
    rows = [SlideRow(write_jpeg_slide(tmp_path / f"{name}.tif", [tissue_image(768, 512)]), name) for name in "abcd"]
    tile_slides(rows, with_settings(coordinates_only=True), tmp_path / "store", num_workers=0)
    store = TileStore.open(tmp_path / "store")
    images = [store.read_image(index) for index in range(len(store))]
    assert store._slide_tiles is not None
    assert len(store._slide_tiles._readers) == 2
    np.testing.assert_array_equal(store.read_image(0), images[0])
    rows[3].path.write_bytes(b"other")
    rows[1].path.unlink()
    again = TileStore.open(tmp_path / "store")
    for number, complaint in ((3, "cannot be read from"), (1, "no such file")):
        with pytest.raises(TileStoreError, match=complaint):
            again.read_image(int(again.starts[number]))


# --- colour resolution of stored tiles ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "setting", "expected"),
    [("rgb", "auto", "444"), ("ycbcr", "auto", "420"), ("deflate", "auto", "444"), ("rgb", "420", "420")],
)
@pytest.mark.parametrize("reader", ["auto", "openslide"])
def test_tiles_have_the_colour_resolution_of_their_slide(
    tmp_path: Path, reader: str, source: str, setting: str, expected: str
) -> None:
    image = tissue_image()
    write = write_slide_file if source == "deflate" else partial(write_jpeg_slide, colours=source)  # type: ignore
    row = SlideRow(write(tmp_path / "a.tif", [image]), "a")
    config = with_settings(jpeg_subsampling=setting, copy_native_jpeg=False, reader=reader)
    (record,) = tile_slides([row], config, tmp_path / "store", num_workers=0).records
    assert record.jpeg_subsampling == expected
    assert is_subsampled(TileStore.open(tmp_path / "store").read_bytes(3)) == (expected == "420")


def test_a_store_from_before_the_setting_keeps_its_digest_and_its_halved_colours(
    store_path: Path, tmp_path: Path
) -> None:
    store = shutil.copytree(store_path, tmp_path / "store")
    file = store / "store.json"
    tree = json.loads(file.read_text())
    before = TileStore.open(store).digest
    del tree["tiles"]["jpeg_subsampling"]
    file.write_text(json.dumps(tree))
    assert TileStore.open(store).digest == before
    assert StoreFolder(store).read_config().jpeg_subsampling == "420"
    assert StoreFolder(store).prepare(TILES).jpeg_subsampling == "420"
    StoreFolder(store).prepare(with_settings(max_pen_fraction=0.9))  # limits are taken over, and nothing else
    assert "jpeg_subsampling" not in json.loads(file.read_text())["tiles"]
    assert StoreFolder(store).prepare(TILES).jpeg_subsampling == "420"
    with pytest.raises(TileStoreError, match=r"tiles\.jpeg_subsampling 420 there, 444 now"):
        StoreFolder(store).prepare(with_settings(jpeg_subsampling="444"))

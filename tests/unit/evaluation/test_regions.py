import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from slide_files import stained_image, write_slide_file

from dino_path.config import EvaluationConfig, TilesConfig
from dino_path.errors import DataError, SlideError
from dino_path.evaluation.labelled.datasets import load_labelled
from dino_path.evaluation.labelled.region_labels import covered_share, label_tiles, label_tiles_by_mask
from dino_path.evaluation.labelled.regions import read_regions
from dino_path.records.slide import SlideRecord, read_slide_record
from dino_path.slides.annotations.outlines import Polygon
from dino_path.slides.find import SlideRow
from dino_path.tiles.layout import StoreFolder, write_record
from dino_path.tiles.tile_table import TileRow, TileTable, limits_of, write_tile_table
from dino_path.tiles.tiling import tile_slides
from dino_path.tiles.writing import TileWriter

TILE_LEVEL0 = 100


def square(x, y, size):
    return [[x, y], [x + size, y], [x + size, y + size], [x, y + size], [x, y]]


def polygon(*rings):
    arrays = tuple(np.array(ring, float) for ring in rings)
    return Polygon(arrays, (*arrays[0].min(axis=0), *arrays[0].max(axis=0)))


def feature(name, *rings, kind="Polygon"):
    coordinates = list(rings) if kind == "Polygon" else [[ring] for ring in rings]
    classification = {"classification": {"name": name, "color": [1, 2, 3]}} if name else {}
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": {"objectType": "annotation", **classification},
    }


@pytest.fixture
def make_store(tmp_path):
    """A store of slides with a row of 10 tiles each, at x = 0, 100, ... 900 and y = 0."""

    def make(*slides):
        folder = StoreFolder(tmp_path / "store")
        config = TilesConfig(mpp=0.5, size_px=16)
        folder.prepare(config)
        (folder.path / "tiles").mkdir()
        for number, (slide_id, patient, split) in enumerate(slides):
            with folder.tar_file(slide_id).open("wb") as stream:
                writer, rows = TileWriter(stream, slide_id, 90, "420"), []
                for index in range(10):
                    noise = np.random.default_rng(100 * number + index).integers(0, 255, (16, 16, 3), np.uint8)
                    place = writer.add(noise, (TILE_LEVEL0 * index, 0), None)
                    rows.append(TileRow(TILE_LEVEL0 * index, 0, TILE_LEVEL0, 1, 1, 0, 0, 0, *place))
                writer.close()
            write_tile_table(folder.table_file(slide_id), TileTable.from_rows(rows))
            record = SlideRecord(slide_id, f"{slide_id}.svs", "done", patient_id=patient, split=split, num_tiles=10)
            record = replace(record, width_level0=10 * TILE_LEVEL0, height_level0=TILE_LEVEL0)
            write_record(folder, replace(record, limits=limits_of(config)))
        (tmp_path / "regions").mkdir()
        return f"store:{folder.path}", EvaluationConfig(regions=tmp_path / "regions")

    return make


def draw_two_regions(config, *slide_ids):
    """Tumour on tiles 0 to 4 (all but half of tile 4), stroma on tiles 5 to 8."""
    for slide_id in slide_ids:
        features = [feature("Tumour", square(0, -50, 450)), feature("Stroma", square(500, -50, 400))]
        text = json.dumps({"type": "FeatureCollection", "features": features})
        (config.regions / f"{slide_id}.geojson").write_text(text)


def test_centres_of_a_store_are_those_of_its_slides_where_all_name_one(make_store):
    spec, config = make_store(("s1", "p1", None), ("s2", "p2", None))
    draw_two_regions(config, "s1", "s2")
    assert load_labelled(spec, config).centres is None
    folder = StoreFolder(Path(spec.removeprefix("store:")))
    for slide_id, centre in (("s1", "A"), ("s2", None)):
        write_record(folder, replace(read_slide_record(folder.record_file(slide_id)), centre=centre, scanner="S"))
    some = load_labelled(spec, config)
    assert (some.centres, set(some.scanners)) == (None, {"S"})
    assert "1 labelled slides have no centre: it is treated as unknown" in some.notes
    write_record(folder, replace(read_slide_record(folder.record_file("s2")), centre="B"))
    known = load_labelled(spec, config)
    assert sorted(zip(known.groups, known.centres, strict=True))[::8] == [("p1", "A"), ("p2", "B")]


@pytest.mark.parametrize(
    ("shape", "share"),
    [
        ([square(0, 0, 100)], 1.0),
        ([square(-500, -500, 2000)], 1.0),
        ([square(-10_000_000, -10_000_000, 20_000_000)], 1.0),
        ([square(50, 0, 100)], 0.5),
        ([square(25, 25, 50)], 0.25),
        ([square(100, 0, 100)], 0.0),
        ([square(0, 0, 100), square(25, 25, 50)], 0.75),
        ([[[0, 0], [100, 0], [0, 100], [0, 0]]], 0.5),
    ],
)
def test_the_covered_share_is_exact_to_a_hundredth(shape, share):
    assert covered_share(0, 0, 100, [polygon(*shape)]) == pytest.approx(share, abs=0.01)


def test_the_covered_share_of_a_rotated_square_far_from_the_origin():
    angle = np.linspace(0, 2 * np.pi, 5) + 0.3
    ring = 50_000.0 + 200 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    # The square has an area of 2 * 200^2 and lies inside a tile of 500 level-0 px.
    assert covered_share(49_750, 49_750, 500, [polygon(ring)]) == pytest.approx(80_000 / 250_000, abs=0.01)


def test_overlapping_regions_of_a_class_count_once_and_a_hole_can_be_filled_by_another():
    overlapping = [polygon(square(0, 0, 60)), polygon(square(0, 0, 60))]
    assert covered_share(0, 0, 100, overlapping) == pytest.approx(0.36, abs=0.01)
    refilled = [polygon(square(0, 0, 100), square(25, 25, 50)), polygon(square(25, 25, 50))]
    assert covered_share(0, 0, 100, refilled) == pytest.approx(1, abs=0.01)


def test_a_tile_in_regions_that_are_the_same_or_only_cross_has_no_label():
    squares = np.array([[0, 0, 100], [200, 0, 100], [400, 0, 100], [600, 0, 100]])
    regions = {
        "a": [polygon(square(0, 0, 100)), polygon(square(200, 0, 100)), polygon(square(500, 0, 210))],
        "b": [polygon(square(0, 0, 100)), polygon(square(590, 0, 210))],
    }
    assert label_tiles(squares, regions, 0.75) == ([None, "a", None, None], {("a", "b"): 2})


def test_the_innermost_of_nested_regions_labels_a_tile():
    squares = np.array([[0, 0, 100], [200, 0, 100], [400, 0, 100], [700, 0, 100]])
    regions = {
        "Region*": [polygon(square(-100, -100, 1200))],
        "Tumour": [polygon(square(-50, -50, 400)), polygon(square(650, -50, 300))],
        "Necrosis": [polygon(square(190, -10, 200))],  # a fifth of it sticks out of the tumour
    }
    labels, undecided = label_tiles(squares, regions, 0.75)
    assert labels == ["Tumour", "Necrosis", "Region*", "Tumour"]
    assert not undecided


def test_a_region_that_takes_several_outlines_to_cover_a_tile_lies_in_what_is_around_it():
    halves = [polygon([[x, -50], [x + 60, -50], [x + 60, 150], [x, 150]]) for x in (-10, 50)]
    regions = {"Tissue": [polygon(square(-500, -500, 1500))], "Tumour": halves}
    assert label_tiles(np.array([[0, 0, 100]]), regions, 0.75)[0] == ["Tumour"]


def test_all_geometries_of_qupath_are_read(tmp_path):
    file = tmp_path / "s.geojson"
    point = {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {}}
    derived = feature(None, square(0, 0, 5))
    derived["properties"]["classification"] = {"names": ["Tumour", "Positive"]}
    features = [
        feature("A", square(0, 0, 10), square(2, 2, 3)),
        feature("A", square(0, 0, 10), square(20, 20, 10), kind="MultiPolygon"),
        feature(None, square(0, 0, 10)),
        point,
        derived,
    ]
    file.write_text(json.dumps(features))
    regions = read_regions(file, (0, 0))
    assert {name: [len(p.rings) for p in polygons] for name, polygons in regions.items()} == {
        "A": [2, 1, 1],
        "Tumour: Positive": [1],
    }
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    assert set(read_regions(file, (0, 0))) == set(regions)


def test_what_the_regions_of_a_store_leave_out_is_told_apart(make_store):
    spec, config = make_store(("s1", "p1", None), ("s2", "p2", None))
    features = [
        feature("Region*", square(-50, -50, 950)),  # all but tile 9
        feature("Tumour", square(0, -50, 250)),  # tiles 0 and 1
        feature("Stroma", square(300, -50, 200)),  # tiles 3 and 4
        feature("Ignore*", square(600, 0, 100)),  # tile 6
        feature("A", square(700, -50, 200)),  # tiles 7 and 8, twice
        feature("B", square(700, -50, 200)),
    ]
    for slide_id in ("s1", "s2"):
        (config.regions / f"{slide_id}.geojson").write_text(json.dumps(features))
    labelled = load_labelled(spec, config)
    assert labelled.classes == ("Region*", "Stroma", "Tumour")
    assert np.bincount(labelled.labels).tolist() == [4, 4, 4]  # Region*: tiles 2 and 5
    assert "4 of 20 tiles lie in no region and are left out" in labelled.notes
    assert any(note.startswith("4 of 20 tiles lie in several regions, none inside all") for note in labelled.notes)
    assert any("A + B + Region*" in note for note in labelled.notes)
    chosen = config.model_copy(update={"region_classes": {"A": 1, "Stroma": 2}})
    labelled = load_labelled(spec, chosen)
    assert labelled.classes == ("A", "Stroma")
    assert np.bincount(labelled.labels).tolist() == [4, 4]
    with pytest.raises(DataError, match=r"classes drawn: A, B, Ignore\*, Region\*, Stroma"):
        load_labelled(spec, config.model_copy(update={"region_classes": {"tumor": 1}}))


@pytest.mark.parametrize("text", ["", "{}", '{"type": "FeatureCollection"}', "[1]", "<xml/>"])
def test_a_file_that_is_no_geojson_is_refused_by_name(tmp_path, text):
    (tmp_path / "s.geojson").write_text(text)
    with pytest.raises(DataError, match=r"s\.geojson: is not GeoJSON"):
        read_regions(tmp_path / "s.geojson", (0, 0))


def test_tiles_in_regions_are_labelled_and_grouped_by_patient(make_store):
    spec, config = make_store(("s1", "p1", None), ("s2", "p1", None), ("s3", "p2", None), ("s4", "p3", None))
    draw_two_regions(config, "s1", "s2", "s3")
    labelled = load_labelled(spec, config)
    assert labelled.classes == ("Stroma", "Tumour")
    assert [labelled.source.name(i) for i in labelled.part("train")[:1]]
    # 4 tiles of each class per slide: tile 4 is half covered, tile 9 not at all; s4 has no regions.
    assert len(labelled.source) == 24
    assert (np.bincount(labelled.labels) == 12).all()
    assert labelled.labels[:8].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert labelled.source.name(4) == "s1 x=500 y=0"
    assert labelled.group_kind == "patient"
    assert set(labelled.groups) == {"p1", "p2"}
    assert labelled.source.mpp == 0.5
    assert "16 of 40 tiles lie in no region and are left out" in labelled.notes
    assert "1 slides without regions left out" in labelled.notes  # whose id would reach model cards


def test_a_mask_of_class_numbers_labels_the_tiles_that_the_same_regions_do(make_store):
    spec, config = make_store(("s1", "p1", None), ("s2", "p2", None))
    draw_two_regions(config, "s1")
    mask = np.zeros((10, 100), np.uint8)  # ten level-0 px a pixel
    mask[:, :45], mask[:, 50:90], mask[:, 95:] = 3, 7, 200
    assert cv2.imwrite(str(config.regions / "s2.png"), mask)
    labelled = load_labelled(spec, config.model_copy(update={"region_classes": {"Tumour": 3, "Stroma": 7}}))
    assert labelled.classes == ("Stroma", "Tumour")
    assert labelled.labels.tolist() == [1, 1, 1, 1, 0, 0, 0, 0] * 2
    (config.regions / "s1.geojson").unlink()
    assert cv2.imwrite(str(config.regions / "s1.png"), mask)
    unnamed = load_labelled(spec, config)
    assert unnamed.classes == ("3", "7")
    assert unnamed.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1] * 2


def test_a_tile_smaller_than_a_mask_pixel_has_the_class_under_its_centre():
    mask = np.array([[0, 1], [2, 1]])
    squares = np.array([[10, 10, 40], [110, 40, 40], [60, 110, 30], [90, 10, 40]])  # a pixel is 100 level-0 px
    assert label_tiles_by_mask(squares, mask, (200, 200), {}, 0.75) == [None, "1", "2", "1"]
    assert label_tiles_by_mask(squares, mask, (200, 200), {"b": 2}, 0.75) == [None, None, "b", None]


def test_a_mask_of_another_shape_or_in_colour_is_refused(make_store):
    spec, config = make_store(("s1", "p1", None))
    assert cv2.imwrite(str(config.regions / "s1.png"), np.ones((50, 50), np.uint8))
    with pytest.raises(SlideError, match="differs in shape from s1"):
        load_labelled(spec, config)
    assert cv2.imwrite(str(config.regions / "s1.png"), np.eye(3, dtype=np.uint8)[None].repeat(10, 0).repeat(34, 1))
    with pytest.raises(SlideError, match="colour picture"):
        load_labelled(spec, config)


def test_slides_are_the_groups_where_a_patient_is_unknown(make_store):
    spec, config = make_store(("s1", "p1", None), ("s2", None, None))
    draw_two_regions(config, "s1", "s2")
    labelled = load_labelled(spec, config)
    assert labelled.group_kind == "slide"
    assert set(labelled.groups) == {"s1", "s2"}


def test_the_split_of_the_slides_is_used_and_must_be_whole(make_store):
    spec, config = make_store(("s1", "p1", "train"), ("s2", "p2", "test"), ("s3", "p3", None))
    draw_two_regions(config, "s1", "s2")
    labelled = load_labelled(spec, config)
    assert labelled.split.tolist() == ["train"] * 8 + ["test"] * 8
    draw_two_regions(config, "s3")
    with pytest.raises(DataError, match="1 of 3 labelled slides have no known split, first s3"):
        load_labelled(spec, config)


def test_a_patient_in_both_splits_of_the_slides_is_refused(make_store):
    spec, config = make_store(("s1", "p1", "train"), ("s2", "p1", "test"))
    draw_two_regions(config, "s1", "s2")
    with pytest.raises(DataError, match="1 patients are on several sides"):
        load_labelled(spec, config)


def test_a_store_without_a_labelled_tile_is_refused_with_the_file_names_we_looked_for(make_store):
    spec, config = make_store(("s1", "p1", None))
    with pytest.raises(DataError, match=r"no tile lies in a region \(1 of 1 slides have no regions file\)"):
        load_labelled(spec, config)


def test_tiles_of_a_store_of_coordinates_are_labelled_too(tmp_path):
    rows = [
        SlideRow(write_slide_file(tmp_path / f"{n}.tif", [stained_image(512, 512, seed=n)]), str(n)) for n in (1, 2)
    ]
    config = TilesConfig(mpp=0.5, size_px=128, coordinates_only=True, min_tissue_fraction=0)
    tile_slides(rows, config, tmp_path / "store", num_workers=0)
    (tmp_path / "regions").mkdir()
    features = [feature("Tumour", square(0, 0, 256)), feature("Stroma", square(256, 256, 256))]
    for slide in rows:
        text = json.dumps({"type": "FeatureCollection", "features": features})
        (tmp_path / "regions" / f"{slide.slide_id}.geojson").write_text(text)
    labelled = load_labelled(f"store:{tmp_path / 'store'}", EvaluationConfig(regions=tmp_path / "regions"))
    assert labelled.classes == ("Stroma", "Tumour")
    assert len(labelled.source) == 16
    assert labelled.source.read_image(0).shape == (128, 128, 3)

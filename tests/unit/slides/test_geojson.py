import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from dino_path.errors import DataError
from dino_path.slides.annotations.files import read_objects
from dino_path.slides.annotations.painting import paint_polygons

SQUARE = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
HOLE = [[2, 2], [4, 2], [4, 4], [2, 4], [2, 2]]


def write(file: Path, *geometries: dict, **properties: object) -> Path:
    features = [{"type": "Feature", "geometry": one, "properties": properties} for one in geometries]
    file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return file


def polygon(*rings: list) -> dict:
    return {"type": "Polygon", "coordinates": list(rings)}


def test_a_collection_a_list_and_one_feature_say_the_same(tmp_path: Path) -> None:
    feature = {"type": "Feature", "geometry": polygon(SQUARE, HOLE), "properties": {"classification": {"name": "A"}}}
    for content in ({"type": "FeatureCollection", "features": [feature]}, [feature], feature):
        (tmp_path / "a.geojson").write_text(json.dumps(content))
        (one,) = read_objects(tmp_path / "a.geojson", qupath_origin=(0, 0))
        assert one.class_name == "A"
        assert [len(ring) for ring in one.polygons[0].rings] == [5, 5]
        assert one.polygons[0].bounds == (0, 0, 10, 10)


@pytest.mark.parametrize(
    ("classification", "name"),
    [
        ({"name": "Tumour", "color": [1, 2, 3]}, "Tumour"),
        ({"names": ["Tumour", "Positive"]}, "Tumour: Positive"),  # QuPath from 0.4 on
        ("Fold", "Fold"),  # GrandQC
        ({}, None),
        (None, None),
    ],
)
def test_classes_are_read_however_they_are_written(tmp_path: Path, classification: object, name: str | None) -> None:
    (one,) = read_objects(
        write(tmp_path / "a.geojson", polygon(SQUARE), classification=classification), qupath_origin=(0, 0)
    )
    assert one.class_name == name


def test_objects_without_class_or_area_are_kept_as_such(tmp_path: Path) -> None:
    geometries = [
        {"type": "Point", "coordinates": [1, 2]},
        {"type": "MultiPolygon", "coordinates": [[SQUARE], [SQUARE, HOLE]]},
        {"type": "GeometryCollection", "geometries": [polygon(SQUARE), {"type": "LineString", "coordinates": SQUARE}]},
    ]
    objects = read_objects(write(tmp_path / "a.geojson", *geometries, tissue_id=0), qupath_origin=(0, 0))
    assert [one.class_name for one in objects] == [None] * 3
    assert [len(one.polygons) for one in objects] == [0, 2, 1]


def test_a_byte_order_mark_a_third_coordinate_and_further_members_do_no_harm(tmp_path: Path) -> None:
    crs = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::3857"}}
    feature = {"type": "Feature", "geometry": polygon([[*point, 0.0] for point in SQUARE]), "properties": None}
    text = json.dumps({"type": "FeatureCollection", "name": "a", "crs": crs, "features": [feature]})
    (tmp_path / "a.geojson").write_text(text, encoding="utf-8-sig")
    (one,) = read_objects(tmp_path / "a.geojson", qupath_origin=(0, 0))
    assert one.polygons[0].rings[0].tolist() == SQUARE


@pytest.mark.parametrize(
    "text",
    [
        "[1]",
        "{}",
        "[" * 100_000,
        '{"type": "Topology"}',
        '[{"geometry": {"type": "Circle", "coordinates": [0, 0]}}]',
        '[{"type": "Feature"}]',
        '[{"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, NaN], [1, 0]]]}}]',
    ],
)
def test_what_is_no_geojson_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(DataError, match=r"a\.geojson: is not GeoJSON"):
        read_objects(tmp_path / "a.geojson", qupath_origin=(0, 0))


NO_AREA = [
    (None, "object without geometry"),
    ({"type": "Polygon", "coordinates": []}, "object without geometry"),
    ({"type": "Polygon", "coordinates": [[]]}, "object without geometry"),
    ({"type": "MultiPolygon", "coordinates": []}, "object without geometry"),
    ({"type": "GeometryCollection", "geometries": []}, "object without geometry"),
    ({"type": "GeometryCollection", "geometries": [{"type": "Point", "coordinates": [1, 1]}]}, "point"),
    ({"type": "MultiPoint", "coordinates": [[1, 1]]}, "point"),
    ({"type": "LineString", "coordinates": [[1, 1], [2, 2]]}, "line"),
]


@pytest.mark.parametrize(("geometry", "kind"), NO_AREA)
def test_what_has_no_area_is_valid_and_named_for_what_it_is(tmp_path: Path, geometry: dict | None, kind: str) -> None:
    no_area, square = read_objects(write(tmp_path / "a.geojson", geometry, polygon(SQUARE)), qupath_origin=(0, 0))
    assert (no_area.kind, no_area.polygons) == (kind, ())
    assert (square.kind, len(square.polygons)) == ("area", 1)


def test_a_geometry_alone_and_a_compressed_file_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(polygon(SQUARE)))
    with gzip.open(tmp_path / "a.geojson.gz", "wt") as stream:
        json.dump({"type": "Feature", "geometry": polygon(SQUARE), "properties": {}}, stream)
    for name in ("a.json", "a.geojson.gz"):
        (one,) = read_objects(tmp_path / name, qupath_origin=(0, 0))
        assert one.polygons[0].bounds == (0, 0, 10, 10)
    whole = (tmp_path / "a.geojson.gz").read_bytes()
    (tmp_path / "a.geojson.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is not GeoJSON"):
        read_objects(tmp_path / "a.geojson.gz", qupath_origin=(0, 0))


def test_cells_and_cores_without_tissue_are_no_areas(tmp_path: Path) -> None:
    for properties, kind in (
        ({"objectType": "cell"}, "detection"),
        ({"objectType": "detection"}, "detection"),
        ({"objectType": "tile"}, "detection"),
        ({"object_type": "detection"}, "detection"),
        ({"objectType": "tma_core", "isMissing": True}, "missing core"),
        ({"objectType": "tma_core", "isMissing": False}, "area"),
        ({"objectType": "annotation"}, "area"),
    ):
        (one,) = read_objects(write(tmp_path / "a.geojson", polygon(SQUARE), **properties), qupath_origin=(0, 0))
        assert one.kind == kind
        assert len(one.polygons) == (kind == "area")


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.geojson"):
        read_objects(tmp_path / "none.geojson", qupath_origin=(0, 0))


def test_the_raster_lies_where_its_corner_and_pixels_say(tmp_path: Path) -> None:
    (one,) = read_objects(
        write(tmp_path / "a.geojson", polygon([[104, 60], [112, 60], [112, 80], [104, 80]])), qupath_origin=(0, 0)
    )
    raster = paint_polygons(one.polygons, (100.0, 50.0), (2.0, 5.0), (8, 10))
    # Columns of 2 px from x = 100, rows of 5 px from y = 50; the outline's own pixels are filled too.
    rows, columns = np.nonzero(raster)
    assert (raster[2:6, 2:6] == 255).all()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (2, 6, 2, 6)


def test_a_polygon_far_away_and_a_ring_of_two_points_paint_nothing(tmp_path: Path) -> None:
    (far, line) = read_objects(
        write(tmp_path / "a.geojson", polygon(SQUARE), polygon([[101, 101], [105, 105]])), qupath_origin=(0, 0)
    )
    assert not paint_polygons((*far.polygons, *line.polygons), (100.0, 100.0), (1.0, 1.0), (20, 20)).any()


def test_what_qupath_drew_is_counted_from_the_slides_bounds_and_what_others_drew_is_not(tmp_path: Path) -> None:
    ring = [[101, 7], [112, 7], [112, 80]]
    for members, is_qupaths in (
        ({"properties": {"objectType": "annotation"}}, True),  # 0.4 and later
        ({"properties": {"object_type": "annotation"}}, True),  # 0.3
        ({"id": "PathAnnotationObject", "properties": {"isLocked": False}}, True),  # 0.2
        ({"id": "TMACoreObject", "properties": None}, True),
        ({"id": "1970eccb-ad38-4b4b-b7a8-54509027b57d", "properties": {"tissue_id": 0}}, False),
        ({"properties": {}}, False),
    ):
        (tmp_path / "a.geojson").write_text(json.dumps({"type": "Feature", "geometry": polygon(ring), **members}))
        (one,) = read_objects(tmp_path / "a.geojson", qupath_origin=(1000, 500))
        assert one.polygons[0].bounds == ((1101, 507, 1112, 580) if is_qupaths else (101, 7, 112, 80))
        assert one.polygons[0].rings[0][0].tolist() == ([1101, 507] if is_qupaths else [101, 7])


@pytest.mark.parametrize("name", [True, 3, ["a"], {"a": 1}, [["a"]]])
def test_a_class_name_that_is_no_text_is_refused(tmp_path: Path, name: object) -> None:
    file = write(tmp_path / "a.geojson", polygon([[0, 0], [9, 0], [9, 9]]), classification={"name": name})
    with pytest.raises(DataError, match="is not text"):
        read_objects(file, qupath_origin=(0, 0))


@pytest.mark.parametrize("digits", [400, 5000])
def test_a_coordinate_larger_than_any_number_is_refused(tmp_path: Path, digits: int) -> None:
    file = tmp_path / "a.geojson"
    file.write_text('{"type": "Polygon", "coordinates": [[[0, 0], [%s, 0], [9, 9]]]}' % ("9" * digits))
    with pytest.raises(DataError, match="is not GeoJSON"):
        read_objects(file, qupath_origin=(0, 0))

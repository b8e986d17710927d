"""Layers: which tiles are in which group, and what their files say."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dino_path.errors import DataError
from dino_path.slides.annotations.geojson import read_geojson
from dino_path.tiles.tile_table import refusal_reasons, why_refused
from dino_path.viewing.layers import cluster_layer, heat_layer, layer_geojson, layer_picture, tile_layer
from dino_path.viewing.viewer import Viewer


def test_tiles_are_grouped_by_the_first_reason_against_them(viewer: Viewer) -> None:
    table, record = viewer.table(0), viewer.records[0]
    kept, refused = tile_layer(table, record).groups
    assert (kept.label, refused.label) == ("kept", "refused, pen ink")
    assert (len(kept.boxes), len(refused.boxes)) == (record.num_tiles, record.num_pen)
    assert {(int(x), int(y)) for x, y in refused.boxes[:, :2]} == {(320, 256), (384, 256), (448, 256)}
    assert refused.values is not None
    assert (refused.values > 0.05).all()
    assert refused.what == "pen fraction; max_pen_fraction is 0.05"
    reasons = refusal_reasons(table, record.limits)
    assert reasons == [why_refused(table, number, record.limits) for number in range(len(table))]


def test_clusters_are_of_the_kept_tiles_in_their_order(viewer: Viewer) -> None:
    table = viewer.table(0)
    clusters_N = np.arange(int(table.kept.sum())) % 3
    layer = cluster_layer(table, clusters_N, 4)
    assert [group.label for group in layer.groups] == ["cluster 1", "cluster 2", "cluster 3"]
    for number, group in enumerate(layer.groups):
        assert group.rows is not None
        assert np.array_equal(group.rows, np.flatnonzero(table.kept)[clusters_N == number])


def test_geojson_counts_as_qupath_does_and_is_read_back_as_a_heat_map(viewer: Viewer, tmp_path: Path) -> None:
    record = replace(viewer.records[0], bounds_origin=(100, 30))
    layer = tile_layer(viewer.table(0), record)
    file = tmp_path / "a.geojson"
    file.write_text(json.dumps(layer_geojson(layer, record)))
    features = json.loads(file.read_text())["features"]
    assert features[0]["geometry"]["coordinates"][0][0] == [
        layer.groups[0].boxes[0, 0] - 100,
        layer.groups[0].boxes[0, 1] - 30,
    ]
    assert features[-1]["properties"]["classification"] == {"name": "refused, pen ink", "color": [200, 0, 160]}
    assert {one.kind for one in read_geojson(file)} == {"detection"}

    heat = heat_layer(file, record)
    boxes = np.concatenate([group.boxes for group in heat.groups])
    expected = np.concatenate([group.boxes for group in layer.groups])
    assert np.array_equal(boxes[np.lexsort(boxes.T)], expected[np.lexsort(expected.T)])
    assert sum(len(group.boxes) for group in heat.groups) == len(features)


def box(x: float, value: object) -> dict[str, Any]:
    ring = [[x, 0], [x + 10, 0], [x + 10, 20], [x, 20], [x, 0]]
    properties = {"measurements": value} if isinstance(value, dict | list) else {"attention": value, "isLocked": False}
    return {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": properties}


@pytest.mark.parametrize("wrap", [lambda v: {"attention": v}, lambda v: [{"name": "attention", "value": v}], float])
def test_a_heat_map_is_cut_into_steps_from_its_lowest_to_its_highest_value(
    viewer: Viewer, tmp_path: Path, wrap: Any
) -> None:
    file = tmp_path / "a_attention.geojson"
    file.write_text(json.dumps({"features": [box(10 * number, wrap(number / 10)) for number in range(11)]}))
    layer = heat_layer(file, viewer.records[0])
    assert layer.title == "Heat map: attention (a_attention.geojson)"
    assert [group.label for group in layer.groups][::7] == ["0.875 to 1", "0 to 0.125"]
    assert [len(group.boxes) for group in layer.groups] == [2, 1, 1, 2, 1, 1, 1, 2]
    brightness = [sum(group.colour) for group in layer.groups]
    assert brightness == sorted(brightness, reverse=True)
    assert layer.groups[-1].boxes.tolist() == [[0, 0, 10, 20], [10, 0, 10, 20]]


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"features": [{"geometry": null, "properties": null}]}', '{"features": [1]}',
     json.dumps({"features": [box(0, float("nan"))]})],
)  # fmt: skip
def test_what_is_no_heat_map_is_refused(viewer: Viewer, tmp_path: Path, text: str) -> None:
    (tmp_path / "a.geojson").write_text(text)
    with pytest.raises(DataError, match="is not a heat map"):
        heat_layer(tmp_path / "a.geojson", viewer.records[0])


def test_a_heat_map_belongs_to_the_slide_that_its_name_begins_with(view_store: Path, tmp_path: Path) -> None:
    for name in ("b_attention.geojson", "other.geojson"):
        (tmp_path / name).write_text(json.dumps({"features": [box(0, 0.5)]}))
    assert [len(Viewer(view_store, [tmp_path / "b_attention.geojson"]).layers(number)) for number in (0, 1)] == [1, 2]
    with pytest.raises(DataError, match="does not begin with a slide id"):
        Viewer(view_store, [tmp_path / "other.geojson"])


def test_a_picture_is_coloured_where_the_tiles_are(viewer: Viewer) -> None:
    layer, record = tile_layer(viewer.table(0), viewer.records[0]), viewer.records[0]
    white = np.full((768, 1024, 3), 255, np.uint8)
    picture = layer_picture(white, record, layer)
    x, y, width, height = layer.groups[1].boxes[0].astype(int)
    assert picture[y + height // 2, x + width // 2].tolist() == pytest.approx([230, 140, 212], abs=1)
    assert (picture[:100, :1024] == 255).all()
    assert picture.shape[0] > 768

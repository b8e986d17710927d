"""Overlays as files: what is written, and that the colours of a tile lie on the tile."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from frozen_models import write_guide

from dino_path.tiles.store import TileStore
from dino_path.viewing.export import export_overlays
from dino_path.viewing.model_overlays import load_model_overlays
from dino_path.viewing.viewer import Viewer


def test_a_store_alone_gives_its_tiles(viewer: Viewer, tmp_path: Path) -> None:
    files = export_overlays(viewer, [0, 2], tmp_path / "out")
    assert [file.name for file in files] == ["a_tiles.geojson", "a_tiles.png", "glass_tiles.geojson", "glass_tiles.png"]
    features = json.loads(files[0].read_text())["features"]
    assert len(features) == viewer.records[0].num_candidates
    assert json.loads(files[2].read_text())["features"] == []
    assert files[0].read_text() == export_overlays(viewer, [0], tmp_path / "again")[0].read_text()


@pytest.fixture(scope="module")
def model_viewer(view_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Viewer:
    viewer = Viewer(view_store)
    features = tmp_path_factory.mktemp("features")
    folder = write_guide(tmp_path_factory.mktemp("models") / "vit", mpp=0.5)
    for where in (features, features, None):  # made, read again, and kept in memory
        overlays = load_model_overlays(
            str(folder), TileStore.open(view_store), where, num_clusters=3, device=torch.device("cpu"),
            allow_other_mpp=False,
        )  # fmt: skip
        if viewer.model is not None:
            assert np.array_equal(overlays.cohort.clusters_N, viewer.model.cohort.clusters_N)
        viewer.show_model(overlays)
    return viewer


def test_a_model_adds_clusters_patch_tokens_and_attention(model_viewer: Viewer, tmp_path: Path) -> None:
    files = {file.name: file for file in export_overlays(model_viewer, [1], tmp_path)}
    assert [*files] == [
        "b_tiles.geojson", "b_tiles.png", "b_clusters.geojson", "b_clusters.png", "b_patch_pca.png", "b_attention.png",
    ]  # fmt: skip
    assert model_viewer.model is not None
    table, tiles = model_viewer.table(1), model_viewer.tiles_of(1)
    picture = cv2.imread(str(files["b_patch_pca.png"]))[..., ::-1]
    number = 5  # the thumbnail is as large as level 0
    x, y = table.corners[table.kept][number]
    shown = picture[y : y + 64, x : x + 64].reshape(64, 64, 3)
    colours = model_viewer.model.maps.colours_of(int(tiles[number]))
    expected = cv2.resize(colours, (64, 64), interpolation=cv2.INTER_NEAREST)
    under = cv2.imread(str(model_viewer.folder.thumbnail_file("b")))[y : y + 64, x : x + 64, ::-1]
    assert np.abs(shown - (0.25 * under + 0.75 * expected)).max() <= 1


def test_the_page_finds_the_pictures_of_the_tiles_it_names(model_viewer: Viewer) -> None:
    row = int(np.flatnonzero(model_viewer.table(1).kept)[7])
    answer = model_viewer.answer(f"slide/1/tile/{row}.json")
    assert answer is not None
    about = json.loads(answer[0])
    tile = int(model_viewer.tiles_of(1)[7])
    assert (about["tile"], len(about["neighbours"]["all"])) == (tile, 12)
    assert {one["id"] for one in about["neighbours"]["others"]} == {"a"}
    picture = model_viewer.answer(f"picture/{tile}.jpg")
    assert model_viewer.model is not None
    assert picture is not None
    assert picture[0] == model_viewer.model.store.read_bytes(tile)
    assert model_viewer.answer("picture/99999.jpg") is None

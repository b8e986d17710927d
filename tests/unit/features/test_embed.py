"""Feature files: their layouts, resuming, and what is refused."""

import json
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import torch
from feature_samples import CPU, write_model_folder, write_store
from tiny import ALONE

from dino_path.errors import ConfigError, DataError, TileStoreError
from dino_path.features.embed import embed_store
from dino_path.features.embed_images import embed_images
from dino_path.features.extractor import Extractor, extract_features, load_extractor
from dino_path.features.files import read_feature_file
from dino_path.features.layouts import read_layouts
from dino_path.tiles.source import Subset, open_tiles
from dino_path.tiles.store import TileStore


@pytest.fixture
def extractor(model_folder: Path) -> Extractor:
    return load_extractor(str(model_folder), device=CPU)


@pytest.fixture
def store(tmp_path: Path) -> TileStore:
    return write_store(tmp_path / "store", {"a": 5, "b": 2, "c": 0})


def test_a_slide_file_is_what_trident_reads(extractor: Extractor, store: TileStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = embed_store(extractor, store, out, batch_size=2, world=ALONE)
    assert summary.written == ("a", "b")
    assert summary.num_tiles == 7
    file = out / "20x_40px_0px_overlap" / "features_tiny" / "a.h5"
    with h5py.File(file) as h5:
        features, coords = h5["features"], h5["coords"]
        assert (features.shape, features.dtype) == ((5, 24), np.float32)
        assert (coords.shape, coords.dtype) == ((5, 2), np.int64)
        assert coords[()].tolist() == [[0, 3], [100, 3], [200, 3], [300, 3], [400, 3]]
        assert features.attrs["encoder"] == "tiny"
        attributes = dict(coords.attrs)
        expected = extract_features(extractor, Subset(store, np.arange(5)), batch_size=5, device=CPU)
        np.testing.assert_allclose(features[()], expected, rtol=1e-4, atol=1e-5)
    assert attributes["patch_size"] == 40
    assert attributes["patch_size_level0"] == round(40 * 0.5 / 0.265) == 75
    assert attributes["overlap"] == 0
    assert attributes["name"] == "a"
    assert (attributes["level0_width"], attributes["level0_height"]) == (4000, 3000)
    with h5py.File(out / "20x_40px_0px_overlap" / "patches" / "a_patches.h5") as h5:
        assert dict(h5["coords"].attrs) == attributes


def test_magnifications_give_the_exact_footprint_by_their_ratio(
    extractor: Extractor, store: TileStore, tmp_path: Path
) -> None:
    embed_store(extractor, store, tmp_path / "out", batch_size=4, world=ALONE)
    attributes = read_feature_file(tmp_path / "out/20x_40px_0px_overlap/features_tiny/b.h5").coords_attributes
    source_mpp, target_mpp = (10 / float(attributes[f"{kind}_magnification"]) for kind in ("level0", "target"))
    assert (source_mpp, target_mpp) == pytest.approx((0.265, 0.5))
    assert round(int(attributes["patch_size"]) * target_mpp / source_mpp) == attributes["patch_size_level0"]


def test_clam_gets_arrays_and_plain_tensors(extractor: Extractor, store: TileStore, tmp_path: Path) -> None:
    embed_store(extractor, store, tmp_path / "out", layouts=("trident", "clam"), batch_size=4, world=ALONE)
    folder = tmp_path / "out" / "clam_tiny"
    tensor = torch.load(folder / "pt_files" / "a.pt", weights_only=True)
    clam = read_feature_file(folder / "h5_files" / "a.h5")
    trident = read_feature_file(tmp_path / "out/20x_40px_0px_overlap/features_tiny/a.h5")
    assert tensor.dtype == torch.float32
    assert np.array_equal(tensor.numpy(), clam.features)
    assert np.array_equal(clam.features, trident.features)
    assert clam.coords is not None
    assert trident.coords is not None
    assert np.array_equal(clam.coords, trident.coords)


def test_a_second_call_makes_only_what_is_missing(extractor: Extractor, store: TileStore, tmp_path: Path) -> None:
    out = tmp_path / "out"
    embed_store(extractor, store, out, batch_size=4, world=ALONE)
    folder = out / "20x_40px_0px_overlap" / "features_tiny"
    kept, missing = folder / "a.h5", folder / "b.h5"
    before, lost = kept.stat().st_mtime_ns, missing.read_bytes()
    missing.unlink()
    summary = embed_store(extractor, store, out, batch_size=4, world=ALONE)
    assert (summary.kept, summary.written) == (("a",), ("b",))
    assert summary.num_tiles == 7
    assert kept.stat().st_mtime_ns == before
    assert missing.read_bytes() == lost


def test_slides_that_cannot_be_read_are_listed_and_the_others_are_done(
    extractor: Extractor, store: TileStore, tmp_path: Path
) -> None:
    tar = store.path / "tiles" / "a.tar"
    content = bytearray(tar.read_bytes())
    first, length = int(store.offset[0]), int(store.length[0])
    content[first : first + length] = bytes(length)
    tar.write_bytes(content)
    summary = embed_store(extractor, store, tmp_path / "out", batch_size=4, world=ALONE)
    assert summary.written == ("b",)
    assert summary.empty == (("c", "no tissue"),)
    [(slide_id, reason)] = summary.failed
    assert slide_id == "a"
    assert "a x=0 y=3" in reason
    assert not (summary.folders[0] / "a.h5").exists()
    lines = summary.text().splitlines()
    assert lines[0] == f"failed   a: {reason}"
    assert lines[1] == "empty    c: no tissue"
    assert lines[2] == "1 slides embedded, 0 already there, 1 without tiles, 1 failed; 2 tiles"
    record = json.loads((tmp_path / "out" / "embed_tiny.json").read_text())
    assert record["failed"] == [["a", reason]]
    assert record["encoder_digest"] == extractor.digest


def test_features_of_another_model_or_other_tiles_are_not_mixed_in(
    extractor: Extractor, store: TileStore, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    embed_store(extractor, store, out, batch_size=4, world=ALONE)
    other = load_extractor(str(write_model_folder(tmp_path / "other" / "tiny", seed=8)), device=CPU)
    with pytest.raises(DataError, match="another model"):
        embed_store(other, store, out, batch_size=4, world=ALONE)
    more_tiles = write_store(tmp_path / "again", {"a": 6})
    with pytest.raises(DataError, match="other tiles"):
        embed_store(extractor, more_tiles, out, batch_size=4, world=ALONE)


def test_tiles_at_another_resolution_are_refused_unless_allowed(extractor: Extractor, tmp_path: Path) -> None:
    coarse = write_store(tmp_path / "coarse", {"a": 1}, mpp=1.0)
    near = write_store(tmp_path / "near", {"a": 1}, mpp=0.525)
    with pytest.raises(TileStoreError, match=r"1 um/px, and tiny was trained at 0.5"):
        embed_store(extractor, coarse, tmp_path / "out", batch_size=4, world=ALONE)
    assert not (tmp_path / "out").exists()
    assert embed_store(extractor, near, tmp_path / "out", batch_size=4, world=ALONE).written == ("a",)
    allowed = embed_store(extractor, coarse, tmp_path / "out", batch_size=4, world=ALONE, allow_other_mpp=True)
    assert allowed.folders == (tmp_path / "out" / "10x_40px_0px_overlap" / "features_tiny",)


def test_a_folder_of_images_becomes_one_file_with_relative_names(extractor: Extractor, tmp_path: Path) -> None:
    images, random = tmp_path / "images", np.random.default_rng(2)
    for name in ("x/1.png", "x/2.png", "y/1.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(images / name), random.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    source = open_tiles(images)
    file = embed_images(extractor, source, tmp_path / "out", root=images, batch_size=2, device=CPU)
    written = read_feature_file(file)
    assert written.names == ("x/1.png", "x/2.png", "y/1.png")
    assert np.array_equal(written.features, extract_features(extractor, source, batch_size=2, device=CPU))
    before = file.stat().st_mtime_ns
    embed_images(extractor, source, tmp_path / "out", root=images, batch_size=2, device=CPU)
    assert file.stat().st_mtime_ns == before
    (images / "y/1.png").unlink()
    with pytest.raises(DataError, match="other tiles"):
        embed_images(extractor, open_tiles(images), tmp_path / "out", root=images, batch_size=2, device=CPU)


def test_layouts_are_read_from_text() -> None:
    assert read_layouts("trident") == ("trident",)
    assert read_layouts(" CLAM, trident,clam") == ("clam", "trident")
    for text in ("stamp,trident", "", ","):
        with pytest.raises(ConfigError, match="trident, clam"):
            read_layouts(text)


def test_a_killed_write_leaves_no_file(
    extractor: Extractor, store: TileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("dino_path.features.files.add_coordinates", killed)
        with pytest.raises(KeyboardInterrupt):
            embed_store(extractor, store, tmp_path / "out", batch_size=4, world=ALONE)
    files = [file.name for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert files == ["a_patches.h5"]  # complete, and the features that follow it are not there at all
    assert embed_store(extractor, store, tmp_path / "out", batch_size=4, world=ALONE).written == ("a", "b")

"""Feature files of slides are read whoever wrote them, piece by piece, and refused by name where they are none."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from dino_path.errors import DataError
from dino_path.features import bags
from dino_path.features.bags import find_bags, open_bag

FEATURES = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)
CORNERS = np.stack([np.arange(11) * 512, np.zeros(11)], axis=1).astype(np.int64)


def write_bag(file: Path, features: np.ndarray = FEATURES, key: str = "features", **coords: object) -> Path:
    """A feature file; `coords` are the attributes of its corners, none: no corners."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as h5:
        h5[key] = features
        if coords:
            h5["coords"] = CORNERS
            h5["coords"].attrs.update(coords)
    return file


def test_trident_clam_and_stamp_give_the_same_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bags, "PIECE_TILES", 4)
    trident = write_bag(tmp_path / "features_uni/a.h5", patch_size=256, patch_size_level0=512)
    clam = write_bag(tmp_path / "clam_uni/h5_files/a.h5", patch_size=256, downsample=(2.0, 2.0))
    nested = write_bag(tmp_path / "nested.h5", FEATURES[None])
    stamp = write_bag(tmp_path / "stamp.h5", FEATURES.astype(np.float16), "feats")
    torch.save(torch.from_numpy(FEATURES), tmp_path / "a.pt")
    for file in (trident, clam, nested, tmp_path / "a.pt", stamp):
        bag = open_bag(file)
        assert (bag.num_tiles, bag.num_features) == (11, 3)
        pieces = list(bag.pieces())
        assert [len(piece) for piece in pieces] == [4, 4, 3]
        assert all(piece.dtype == np.float32 for piece in pieces)
        np.testing.assert_allclose(np.concatenate(pieces), FEATURES, atol=0 if file != stamp else 2e-3)
    for file in (trident, clam):
        rectangles = open_bag(file).rectangles()
        assert rectangles.edge_level0 == 512
        assert rectangles.corners.tolist() == CORNERS.tolist()
    assert (find_bags(trident.parent).name, find_bags(tmp_path / "clam_uni").name) == ("uni", "uni")
    assert find_bags(tmp_path / "clam_uni/h5_files").name == "uni"
    assert find_bags(tmp_path / "clam_uni").files == {"a": clam}


def test_a_folder_above_the_features_is_refused_with_the_folder_that_was_meant(tmp_path: Path) -> None:
    write_bag(tmp_path / "out/20x/features_uni/a.h5")
    with pytest.raises(DataError) as refusal:
        find_bags(tmp_path / "out")
    assert "features_uni" in refusal.value.remedy
    for path in (tmp_path / "nowhere", tmp_path / "out/20x/features_uni/a.h5"):
        with pytest.raises(DataError):
            find_bags(path)


def test_what_is_no_bag_is_refused_by_what_it_is(tmp_path: Path) -> None:
    images = write_bag(tmp_path / "images.h5")
    with h5py.File(images, "a") as h5:
        h5["names"] = [b"a"]
    (tmp_path / "text.h5").write_text("no features")
    (tmp_path / "text.pt").write_text("no tensor")
    torch.save({"features": torch.zeros(2)}, tmp_path / "dict.pt")
    for file, found in (
        (write_bag(tmp_path / "vector.h5", FEATURES[0]), "shape (3,)"),
        (write_bag(tmp_path / "other.h5", key="embeddings"), "no `features`"),
        (images, "folder of images"),
        (tmp_path / "text.h5", "is not a feature file"),
        (tmp_path / "text.pt", "is not a feature file"),
        (tmp_path / "dict.pt", "a dict"),
    ):
        with pytest.raises(DataError, match="is not a feature file") as refusal:
            open_bag(file)
        assert found in str(refusal.value)


def test_features_that_are_not_finite_are_refused_by_their_tile(tmp_path: Path) -> None:
    spoilt = FEATURES.copy()
    spoilt[7, 1] = np.nan
    with pytest.raises(DataError, match="tile 7 are not finite"):
        list(open_bag(write_bag(tmp_path / "a.h5", spoilt)).pieces())


def test_tiles_without_places_have_no_map(tmp_path: Path) -> None:
    for file in (write_bag(tmp_path / "a.h5"), write_bag(tmp_path / "b.h5", name="b")):
        with pytest.raises(DataError, match="does not give the positions"):
            open_bag(file).rectangles()


def test_a_feature_file_is_read_or_refused_whatever_byte_of_it_is_damaged(tmp_path: Path) -> None:
    whole = write_bag(tmp_path / "whole.h5").read_bytes()
    random = np.random.default_rng(0)
    refused = 0
    for number in range(150):
        damaged = bytearray(whole)
        start = int(random.integers(len(whole)))
        damaged[start : start + 200] = random.bytes(len(damaged[start : start + 200]))
        file = tmp_path / f"{number}.h5"
        file.write_bytes(damaged)
        try:
            open_bag(file)
        except DataError as refusal:
            refused += "is not a feature file" in str(refusal)
    assert 10 < refused < 150


def test_features_that_are_a_group_or_without_values_are_refused(tmp_path: Path) -> None:
    for name, value in (("group.h5", None), ("empty.h5", h5py.Empty("f4"))):
        with h5py.File(tmp_path / name, "w") as h5:
            if value is None:
                h5.create_group("features")
            else:
                h5["features"] = value
        with pytest.raises(DataError, match="no `features` in it"):
            open_bag(tmp_path / name)

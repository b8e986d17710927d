"""`dino_path.load(...).embed(...)`: the same numbers whatever images are given as, and clear refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from frozen_models import MEAN, STD, write_guide
from numpy.typing import NDArray
from PIL import Image

import dino_path
from dino_path import Extractor, TileStore
from dino_path.distributed import World
from dino_path.errors import CheckpointError, ConfigError, DataError, TileStoreError
from dino_path.features.embed import embed_store
from dino_path.features.extractor import load_extractor
from dino_path.features.files import read_feature_file
from dino_path.tiles.store import TileStore as StoredTiles


@pytest.fixture(scope="module")
def colour() -> Extractor:
    return dino_path.load("mean-colour", device="cpu")


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    return dino_path.load(write_guide(tmp_path_factory.mktemp("models") / "vit"), device="cpu")


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), dtype=np.uint8)


def test_mean_colour_is_the_mean_of_the_pixels(colour: Extractor, images: NDArray[np.uint8]) -> None:
    features = colour.embed(images)
    assert features.values.dtype == np.float32
    assert np.allclose(features.values[:, :3], images.mean(axis=(1, 2)) / 255, atol=1e-6)
    assert np.asarray(features) is not None
    assert np.array_equal(np.asarray(features), features.values)
    assert features.ids == tuple(f"image {number}" for number in range(5))
    assert str(features) == repr(features) == "5 x 4 features of mean-colour"


def test_arrays_pictures_paths_and_folders_give_the_same(
    network: Extractor, images: NDArray[np.uint8], tmp_path: Path
) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    expected = network.embed(images, batch_size=2)
    pictures = [Image.fromarray(image) for image in images]
    for given in (list(images), pictures, paths, [str(path) for path in paths], tmp_path, str(tmp_path)):
        assert np.allclose(network.embed(given).values, expected.values, atol=1e-6)
    assert network.embed(paths).ids == network.embed(tmp_path).ids == tuple(map(str, paths))
    mixed = network.embed([images[0], pictures[1], paths[2]])
    assert np.allclose(mixed.values, expected.values[:3], atol=1e-6)
    for one in (images[1], pictures[1], paths[1], str(paths[1])):
        assert np.allclose(network.embed(one).values, expected.values[1:2], atol=1e-6)
    assert np.allclose(network.embed(paths, workers=2, batch_size=2).values, expected.values, atol=1e-6)


def test_a_network_is_asked_as_its_folder_says(network: Extractor, images: NDArray[np.uint8]) -> None:
    """24 px are what the folder names; the mean and deviation are its own."""
    normalised = (images / 255 - np.array(MEAN)) / np.array(STD)
    batch = torch.tensor(normalised.transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.inference_mode():
        expected = network.module(batch).numpy()
        prepared = network.module(torch.stack([network.prepare(image) for image in images])).numpy()
    assert np.allclose(network.embed(images).values, expected, atol=1e-5)
    assert np.allclose(prepared, expected, atol=1e-5)
    assert (network.name, network.num_features, network.input_px) == ("vit", 48, 24)


def test_grey_palette_and_transparent_pictures_are_as_files_of_them(colour: Extractor, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rgba = rng.integers(0, 256, (8, 8, 4), dtype=np.uint8)
    pictures = [
        Image.fromarray(rgba),
        Image.fromarray(rgba[..., 0]),
        Image.fromarray(rgba[..., :2], "LA"),
        Image.fromarray(rgba[..., :3]).quantize(16),
        Image.fromarray(rgba[..., 0]).convert("1"),
    ]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"{number}.png")
    assert np.allclose(colour.embed(pictures).values, colour.embed(tmp_path).values, atol=0.5 / 255)
    alpha = rgba[..., 3:] / 255
    over_white = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.allclose(colour.embed(pictures[0]).values[0, :3], over_white.mean(axis=(0, 1)) / 255, atol=0.5 / 255)


def test_a_store_gives_its_places_and_the_numbers_of_its_feature_files(
    colour: Extractor, store_folder: Path, tmp_path: Path
) -> None:
    store = TileStore(store_folder)
    features = colour.embed(store)
    assert np.allclose(features.values, colour.embed(np.stack(list(store))).values)
    world = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
    stored = load_extractor("mean-colour", device=world.device)
    summary = embed_store(stored, StoredTiles.open(store_folder), tmp_path, batch_size=64, world=world)
    files = [read_feature_file(summary.folders[0] / f"{slide}.h5").features for slide in ("a", "b")]
    assert np.array_equal(features.values, np.concatenate(files))

    part = colour.embed(store[7:9])
    assert np.array_equal(part.values, features.values[7:9])
    table = part.to_arrow()
    assert table.column_names[:2] == ["id", "slide_id"]
    assert table["x_level0"].to_pylist() == store.table["x_level0"].to_pylist()[7:9]
    assert np.array_equal(np.array(table["features"].to_pylist(), np.float32), part.values)
    frame = part.to_pandas()
    assert np.array_equal(np.stack(frame["features"]), part.values)
    assert "<table>" in part._repr_html_()
    assert colour.embed(store[7:9].dataset(["x", None])).ids == part.ids[:1]


def test_tiles_at_another_mpp_are_refused_unless_they_are_wanted(colour: Extractor, store_folder: Path) -> None:
    model = dino_path.load("mean-colour", device="cpu")
    model.mpp = 1.0
    with pytest.raises(TileStoreError, match=r"tiles are at 0\.5 um/px, and mean-colour was trained at 1 um/px"):
        model.embed(TileStore(store_folder)[:3])
    kept = model.embed(TileStore(store_folder)[:3], allow_other_mpp=True)
    assert np.array_equal(kept.values, colour.embed(TileStore(store_folder)[:3]).values)


@pytest.mark.parametrize(
    ("given", "found", "remedy"),
    [
        (np.zeros((2, 8, 8, 3)), "values are float64", "before it was normalised"),
        (np.zeros((2, 8, 8, 3), np.int64), "values are int64", "Convert them"),
        (np.zeros((2, 3, 8, 8), np.uint8), r"shape is \(3, 8, 8\)", "channels last"),
        (np.zeros((8, 8), np.uint8), r"shape is \(8, 8\)", "three channels"),
        (np.zeros((0, 8, 8, 3), np.uint8), "none were given", "Check the list"),
        ([], "none were given", "Check the list"),
        ([np.zeros((8, 8, 3), np.uint8), 3.0], "image 1: its type is float", "Convert them"),
        (torch.zeros(2, 3, 8, 8), r"its type is torch\.Tensor", "permute"),
        ({"a": 1}, "its type is dict", "Convert them"),
        (Image.new("F", (8, 8)), "the mode F", "convert"),
    ],
)
def test_what_is_no_image_is_refused(colour: Extractor, given: object, found: str, remedy: str) -> None:
    with pytest.raises(DataError, match=found) as refusal:
        colour.embed(given)  # type: ignore[arg-type]
    assert remedy in refusal.value.remedy


def test_paths_that_lead_to_no_image_are_refused(colour: Extractor, tmp_path: Path) -> None:
    (tmp_path / "slide.svs").write_bytes(b"II*\0")
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty").mkdir()
    for given, found in (
        (tmp_path / "gone.png", "no such file or folder"),
        ([tmp_path / "gone.png"], "no such file"),
        ([tmp_path], "is a folder"),
        (tmp_path / "slide.svs", "does not end as that of an image"),
        (tmp_path / "text.png", "cannot be read"),
        (tmp_path / "empty", "neither store.json nor images"),
    ):
        with pytest.raises(TileStoreError, match=found):
            colour.embed(given)


def test_what_cannot_be_loaded_is_refused(tmp_path: Path) -> None:
    for model, found in (("nowhere", "no such folder"), (tmp_path, r"no config\.json"), ("timm:vit_smal", "no such")):
        with pytest.raises(CheckpointError, match=found):
            dino_path.load(model)
    for words in ({"device": "tpu"}, {"precision": "fp8"}):
        with pytest.raises(ConfigError, match="no such"):
            dino_path.load("mean-colour", **words)  # type: ignore[arg-type]

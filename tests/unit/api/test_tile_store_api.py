"""`dino_path.TileStore`: a sequence of images, its table, and labels, against the files that other programs read."""

import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

import dino_path
from dino_path import TileStore
from dino_path.errors import DataError, TileStoreError


@pytest.fixture
def store(store_folder: Path) -> TileStore:
    return TileStore(store_folder)


def jpegs(folder: Path) -> list[NDArray[np.uint8]]:
    """All tiles of both slides, in the order of their tables, as tarfile and Pillow read them."""
    found = []
    for slide in ("a", "b"):
        table = pq.read_table(folder / f"tiles/{slide}.parquet")
        assert all(table["kept"].to_pylist())
        whole = (folder / f"tiles/{slide}.tar").read_bytes()
        with tarfile.open(fileobj=io.BytesIO(whole)) as tar:
            assert len(tar.getmembers()) == table.num_rows
        for offset, length in zip(table["offset"].to_pylist(), table["length"].to_pylist(), strict=True):
            found.append(np.asarray(Image.open(io.BytesIO(whole[offset : offset + length]))))
    return found


def test_a_store_is_a_sequence_of_its_jpegs(store: TileStore, store_folder: Path) -> None:
    expected = jpegs(store_folder)
    assert len(store) == len(expected) > 100
    assert store[3].shape == (64, 64, 3)
    assert store[3].dtype == np.uint8
    for number, tile in enumerate(store):
        assert np.array_equal(tile, expected[number])
    assert np.array_equal(store[-1], expected[-1])
    for number in (len(store), -len(store) - 1):
        with pytest.raises(IndexError):
            store[number]


def test_slices_numbers_and_masks_are_parts_of_a_store(store: TileStore) -> None:
    part = store[10:20:3]
    assert isinstance(part, TileStore)
    assert [np.array_equal(one, store[number]) for one, number in zip(part, (10, 13, 16, 19), strict=True)] == [
        True
    ] * 4
    assert part.ids == tuple(store.ids[number] for number in (10, 13, 16, 19))
    assert part[1:][[0, 2]].ids == (part.ids[1], part.ids[3])
    is_b = np.array(store.table["slide_id"].to_pylist()) == "b"
    assert store[is_b].ids == TileStore(store.path, split="test").ids
    assert store[is_b].table.column("x_level0").to_pylist() == store.table.filter(is_b).column("x_level0").to_pylist()
    assert len(store[[]]) == len(store[5:5]) == 0
    assert str(len(store)) in repr(store)


def test_the_table_holds_what_was_measured(store: TileStore, store_folder: Path) -> None:
    files = [pq.read_table(store_folder / f"tiles/{slide}.parquet") for slide in ("a", "b")]
    for name in ("x_level0", "y_level0", "size_level0", "tissue_fraction", "sharpness", "pen_fraction"):
        assert store.table[name].to_pylist() == [value for file in files for value in file[name].to_pylist()]
    counts = [file.num_rows for file in files]
    assert store.table["slide_id"].to_pylist() == ["a"] * counts[0] + ["b"] * counts[1]
    assert store.table["patient_id"].to_pylist() == ["p1"] * counts[0] + ["p2"] * counts[1]
    assert set(store.table["split"].to_pylist()) == {"train", "test"}


def test_a_store_goes_through_loader_workers(store: TileStore) -> None:
    part = store[5:17]
    assert pickle.loads(pickle.dumps(part)).ids == part.ids
    batches = [batch.numpy() for batch in DataLoader(part, batch_size=5, num_workers=2)]  # type: ignore[arg-type]
    assert [len(batch) for batch in batches] == [5, 5, 2]
    assert np.array_equal(np.concatenate(batches), np.stack(list(part)))


def test_regions_label_the_tiles_that_lie_in_them(store: TileStore, tmp_path: Path) -> None:
    """Slide a has a left and a right half; slide b has no regions."""
    halves = {"left": (0, 512), "right": (512, 1024)}
    features = [
        {
            "type": "Feature",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[low, 0], [high, 0], [high, 768], [low, 768], [low, 0]]],
            },
            "properties": {"classification": {"name": name}},
        }
        for name, (low, high) in halves.items()
    ]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    data = store.dataset(tmp_path)
    of_a = [row for row in store.table.to_pylist() if row["slide_id"] == "a"]
    assert data.classes == ("left", "right")
    assert data.labels.tolist() == [int(row["x_level0"] >= 512) for row in of_a]
    assert data.ids == store.ids[: len(of_a)]
    assert data.groups is not None
    assert set(data.groups) == {"a"}
    part = store[3:9].dataset(tmp_path)
    assert part.labels.tolist() == data.labels[3:9].tolist()
    image, label = part[2]
    assert np.array_equal(image.numpy().transpose(1, 2, 0), store[5])
    assert label == data.labels[5]
    with pytest.raises(DataError, match="no tile lies in a region"):
        store[-5:].dataset(tmp_path / "..", evaluation={"min_region_fraction": 0.9})


def test_a_table_or_a_list_labels_tiles(store: TileStore, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("slide_id,label\nb,luad\na,lusc\nother,luad\n")
    data = store.dataset(table, transform=lambda image: int(image[0, 0, 0]))
    assert data.classes == ("luad", "lusc")
    assert data.labels.tolist() == [int(slide == "a") for slide in store.table["slide_id"].to_pylist()]
    assert data[7] == (int(store[7][0, 0, 0]), 1)
    listed = store[:4].dataset(["x", None, "y", "x"])
    assert (listed.classes, listed.labels.tolist(), listed.ids) == (("x", "y"), [0, 1, 0], store[[0, 2, 3]].ids)
    plain = store[:3].dataset()
    assert [plain[i][1] for i in range(len(plain))] == [-1, -1, -1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("nowhere.csv", "no such file or folder"),
        (["one"], "1 are given for"),
        ("slide_id,label\nc,x\n", "labels none of the store's slides"),
        ("slide_id,label\na,x\na,y\n", "'x' in one row and 'y' in another"),
        ("slide,label\na,x\n", "no column 'slide_id'"),
    ],
)
def test_labels_that_do_not_fit_are_refused(store: TileStore, tmp_path: Path, labels: object, message: str) -> None:
    if isinstance(labels, str) and "\n" in labels:
        (tmp_path / "labels.csv").write_text(labels)
        labels = tmp_path / "labels.csv"
    with pytest.raises(DataError, match=message):
        store.dataset(labels)  # type: ignore[arg-type]


def test_labelled_images_are_those_that_evaluate_judges(tmp_path: Path, make_class_folders: Callable) -> None:
    folder = make_class_folders(tmp_path / "labelled")
    everything, test = dino_path.labelled(folder), dino_path.labelled(folder, split="test")
    train = dino_path.labelled(folder, split="train")
    assert sorted(everything.ids) == sorted(test.ids + train.ids)
    assert all(Path(name).parent.name == test.classes[label] for name, label in zip(test.ids, test.labels, strict=True))
    image, _ = test[0]
    assert np.array_equal(image.numpy().transpose(1, 2, 0), np.asarray(Image.open(test.ids[0])))
    with pytest.raises(DataError, match="One of train, test is needed"):
        dino_path.labelled(folder, split="val")


def test_no_store_and_no_such_split_are_refused(store_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(TileStoreError, match=r"no store\.json"):
        TileStore(tmp_path)
    with pytest.raises(TileStoreError, match="splits: test, train"):
        TileStore(store_folder, split="val")

"""`dino-path verify`: what is whole is called whole, and one changed bit of anything that has a checksum is found."""

from pathlib import Path

import numpy as np
import pytest
import torch
from feature_samples import ARCHITECTURE, ARGUMENTS, write_model_folder, write_store

from dino_path.checksum import seal
from dino_path.errors import CheckpointError, ConfigError, DataError, TileStoreError
from dino_path.exporting.model_folder import ExportSource, export_model
from dino_path.features.files import Origin, read_feature_file, write_slide_features
from dino_path.model.backbone import build_backbone
from dino_path.model.folder import read_model_folder
from dino_path.model.folder_weights import load_backbone
from dino_path.preprocessing import Preprocessing
from dino_path.tiles.store import TileStore
from dino_path.verify import verify


def flip_bit(file: Path, byte: int) -> None:
    content = bytearray(file.read_bytes())
    content[byte] ^= 1
    file.write_bytes(content)


def damage(path: Path) -> dict[str, int]:
    return {one.what: len(one.damaged) for one in verify(path) if one.damaged}


def test_a_store_as_it_was_written_is_intact_and_a_changed_tile_is_named_and_refused_by_readers(tmp_path: Path) -> None:
    store = write_store(tmp_path, {"a": 4, "b": 2, "c": 0})
    found = {one.what: (one.count, one.unchecked, one.damaged) for one in verify(tmp_path)}
    assert found == {"records of slides": (3, 0, ()), "tables and tars": (2, 0, ()), "tiles": (6, 0, ())}
    flip_bit(tmp_path / "tiles/a.tar", int(store.offset[1]) + 50)
    (tiles,) = [one for one in verify(tmp_path) if one.damaged]
    assert (tiles.what, tiles.count, tiles.damaged) == (
        "tiles", 6, (f"{tmp_path / 'tiles/a.tar'}: the tile at byte {store.offset[1]:,}",)
    )  # fmt: skip
    again = TileStore.open(tmp_path)
    with pytest.raises(TileStoreError, match=r"a x=100 y=3: cannot be read \(its checksum is wrong"):
        again.read_bytes(1)
    again.read_image(0)


def test_a_changed_table_a_cut_tar_and_a_damaged_record_are_found(tmp_path: Path) -> None:
    write_store(tmp_path, {"a": 4, "b": 2})
    table = tmp_path / "tiles/a.parquet"
    flip_bit(table, table.read_bytes().index(np.int32(100).tobytes()))
    (tmp_path / "tiles/b.tar").write_bytes((tmp_path / "tiles/b.tar").read_bytes()[:600])
    assert damage(tmp_path) == {"tables and tars": 1, "tiles": 2}
    (tmp_path / "slides/b.json").write_text("{")
    assert damage(tmp_path) == {"records of slides": 1, "tables and tars": 1}


def test_a_table_of_an_earlier_version_is_read_and_counted_as_unchecked(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    write_store(tmp_path, {"a": 4})
    file = tmp_path / "tiles/a.parquet"
    pq.write_table(pq.read_table(file).drop_columns("crc32"), file)
    assert [one.line() for one in verify(tmp_path)][-1] == "tiles: 4 readable, without a checksum"
    assert TileStore.open(tmp_path).read_image(3).shape == (40, 40, 3)


def test_changed_weights_of_a_model_are_found_and_not_loaded(tmp_path: Path) -> None:
    weights = build_backbone(ARCHITECTURE, ARGUMENTS).state_dict()
    seen = Preprocessing((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), 32)
    export_model(ExportSource(ARCHITECTURE, ARGUMENTS, weights, seen), tmp_path / "model")
    assert [one.line() for one in verify(tmp_path / "model")] == ["model folder: 1 intact"]
    flip_bit(tmp_path / "model/model.safetensors", -1)
    assert damage(tmp_path / "model") == {"model folder": 1}
    with pytest.raises(CheckpointError, match="not the file that"):
        load_backbone(read_model_folder(tmp_path / "model"))
    assert [one.line() for one in verify(write_model_folder(tmp_path / "by hand"))] == [
        "model folder: 1 readable, without a checksum"
    ]


def test_changed_features_are_found_and_not_read(tmp_path: Path) -> None:
    origin, file = Origin("e", "1", "2", "3"), tmp_path / "features_e/a.h5"
    values = np.arange(60, dtype=np.float32).reshape(20, 3)
    write_slide_features(file, values, np.zeros((20, 2), np.int64), {"name": "a"}, origin)
    (tmp_path / "eval/features").mkdir(parents=True)
    array = tmp_path / "eval/features/k.npy"
    with array.open("w+b") as stream:
        np.save(stream, values)
        seal(stream)
    assert [one.line() for one in verify(tmp_path)] == ["feature files: 1 intact", "features of evaluations: 1 intact"]
    flip_bit(file, file.read_bytes().index(values[7].tobytes()))
    flip_bit(array, 200)
    assert damage(tmp_path) == {"feature files": 1, "features of evaluations": 1}
    with pytest.raises(DataError, match="or is damaged"):
        read_feature_file(file)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "a.pt")
    with pytest.raises(ConfigError, match="no files of dino-path"):
        list(verify(tmp_path))


@pytest.mark.parametrize(
    "name", ["results", "fractions", "fewshot", "retrieval", "robustness", "segmentation", "slides", "suite"]
)
def test_damaged_results_of_every_evaluation_are_found(tmp_path: Path, name: str) -> None:
    (tmp_path / f"{name}.json").write_text('{"format_version": 1, "rows": ')
    assert damage(tmp_path) == {"results": 1}

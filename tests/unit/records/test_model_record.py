"""config.json of a model folder: timm's keys and ours, a version, folders of earlier releases and of timm itself."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from dino_path.errors import CheckpointError, DataError, NewerFormat
from dino_path.exporting.overwriting import refuse_to_overwrite
from dino_path.features.extractor import load_extractor
from dino_path.model.folder import read_model_folder
from dino_path.preprocessing import Preprocessing
from dino_path.records.model_folder import read_model_record, write_model_record

OLD_FILES = Path(__file__).parents[2] / "fixtures" / "files_of_f2a0018.tar.xz"
KNOWN = Preprocessing((0.5, 0.25, 0.125), (0.2, 0.2, 0.1), 32, mpp=0.5, tile_px=64, stain_normalisation="reinhard")


def write_model(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    arguments = {"embed_dim": 24, "dynamic_img_size": True}
    write_model_record(
        folder / "config.json", "vit_tiny_patch16_224", arguments, KNOWN, num_features=24, features="cls",
        tag="dino_path", timm_keys={"license": "mit", "fixed_input_size": False},
        made={"network": "teacher", "steps": 6},
    )  # fmt: skip
    if changes:
        tree = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**tree, **changes}))
    (folder / "model.safetensors").touch()
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    tree = json.loads((folder / "config.json").read_text())
    assert (tree["format_version"], tree["features"]) == (2, "cls")
    assert tree["pretrained_cfg"].keys().isdisjoint({"mpp", "tile_px", "stain_normalisation", "format_version"})
    assert (tree["num_classes"], tree["pretrained_cfg"]["crop_pct"]) == (0, 1.0)
    record = read_model_record(folder / "config.json")
    assert (record.preprocessing, record.pretrained_cfg.license) == (KNOWN, "mit")
    assert record.dino_path == {"network": "teacher", "steps": 6}
    assert read_model_folder(folder).arguments == {"embed_dim": 24, "dynamic_img_size": True}


def test_a_folder_of_a_newer_version_is_refused_by_name_and_not_written_over(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", format_version=3)
    for act in (read_model_folder, refuse_to_overwrite):
        with pytest.raises(NewerFormat, match=r"config\.json of a model folder, format 3"):
            act(folder)


def test_only_models_of_ours_are_written_over(tmp_path: Path) -> None:
    refuse_to_overwrite(write_model(tmp_path / "ours"))
    with pytest.raises(DataError, match="was not written"):
        refuse_to_overwrite(write_model(tmp_path / "timms", dino_path=None))
    with pytest.raises(DataError, match="is not a model folder"):
        refuse_to_overwrite(write_model(tmp_path / "damaged", pretrained_cfg={}))


def test_a_folder_of_timm_is_read_without_what_only_we_write(tmp_path: Path) -> None:
    pretrained = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.5] * 3, "first_conv": ["a", "b"]}
    tree = {"architecture": "resnet50", "num_classes": 1000, "label_names": ["x"], "pretrained_cfg": pretrained}
    (tmp_path / "config.json").write_text(json.dumps(tree))
    record = read_model_record(tmp_path / "config.json")
    assert (record.mpp, record.dino_path, record.num_features, record.model_args) == (None, None, None, {})
    pretrained["input_size"] = [4, 224, 224]
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(CheckpointError, match=r"pretrained_cfg\.input_size\.0"):
        read_model_record(tmp_path / "config.json")


def test_a_folder_of_an_earlier_release_loads(tmp_path: Path) -> None:
    with tarfile.open(OLD_FILES) as archive:
        archive.extractall(tmp_path, filter="data")
    record = read_model_record(tmp_path / "model" / "config.json")
    assert (record.mpp, record.tile_px, record.num_features) == (0.5, None, 16)
    assert record.dino_path is not None
    assert record.features is None
    assert record.dino_path["config_digest"] == "75a324454ca0ea52"
    extractor = load_extractor(str(tmp_path / "model"), device=torch.device("cpu"))
    assert extractor.module(torch.zeros(1, 3, 32, 32)).shape == (1, 16)

"""The description in a model folder: `config.json`, as `timm.create_model("local-dir:FOLDER")` reads it.

It is timm's file. What timm does not know (`features`, `mpp`, `tile_px`, `stain_normalisation`, `dino_path`, and the
version) stands beside timm's keys: inside `pretrained_cfg` timm refuses what it does not know, at the top level it
ignores it. A folder that timm wrote is read as well; keys of timm's that we do not rely on are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field

from dino_path.errors import CheckpointError
from dino_path.preprocessing import Preprocessing, StainNormalisation, Triple
from dino_path.records.feature_kinds import FeatureKind
from dino_path.records.format import Format, Record, Tree

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"
WEIGHTS_DIGEST = "weights_sha256"  # among `ModelRecord.dino_path`; folders of earlier versions have none


class PretrainedRecord(Record):
    """timm's `pretrained_cfg`: `input_size` is (channels, height, width) in px; `mean` and `std` are RGB."""

    model_config = ConfigDict(extra="allow")

    input_size: tuple[Literal[3], int, int]
    mean: Triple
    std: Triple
    license: str | None = None


class ModelRecord(Record):
    """The content of `config.json`.

    Attributes:
        model_args: further arguments of timm.create_model.
        num_features: D of the features; None in folders of other tools.
        features: their kind; None: as timm pools them ([CLS] for most ViTs), in CNNs and in folders of version 1.
        mpp, tile_px, stain_normalisation: of the training tiles, as in `Preprocessing`.
        dino_path: what made the model, as plain values (network, steps, tiles seen, config digest, commit, versions);
            None where that was no pretraining of ours.
    """

    model_config = ConfigDict(extra="allow")

    architecture: str
    model_args: dict[str, Any] = Field(default_factory=dict)
    pretrained_cfg: PretrainedRecord
    num_features: int | None = None
    features: FeatureKind | None = None
    mpp: float | None = Field(None, gt=0)
    tile_px: int | None = Field(None, gt=0)
    stain_normalisation: StainNormalisation | None = None
    dino_path: dict[str, Any] | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """The input that the model expects."""
        return Preprocessing(
            mean=self.pretrained_cfg.mean,
            std=self.pretrained_cfg.std,
            input_px=self.pretrained_cfg.input_size[1],
            mpp=self.mpp,
            tile_px=self.tile_px,
            stain_normalisation=self.stain_normalisation,
        )


def _version_2_from_1(tree: Tree) -> Tree:
    return {**tree, "features": None}


MODEL = Format(
    "config.json of a model folder",
    ModelRecord,
    CheckpointError,
    "A model folder is needed: config.json with timm's keys architecture and pretrained_cfg (input_size, mean, std).",
    "Write the folder again with `dino-path export`, or correct the file.",
    (_version_2_from_1,),
    is_shared=True,
)


def read_model_record(file: Path) -> ModelRecord:
    """What a model folder's `config.json` says.

    Raises:
        CheckpointError: missing, damaged or incomplete. NewerFormat: a later dino_path wrote it.
    """
    return MODEL.read(file)


def write_model_record(
    file: Path,
    architecture: str,
    arguments: Mapping[str, Any],
    preprocessing: Preprocessing,
    *,
    num_features: int,
    features: FeatureKind | None,
    tag: str,
    timm_keys: Mapping[str, Any],
    made: Mapping[str, Any] | None,
) -> None:
    """Write a model folder's `config.json`.

    Args:
        architecture, arguments: for timm.create_model.
        preprocessing: of the training tiles; `input_px` is not None.
        num_features, features: see `ModelRecord`.
        tag: timm's word for where the weights are from.
        timm_keys: further keys of `pretrained_cfg`.
        made: see `ModelRecord.dino_path`.
    """
    input_px = preprocessing.input_px
    assert input_px is not None
    pretrained = PretrainedRecord(
        tag=tag,
        custom_load=False,
        input_size=(3, input_px, input_px),
        interpolation="bicubic",
        crop_pct=1.0,
        crop_mode="center",
        mean=preprocessing.mean,
        std=preprocessing.std,
        num_classes=0,
        **timm_keys,
    )
    record = ModelRecord(
        architecture=architecture,
        num_classes=0,
        num_features=num_features,
        features=features,
        model_args=dict(arguments),
        pretrained_cfg=pretrained,
        mpp=preprocessing.mpp,
        tile_px=preprocessing.tile_px,
        stain_normalisation=preprocessing.stain_normalisation,
        dino_path=None if made is None else dict(made),
    )
    MODEL.write(file, record)

"""What a model folder says of its model: the layout that `timm.create_model("local-dir:FOLDER")` loads.

`config.json` is timm's, and what timm does not know of the training tiles (`mpp`, `tile_px`, `stain_normalisation`)
stands beside timm's keys: inside `pretrained_cfg` timm refuses what it does not know, at the top level it ignores it.
Weights are read from `model.safetensors` only, which holds numbers and no code (`folder_weights.py`; here nothing needs
torch).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dino_path.errors import CheckpointError
from dino_path.preprocessing import Preprocessing, StainNormalisation, Triple, folder_preprocessing

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"


class _Preprocessing(BaseModel):
    """The keys of `pretrained_cfg` that we rely on; timm writes many more."""

    model_config = ConfigDict(extra="ignore")

    input_size: tuple[Literal[3], int, int]
    mean: Triple
    std: Triple


class _FolderConfig(BaseModel):
    """The keys of `config.json` that we rely on."""

    model_config = ConfigDict(extra="ignore")

    architecture: str
    model_args: dict[str, Any] = {}
    pretrained_cfg: _Preprocessing
    mpp: float | None = Field(None, gt=0)
    tile_px: int | None = Field(None, gt=0)
    stain_normalisation: StainNormalisation | None = None


@dataclass(frozen=True)
class ModelFolder:
    """What a model folder says about its model.

    Attributes:
        arguments: further arguments of timm.create_model; no num_classes, classifiers are left out.
    """

    path: Path
    architecture: str
    arguments: dict[str, Any]
    preprocessing: Preprocessing


def read_model_folder(path: Path) -> ModelFolder:
    """Read and check `config.json`; the weights are not touched.

    Raises:
        CheckpointError: not a model folder, or its `config.json` is damaged or incomplete.
    """
    file = path / CONFIG_NAME
    if not file.is_file():
        raise _not_a_model_folder(path)
    try:
        config = _FolderConfig.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise bad_config(file, f"it is not JSON ({error}).") from None
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise bad_config(file, f"{faults}.") from None
    return ModelFolder(
        path=path,
        architecture=config.architecture,
        arguments={name: value for name, value in config.model_args.items() if name != "num_classes"},
        preprocessing=folder_preprocessing(config.model_dump()),
    )


def require_weights(folder: ModelFolder) -> None:
    """Check that the folder has weights; they are not read.

    Raises:
        CheckpointError: it has none.
    """
    if not (folder.path / WEIGHTS_NAME).is_file():
        raise missing_weights(folder.path / WEIGHTS_NAME)


def missing_weights(file: Path) -> CheckpointError:
    """A refusal of a file of weights that is not there."""
    return CheckpointError(
        str(file),
        "no such file.",
        "A model folder holds its weights as safetensors; pickled weights (.bin, .pth) are not opened.",
        "Write the folder with `dino-path export`, or convert it with timm's `save_for_hf`.",
    )


def _not_a_model_folder(path: Path) -> CheckpointError:
    needed = f"A model folder ({CONFIG_NAME}, {WEIGHTS_NAME}) is needed."
    if path.is_file():
        found = "this is a file."
        remedy = (
            f"If it is a checkpoint: `dino-path export {path} --out MODEL` first, or `dino-path import-checkpoint` if "
            "another program wrote it."
        )
    elif (path / "checkpoints").is_dir():
        found, remedy = "this is a run folder.", f"`dino-path export {path} --out MODEL` makes a model folder of it."
    elif path.is_dir():
        found, remedy = (
            f"this folder holds no {CONFIG_NAME}.",
            "Check the path; `dino-path export` writes such folders.",
        )
    else:
        found = "no such folder."
        remedy = f"Check the path. For weights that timm downloads write `timm:{path.name}`."
    return CheckpointError(str(path), found, needed, remedy)


def bad_config(file: Path, found: str) -> CheckpointError:
    """A refusal of what `config.json` says."""
    return CheckpointError(
        str(file),
        found,
        "timm's keys architecture, model_args and pretrained_cfg (input_size, mean, std) are needed.",
        "Write the folder again with `dino-path export`, or mend the file.",
    )

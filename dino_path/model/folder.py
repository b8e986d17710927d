"""A model folder: the layout that `timm.create_model("local-dir:FOLDER")` loads.

`config.json` is read and written in `records/model_folder.py`. Weights are read from `model.safetensors` only, which
holds numbers and no code (`folder_weights.py`; here nothing needs torch).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dino_path.errors import CheckpointError
from dino_path.preprocessing import Preprocessing
from dino_path.records.feature_kinds import FeatureKind
from dino_path.records.model_folder import CONFIG_NAME, WEIGHTS_NAME, read_model_record


@dataclass(frozen=True)
class ModelFolder:
    """The description of the model in a model folder.

    Attributes:
        arguments: further arguments of timm.create_model; no num_classes, classifiers are left out.
        features: the kind that the model is to give; None: as timm pools them.
        distilled_from: first digits of the digest of the frozen model that it learned from; empty: none.
    """

    path: Path
    architecture: str
    arguments: dict[str, Any]
    preprocessing: Preprocessing
    features: FeatureKind | None = None
    distilled_from: str = ""


def read_model_folder(path: Path) -> ModelFolder:
    """Read and check `config.json`; the weights are not touched.

    Raises:
        CheckpointError: not a model folder, or its `config.json` is damaged or incomplete.
        NewerFormat: a later dino_path wrote it.
    """
    file = path / CONFIG_NAME
    if not file.is_file():
        raise _not_a_model_folder(path)
    record = read_model_record(file)
    return ModelFolder(
        path=path,
        architecture=record.architecture,
        arguments={name: value for name, value in record.model_args.items() if name != "num_classes"},
        preprocessing=record.preprocessing,
        features=record.features,
        distilled_from=str(((record.dino_path or {}).get("distilled_from") or {}).get("digest", "")),
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
        "A model folder needs weights as safetensors; pickled weights (.bin, .pth) are never opened.",
        "Write the folder with `dino-path export`, or convert it with timm's `save_for_hf`.",
    )


def _not_a_model_folder(path: Path) -> CheckpointError:
    needed = f"A model folder ({CONFIG_NAME}, {WEIGHTS_NAME}) is needed."
    if path.is_file():
        found = "this is a file."
        remedy = (
            f"If it is a checkpoint, run `dino-path export {path} --out MODEL` first, or `dino-path"
            f" import-checkpoint` if another program wrote it."
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
        remedy = f"Check the path. For weights downloaded by timm, write `timm:{path.name}`."
    return CheckpointError(str(path), found, needed, remedy)

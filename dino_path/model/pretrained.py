"""Backbones as timm publishes them: architecture, preprocessing and, where they can be had, weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from dino_path.errors import CheckpointError
from dino_path.model.backbone import backbone_arguments
from dino_path.model.folder import read_model_folder
from dino_path.model.folder_weights import load_backbone
from dino_path.model.names import architecture, timm_model_and_file
from dino_path.model.weights import load_weights, read_any_weights
from dino_path.preprocessing import Preprocessing


@dataclass(frozen=True)
class TimmBackbone:
    """A timm model without classifier, and what it expects of its images."""

    module: nn.Module
    preprocessing: Preprocessing


def load_start(name: str, weights: str) -> TimmBackbone:
    """The weights that a training starts from: `timm` (the model's own), or a model folder.

    Raises:
        CheckpointError: they cannot be had, or the folder is of another architecture than `name`.
    """
    if weights == "timm":
        return load_timm_weights(name)
    folder = read_model_folder(Path(weights))
    if folder.architecture != architecture(name):
        raise CheckpointError(
            weights,
            f"is a model folder of {folder.architecture}, and {architecture(name)} is to be trained.",
            "The weights of a start are of the same architecture.",
            f"Name {folder.architecture} as the backbone, or give a model folder of {architecture(name)}.",
        )
    return TimmBackbone(load_backbone(folder), folder.preprocessing)


def load_timm_weights(name: str) -> TimmBackbone:
    """The timm model `name` with the weights of its tag (`resnet50.a1_in1k`), downloaded or from the cache.

    Args:
        name: with `@FILE` at its end, the weights are that file's, in which every tensor of the model must be (see
            `weights`; a classifier may come along).

    Raises:
        CheckpointError: timm has no such model or weights, they cannot be had here, or the file's do not fit.
    """
    return _timm_backbone(name, pretrained=True)


def untrained_timm_backbone(name: str, *, seed: int) -> TimmBackbone:
    """The timm model `name` with weights drawn from `seed`; the global random state stays as it was.

    Raises:
        CheckpointError: timm has no such model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _timm_backbone(name, pretrained=False)


def _timm_backbone(name: str, *, pretrained: bool) -> TimmBackbone:
    name, file = timm_model_and_file(name)
    try:
        arguments: dict[str, Any] = backbone_arguments(name)
        is_from_timm = pretrained and not file
        module: nn.Module = timm.create_model(name, pretrained=is_from_timm, num_classes=0, **arguments)
    except (OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"timm:{name}",
            f"timm cannot provide these weights ({' '.join(str(error).split())[:300]}).",
            "They must be in the Hugging Face cache (HF_HOME), or the Hub within reach.",
            f"Where there is internet, run `timm.create_model('{name}', pretrained=True)` once and copy the cache; "
            "or give a model folder.",
        ) from None
    if file:
        load_weights(module, read_any_weights(file), source=f"timm:{name}@{file}")
    data = resolve_model_data_config(module)
    preprocessing = Preprocessing(tuple(data["mean"]), tuple(data["std"]), int(data["input_size"][1]))
    return TimmBackbone(module, preprocessing)

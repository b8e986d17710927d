"""The network that a model folder describes, with its weights or without."""

from __future__ import annotations

import torch
from torch import nn

from dino_path.errors import ConfigError
from dino_path.model.backbone import build_backbone
from dino_path.model.folder import ModelFolder
from dino_path.model.weights import load_weights, read_weights
from dino_path.records.model_folder import CONFIG_NAME, MODEL, WEIGHTS_NAME


def build_untrained(folder: ModelFolder, *, seed: int) -> nn.Module:
    """The folder's architecture with weights drawn from `seed`; the global random state stays as it was.

    Raises:
        CheckpointError: this timm cannot build the architecture.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return build_backbone(folder.architecture, folder.arguments)
        except ConfigError as error:
            raise MODEL.damaged(folder.path / CONFIG_NAME, error.found) from None


def load_backbone(folder: ModelFolder) -> nn.Module:
    """The folder's model with its weights, every key matched, on the CPU.

    Raises:
        CheckpointError: the weights are missing, damaged, or belong to another architecture.
    """
    file = folder.path / WEIGHTS_NAME
    weights = read_weights(file)
    backbone = build_untrained(folder, seed=0)
    load_weights(backbone, weights, source=str(file))
    return backbone

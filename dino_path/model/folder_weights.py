"""The network that a model folder describes, with its weights or without."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import nn

from dino_path.errors import CheckpointError, ConfigError
from dino_path.model.backbone import build_backbone
from dino_path.model.folder import ModelFolder
from dino_path.model.weights import load_weights, read_weights
from dino_path.records.model_folder import CONFIG_NAME, MODEL, WEIGHTS_DIGEST, WEIGHTS_NAME, read_model_record


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
    refuse_changed_weights(folder.path)
    backbone = build_untrained(folder, seed=0)
    load_weights(backbone, weights, source=str(file))
    return backbone


def refuse_changed_weights(folder: Path) -> None:
    """Check the weights of a model folder against the checksum in its `config.json`, if there is one.

    Raises:
        CheckpointError: they are not those that were written with it.
    """
    known = (read_model_record(folder / CONFIG_NAME).dino_path or {}).get(WEIGHTS_DIGEST)
    if known is None:
        return
    with (folder / WEIGHTS_NAME).open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != known:
        raise CheckpointError(
            str(folder / WEIGHTS_NAME),
            f"is not the file that belongs to {CONFIG_NAME} (SHA-256 {found[:12]}, and {str(known)[:12]} there).",
            "The weights of a model folder must be unchanged since `dino-path export` wrote them.",
            "Copy the whole folder again, or export again.",
        )

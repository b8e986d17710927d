"""Backbones as timm publishes them: architecture, preprocessing and, if available, weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from dino_path.errors import CheckpointError
from dino_path.model.backbone import Argument, backbone_arguments
from dino_path.model.folder import read_model_folder
from dino_path.model.folder_weights import load_backbone
from dino_path.model.names import architecture, timm_model_and_file
from dino_path.model.weights import load_weights, read_any_weights
from dino_path.preprocessing import Preprocessing


@dataclass(frozen=True)
class TimmBackbone:
    """A timm model without classifier, and its preprocessing."""

    module: nn.Module
    preprocessing: Preprocessing


def load_start(name: str, weights: str, arguments: Mapping[str, Argument]) -> TimmBackbone:
    """The model from whose weights training starts: `timm` (the backbone's own), `timm:NAME`, or a model folder.

    Args:
        name: the backbone that is to be trained.
        arguments: its own, of timm.create_model.

    Raises:
        CheckpointError: they cannot be obtained, or the folder is of another architecture.
    """
    if weights == "timm" or weights.startswith("timm:"):
        theirs = weights.removeprefix("timm").removeprefix(":") or name
        refuse_other_model(weights, timm_model_and_file(theirs)[0], {}, name=name, arguments=arguments)
        return load_timm_weights(theirs)
    folder = read_model_folder(Path(weights))
    refuse_other_model(
        f"{weights}, a model folder", folder.architecture, folder.arguments, name=name, arguments=arguments
    )
    return TimmBackbone(load_backbone(folder), folder.preprocessing)


def refuse_other_model(
    source: str,
    theirs: str,
    their_arguments: Mapping[str, Argument],
    *,
    name: str,
    arguments: Mapping[str, Argument],
) -> None:
    """Check what shapes of weights do not reveal: the architecture by name, and its number of heads.

    Args:
        source: where the weights are from, for messages.
        theirs, their_arguments: the model that they are of.
        name, arguments: the backbone that is to be trained.

    Raises:
        CheckpointError: they differ.
    """
    of, to_train = architecture(theirs), architecture(name)
    heads, own_heads = their_arguments.get("num_heads"), arguments.get("num_heads")
    if (of, heads) == (to_train, own_heads):
        return
    if of == to_train:
        of, to_train = (f"{each} with {number or 'its usual'} heads" for each, number in ((of, heads), (of, own_heads)))
    told = ", ".join(f"{key}: {value}" for key, value in their_arguments.items())
    raise CheckpointError(
        source,
        f"its weights belong to {of}, but {to_train} is to be trained.",
        "The weights to start from must have the same architecture.",
        f"Set model.backbone={architecture(theirs)}, with model.arguments={{{told}}}, or use weights of {to_train}.",
    )


def load_timm_weights(name: str) -> TimmBackbone:
    """The timm model `name` with the weights of its tag (`resnet50.a1_in1k`), downloaded or from the cache.

    Args:
        name: with `@FILE` at its end, the weights are that file's, in which every tensor of the model must be (see
            `weights`; a classifier may come along).

    Raises:
        CheckpointError: timm has no such model or weights, they cannot be obtained here, or the file's do not fit.
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
            "They must be in the Hugging Face cache (HF_HOME), or the Hub must be reachable.",
            f"On a machine with internet access, run `timm.create_model('{name}', pretrained=True)` once and copy"
            f" the cache; "
            "or give a model folder.",
        ) from None
    if file:
        load_weights(module, read_any_weights(file), source=f"timm:{name}@{file}")
    data = resolve_model_data_config(module)
    preprocessing = Preprocessing(tuple(data["mean"]), tuple(data["std"]), int(data["input_size"][1]))
    return TimmBackbone(module, preprocessing)

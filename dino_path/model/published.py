"""Checkpoints of facebookresearch/dino: whole ones (`checkpoint.pth`), and the backbones that were published."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
from torch import Tensor

from dino_path.errors import CheckpointError
from dino_path.model.backbone import Argument
from dino_path.model.head import DinoNetwork
from dino_path.model.names import architecture
from dino_path.model.weights import Weights, load_weights, read_pickled

Network = Literal["teacher", "student"]

# Its three ViTs, by width: twelve blocks, heads of 64. The number of heads is in no weight's shape.
VIT_SIZES = {192: "tiny", 384: "small", 768: "base"}
RESNET50 = (3, 4, 6, 3)
# Our names of the prototypes, by those of torch's old and new weight norm.
PROTOTYPE_NAMES = {
    "last_layer.parametrizations.weight.original0": "last_layer.weight_g",
    "last_layer.parametrizations.weight.original1": "last_layer.weight_v",
}


@dataclass(frozen=True)
class PublishedCheckpoint:
    """One network of such a file.

    Attributes:
        network: which one; None: the file holds a bare backbone.
        backbone: weights under timm's key names, which are theirs.
        head: weights of the projection head under our key names; empty: a bare backbone.
        arch: what its settings call the architecture; None: the file holds no settings.
        epoch: epochs trained; None: not told.
    """

    path: Path
    network: Network | None
    backbone: Weights
    head: Weights
    arch: str | None
    epoch: int | None


def read_published(path: Path, network: Network | None) -> PublishedCheckpoint:
    """The backbone of one network in a file of facebookresearch/dino, on the CPU.

    Args:
        network: None: the teacher, or the only network there is.

    Raises:
        CheckpointError: not such a file, it lacks the network, or it would run code on loading.
    """
    record = _load(path)
    settings = record.get("args")
    epoch = record.get("epoch")
    wanted = network or "teacher"
    holds_networks = isinstance(record.get(wanted), Mapping)
    if holds_networks:
        record = record[wanted]
    elif network is not None:
        raise _not_published(
            path, f"holds no {network}.", "A bare backbone: `dino-path import-checkpoint`, no --network."
        )
    if not record or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in record.items()):
        raise _not_published(path, "holds neither a teacher nor a bare backbone.")
    weights = {key.removeprefix("module."): tensor for key, tensor in record.items()}
    backbone, head = _below(weights, "backbone."), _below(weights, "head.")
    return PublishedCheckpoint(
        path=path,
        network=wanted if holds_networks else None,
        backbone=backbone or weights,
        head={PROTOTYPE_NAMES.get(key, key): tensor for key, tensor in head.items()} if backbone else {},
        arch=getattr(settings, "arch", None),
        epoch=epoch if isinstance(epoch, int) else None,
    )


def load_published(network: DinoNetwork, path: Path) -> None:
    """Fill backbone and head with those of the teacher in a training checkpoint; the center is not taken over.

    From the file of a bare backbone the backbone is filled, and the head stays as it is.

    Raises:
        CheckpointError: not such a file, or its shapes are others.
    """
    checkpoint = read_published(path, None)
    load_weights(network.backbone, checkpoint.backbone, source=str(path))
    if checkpoint.network is None or network.head is None:
        return
    try:
        network.head.load_state_dict(checkpoint.head)
    except RuntimeError as error:
        raise CheckpointError(
            str(path),
            f"its head does not fit ({' '.join(str(error).split())[:300]}).",
            "A head of the same layers and number of prototypes is needed.",
            "Set objective.dino.num_prototypes, head_hidden, head_bottleneck and head_layers as in that"
            " training, or start from its backbone alone: the model folder that `dino-path import-checkpoint` writes.",
        ) from None


def timm_model_of(checkpoint: PublishedCheckpoint, arch: str | None) -> tuple[str, dict[str, Argument], int]:
    """The timm model that these weights fill: its name, its further arguments, and the edge of its images in pixels.

    Args:
        arch: the timm name where the weights do not tell.

    Raises:
        CheckpointError: neither shapes nor settings tell, and `arch` is None.
        ConfigError: timm has no model `arch`.
    """
    position, projection = checkpoint.backbone.get("pos_embed"), checkpoint.backbone.get("patch_embed.proj.weight")
    if position is None or projection is None:
        name = architecture(arch) if arch else _convnet_name(checkpoint)
        return name, {}, 224
    patch_px = projection.shape[-1]
    input_px = math.isqrt(position.shape[1] - 1) * patch_px
    arguments: dict[str, Argument] = {} if input_px == 224 else {"img_size": input_px}
    if arch:
        return architecture(arch), arguments, input_px
    size = VIT_SIZES.get(projection.shape[0])
    if size is None or _depth(checkpoint.backbone) != 12:
        raise _unknown_architecture(checkpoint)
    name = f"vit_{size}_patch{patch_px}_224"
    if not timm.is_model(name):
        name, arguments = f"vit_{size}_patch16_224", {"patch_size": patch_px, **arguments}
    return name, arguments, input_px


def _below(weights: Weights, prefix: str) -> Weights:
    return {key.removeprefix(prefix): tensor for key, tensor in weights.items() if key.startswith(prefix)}


def _load(path: Path) -> dict[str, Any]:
    try:
        record = read_pickled(path)
    except CheckpointError as error:
        raise _not_published(path, error.found) from None
    if not isinstance(record, dict):
        raise _not_published(path, f"holds a {type(record).__name__}.")
    return record


def _depth(weights: Weights) -> int:
    return len({key.split(".")[1] for key in weights if key.startswith("blocks.")})


def _convnet_name(checkpoint: PublishedCheckpoint) -> str:
    """The name in the settings where timm has it too (it took over torchvision's), else ResNet-50 by its shapes."""
    if checkpoint.arch is not None and timm.is_model(checkpoint.arch):
        return checkpoint.arch
    weights = checkpoint.backbone
    blocks = tuple(
        len({key.split(".")[1] for key in weights if key.startswith(f"layer{stage}.")}) for stage in range(1, 5)
    )
    middle = weights.get("layer1.0.conv2.weight")
    if blocks == RESNET50 and "layer1.0.conv3.weight" in weights and middle is not None and middle.shape[0] == 64:
        return "resnet50"
    raise _unknown_architecture(checkpoint)


def _unknown_architecture(checkpoint: PublishedCheckpoint) -> CheckpointError:
    told = "it has no settings" if checkpoint.arch is None else f"its settings say {checkpoint.arch!r}"
    return CheckpointError(
        str(checkpoint.path),
        f"its architecture cannot be told ({told}; {len(checkpoint.backbone)} tensors, "
        f"first {next(iter(checkpoint.backbone))}).",
        "Told without help: ViT-Ti, -S and -B with twelve blocks, ResNet-50, and convolutional nets by their settings.",
        "Name the timm model: --arch NAME. Its key names must be those of timm.",
    )


def _not_published(path: Path, found: str, remedy: str = "Check the path.") -> CheckpointError:
    return CheckpointError(
        str(path),
        found,
        "A checkpoint of facebookresearch/dino is needed: the file of a training, or a published backbone. "
        "Nothing but tensors, plain values and settings is unpickled.",
        f"{remedy} For a checkpoint of `dino-path pretrain` use `dino-path export`.",
    )

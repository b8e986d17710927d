"""Files of published weights: bare backbones, and checkpoints of a training with its networks and their heads.

Read are those of facebookresearch's dino, dinov2 and dinov3, and files of a timm backbone such as UNI's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import timm
from torch import Tensor

from dino_path.errors import CheckpointError
from dino_path.model.layouts import Weights, ungrouped
from dino_path.model.names import architecture
from dino_path.model.shapes import TimmModel, is_dinov3, timm_model_named, timm_model_of_shapes
from dino_path.model.weights import CONTAINERS, read_pickled, read_weights

Network = Literal["teacher", "student"]
Trainer = Literal["dino", "dinov2", "dinov3"]

# Our names of the prototypes, by those of torch's old and new weight norm.
PROTOTYPE_NAMES = {
    "last_layer.parametrizations.weight.original0": "last_layer.weight_g",
    "last_layer.parametrizations.weight.original1": "last_layer.weight_v",
}
# Our parts of a network, by the names that facebookresearch's dino, dinov2 and dinov3 give them.
PARTS = {"backbone": "backbone", "head": "head", "dino_head": "head", "ibot_head": "patch_head"}


@dataclass(frozen=True)
class PublishedCheckpoint:
    """One network of such a file.

    Attributes:
        network: which one; None: the file holds a bare backbone.
        backbone: weights under their authors' names, blocks in one row; with a mask token, if there is one.
        head: weights of the projection head of [CLS] under our key names; empty: there is none.
        patch_head: the same of iBOT's.
        arch: what its settings call the architecture; None: the file holds no settings.
        epoch: epochs trained; None: not told.
        trainer: the program of facebookresearch that wrote it; None: not told.
    """

    path: Path
    network: Network | None
    backbone: Weights
    head: Weights
    patch_head: Weights
    arch: str | None
    epoch: int | None
    trainer: Trainer | None

    @property
    def mask_token(self) -> Tensor | None:
        """(1, D), the mask token; None: it was not trained with masks."""
        return self.backbone.get("mask_token")


def read_published(path: Path, network: Network | None) -> PublishedCheckpoint:
    """The backbone of one network in a file, with its heads, on the CPU.

    Args:
        network: None: the teacher, or the only network there is.

    Raises:
        CheckpointError: not such a file, it lacks the network, or it would run code on loading.
    """
    return published_in(read_record(path), path, network)


def read_record(path: Path) -> dict[str, Any]:
    """All that a file of safetensors' or torch's holds.

    Raises:
        CheckpointError: it is damaged, no such file, would run code on loading, or holds no names.
    """
    if path.suffix == ".safetensors":
        return dict(read_weights(path))
    try:
        record = read_pickled(path)
    except CheckpointError as error:
        raise _not_published(path, error.found) from None
    if not isinstance(record, dict):
        raise _not_published(path, f"holds a {type(record).__name__}.")
    return record


def published_in(record: Mapping[str, Any], path: Path, network: Network | None) -> PublishedCheckpoint:
    """What `read_published` gives, of a record that was read.

    Raises:
        CheckpointError: it holds no such network.
    """
    settings, epoch, wanted = record.get("args"), record.get("epoch"), network or "teacher"
    holds_networks = isinstance(record.get(wanted), Mapping)
    container = next((name for name in CONTAINERS if isinstance(record.get(name), Mapping)), None)
    if holds_networks:
        weights = record[wanted]
    else:
        weights = record[container] if container is not None else record
        below = {key: value for key, value in weights.items() if str(key).startswith(f"{wanted}.")}
        if below:
            weights, holds_networks = {key.removeprefix(f"{wanted}."): value for key, value in below.items()}, True
    if network is not None and not holds_networks:
        raise _not_published(
            path, f"holds no {network}.", "A bare backbone: `dino-path import-checkpoint`, no --network."
        )
    if not weights or not all(isinstance(key, str) and isinstance(value, Tensor) for key, value in weights.items()):
        raise _not_published(path, "holds neither a teacher nor a bare backbone.")
    parts = _parts_of({key.removeprefix("module."): tensor for key, tensor in weights.items()})
    backbone, head, patch_head = (parts.get(part, {}) for part in ("backbone", "head", "patch_head"))
    return PublishedCheckpoint(
        path=path,
        network=wanted if holds_networks else None,
        backbone=ungrouped(backbone),
        head=_in_our_names(head),
        patch_head=_in_our_names(patch_head),
        arch=getattr(settings, "arch", None),
        epoch=epoch if isinstance(epoch, int) else None,
        trainer=_trainer(backbone, is_whole_network=bool(head)),
    )


def timm_model_of(checkpoint: PublishedCheckpoint, arch: str | None) -> TimmModel:
    """The timm model to which these weights belong.

    Args:
        arch: the timm name where the weights do not tell.

    Raises:
        CheckpointError: neither shapes nor settings tell, and `arch` is None.
        ConfigError: timm has no model `arch`.
    """
    if arch is not None:
        return timm_model_named(architecture(arch), checkpoint.backbone)
    told = timm_model_of_shapes(checkpoint.backbone)
    if told is None and checkpoint.arch is not None and _is_convnet(checkpoint):
        told = timm_model_named(checkpoint.arch, checkpoint.backbone)
    if told is None:
        raise _unknown_architecture(checkpoint)
    return told


def _parts_of(weights: Weights) -> dict[str, Weights]:
    """A network's weights by our names of its parts; all are the backbone's where no part is called so.

    Names of no known part stay with the backbone, which is refused for them.
    """
    if not any(key.startswith("backbone.") for key in weights):
        return {"backbone": weights}
    parts: dict[str, Weights] = {}
    for key, tensor in weights.items():
        first, _, rest = key.partition(".")
        part = PARTS.get(first)
        parts.setdefault(part or "backbone", {})[rest if part else key] = tensor
    return parts


def _in_our_names(head: Weights) -> Weights:
    """A head's weights as `DinoHead` names them; plain prototypes (DINOv3) become directions and lengths."""
    named = {PROTOTYPE_NAMES.get(key, key): tensor for key, tensor in head.items()}
    plain = named.pop("last_layer.weight", None)
    if plain is None:
        return named
    return {**named, "last_layer.weight_v": plain, "last_layer.weight_g": plain.norm(dim=1, keepdim=True)}


def _trainer(backbone: Weights, *, is_whole_network: bool) -> Trainer | None:
    if is_dinov3(backbone):
        return "dinov3"
    if "mask_token" in backbone or "register_tokens" in backbone:
        return "dinov2"
    return "dino" if is_whole_network else None


def _is_convnet(checkpoint: PublishedCheckpoint) -> bool:
    """Whether timm has the name in the settings, which it took over from torchvision for its convolutional nets."""
    return timm.is_model(checkpoint.arch or "") and "pos_embed" not in checkpoint.backbone


def _unknown_architecture(checkpoint: PublishedCheckpoint) -> CheckpointError:
    told = "it has no settings" if checkpoint.arch is None else f"its settings say {checkpoint.arch!r}"
    return CheckpointError(
        str(checkpoint.path),
        f"its architecture is not recognised ({told}; {len(checkpoint.backbone)} tensors, "
        f"first {next(iter(checkpoint.backbone))}).",
        "Recognised automatically: ViTs of the usual widths and depths (Ti, S, B, L, DINOv2's g, DINOv3's), ResNets,"
        " and "
        "convolutional nets by their settings.",
        "Give the timm model: --arch NAME. The key names must be those of timm.",
    )


def _not_published(path: Path, found: str, remedy: str = "Check the path.") -> CheckpointError:
    return CheckpointError(
        str(path),
        found,
        "A file of published weights is needed: a backbone, or a training checkpoint of facebookresearch's dino, "
        "dinov2 or dinov3. Only tensors, plain values and settings are unpickled.",
        f"{remedy} For a checkpoint of `dino-path pretrain` use `dino-path export`.",
    )

"""The weights that a training starts from: `model.weights` -> a network's backbone, mask token and heads."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from dino_path.errors import CheckpointError
from dino_path.model.backbone import Argument
from dino_path.model.checkpoint import checkpoint_in, is_ours
from dino_path.model.head import DinoHead, DinoNetwork
from dino_path.model.layouts import Weights
from dino_path.model.pretrained import load_start, refuse_other_model
from dino_path.model.published import published_in, read_record
from dino_path.model.weights import load_weights
from dino_path.run import newest_checkpoint

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StartWeights:
    """The contents of start weights; empty or None: not included.

    Attributes:
        backbone: under timm's names or those of the model's authors.
        mask_token: (1, D).
        head: of [CLS], under our names.
        patch_head: of masked patches, under our names.
    """

    backbone: Weights
    mask_token: Tensor | None = None
    head: Weights = field(default_factory=dict)
    patch_head: Weights = field(default_factory=dict)


def read_start(name: str, arguments: Mapping[str, Argument], weights: str) -> StartWeights:
    """The weights of `model.weights`, on the CPU.

    Args:
        name: the backbone that is to be trained.
        arguments: its own, of timm.create_model.
        weights: `timm` (the backbone's own), `timm:NAME`, a model folder, a run folder, a checkpoint of a run, or a
            file of published weights.

    Raises:
        CheckpointError: they cannot be obtained, or are of another architecture as far as a folder or run tells.
    """
    path = Path(weights)
    if (path / "checkpoints").is_dir():
        path = newest_checkpoint(path)
    if not path.is_file():
        return StartWeights(load_start(name, weights, arguments).module.state_dict())
    record = read_record(path)
    if is_ours(record):
        return _of_our_run(record, path, name, arguments)
    published = published_in(record, path, None)
    if published.network is not None:
        logger.info("%s: its %s is loaded", path, published.network)
    return StartWeights(published.backbone, published.mask_token, published.head, published.patch_head)


def _of_our_run(record: dict[str, Any], path: Path, name: str, arguments: Mapping[str, Argument]) -> StartWeights:
    """The teacher's backbone and mask token in a checkpoint of a run."""
    checkpoint = checkpoint_in(record, path)
    theirs = checkpoint.config.get("model", {})
    refuse_other_model(
        f"{path}, a run", theirs.get("backbone", name), theirs.get("arguments", {}), name=name, arguments=arguments
    )
    logger.info(
        "%s: the teacher's backbone at step %d is loaded, without its heads; training.continue_from loads everything",
        path, checkpoint.step,
    )  # fmt: skip
    return StartWeights(checkpoint.teacher["backbone"], checkpoint.teacher.get("mask_token", {}).get("weight"))


def start_network(network: DinoNetwork, start: StartWeights, *, source: str) -> None:
    """Load a network's backbone, and its mask token and heads if the start has them; the rest stays random.

    A head keeps the lengths of the start's prototypes, also where `norm_last_layer` trains their directions alone.

    Args:
        source: where the weights are from, for messages.

    Raises:
        CheckpointError: the backbone or a head does not fit.
    """
    load_weights(network.backbone, start.backbone, source=source, resampling=True)
    if network.mask_token is not None:
        if start.mask_token is None:
            logger.info("%s: it has no mask token; ours starts at zero", source)
        else:
            network.mask_token.load_state_dict({"weight": start.mask_token})
            logger.info("%s: the mask token is loaded", source)
    for head, weights, term, what in (
        (network.head, start.head, "dino", "head of [CLS]"),
        (network.patch_head, start.patch_head, "ibot", "head of masked patches"),
    ):
        if head is not None and weights:
            _load_head(head, weights, term, source=source)
            logger.info("%s: the %s is loaded", source, what)
        elif head is not None:
            logger.info("%s: it has no %s, which starts at random", source, what)
        elif weights:
            logger.info("%s: its %s is left out, because the objective has none", source, what)


def _load_head(head: DinoHead, weights: Weights, term: str, *, source: str) -> None:
    own = head.state_dict()
    if weights.keys() != own.keys() or any(weights[key].shape != own[key].shape for key in own):
        raise CheckpointError(
            source,
            f"its head does not fit objective.{term}: it has {_head_text(weights)}, but the settings ask for"
            f" {_head_text(own)}.",
            "A head of the same layers and number of prototypes is needed.",
            f"Set {_head_settings(weights, term)}, or start from its backbone alone, with the model folder written"
            f" by `dino-path import-checkpoint`.",
        )
    head.load_state_dict(weights)


def _head_sizes(head: Mapping[str, Tensor]) -> dict[str, int | bool]:
    """The settings of a head that its shapes reveal."""
    linear = [value for key, value in head.items() if key.startswith("mlp.") and value.ndim == 2]
    prototypes = head.get("last_layer.weight_v")
    sizes: dict[str, int | bool] = {} if prototypes is None else {"num_prototypes": len(prototypes)}
    if linear:
        sizes |= {"head_hidden": len(linear[0]), "head_bottleneck": len(linear[-1]), "head_layers": len(linear)}
    return {**sizes, "head_batch_norm": any(key.endswith("running_mean") for key in head)}


def _head_text(head: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{key} {value}" for key, value in _head_sizes(head).items())


def _head_settings(head: Mapping[str, Tensor], term: str) -> str:
    return " ".join(f"objective.{term}.{key}={str(value).lower()}" for key, value in _head_sizes(head).items())

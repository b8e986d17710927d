"""Loads weights from a file into a backbone, completely or not at all. All weights are loaded this way.

Every tensor of the backbone must be in the file, under timm's name or that of the model's authors (`layouts`), and in
its shape. What may stand around it is taken off by name, and said: a prefix of all names (`module.`,
`teacher.backbone.`, ...), heads of other purposes, and what no feature depends on.
"""

from __future__ import annotations

import argparse
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dino_path.errors import CheckpointError
from dino_path.model.folder import missing_weights
from dino_path.model.layouts import (
    NOT_BACKBONE,
    Weights,
    as_timm_names,
    beside_the_backbone,
    classifiers,
    ungrouped,
)
from dino_path.model.shapes import is_dinov3, looks_like, timm_model_of_shapes
from dino_path.model.torch_file import UNREADABLE, load_torch_file

logger = logging.getLogger(__name__)

# Names under which training programs keep the weights beside other things; of two, the first.
CONTAINERS = ("state_dict_ema", "model_ema", "teacher", "state_dict", "model")
# What stands before timm's names in files of wrapped or paired networks; of two that fit alike, the first.
PREFIXES = (
    "", "module.", "backbone.", "module.backbone.", "teacher.backbone.", "teacher.", "model.", "encoder.",
    "_orig_mod.", "student.backbone.", "student.", "base_model.", "visual.", "trunk.",
)  # fmt: skip
NAMES_SHOWN = 3


class _Ignored:
    """Stands for the numpy scalars in an optimizer's state, which torch's safe reader does not know."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


# All that pickles may name beside tensors and plain values: a bag of attributes, and numpy, of which nothing runs.
NAMES_IN_PICKLES: list[Any] = [
    argparse.Namespace,
    *((_Ignored, name) for name in ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")),
]


def read_weights(file: Path) -> Weights:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    try:
        weights: Weights = load_file(file, device="cpu")
    except FileNotFoundError:
        raise missing_weights(file) from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            str(file),
            f"cannot be read ({short(error)}).",
            "A complete safetensors file is needed.",
            "Copy it again, or write the folder again with `dino-path export`.",
        ) from None
    return weights


def read_pickled(file: Path) -> Any:
    """The contents of a torch file, on the CPU; only tensors, plain values and settings are unpickled.

    Raises:
        CheckpointError: it is damaged, no such file, or would run code on loading.
    """
    try:
        with torch.serialization.safe_globals(NAMES_IN_PICKLES):
            record = load_torch_file(file)
    except UNREADABLE as error:
        named = re.search(r"GLOBAL (\S+)", str(error))
        found = f"would run {named[1]} on loading" if named else f"cannot be read ({short(error)})"
        raise _no_weights(file, found) from None
    return record


def read_any_weights(file: Path) -> Weights:
    """The tensors of a file in safetensors' or torch's format, of the network that is kept in it if there are several.

    Raises:
        CheckpointError: no such file, damaged, or no weights in it.
    """
    if file.suffix == ".safetensors":
        return read_weights(file)
    record = read_pickled(file)
    for name in CONTAINERS:
        if isinstance(record, Mapping) and isinstance(record.get(name), Mapping):
            logger.info("%s: the weights under %r are used", file, name)
            record = record[name]
    if not isinstance(record, Mapping):
        raise _no_weights(file, f"holds a {type(record).__name__}, not weights")
    weights = {str(key): value for key, value in record.items() if isinstance(value, Tensor)}
    if not weights:
        raise _no_weights(file, "holds no weights")
    return weights


def load_weights(backbone: nn.Module, weights: Mapping[str, Tensor], *, source: str, resampling: bool = False) -> None:
    """Load every tensor of a timm backbone; other contents of the file are logged, with the reason why they are left
    out.

    Args:
        source: where the weights are from, for messages.
        resampling: position embeddings of another square grid are resampled (timm's `resample_abs_pos_embed`: bicubic,
            antialiased), with a message; else they are refused.

    Raises:
        CheckpointError: a tensor is missing, has another shape, or does not belong to the backbone. Nothing is loaded
            then.
    """
    own, name = backbone.state_dict(), str(getattr(backbone, "pretrained_cfg", {}).get("architecture"))
    whole = ungrouped(_without_surroundings(weights, backbone, source))
    beside = beside_the_backbone(whole, backbone)
    found = {key: value for key, value in whole.items() if key not in beside}
    # Files under timm's names are not converted: a conversion may also change values (see `layouts`).
    if not _fits(found, own):
        renamed = as_timm_names(whole, backbone, name, source=source, resampling=resampling)
        found = {key: value for key, value in renamed.items() if key not in beside}
    for key in own:  # files of torch 0.4 and older do not count batches; nothing follows from the number
        if key.endswith("num_batches_tracked"):
            found.setdefault(key, own[key])
    if not _fits(found, own):
        raise _misfit(whole, found, own, name, source)
    backbone.load_state_dict(found, strict=True)
    logger.info("%s: all %d tensors of %s are loaded", source, len(own), name)
    for reason in dict.fromkeys(beside.values()):
        names = [key for key, given in beside.items() if given == reason]
        logger.info("%s: left out, because %s: %s", source, reason, _some(names))
    if is_dinov3(whole) and getattr(backbone, "global_pool", "token") != "token":
        logger.warning(
            "%s: features are the mean of the patches here, but [CLS] in DINOv3; set"
            " model.arguments={global_pool: token} to get [CLS]", source,
        )  # fmt: skip


def _without_surroundings(weights: Mapping[str, Tensor], backbone: nn.Module, source: str) -> Weights:
    """The weights below the prefix that gives most names of the backbone, without heads."""
    own = backbone.state_dict().keys()

    def below(prefix: str) -> Weights:
        return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}

    prefix = max(PREFIXES, key=lambda one: len(own & ungrouped(below(one)).keys()))  # of equal ones the first
    heads = (*NOT_BACKBONE, *classifiers(backbone))
    found = below(prefix)
    rest = {key: value for key, value in weights.items() if not key.startswith(prefix)}
    dropped = {key for key in found if key not in own and key.startswith(tuple(f"{head}." for head in heads))}
    beside = {key for key in rest if key.startswith(tuple(f"{head}." for head in heads)) or _is_wrapped_head(key)}
    if prefix:
        logger.info("%s: %r was removed from the names of %d tensors", source, prefix, len(found))
    if dropped or beside:
        left_out = sorted({key.rpartition(".")[0] for key in dropped | beside})
        logger.info("%s: left out, because they do not belong to a backbone: %s", source, _some(left_out))
    kept = {key: value for key, value in found.items() if key not in dropped}
    return kept | {key: value for key, value in rest.items() if key not in beside}


def _is_wrapped_head(key: str) -> bool:
    """Such as `module.head.mlp.0.weight`, beside `module.backbone...`."""
    return key.startswith(tuple(f"{prefix}{head}." for prefix in PREFIXES if prefix for head in NOT_BACKBONE))


def _fits(found: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    return found.keys() == own.keys() and all(found[key].shape == own[key].shape for key in own)


def _misfit(
    whole: Mapping[str, Tensor], found: Mapping[str, Tensor], own: Mapping[str, Tensor], name: str, source: str
) -> CheckpointError:
    missing, unexpected = sorted(own.keys() - found.keys()), sorted(found.keys() - own.keys())
    reshaped = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in found and found[key].shape != own[key].shape
    ]
    faults = [
        f"{len(names)} {what} ({_some(names)})"
        for what, names in (
            (f"of {len(own)} tensors are missing", missing),
            ("have another shape", reshaped),
            ("do not belong to this model", unexpected),
        )
        if names
    ]
    told, like = timm_model_of_shapes(whole), looks_like(whole)
    take = f"Use that model ({told.settings()})" if told else "Name the model to which they belong, with its arguments"
    return CheckpointError(
        source,
        f"its weights do not fit {name}: {'; '.join(faults)}." + (f" It looks like {like}." if like else ""),
        "Every tensor of the backbone is needed, with timm's name or the authors' name, and the right shape; weights"
        " are never loaded in part.",
        f"{take}, or get the weights of {name}.",
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (f", ... ({len(names)} in all)" if len(names) > NAMES_SHOWN else "")


def short(error: Exception) -> str:
    """An error's text on one line of no more than 400 characters."""
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else f"{text[:400]} ..."


def _no_weights(file: Path, found: str) -> CheckpointError:
    return CheckpointError(
        str(file),
        f"{found}.",
        "A file of weights is needed: safetensors, or a file of torch.save. Only tensors, plain values and settings"
        " are unpickled.",
        "Check the path, or copy the file again.",
    )

"""Converts authors' names of weights to timm's, and lists what in their files does not belong to the backbone.

timm converts names itself (the `checkpoint_filter_fn` of each family), and silently drops what it cannot use. So this
module lists what may be dropped, with the reason; anything else that timm would drop is refused.
"""

from __future__ import annotations

import inspect
import io
import logging
import math
import re
from collections.abc import Mapping
from contextlib import redirect_stdout

import timm
import torch
from torch import Tensor, nn

from dino_path.model.shapes import has_query_or_value_bias

logger = logging.getLogger(__name__)

Weights = dict[str, Tensor]

# First words of names that are of no backbone: heads, and the other network of a pair.
NOT_BACKBONE = (
    "head", "head_dist", "fc", "classifier", "last_layer", "projector", "projectors", "projection_head", "predictor",
    "prototypes", "dino_head", "ibot_head", "lm_head", "teacher", "student",
)  # fmt: skip
# DINOv2 trains large ViTs with blocks in groups: `blocks.GROUP.BLOCK.norm1.weight`, where BLOCK counts all blocks.
GROUPED_BLOCK = re.compile(r"^blocks\.\d+\.(\d+)\.")
# Of these, timm makes one tensor.
JOINED = (".q_proj.", ".k_proj.", ".v_proj.")
DINOV2_NAMES = {"register_tokens", "blocks.0.mlp.w12.weight"}
LARGEST_PERIOD_DIFFERENCE = 0.01  # relative; periods of a training in bf16 are rounded


def ungrouped(weights: Mapping[str, Tensor]) -> Weights:
    """The weights with all blocks in one row. Of two blocks with one number, both keep their names."""
    found = {GROUPED_BLOCK.sub(r"blocks.\1.", key): value for key, value in weights.items()}
    return found if len(found) == len(weights) else dict(weights)


def beside_the_backbone(weights: Mapping[str, Tensor], backbone: nn.Module) -> dict[str, str]:
    """The weights that do not belong to a timm backbone and do not affect its features, with the reason."""
    own = backbone.state_dict().keys()
    has_towers = any(key.startswith("visual.") for key in weights)  # of images and texts
    reasons = {key: _reason(key, value, backbone, has_towers) for key, value in weights.items() if key not in own}
    return {key: reason for key, reason in reasons.items() if reason is not None}


def _reason(key: str, value: Tensor, backbone: nn.Module, has_towers: bool) -> str | None:
    if has_towers and (key == "visual.proj" or not key.startswith("visual.")):
        return "it belongs to the text model"
    if key == "mask_token":
        return "the mask token for hidden patches is not part of the backbone"
    if key.startswith("local_cls_norm."):
        return "it is used only in their training, for local views"
    if key == "rope_embed.periods" and _has_periods(backbone, value):
        return "the model computes it, with the same values"
    if key.endswith("attn.qkv.bias_mask") and bool((value.reshape(3, -1)[[0, 2]] == 1).all()):
        return "it zeroes the bias of keys, which has no effect"
    if key.endswith("attn.qkv.bias") and not has_query_or_value_bias(value):
        block = key.removesuffix("qkv.bias")
        return None if f"{block}q_bias" in backbone.state_dict() else "it is zero, and the model has none"
    if key.endswith((".relative_position_index", ".relative_coords_table", ".attn_mask")):
        return "it follows from the sizes"
    return None


def _has_periods(backbone: nn.Module, periods: Tensor) -> bool:
    """Whether the rotary positions of a backbone have these periods; their number is a quarter of a head's width."""
    own = getattr(getattr(backbone, "rope", None), "periods", None)
    if not isinstance(own, Tensor) or own.shape != periods.shape:
        return False
    return torch.allclose(own.float().cpu(), periods.float(), rtol=LARGEST_PERIOD_DIFFERENCE, atol=0)


def as_timm_names(
    weights: Mapping[str, Tensor], backbone: nn.Module, name: str, *, source: str, resampling: bool
) -> Weights:
    """The weights under timm's names if timm knows the authors' names; otherwise unchanged.

    Beside names, [CLS] changes where it has a position of its own in the file and none in timm's model (DINOv2 with
    registers): that position is added to it. Patch embeddings of another size stay as they are.

    Args:
        name: timm's, of the backbone.
        source: where the weights are from, for messages.
        resampling: position embeddings of another square grid become the backbone's; else they stay as they are.
    """
    module = inspect.getmodule(timm.model_entrypoint(name)) if timm.is_model(name) else None
    rename = getattr(module, "checkpoint_filter_fn", None)
    if rename is None:
        return dict(weights)
    beside = beside_the_backbone(weights, backbone)
    given = {key: value for key, value in weights.items() if key not in beside or key == "mask_token"}
    if given.keys() & DINOV2_NAMES:  # timm knows DINOv2's files by the mask token, which some leave out
        given.setdefault("mask_token", torch.zeros(0))
    try:
        with redirect_stdout(io.StringIO()):  # of biases that its model does not have, timm prints something
            renamed: Weights = rename(dict(given), backbone)
    except (LookupError, RuntimeError, ValueError, TypeError, AttributeError, AssertionError):  # made for other files
        return dict(weights)
    heads = tuple(f"{head}." for head in (*NOT_BACKBONE, *classifiers(backbone)))
    own = backbone.state_dict()
    found = {key: value for key, value in renamed.items() if key in own or not key.startswith(heads)}
    for key, value in found.items():
        if (
            key in weights
            and weights[key].shape != value.shape
            and not (key == "pos_embed" and _may_be_resampled(weights, backbone, source=source, resampling=resampling))
        ):
            found[key] = weights[key]
    kept = {value.data_ptr() for value in renamed.values()}
    dropped = {
        key: value
        for key, value in weights.items()
        if key not in renamed
        and key not in beside
        and value.data_ptr() not in kept
        and not any(part in key for part in JOINED)
    }
    return found | dropped


def _may_be_resampled(weights: Mapping[str, Tensor], backbone: nn.Module, *, source: str, resampling: bool) -> bool:
    """Whether the position embedding that timm gives instead of the file's is taken."""
    own: Tensor = backbone.pos_embed  # type: ignore[assignment]
    num_prefix = 0 if getattr(backbone, "no_embed_class", False) else int(backbone.num_prefix_tokens)  # type: ignore[arg-type]
    num_here = own.shape[1] - num_prefix
    num_there = weights["pos_embed"].shape[1] - (1 if "register_tokens" in weights else num_prefix)
    if num_there == num_here:
        return True
    edge = math.isqrt(max(num_there, 0))
    if not resampling or edge**2 != num_there or edge == 0:
        return False
    rows, columns = backbone.patch_embed.grid_size  # type: ignore[union-attr, misc]
    logger.info(
        "%s: position embeddings of %d x %d patches became %d x %d (bicubic, antialiased)",
        source, edge, edge, rows, columns,
    )  # fmt: skip
    return True


def classifiers(backbone: nn.Module) -> tuple[str, ...]:
    """timm's names of a backbone's classification layers."""
    named = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)

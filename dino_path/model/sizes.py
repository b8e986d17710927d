"""How large backbones are, counted on the built models: the table of `dino-path models`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dino_path.errors import ConfigError
from dino_path.model.backbone import (
    Argument,
    build_backbone,
    count_parameters,
    features_and_tokens,
    has_patch_tokens,
)
from dino_path.model.known_sizes import KNOWN

FOOTNOTES = """M: million parameters, without a classifier.
GFLOPs: 1e9 operations for one image, matrix products and convolutions; a multiply-add counts as two (GMACs are half).
* at the largest multiple of the patch size below that edge.  -: does not take this edge, or has no such number."""


@dataclass(frozen=True)
class BackboneSize:
    """One row of the table.

    Attributes:
        width: features per image. Depth, MLP and heads are None for what is no ViT.
        gflops: per edge in pixels; None: the model does not take it.
        counted_px: the edge that was counted: the same, or the largest multiple of the patch size below.
        takes_local_views: whether images of the edge of local views are taken.
    """

    name: str
    backbone: str
    arguments: Mapping[str, Argument]
    width: int
    depth: int | None
    mlp: int | None
    heads: int | None
    num_parameters: int
    gflops: Mapping[int, float | None]
    counted_px: Mapping[int, int]
    takes_local_views: bool


def backbone_size(name: str, edges_px: Sequence[int], local_px: int) -> BackboneSize:
    """Build a backbone without memory for its weights, and count.

    Args:
        name: a name of `KNOWN`, or a timm model name.

    Raises:
        ConfigError: timm has no such model.
    """
    backbone, arguments = KNOWN.get(name, (name, {}))
    with torch.device("meta"):
        model = build_backbone(backbone, arguments).eval()
    patch_px = int(model.patch_embed.patch_size[0]) if _is_vit(model) else 1  # type: ignore[union-attr, index]
    block = model.blocks[0] if _is_vit(model) else None  # type: ignore[index]
    counted_px = {edge: edge // patch_px * patch_px for edge in edges_px}
    return BackboneSize(
        name=name,
        backbone=backbone,
        arguments=arguments,
        width=int(model.num_features),  # type: ignore[arg-type]
        depth=len(model.blocks) if block else None,  # type: ignore[arg-type]
        mlp=block.mlp.fc1.out_features if block else None,  # type: ignore[union-attr]
        heads=block.attn.num_heads if block else None,  # type: ignore[union-attr]
        num_parameters=count_parameters(model),
        gflops={edge: _gflops(model, counted) for edge, counted in counted_px.items()},
        counted_px=counted_px,
        takes_local_views=_gflops(model, local_px) is not None,
    )


@torch.inference_mode()
def patch_grid(name: str, arguments: Mapping[str, Argument], view_px: int) -> tuple[int, int]:
    """(rows, columns) of the patches of a square view, asked of a model without memory for its weights.

    Raises:
        ConfigError: timm cannot build the model, it has no patch tokens on a square grid, or takes no such view.
    """
    with torch.device("meta"):
        model = build_backbone(name, arguments).eval()
    found = "it has no patch tokens."
    if has_patch_tokens(model):
        try:
            _, tokens = features_and_tokens(model, torch.empty(1, 3, view_px, view_px, device="meta"))
        except (RuntimeError, AssertionError, ValueError) as error:
            found = f"it does not take views of {view_px} px ({' '.join(str(error).split())[:200]})."
        else:
            num_patches = tokens.shape[1] - int(model.num_prefix_tokens)  # type: ignore[arg-type]
            edge = math.isqrt(num_patches)
            if edge**2 == num_patches:
                return edge, edge
            found = f"its {num_patches} patches of a view of {view_px} px do not form a square grid."
    raise ConfigError(
        f"model.backbone={name}",
        found,
        "iBOT hides patches and objective.distill.patches compares them: a ViT is needed, and views.global_px must be a"
        " multiple of its patch size.",
        "Use vit_small_patch16_224 or a similar model, change views.global_px, or set objective.ibot.weight=0 and"
        " objective.distill.patches=0.",
    )


def size_table(
    rows: Sequence[BackboneSize], edges_px: Sequence[int], local_px: int
) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table; `FOOTNOTES` belong below it."""
    head = ["", "width", "depth", "MLP", "heads", "M", *(f"GFLOPs {edge}" for edge in edges_px), f"{local_px} px views"]
    return [*head, "timm model {model.arguments}"], [_cells(row) for row in rows]


def _cells(row: BackboneSize) -> list[str]:
    gflops = [
        "-" if count is None else f"{count:.1f}" + ("" if row.counted_px[edge] == edge else "*")
        for edge, count in row.gflops.items()
    ]
    shape = ["-" if value is None else str(value) for value in (row.width, row.depth, row.mlp, row.heads)]
    arguments = ", ".join(f"{key}: {value}" for key, value in row.arguments.items())
    told = row.backbone + (f" {{{arguments}}}" if arguments else "")
    takes_local_views = "yes" if row.takes_local_views else "no"
    return [row.name, *shape, f"{row.num_parameters / 1e6:.1f}", *gflops, takes_local_views, told]


def _is_vit(model: nn.Module) -> bool:
    block = next(iter(getattr(model, "blocks", [])), None)
    return all(hasattr(block, part) for part in ("attn", "mlp")) and hasattr(model, "patch_embed")


@torch.inference_mode()
def _gflops(model: nn.Module, edge_px: int) -> float | None:
    """1e9 operations of one forward pass; None: the model refuses an image of this edge."""
    with FlopCounterMode(display=False) as counter:
        try:
            model(torch.empty(1, 3, edge_px, edge_px, device="meta"))
        except (RuntimeError, AssertionError, ValueError):
            return None
    return float(counter.get_total_flops()) / 1e9

"""Low-rank adapters on the linear layers of a backbone's blocks (LoRA; Hu et al. 2021, arXiv:2106.09685).

For a ViT these are the attention's `qkv` and `proj` and the MLP's `fc1` and `fc2`. The weights beside the adapters keep
timm's names and values. We do not use peft, because it renames every adapted layer (`qkv.base_layer.weight`), while
start weights, checkpoints, layer decay and export use timm's names, and because it depends on transformers and
accelerate.

Shape suffixes: I inputs and O outputs of a layer, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_path.config import ModelConfig
from dino_path.errors import ConfigError
from dino_path.model.backbone import blocks_of

DOWN, UP = ".lora_down", ".lora_up"


class LoraLinear(nn.Linear):
    """x W' + b + scale (x A') B', where A (R, I), `lora_down`, and B (O, R), `lora_up`, are trained.

    A starts like the weights of nn.Linear and B at zero, so that the layer is unchanged at first (microsoft/LoRA
    `loralib/layers.py`).
    """

    def __init__(self, plain: nn.Linear, rank: int, scale: float) -> None:
        # On "meta", because the weights made here are replaced at once by those of `plain`.
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        self.weight, self.bias, self.scale = plain.weight, plain.bias, scale
        self.lora_down = nn.Parameter(plain.weight.new_empty(rank, plain.in_features))
        self.lora_up = nn.Parameter(plain.weight.new_zeros(plain.out_features, rank))
        nn.init.kaiming_uniform_(self.lora_down, a=math.sqrt(5))

    def forward(self, input: Tensor) -> Tensor:
        adapted = F.linear(F.linear(input, self.lora_down), self.lora_up)
        return F.linear(input, self.weight, self.bias) + self.scale * adapted


def add_adapters(backbone: nn.Module, model: ModelConfig) -> None:
    """Give every linear layer of the blocks an adapter of `model.lora_rank`; the rest of the backbone is frozen.

    Raises:
        ConfigError: the backbone has no such layers, or does not call them.
    """
    assert model.lora_rank is not None
    backbone.requires_grad_(False)
    num_layers = 0
    for parent in [module for block in blocks_of(backbone) for module in block.modules()]:
        # BEiT and Swin v2 pass `qkv.weight` to F.linear themselves: the adapter's forward pass would never run.
        if getattr(parent, "q_bias", None) is not None:
            raise _no_adapters(model, "uses its attention weights without calling the layer")
        for name, layer in [*parent.named_children()]:
            if type(layer) is nn.Linear:
                setattr(parent, name, LoraLinear(layer, model.lora_rank, model.lora_scale))
                num_layers += 1
    if num_layers == 0:
        raise _no_adapters(model, "has no blocks with linear layers")


def merged(weights: Mapping[str, Tensor], model: ModelConfig) -> dict[str, Tensor]:
    """A backbone's weights under timm's names, with the adapters merged: W + scale B A."""
    plain = {name: value for name, value in weights.items() if not name.endswith((DOWN, UP))}
    with torch.no_grad():
        for name in weights:
            if name.endswith(UP):
                layer = name.removesuffix(UP)
                plain[f"{layer}.weight"] = torch.addmm(
                    weights[f"{layer}.weight"], weights[name], weights[layer + DOWN], alpha=model.lora_scale
                )
    return plain


def _no_adapters(model: ModelConfig, found: str) -> ConfigError:
    return ConfigError(
        f"model.lora_rank={model.lora_rank}",
        f"{model.backbone} {found}.",
        "Adapters are for backbones of blocks with attention and MLPs, such as a ViT.",
        "Use a ViT, or leave model.lora_rank out.",
    )

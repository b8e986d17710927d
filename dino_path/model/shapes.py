"""Recognises the timm model of weights by their names and shapes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import timm
from torch import Tensor

from dino_path.model.backbone import Argument

# ViTs that have names, by width and number of blocks. The number of heads is in no weight's shape, but in timm's model.
VITS = {
    (192, 12): "tiny", (384, 12): "small", (768, 12): "base", (1024, 24): "large", (1280, 32): "huge",
    (1536, 40): "giant", (4096, 40): "7b",
}  # fmt: skip
# ResNets by the number of blocks in their stages, and whether these are bottlenecks.
RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18", ((3, 4, 6, 3), False): "resnet34", ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101", ((3, 8, 36, 3), True): "resnet152",
}  # fmt: skip
REGISTERS = ("register_tokens", "storage_tokens", "reg_token")  # DINOv2's name, DINOv3's, timm's
# Weights of the gate in a gated MLP: DINOv2's name, DINOv3's, timm's; timm's packed one tells by its width.
GATES = ("blocks.0.mlp.w12.weight", "blocks.0.mlp.w1.weight", "blocks.0.mlp.fc1_g.weight")


@dataclass(frozen=True)
class TimmModel:
    """A timm model that weights fill.

    Attributes:
        name: of timm.
        arguments: further arguments of timm.create_model.
        input_px: edge of the images that its position embedding is for; of a model without one, timm's.
    """

    name: str
    arguments: dict[str, Argument]
    input_px: int

    def settings(self) -> str:
        """As they are typed."""
        arguments = ", ".join(f"{key}: {value}" for key, value in self.arguments.items())
        return f"model.backbone={self.name}" + (f' "model.arguments={{{arguments}}}"' if arguments else "")


@dataclass(frozen=True)
class _Vit:
    """Facts about a ViT from the shapes of its weights, under DINO's, DINOv2's, DINOv3's or timm's names."""

    width: int
    depth: int
    patch_px: int
    num_registers: int
    has_layer_scale: bool
    is_gated: bool
    is_dinov3: bool
    has_qkv_bias: bool
    grid: int | None
    """Patches along one edge; None: no position embedding, or not of a square."""

    def text(self) -> str:
        further = [
            f"{self.num_registers} registers" if self.num_registers else "",
            "LayerScale" if self.has_layer_scale else "",
            "gated MLPs" if self.is_gated else "",
            "rotary positions" if self.is_dinov3 else "",
        ]
        also = ", ".join(each for each in further if each)
        described = f"a ViT of width {self.width}, patch size {self.patch_px} and {self.depth} blocks"
        return described + (f", with {also}" if also else "")


def timm_model_of_shapes(weights: Mapping[str, Tensor]) -> TimmModel | None:
    """The timm model of a backbone's weights, by their names and shapes; None if not recognised.

    Args:
        weights: of a backbone alone, under timm's names or those of facebookresearch's dino, dinov2 or dinov3.
    """
    vit = _vit(weights)
    if vit is not None:
        named = _name_of(vit)
        return timm_model_named(named[0], weights, named[1]) if named else None
    middle = weights.get("layer1.0.conv2.weight")
    if "conv1.weight" not in weights or middle is None or middle.shape[0] != 64:  # 64: neither wide nor grouped
        return None
    name = RESNETS.get((_resnet_stages(weights), "layer1.0.conv3.weight" in weights))
    return TimmModel(name, {}, 224) if name else None


def timm_model_named(
    name: str, weights: Mapping[str, Tensor], arguments: Mapping[str, Argument] | None = None
) -> TimmModel:
    """The timm model `name` with the arguments that fit its images, and its output, to these weights."""
    vit, further = _vit(weights), dict(arguments or {})
    usual_px = int(getattr(timm.get_pretrained_cfg(name), "input_size", (3, 224, 224))[-1])
    input_px = vit.grid * vit.patch_px if vit is not None and vit.grid is not None else usual_px
    if input_px != usual_px:
        further["img_size"] = input_px
    if vit is not None and vit.is_dinov3:  # timm's has the mean of the patches as its features, theirs has [CLS]
        further["global_pool"] = "token"
    return TimmModel(name, further, input_px)


def looks_like(weights: Mapping[str, Tensor]) -> str | None:
    """The model of a backbone's weights, in words; None if not recognised."""
    told = timm_model_of_shapes(weights)
    vit, stages = _vit(weights), _resnet_stages(weights)
    if vit is not None:
        return f"{told.name} ({vit.text()})" if told else vit.text()
    if "conv1.weight" in weights and all(stages):
        return told.name if told else f"a ResNet of {stages} blocks"
    stages = tuple(count(weights, f"stages.{stage}.blocks.") for stage in range(4))
    return f"a ConvNeXt of {stages} blocks" if "stages.0.blocks.0.conv_dw.weight" in weights else None


def is_dinov3(weights: Mapping[str, Tensor]) -> bool:
    """Whether a backbone's weights have facebookresearch/dinov3's names."""
    return "storage_tokens" in weights or "rope_embed.periods" in weights


def count(weights: Iterable[str], prefix: str) -> int:
    """The number of numbered parts below a prefix."""
    return len({key.removeprefix(prefix).partition(".")[0] for key in weights if key.startswith(prefix)})


def _vit(weights: Mapping[str, Tensor]) -> _Vit | None:
    projection, depth = weights.get("patch_embed.proj.weight"), count(weights, "blocks.")
    if projection is None or projection.ndim != 4 or not depth:
        return None
    registers = next((weights[name].shape[1] for name in REGISTERS if name in weights), 0)
    into, out = weights.get("blocks.0.mlp.fc1.weight"), weights.get("blocks.0.mlp.fc2.weight")
    is_packed = into is not None and out is not None and into.shape[0] == 2 * out.shape[1]
    v3 = is_dinov3(weights) or ("blocks.0.gamma_1" in weights and "pos_embed" not in weights)
    return _Vit(
        width=projection.shape[0],
        depth=depth,
        patch_px=projection.shape[-1],
        num_registers=registers,
        has_layer_scale="blocks.0.ls1.gamma" in weights or "blocks.0.gamma_1" in weights,
        is_gated=is_packed or any(name in weights for name in GATES),
        is_dinov3=v3,
        has_qkv_bias=v3 and _has_bias(weights),
        grid=_grid(weights, registers),
    )


def _has_bias(weights: Mapping[str, Tensor]) -> bool:
    """Whether queries and values of a DINOv3 have a bias."""
    in_one = [value for key, value in weights.items() if key.endswith("attn.qkv.bias")]
    return "blocks.0.attn.q_bias" in weights or any(has_query_or_value_bias(bias) for bias in in_one)


def has_query_or_value_bias(bias: Tensor) -> bool:
    """Whether a bias of queries, keys and values, in thirds, does anything.

    That of the keys does nothing: it adds the same to a query's products with all keys, and softmax takes it away.
    """
    return bool(bias.reshape(3, -1)[[0, 2]].any())


def _grid(weights: Mapping[str, Tensor], num_registers: int) -> int | None:
    """Patches along an edge: the position embedding covers them and [CLS], or them alone, or registers too."""
    if "pos_embed" not in weights:
        return None
    for num_others in (1, 0, 1 + num_registers):
        num_patches = max(weights["pos_embed"].shape[1] - num_others, 0)
        if num_patches and math.isqrt(num_patches) ** 2 == num_patches:
            return math.isqrt(num_patches)
    return None


def _name_of(vit: _Vit) -> tuple[str, dict[str, Argument]] | None:
    """timm's name of a ViT, and the arguments with which it is that one."""
    size = VITS.get((vit.width, vit.depth))
    if size is None:
        return None
    if vit.is_dinov3:
        plus = "_plus" if (vit.is_gated and size != "7b") else ""
        bias = "_qkvb" if vit.has_qkv_bias else ""
        name = f"vit_{size}{plus}_patch{vit.patch_px}_dinov3{bias}"
        return (name, {}) if timm.is_model(name) and vit.num_registers == 4 else None
    registers: dict[str, Argument] = {"reg_tokens": vit.num_registers, "no_embed_class": True}
    if vit.patch_px == 14 and vit.has_layer_scale and vit.is_gated == (size == "giant"):
        name = f"vit_{size}_patch14_{'reg4_' if vit.num_registers else ''}dinov2"
        if timm.is_model(name):
            return name, {} if vit.num_registers in (0, 4) else registers
    if vit.is_gated:
        return None
    arguments: dict[str, Argument] = {"init_values": 1e-5} if vit.has_layer_scale else {}
    arguments |= registers if vit.num_registers else {}
    name, usual = f"vit_{size}_patch{vit.patch_px}_224", f"vit_{size}_patch16_224"
    if timm.is_model(name):
        return name, arguments
    return (usual, {"patch_size": vit.patch_px, **arguments}) if timm.is_model(usual) else None


def _resnet_stages(weights: Mapping[str, Tensor]) -> tuple[int, ...]:
    return tuple(count(weights, f"layer{stage}.") for stage in range(1, 5))

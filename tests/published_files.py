"""Random weights under the names and in the shapes of published files, and the forward pass of those who wrote them.

Written from the formulas of facebookresearch's dino, dinov2 and dinov3, over plain dicts of their key names.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def vit_weights(
    patch_px: int,
    *,
    width: int = 32,
    depth: int = 2,
    grid: int | None = 3,
    registers: int = 0,
    layer_scale: bool = True,
    mlp: str = "fc1 fc2",
    masks: bool = True,
    seed: int = 0,
) -> Weights:
    """A bare backbone as DINOv2 names it.

    Args:
        grid: patches along an edge that the position embedding is for; None: it has none.
        mlp: its layers: `fc1 fc2`, or gated, `w12 w3` (DINOv2) or `w1 w2 w3` (DINOv3).
        masks: whether it has a mask token.
    """
    hidden = 4 * width if mlp == "fc1 fc2" else (int(4 * width * 2 / 3) + 7) // 8 * 8  # DINOv2's rule for w12
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        **({"pos_embed": (1, grid**2 + 1, width)} if grid is not None else {}),
        **({"register_tokens": (1, registers, width)} if registers else {}),
        **({"mask_token": (1, width)} if masks else {}),
        "patch_embed.proj.weight": (width, 3, patch_px, patch_px),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    layers = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    for layer in mlp.split():
        wide = 2 * hidden if layer == "w12" else hidden
        layers[f"mlp.{layer}"] = (width, hidden) if layer in ("fc2", "w3") else (wide, width)
    for number in range(depth):
        block: dict[str, tuple[int, ...]] = {f"norm{n}.{kind}": (width,) for n in (1, 2) for kind in ("weight", "bias")}
        for layer, shape in layers.items():
            block |= {f"{layer}.weight": shape, f"{layer}.bias": shape[:1]}
        if layer_scale:
            block |= {"ls1.gamma": (width,), "ls2.gamma": (width,)}
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block.items()}
    torch.manual_seed(seed)
    return {
        name: 0.1 * torch.randn(shape) + float("gamma" in name or ("norm" in name and name.endswith("weight")))
        for name, shape in shapes.items()
    }


def dinov3_weights(*, width: int = 32, heads: int = 2, depth: int = 2, bias: bool, mlp: str = "fc1 fc2") -> Weights:
    """A bare backbone as DINOv3 names it, patch 16.

    Args:
        bias: whether queries and values have one that is not zero; that of the keys is masked, whatever it is.
    """
    weights = vit_weights(16, width=width, depth=depth, grid=None, registers=4, mlp=mlp)
    weights["storage_tokens"] = weights.pop("register_tokens")
    quarter = width // heads // 4
    weights["rope_embed.periods"] = 100.0 ** (torch.arange(quarter) / quarter)
    for number in range(depth):
        mask = torch.ones(3, width)
        mask[1] = 0
        weights[f"blocks.{number}.attn.qkv.bias_mask"] = mask.flatten()
        if not bias:
            weights[f"blocks.{number}.attn.qkv.bias"] *= 1 - mask.flatten()
    return weights | {"local_cls_norm.weight": torch.ones(width), "local_cls_norm.bias": torch.zeros(width)}


def grouped(weights: Weights, *, size: int = 1) -> Weights:
    """Blocks in groups of `size`, as DINOv2 names them in training: `blocks.GROUP.BLOCK.`."""
    found = {}
    for key, value in weights.items():
        if key.startswith("blocks."):
            number = int(key.split(".")[1])
            key = f"blocks.{number // size}.{key.removeprefix('blocks.')}"
        found[key] = value
    return found


def tokens_of(weights: Weights, images: Tensor, *, heads: int) -> Tensor:
    """(B, 1 + R + N, D): their forward pass at the size of the position embedding, after the last norm."""
    rotary = "rope_embed.periods" in weights
    width, eps = weights["cls_token"].shape[-1], 1e-5 if rotary else 1e-6
    kernel = weights["patch_embed.proj.weight"]

    def norm(name: str, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, (width,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps=eps)

    def linear(name: str, tokens: Tensor) -> Tensor:
        bias = weights[f"{name}.bias"] * weights.get(f"{name}.bias_mask", 1.0)
        return F.linear(tokens, weights[f"{name}.weight"], bias)

    def mlp(name: str, tokens: Tensor) -> Tensor:
        if f"{name}.fc1.weight" in weights:
            return linear(f"{name}.fc2", F.gelu(linear(f"{name}.fc1", tokens)))
        if f"{name}.w12.weight" in weights:
            gate, value = linear(f"{name}.w12", tokens).chunk(2, dim=-1)
        else:
            gate, value = linear(f"{name}.w1", tokens), linear(f"{name}.w2", tokens)
        return linear(f"{name}.w3", F.silu(gate) * value)

    patches = F.conv2d(images, kernel, weights["patch_embed.proj.bias"], stride=kernel.shape[-1])
    rows, columns = patches.shape[2:]
    tokens = torch.cat([weights["cls_token"].expand(len(images), -1, -1), patches.flatten(2).mT], dim=1)
    tokens = tokens + weights["pos_embed"] if "pos_embed" in weights else tokens
    registers = weights.get("register_tokens", weights.get("storage_tokens"))
    if registers is not None:
        tokens = torch.cat([tokens[:, :1], registers.expand(len(images), -1, -1), tokens[:, 1:]], dim=1)
    num_prefix = tokens.shape[1] - rows * columns
    for number in range(1 + max(int(key.split(".")[1]) for key in weights if key.startswith("blocks."))):
        block = f"blocks.{number}"
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", tokens))
        query, key, value = qkv.unflatten(2, (3, heads, width // heads)).permute(2, 0, 3, 1, 4)
        if rotary:
            query, key = (
                torch.cat([one[:, :, :num_prefix], _rotated(one[:, :, num_prefix:], weights, rows, columns)], dim=2)
                for one in (query, key)
            )
        attention = (query @ key.mT / (width // heads) ** 0.5).softmax(dim=-1)
        mixed = linear(f"{block}.attn.proj", (attention @ value).transpose(1, 2).flatten(2))
        tokens = tokens + weights.get(f"{block}.ls1.gamma", 1.0) * mixed
        tokens = tokens + weights.get(f"{block}.ls2.gamma", 1.0) * mlp(f"{block}.mlp", norm(f"{block}.norm2", tokens))
    return norm("norm", tokens)


def _rotated(vectors: Tensor, weights: Weights, rows: int, columns: int) -> Tensor:
    """Patches' queries or keys turned by their places: half of the angles follow the row, half the column."""
    y, x = ((2 * (torch.arange(count) + 0.5) / count - 1) for count in (rows, columns))
    places = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)
    angles = (2 * math.pi * places[:, :, None] / weights["rope_embed.periods"]).flatten(1).tile(2)
    one, other = vectors.chunk(2, dim=-1)
    return vectors * angles.cos() + torch.cat([-other, one], dim=-1) * angles.sin()


def head_weights(
    features: int, *, hidden: int = 24, bottleneck: int = 16, prototypes: int = 20, plain: bool
) -> Weights:
    """A projection head of three layers; the prototypes plain (DINOv3) or with weight norm (DINO, DINOv2)."""
    widths = {"mlp.0": (hidden, features), "mlp.2": (hidden, hidden), "mlp.4": (bottleneck, hidden)}
    weights = {f"{name}.weight": torch.randn(shape) for name, shape in widths.items()}
    weights |= {f"{name}.bias": torch.randn(shape[0]) for name, shape in widths.items()}
    rows = torch.randn(prototypes, bottleneck)
    if plain:
        return weights | {"last_layer.weight": rows}
    return weights | {"last_layer.weight_v": rows, "last_layer.weight_g": torch.rand(prototypes, 1)}


def logits_of(head: Weights, features: Tensor) -> Tensor:
    """Their head's forward pass."""
    for name in ("mlp.0", "mlp.2", "mlp.4"):
        features = F.linear(features, head[f"{name}.weight"], head[f"{name}.bias"])
        features = F.gelu(features) if name != "mlp.4" else features
    rows = head.get("last_layer.weight")
    if rows is None:
        rows = F.normalize(head["last_layer.weight_v"], dim=1) * head["last_layer.weight_g"]
    return F.linear(F.normalize(features, dim=-1), rows)

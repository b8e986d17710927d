"""Shifted Patch Tokenization and Locality Self-Attention against their formulas, value and gradient."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_batches, tiny_config, tiny_learner, tiny_schedules
from torch import Tensor

from dino_path.config import ModelConfig
from dino_path.errors import ConfigError
from dino_path.model.backbone import build_backbone
from dino_path.model.locality import LocalitySelfAttention, ShiftedPatchTokenization
from dino_path.training.step import train_step

NAME = "vit_tiny_patch16_224"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
BOTH = {"shifted_patch_tokenization": True, "locality_self_attention": True}


def slow_tokenization(module: ShiftedPatchTokenization, image_CHW: np.ndarray, patch_px: int) -> np.ndarray:
    """S(x) = LN(P([x, s1, s2, s3, s4])) E, one patch and one pixel at a time; (h * w, D)."""
    channels, height, width = image_CHW.shape
    shift = patch_px // 2

    def pixel(channel: int, y: int, x: int) -> float:
        return image_CHW[channel, y, x] if 0 <= y < height and 0 <= x < width else 0.0

    shifts = [(0, 0), (-shift, -shift), (-shift, shift), (shift, -shift), (shift, shift)]
    scale, offset = module.norm.weight.detach().numpy(), module.norm.bias.detach().numpy()
    weight, bias = module.proj.weight.detach().numpy(), module.proj.bias.detach().numpy()
    tokens = []
    for top in range(0, height, patch_px):
        for left in range(0, width, patch_px):
            values = np.array([
                pixel(channel, y + dy, x + dx)
                for y in range(top, top + patch_px) for x in range(left, left + patch_px)
                for dy, dx in shifts for channel in range(channels)
            ])  # fmt: skip
            normed = (values - values.mean()) / np.sqrt(values.var() + module.norm.eps) * scale + offset
            tokens.append(weight @ normed + bias)
    return np.array(tokens)


@pytest.mark.parametrize("patch_px", [4, 7])
def test_tokens_are_those_of_the_papers_formula(patch_px: int) -> None:
    torch.manual_seed(0)
    arguments = {**SMALL, "img_size": 2 * patch_px, "patch_size": patch_px, "shifted_patch_tokenization": True}
    module = build_backbone(NAME, arguments).patch_embed.double()
    assert isinstance(module, ShiftedPatchTokenization)
    torch.nn.init.normal_(module.norm.weight)
    images = torch.randn(2, 3, 2 * patch_px, 3 * patch_px, dtype=torch.float64)
    tokens = module(images)
    assert tokens.shape == (2, 2, 3, 24)
    for image, found in zip(images, tokens, strict=True):
        expected = slow_tokenization(module, image.numpy(), patch_px)
        np.testing.assert_allclose(found.flatten(0, 1).detach().numpy(), expected, atol=1e-12)


def slow_attention(module: LocalitySelfAttention, tokens_BND: Tensor) -> Tensor:
    """softmax(R / tau) v with R_ij = q_i k_j, and -inf where i = j; tau is each head's own."""
    images = []
    for tokens_ND in tokens_BND:
        query, key, value = (tokens_ND @ module.qkv.weight.T + module.qkv.bias).chunk(3, dim=1)
        width = query.shape[1] // module.num_heads
        heads = []
        for head in range(module.num_heads):
            part = slice(head * width, (head + 1) * width)
            similarity = query[:, part] @ key[:, part].T * module.inverse_temperature[head]
            similarity = similarity.masked_fill(torch.eye(len(tokens_ND), dtype=torch.bool), -torch.inf)
            heads.append(similarity.exp() / similarity.exp().sum(dim=1, keepdim=True) @ value[:, part])
        images.append(torch.cat(heads, dim=1) @ module.proj.weight.T + module.proj.bias)
    return torch.stack(images)


def test_attention_is_that_of_the_papers_formula_in_value_and_gradient() -> None:
    torch.manual_seed(0)
    module = build_backbone(NAME, {**SMALL, "locality_self_attention": True}).blocks[0].attn.double()
    assert isinstance(module, LocalitySelfAttention)
    assert module.inverse_temperature.tolist() == pytest.approx([12**-0.5] * 2), "it starts at timm's fixed scale"
    with torch.no_grad():
        module.inverse_temperature.copy_(torch.tensor([0.2, 1.3]))
    tokens = torch.randn(2, 5, 24, dtype=torch.float64)
    direction = torch.randn(2, 5, 24, dtype=torch.float64)
    gradients = []
    for forward in (module, lambda tokens: slow_attention(module, tokens)):
        found = forward(tokens)
        module.zero_grad()
        (found * direction).sum().backward()
        gradients.append([found.detach(), *(parameter.grad.clone() for parameter in module.parameters())])
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


@pytest.mark.parametrize("arguments", [{key: True} for key in BOTH] + [BOTH], ids=lambda a: "+".join(a))
@pytest.mark.parametrize("extra", [{}, {"reg_tokens": 4, "init_values": 1e-5}], ids=["plain", "registers, layer scale"])
def test_views_of_several_sizes_are_taken_with_stochastic_depth(
    arguments: dict[str, bool], extra: dict[str, float]
) -> None:
    backbone = build_backbone(NAME, {**SMALL, **extra, **arguments}, drop_path_rate=0.2)
    for edge_px in (32, 16, 48):
        features = backbone(torch.randn(2, 3, edge_px, edge_px))
        assert features.shape == (2, 24)
        assert features.isfinite().all()
    fixed = build_backbone(NAME, {**SMALL, **arguments, "dynamic_img_size": False})
    assert fixed(torch.randn(2, 3, 32, 32)).shape == (2, 24)


def test_a_switch_that_is_off_leaves_timms_model_as_it_is() -> None:
    assert ModelConfig().backbone_arguments == {}
    assert ModelConfig(shifted_patch_tokenization=True).backbone_arguments == {"shifted_patch_tokenization": True}
    plain = build_backbone(NAME, SMALL).state_dict()
    off = build_backbone(NAME, {**SMALL, **dict.fromkeys(BOTH, False)}).state_dict()
    assert {key: tensor.shape for key, tensor in off.items()} == {key: tensor.shape for key, tensor in plain.items()}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("resnet18", {}), ("swin_tiny_patch4_window7_224", {}), (NAME, {"scale_attn_norm": True})],
)
def test_what_is_no_plain_vit_is_refused(name: str, arguments: dict[str, bool]) -> None:
    with pytest.raises(ConfigError, match="does not support this"):
        build_backbone(name, {**arguments, **BOTH})


def test_a_training_step_moves_the_temperatures_without_decay(tiles_folder: Path, tmp_path: Path) -> None:
    config = tiny_config(tiles_folder, tmp_path, *(f"model.{key}=true" for key in BOTH), "model.drop_path_rate=0.1")
    learner = tiny_learner(config)
    attention = learner.student.backbone.blocks[0].attn
    before = attention.inverse_temperature.detach().clone()
    batches, schedules = tiny_batches(config), tiny_schedules(config)
    for step in range(3):
        train_step(learner, [batches.batch(step)], schedules.at(step), step=step)
    assert not torch.equal(attention.inverse_temperature, before)
    plain = learner.optimizer.param_groups[1]["params"]
    assert any(parameter is attention.inverse_temperature for parameter in plain)

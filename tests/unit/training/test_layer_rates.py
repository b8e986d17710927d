"""Each parameter's share of the learning rate: layer decay, and the patch embedding's own factor."""

from pathlib import Path

import pytest
from tiny import PATCHES, tiny_config, tiny_learner

from dino_path.model.backbone import Argument, build_backbone
from dino_path.model.head import DinoHead, DinoNetwork
from dino_path.training.optimizer import lr_factors

LAYERS = {  # of a ViT of two blocks, and what the rule of dinov2's `get_vit_lr_decay_rate` gives it with 0.5
    "backbone.cls_token": 0.125, "backbone.reg_token": 0.125, "backbone.pos_embed": 0.125, "mask_token.weight": 0.125,
    "backbone.patch_embed.proj.weight": 0.125 * 0.2, "backbone.patch_embed.proj.bias": 0.125 * 0.2,
    **{
        f"backbone.blocks.{number}.{name}": factor
        for number, factor in enumerate((0.25, 0.5))
        for name in (
            "norm1.weight", "norm1.bias", "attn.qkv.weight", "attn.qkv.bias", "attn.proj.weight", "attn.proj.bias",
            "ls1.gamma", "norm2.weight", "norm2.bias", "mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight",
            "mlp.fc2.bias", "ls2.gamma",
        )
    },
    "backbone.norm.weight": 1.0, "backbone.norm.bias": 1.0,
    **{
        f"{head}.{name}": 1.0
        for head in ("head", "patch_head")
        for name in (
            *(f"mlp.{layer}.{name}" for layer in (0, 2, 4) for name in ("weight", "bias")),
            "last_layer.weight_v", "last_layer.weight_g",
        )
    },
}  # fmt: skip
SETTINGS = (
    *PATCHES, "optim.layer_decay=0.5", "optim.patch_embed_lr=0.2",
    "model.arguments={img_size: 32, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2, reg_tokens: 4,"
    " init_values: 0.1}",
)  # fmt: skip


def test_layer_decay_of_a_vit_is_that_of_dinov2_for_every_parameter(tiles_folder: Path) -> None:
    config = tiny_config(tiles_folder, Path("unused"), *SETTINGS)
    assert lr_factors(tiny_learner(config).student, config.optim) == pytest.approx(LAYERS)


def test_the_optimizer_uses_each_parameters_factor_and_decays_as_without(tiles_folder: Path) -> None:
    config = tiny_config(tiles_folder, Path("unused"), *SETTINGS, "objective.dino.norm_last_layer=false")
    learner = tiny_learner(config)
    names = {id(value): name for name, value in learner.student.named_parameters()}
    found = {
        names[id(value)]: (group["lr_factor"], group["is_decayed"])
        for group in learner.optimizer.param_groups
        for value in group["params"]
    }
    plain = {name for name, value in learner.student.named_parameters() if value.ndim == 1}
    assert {name: factor for name, (factor, _) in found.items()} == pytest.approx(LAYERS)
    assert {name for name, (_, is_decayed) in found.items() if not is_decayed} == plain


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet50", {}),
        ("convnext_atto", {}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 24}),
        ("vit_small_patch16_dinov3", {"embed_dim": 32, "depth": 3, "num_heads": 2}),
    ],
)
def test_layer_decay_rises_towards_the_head_in_other_backbones(name: str, arguments: dict[str, Argument]) -> None:
    backbone = build_backbone(name, arguments)
    widths = {"hidden": 8, "bottleneck": 4, "num_layers": 2}
    head = DinoHead(int(backbone.num_features), 8, **widths, batch_norm=False, norm_last_layer=True)  # type: ignore[arg-type]
    optim = tiny_config(Path(), Path("unused"), "optim.layer_decay=0.9").optim
    factors = lr_factors(DinoNetwork(backbone, head), optim)
    in_order = [factors[f"backbone.{name}"] for name, _ in backbone.named_parameters()]
    assert in_order == sorted(in_order)
    assert len({*in_order}) > 3
    assert in_order[0] < 0.75
    assert {factor for name, factor in factors.items() if name.startswith("head.")} == {1.0}
    assert max(in_order[: len(in_order) // 2]) < 0.9 <= in_order[-1]

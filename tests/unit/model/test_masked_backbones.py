"""Hidden patches in every kind of ViT: the mask token enters before positions, and no pixel gets through."""

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.layers import DropPath
from tiny import PATCHES, tiny_batches, tiny_config, tiny_learner, tiny_schedules
from torch import Tensor

from dino_path.errors import ConfigError
from dino_path.model.backbone import Argument, build_backbone
from dino_path.model.head import DinoHead, DinoNetwork, MaskToken
from dino_path.model.sizes import patch_grid
from dino_path.training.step import train_step

SMALL: dict[str, Argument] = {"embed_dim": 32, "depth": 2, "num_heads": 2}
# Name, timm's and our arguments, edges of global and local views.
VITS: dict[str, tuple[str, dict[str, Argument], int, int]] = {
    "plain": ("vit_tiny_patch16_224", {**SMALL, "img_size": 64}, 64, 32),
    "patch 8": ("vit_small_patch8_224", {**SMALL, "img_size": 32}, 32, 16),
    "patch 14, of another size": ("vit_small_patch14_dinov2", {**SMALL, "img_size": 28}, 56, 28),
    "registers, LayerScale": ("vit_tiny_patch16_224", {**SMALL, "reg_tokens": 4, "init_values": 0.1}, 64, 32),
    "SwiGLU": ("vit_giant_patch14_reg4_dinov2", {**SMALL, "img_size": 56}, 56, 28),
    "rotary positions": ("vit_small_patch16_dinov3", {**SMALL, "img_size": 64, "init_values": 0.1}, 64, 32),
    "mean of patches": ("vit_tiny_patch16_224", {**SMALL, "img_size": 64, "global_pool": "avg"}, 64, 32),
    "local attention": ("vit_tiny_patch16_224", {**SMALL, "img_size": 64, "locality_self_attention": True}, 64, 32),
    "shifted": ("vit_tiny_patch16_224", {**SMALL, "img_size": 64, "shifted_patch_tokenization": True}, 64, 32),
}
OTHERS: dict[str, dict[str, Argument]] = {
    "resnet10t": {},
    "convnext_atto": {},
    "swin_tiny_patch4_window7_224": {"embed_dim": 24, "strict_img_size": False},
}


def network_of(kind: str) -> tuple[DinoNetwork, int]:
    """In double precision, with a mask token that is not zero; and the number of patches in a row."""
    name, arguments, global_px, _ = VITS[kind]
    torch.manual_seed(0)
    backbone = build_backbone(name, arguments)
    head = DinoHead(32, 12, hidden=16, bottleneck=8, num_layers=2, batch_norm=False, norm_last_layer=True)
    network = DinoNetwork(backbone, head, mask_token=MaskToken(32)).double()
    torch.nn.init.normal_(network.mask_token.weight)  # type: ignore[union-attr]
    return network, patch_grid(name, arguments, global_px)[1]


def images_of(kind: str) -> Tensor:
    edge_px = VITS[kind][2]
    return torch.randn(2, 3, edge_px, edge_px, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def tokens_of(network: DinoNetwork, images: Tensor, hidden: Tensor | None) -> Tensor:
    """(2, P + N, D)."""
    tokens = network([images], with_patches=True, hidden=hidden).tokens
    assert isinstance(tokens, Tensor)
    return tokens


@pytest.mark.parametrize("kind", VITS)
def test_pixels_of_hidden_patches_change_nothing_and_those_of_the_others_do(kind: str) -> None:
    network, columns = network_of(kind)
    images, edge_px = images_of(kind), VITS[kind][2] // columns
    hidden = torch.zeros(2, columns**2, dtype=torch.bool)
    # All but the first: "shifted" patches hold half of their neighbours, so that pixels at the rim of a hidden patch
    # reach a visible neighbour; the last patch of the image is no neighbour of the first.
    hidden[0, 1:] = True
    tokens = tokens_of(network, images, hidden)
    changed = images.clone()
    changed[0, :, -edge_px:, -edge_px:] += 1
    assert torch.equal(tokens_of(network, changed, hidden), tokens)
    changed[0, :, :edge_px, :edge_px] += 1
    after = tokens_of(network, changed, hidden)
    assert not torch.allclose(after[0], tokens[0])
    assert torch.equal(after[1], tokens[1])
    assert torch.equal(tokens_of(network, images, torch.zeros_like(hidden)), tokens_of(network, images, None))


@pytest.mark.parametrize("kind", VITS)
def test_hidden_patches_know_their_places_and_differ_from_seen_ones_through_the_token_alone(kind: str) -> None:
    network, columns = network_of(kind)
    images, hidden = images_of(kind), torch.ones(2, columns**2, dtype=torch.bool)
    patches = tokens_of(network, images, hidden)[:, network.backbone.num_prefix_tokens :]
    torch.testing.assert_close(patches[0], patches[1], rtol=0, atol=1e-12)  # of both nothing is seen
    distances = torch.cdist(patches[0], patches[0]).fill_diagonal_(1)
    assert float(distances.min()) > 1e-9, "positions come after the token: else all patches would be equal"
    with torch.no_grad():
        network.mask_token.weight.neg_()  # which a layer norm does not undo, as it would a shift
    assert not torch.allclose(tokens_of(network, images, hidden)[:, network.backbone.num_prefix_tokens :], patches)


@pytest.mark.parametrize("kind", ["plain", "registers, LayerScale", "rotary positions"])
def test_projections_are_those_of_the_chosen_patches_in_their_order(kind: str) -> None:
    network, columns = network_of(kind)
    images, hidden = images_of(kind), torch.zeros(2, columns**2, dtype=torch.bool)
    hidden[0, [0, 5]] = hidden[1, [2, columns**2 - 1]] = True
    chosen = hidden.flatten().nonzero().flatten()
    output = network([images], with_patches=True, hidden=hidden, chosen=chosen)
    first, second = output.patches
    expected = network.head(torch.stack([first[0], first[5], second[2], second[-1]]))
    torch.testing.assert_close(output.patch_projection.logits(), expected.logits())
    torch.testing.assert_close(output.projection.logits(), network.head(output.features).logits())


def config_of(store: Path, kind: str, *settings: str) -> Any:
    name, arguments, global_px, local_px = VITS[kind]
    ours = {key: value for key, value in arguments.items() if key.endswith(("_tokenization", "_attention"))}
    plain = ", ".join(f"{key}: {value}" for key, value in arguments.items() if key not in ours)
    return tiny_config(
        store, Path("unused"), f"model.backbone={name}", f"model.arguments={{{plain}}}",
        *(f"model.{key}=true" for key in ours), f"views.global_px={global_px}", f"views.local_px={local_px}",
        "training.batch_size_per_gpu=2", *PATCHES, *settings,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((kind, ()) for kind in VITS),
        ("plain", ("training.precision=bf16", "training.fused_loss=false")),
        ("rotary positions", ("training.precision=bf16", "objective.targets.method=sinkhorn-knopp")),
        ("SwiGLU", ("model.drop_path_schedule=constant", "model.drop_path_rate=0.4", "optim.layer_decay=0.7")),
        ("registers, LayerScale", ("training.activation_checkpointing=true", "optim.decay_embeddings=false")),
        ("plain", ("training.activation_checkpointing=elementwise", "objective.dino.weight=0")),
    ],
)
def test_every_kind_of_vit_trains_with_hidden_patches(tiles_folder: Path, kind: str, settings: tuple[str, ...]) -> None:
    config = config_of(tiles_folder, kind, *settings)
    learner, batches, schedules = tiny_learner(config), tiny_batches(config), tiny_schedules(config)
    for step in (2, 3):
        report = train_step(learner, [batches.batch(step)], schedules.at(step), step=step)
        assert not report.is_skipped
        assert report.loss.isfinite()
    assert learner.student.mask_token.weight.any()
    assert learner.teacher.mask_token.weight.any()
    still = [name for name, value in learner.student.named_parameters() if value.requires_grad and value.grad is None]
    assert still == []


@pytest.mark.parametrize("name", OTHERS)
def test_backbones_without_patch_tokens_are_refused_for_patches_by_name_and_train_with_the_rest(
    tiles_folder: Path, name: str
) -> None:
    arguments = ", ".join(f"{key}: {value}" for key, value in OTHERS[name].items())
    settings = (
        f"model.backbone={name}", f"model.arguments={{{arguments}}}", "views.global_px=64", "views.local_px=32",
        "training.batch_size_per_gpu=2", "model.drop_path_rate=0", "objective.kde.weight=0.05",
        "objective.koleo.weight=0.1", "objective.targets.method=sinkhorn-knopp", "optim.layer_decay=0.8",
    )  # fmt: skip
    with pytest.raises(ConfigError, match=rf"{name}: a \w+ has no patch tokens") as refusal:
        tiny_learner(tiny_config(tiles_folder, Path("unused"), *settings, *PATCHES))
    assert "iBOT (objective.ibot.weight) needs patch tokens" in refusal.value.needed
    config = tiny_config(tiles_folder, Path("unused"), *settings)
    learner = tiny_learner(config)
    report = train_step(learner, [tiny_batches(config).batch(3)], tiny_schedules(config).at(3), step=3)
    assert not report.is_skipped
    assert {"kde", "koleo", "kde_loss", "koleo_loss", "dino_loss"} <= report.numbers.keys()


@pytest.mark.parametrize(
    ("name", "is_constant", "rates"),
    [
        ("vit_tiny_patch16_224", False, [0.0, 0.15, 0.3]),
        ("vit_small_patch16_dinov3", False, [0.0, 0.15, 0.3]),
        ("vit_small_patch16_dinov3", True, [0.3, 0.3, 0.3]),  # plain ViTs: test_stochastic_depth.py
    ],
)
def test_stochastic_depth_rises_or_is_the_same_in_every_block(name: str, is_constant: bool, rates: list[float]) -> None:
    backbone = build_backbone(name, {**SMALL, "depth": 3}, drop_path_rate=0.3, drop_path_is_constant=is_constant)
    for block, rate in zip(backbone.blocks, rates, strict=True):
        found = [
            m.drop_prob for name, m in block.named_modules() if name.startswith("drop_path") and isinstance(m, DropPath)
        ]
        assert found == pytest.approx([rate] * len(found))
        assert len(found) == (2 if rate else 0)

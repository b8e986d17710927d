"""Kinds of features of a ViT: what each is made of, and who cannot give it."""

from typing import Any

import pytest
import torch
from torch import nn

from dino_path.errors import CheckpointError
from dino_path.model.backbone import build_backbone
from dino_path.model.tokens import (
    features_and_patches,
    kind_of,
    own_kind,
    plain_backbone,
    timm_arguments,
    timm_lines,
    with_features,
)
from dino_path.records.feature_kinds import FEATURE_KINDS, FeatureKind, is_comparison, split_kind

VIT = "vit_tiny_patch16_224"
ARGUMENTS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}


def backbone(name: str = VIT, **further: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_backbone(name, {**ARGUMENTS, **further}).eval()


def images() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.inference_mode()
def test_each_kind_is_made_of_normed_tokens_and_no_register_is_in_a_mean() -> None:
    vit = backbone(reg_tokens=3)
    tokens = vit.forward_features(images())  # type: ignore[operator]
    assert tokens.shape == (2, 1 + 3 + 16, 24)
    cls, mean = tokens[:, 0], tokens[:, 4:].mean(dim=1)
    expected = {"cls": cls, "mean": mean, "cls+mean": torch.cat([cls, mean], dim=1)}
    for kind in FEATURE_KINDS:
        module = with_features(vit, kind, name="vit")
        torch.testing.assert_close(module(images()), expected[kind])
        assert (kind_of(module), plain_backbone(module)) == (kind, vit)
        assert module.num_features == expected[kind].shape[1]
        features, patches = features_and_patches(module, images())
        torch.testing.assert_close(features, expected[kind])
        torch.testing.assert_close(patches, tokens[:, 4:])
    assert with_features(vit, None, name="vit") is with_features(vit, "cls", name="vit") is vit


@torch.inference_mode()
@pytest.mark.parametrize(
    ("name", "further", "own"),
    [
        (VIT, {}, "cls"),
        (VIT, {"global_pool": "avg"}, "mean"),
        (VIT, {"global_pool": "avg", "class_token": False, "reg_tokens": 2}, "mean"),
        (VIT, {"global_pool": "avg", "pool_include_prefix": True}, None),
        (VIT, {"global_pool": "map"}, None),
        ("eva02_tiny_patch14_224", {"global_pool": "token"}, "cls"),
        ("deit_tiny_distilled_patch16_224", {}, None),
    ],
)
def test_the_kind_that_timm_pools_is_known_and_the_lines_for_timm_give_the_others(
    name: str, further: dict[str, Any], own: FeatureKind | None
) -> None:
    vit = backbone(name, **further)
    assert own_kind(vit) == own
    for kind in FEATURE_KINDS if further.get("class_token", True) else ("mean",):
        module = with_features(vit, kind, name=name)
        values: dict[str, Any] = {"torch": torch, "model": vit, "images": images()}
        exec("\n".join(timm_lines(module, "images")), values)
        torch.testing.assert_close(values["features"], module(images()))


@torch.inference_mode()
@pytest.mark.parametrize("name", [VIT, "eva02_tiny_patch14_224"])
def test_timm_itself_can_give_the_mean_of_a_network_that_pools_cls(name: str) -> None:
    vit = backbone(name, global_pool="token")
    arguments = timm_arguments(vit, "mean")
    other = backbone(name, **arguments)
    other.load_state_dict(vit.state_dict())
    assert own_kind(other) == "mean"
    torch.testing.assert_close(other(images()), with_features(vit, "mean", name="vit")(images()))
    assert timm_arguments(vit, "cls+mean") == timm_arguments(vit, None) == timm_arguments(other, "mean") == {}


def test_a_kind_that_a_network_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="gap: has no \\[CLS\\] token, but the features cls\\+mean are requested"):
        with_features(backbone(class_token=False, global_pool="avg"), "cls+mean", name="gap")
    cnn = build_backbone("resnet10t", {})
    assert own_kind(cnn) is None
    with pytest.raises(CheckpointError, match="cnn: is a ResNet: it has no patch tokens, but features mean are"):
        with_features(cnn, "mean", name="cnn")


def test_a_kind_stands_before_the_model_and_leaves_it_what_it_is() -> None:
    assert split_kind("cls+mean:untrained:timm:vit") == ("cls+mean", "untrained:timm:vit")
    assert split_kind("runs/a:mean") == (None, "runs/a:mean")
    assert split_kind("mean-colour") == (None, "mean-colour")
    assert [is_comparison(spec) for spec in ("mean:timm:vit", "mean:model", "cls:untrained:model")] == [
        True, False, True,
    ]  # fmt: skip

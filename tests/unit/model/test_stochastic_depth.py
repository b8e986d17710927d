"""Stochastic depth at one rate in every block: a ViT computes no branch that it drops."""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from dino_path.model.backbone import build_backbone

RATE, NUM_IMAGES = 0.4, 6
NUM_KEPT = 3  # of six images six tenths are 3.6, rounded down


def vit(*, is_constant: bool) -> nn.Module:
    torch.manual_seed(0)
    arguments = {"img_size": 32, "depth": 2, "embed_dim": 16, "num_heads": 2, "init_values": 0.5}
    backbone = build_backbone("vit_tiny_patch16_224", arguments, drop_path_rate=RATE, drop_path_is_constant=is_constant)
    return backbone.double()


def images() -> Tensor:
    return torch.rand(NUM_IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_each_branch_is_computed_for_the_images_that_keep_it() -> None:
    backbone, seen = vit(is_constant=True), []
    for block in backbone.blocks:
        for branch in (block.attn, block.mlp):
            branch.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    backbone(images())
    assert seen == [NUM_KEPT] * 4


def test_the_kept_images_get_the_branch_larger_and_the_others_stay() -> None:
    block = vit(is_constant=True).blocks[0]
    tokens = torch.rand(NUM_IMAGES, 5, 16, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(2)
    found = block(tokens)
    torch.manual_seed(2)
    expected = tokens
    for branch in (lambda x: block.ls1(block.attn(block.norm1(x))), lambda x: block.ls2(block.mlp(block.norm2(x)))):
        is_kept = torch.zeros(NUM_IMAGES, 1, 1, dtype=torch.float64)
        is_kept[torch.randperm(NUM_IMAGES)[:NUM_KEPT]] = 1
        expected = expected + NUM_IMAGES / NUM_KEPT * is_kept * branch(expected)
    torch.testing.assert_close(found, expected)
    given = [tokens, *block.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(found.square().sum(), given), torch.autograd.grad(expected.square().sum(), given)
    )


def test_a_single_image_is_always_computed() -> None:
    block, tokens = vit(is_constant=True).blocks[0], torch.rand(1, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(block(tokens), block.eval()(tokens))


def test_features_of_a_network_at_rest_are_those_of_every_image() -> None:
    torch.testing.assert_close(vit(is_constant=True).eval()(images()), vit(is_constant=False).eval()(images()))


def test_other_backbones_drop_as_timm_does_and_at_one_rate() -> None:
    swin = build_backbone("swin_tiny_patch4_window7_224", {}, drop_path_rate=RATE, drop_path_is_constant=True)
    rates = [module.drop_prob for module in swin.modules() if isinstance(module, DropPath)]
    assert rates == [RATE] * 24

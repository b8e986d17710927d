import numpy as np
import pytest
import timm
import torch
from torch import nn

from dino_path.config import EvaluationConfig
from dino_path.errors import ConfigError
from dino_path.evaluation.labelled.datasets import load_labelled
from dino_path.evaluation.protocols import dino_linear as module
from dino_path.evaluation.protocols.dino_linear import RandomCrops, block_tokens, train_linear_layer
from dino_path.evaluation.results.table import evaluate_table
from dino_path.features.extractor import Extractor, load_extractor
from dino_path.preprocessing import Preprocessing

CPU = torch.device("cpu")


def vit(width=24, **arguments):
    network = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, embed_dim=width, depth=6, num_heads=2,
        **arguments,
    ).eval()  # fmt: skip
    return Extractor("vit", network, Preprocessing((0, 0, 0), (1, 1, 1), 32), "digest", width)


def outputs_of_blocks(network, images):
    """The tokens after every block, caught on their way, each after the final norm."""
    caught = []
    hooks = [block.register_forward_hook(lambda _m, _i, out: caught.append(out)) for block in network.blocks]
    network(images)
    for hook in hooks:
        hook.remove()
    return [network.norm(tokens) for tokens in caught]


def test_a_narrow_vit_gives_the_class_tokens_of_its_last_four_blocks():
    extractor, images = vit(), torch.rand(3, 3, 32, 32)
    tokens = block_tokens(extractor)
    expected = torch.cat([block[:, 0] for block in outputs_of_blocks(extractor.module, images)[-4:]], dim=1)
    torch.testing.assert_close(tokens.module(images), expected)
    assert tokens.num_features == 96
    assert tokens.digest != extractor.digest


def test_a_wide_vit_gives_the_last_class_token_and_the_mean_patch_without_registers():
    extractor, images = vit(width=768, reg_tokens=3), torch.rand(2, 3, 32, 32)
    tokens, last = block_tokens(extractor), outputs_of_blocks(extractor.module, images)[-1]
    expected = torch.cat([last[:, 0], last[:, 4:].mean(dim=1)], dim=1)
    torch.testing.assert_close(tokens.module(images), expected)
    assert tokens.num_features == 1536


def test_networks_without_blocks_give_their_pooled_features_and_a_vit_without_class_token_is_refused():
    for spec in ("untrained:timm:resnet10t", "mean-colour"):
        extractor = load_extractor(spec, device=CPU)
        assert block_tokens(extractor) is extractor
    with pytest.raises(ConfigError, match=r"no \[CLS\] token"):
        block_tokens(vit(class_token=False, global_pool="avg"))


class OneImage:
    """A ramp: red is the column, green the row."""

    mpp, digest = None, "ramp"

    def __init__(self, height=120, width=160):
        rows, columns = np.mgrid[:height, :width]
        self.image = np.stack([columns, rows, 0 * rows], axis=2).astype(np.uint8)

    def __len__(self):
        return 1

    def read_image(self, index):
        return self.image


def test_crops_have_the_published_areas_and_aspects_and_half_are_flipped():
    height, width = 120, 160
    boxes = np.array([module._random_box(height, width, np.random.default_rng(n)) for n in range(3000)])
    area, aspect = boxes[:, 2] * boxes[:, 3] / (height * width), boxes[:, 3] / boxes[:, 2]
    assert area.min() == pytest.approx(0.08, abs=0.01)
    assert area.max() > 0.95
    assert aspect.min() == pytest.approx(0.75, abs=0.03)
    assert aspect.max() == pytest.approx(4 / 3, abs=0.04)
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 0] + boxes[:, 2] <= height).all()
    assert (boxes[:, 1] + boxes[:, 3] <= width).all()
    crops = RandomCrops(OneImage(), np.zeros(1, np.int64), 16, 400, seed=0)
    flipped = [crops.read_image(n)[8, 0, 0] > crops.read_image(n)[8, -1, 0] for n in range(400)]
    assert 0.42 < np.mean(flipped) < 0.58


def test_a_crop_depends_on_seed_image_and_number_alone():
    crops = RandomCrops(OneImage(), np.zeros(2, np.int64), 16, 3, seed=0)
    assert len(crops) == 6
    assert crops.read_image(1).shape == (16, 16, 3)
    assert np.array_equal(crops.read_image(4), crops.read_image(4))
    assert len({crops.read_bytes(n) for n in range(6)}) == 6
    assert crops.read_bytes(1) != RandomCrops(OneImage(), np.zeros(2, np.int64), 16, 3, seed=1).read_bytes(1)


def test_the_layer_is_the_published_training_written_out_by_hand(monkeypatch):
    """Two images, one batch an epoch: gradient, momentum and cosine in fp64 with numpy."""
    monkeypatch.setattr(module, "NUM_EPOCHS", 3)
    monkeypatch.setattr(module, "LR_AT_256", 20.0)  # moves far in three steps
    crops = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)  # two crops of each image
    labels, query = np.array([0, 1]), np.eye(5, dtype=np.float32)
    got = train_linear_layer(crops, np.arange(2), labels, query, num_classes=2, num_crops=2, seed=3)
    start = nn.init.normal_(torch.empty(2, 5), std=0.01, generator=torch.Generator().manual_seed(3)).double().numpy()
    weight, bias, speed_w, speed_b = start, np.zeros(2), 0, 0
    for epoch in range(3):
        x = crops[epoch % 2 :: 2].astype(np.float64)
        shares = np.exp(x @ weight.T + bias)
        shares /= shares.sum(axis=1, keepdims=True)
        slope = (shares - np.eye(2)[labels]) / 2
        speed_w, speed_b = 0.9 * speed_w + slope.T @ x, 0.9 * speed_b + slope.sum(axis=0)
        lr = 20.0 * 2 / 256 * (1 + np.cos(np.pi * epoch / 3)) / 2
        weight, bias = weight - lr * speed_w, bias - lr * speed_b
    logits = query @ weight.T + bias
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert got.scores == pytest.approx(expected, abs=1e-5)
    assert np.ptp(got.scores[:, 0]) > 0.05


def test_the_table_has_the_protocol_and_says_what_it_used(class_folders, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LR_AT_256", 5.0)  # 24 images are 100 updates: too few at the published rate
    config = EvaluationConfig(num_bootstrap=100, linear_crops=2, input_px=16)
    labelled = load_labelled(str(class_folders), config)
    table = evaluate_table(
        ["untrained:timm:resnet10t"], labelled, config, device=CPU, out=tmp_path / "out", protocols=("linear-dino",),
        baseline=None, num_workers=0,
    )  # fmt: skip
    (row,) = table.rows
    assert "linear (DINO) accuracy" in table.markdown()
    assert row.settings["features"] == "pooled output"
    assert row.settings["crops_of_each_image"] == 2
    assert row.settings["epoch_reported"] == "the last"
    assert row.metrics.accuracy.value > 0.6  # three colours
    assert any("linear (DINO): after 100 updates correct on" in note for note in table.notes)

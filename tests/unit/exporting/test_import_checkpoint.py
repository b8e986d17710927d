"""Checkpoints of facebookresearch/dino: their features, in a model folder of ours.

The reference is its ViT's forward pass, written again over a plain dict of its key names. Beside this test the two
programs were compared by hand at commit 7c446df (docs/models.md has the numbers).
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from published_files import dinov3_weights, grouped, tokens_of
from published_files import vit_weights as published_weights
from torch import Tensor, nn

from dino_path.errors import CheckpointError
from dino_path.exporting.checkpoint import import_checkpoint
from dino_path.features.extractor import load_extractor

pytestmark = pytest.mark.usefixtures("reload_here")

CPU = torch.device("cpu")
WIDTH, DEPTH, HEADS = 192, 12, 3


def vit_weights(patch_px: int, *, seed: int = 0, input_px: int = 224, depth: int = DEPTH) -> dict[str, Tensor]:
    """Random weights under the names and in the shapes of its vit_tiny."""
    torch.manual_seed(seed)
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, (input_px // patch_px) ** 2 + 1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, patch_px, patch_px),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    for number in range(depth):
        block = {
            "norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,), "norm2.weight": (WIDTH,), "norm2.bias": (WIDTH,),
            "attn.qkv.weight": (3 * WIDTH, WIDTH), "attn.qkv.bias": (3 * WIDTH,),
            "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,),
            "mlp.fc1.weight": (4 * WIDTH, WIDTH), "mlp.fc1.bias": (4 * WIDTH,),
            "mlp.fc2.weight": (WIDTH, 4 * WIDTH), "mlp.fc2.bias": (WIDTH,),
        }  # fmt: skip
        shapes |= {f"blocks.{number}.{name}": shape for name, shape in block.items()}
    return {name: 0.05 * torch.randn(shape) + ("norm" in name) for name, shape in shapes.items()}


def vit_features(weights: dict[str, Tensor], images: Tensor) -> Tensor:
    """Its forward pass at the size of the position embedding: the class token after the last norm."""

    def norm(name: str, tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)

    def linear(name: str, tokens: Tensor) -> Tensor:
        return F.linear(tokens, weights[f"{name}.weight"], weights[f"{name}.bias"])

    kernel = weights["patch_embed.proj.weight"]
    patches = F.conv2d(images, kernel, weights["patch_embed.proj.bias"], stride=kernel.shape[-1])
    tokens = torch.cat([weights["cls_token"].expand(len(images), -1, -1), patches.flatten(2).mT], dim=1)
    tokens = tokens + weights["pos_embed"]
    for number in range(DEPTH):
        block = f"blocks.{number}"
        qkv = linear(f"{block}.attn.qkv", norm(f"{block}.norm1", tokens))
        query, key, value = qkv.unflatten(2, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        attention = (query @ key.mT / (WIDTH // HEADS) ** 0.5).softmax(dim=-1)
        tokens = tokens + linear(f"{block}.attn.proj", (attention @ value).transpose(1, 2).flatten(2))
        hidden = F.gelu(linear(f"{block}.mlp.fc1", norm(f"{block}.norm2", tokens)))
        tokens = tokens + linear(f"{block}.mlp.fc2", hidden)
    return norm("norm", tokens)[:, 0]


def head_weights(*, is_new_api: bool) -> dict[str, Tensor]:
    """A projection head as the old and the new weight norm of torch name it."""
    names = ("parametrizations.weight.original0", "parametrizations.weight.original1")
    length, direction = names if is_new_api else ("weight_g", "weight_v")
    return {
        "mlp.0.weight": torch.randn(8, WIDTH),
        f"last_layer.{length}": torch.ones(4, 1),
        f"last_layer.{direction}": torch.randn(4, 8),
    }


def write_training_checkpoint(
    file: Path, student: dict[str, Tensor], teacher: dict[str, Tensor], *, arch: str = "vit_tiny", is_new_api: bool
) -> None:
    """What main_dino.py saves after an epoch; the student is wrapped for several GPUs."""
    head = head_weights(is_new_api=is_new_api)

    def network(backbone: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        named = {f"backbone.{key}": value for key, value in backbone.items()}
        named |= {f"head.{key}": value for key, value in head.items()}
        return {f"{prefix}{key}": value for key, value in named.items()}

    record = {
        "student": network(student, "module."),
        "teacher": network(teacher, ""),
        # Its schedules are numpy arrays, and so are the learning rates that the optimizer remembers.
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": np.linspace(0, 1, 3)[1]}]},
        "epoch": 7,
        "args": argparse.Namespace(arch=arch, patch_size=16, local_crops_scale=(0.05, 0.4), output_dir="."),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }
    torch.save(record, file)


def features_of(folder: Path, images: Tensor) -> Tensor:
    with torch.inference_mode():
        features: Tensor = load_extractor(str(folder), device=CPU).module(images)
    return features


def check_features(folder: Path, weights: dict[str, Tensor]) -> None:
    torch.manual_seed(3)
    images = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(features_of(folder, images), vit_features(weights, images), rtol=1e-4, atol=1e-4)


def imported(file: Path, out: Path, **choices: object) -> dict[str, Any]:
    import_checkpoint(file, out, **{"arch": None, "network": None, "mpp": None, **choices})  # type: ignore[arg-type]
    return json.loads((out / "config.json").read_text())


@pytest.mark.parametrize("is_new_api", [False, True], ids=["old weight norm", "new weight norm"])
def test_a_training_checkpoint_gives_the_teacher_or_the_student(tmp_path: Path, is_new_api: bool) -> None:
    student, teacher = vit_weights(16, seed=1), vit_weights(16, seed=2)
    file = tmp_path / "checkpoint.pth"
    write_training_checkpoint(file, student, teacher, is_new_api=is_new_api)
    config = imported(file, tmp_path / "teacher")
    assert (config["architecture"], config["mpp"]) == ("vit_tiny_patch16_224", None)
    assert len(config["dino_path"].pop("weights_sha256")) == 64
    assert config["dino_path"] == {
        "method": "DINO", "trained_by": "facebookresearch/dino", "file": "checkpoint.pth", "network": "teacher",
        "epochs": 7,
    }  # fmt: skip
    config = imported(file, tmp_path / "student", network="student", mpp=0.5)
    assert config["mpp"] == 0.5
    check_features(tmp_path / "teacher", teacher)
    check_features(tmp_path / "student", student)
    card = (tmp_path / "teacher" / "README.md").read_text()
    assert "by facebookresearch/dino" in card
    assert "# vit_tiny_patch16_224, self-supervised\n" in card, "it has seen no histology"


@pytest.mark.parametrize(
    ("patch_px", "name", "arguments"),
    [(16, "vit_tiny_patch16_224", {}), (28, "vit_tiny_patch16_224", {"patch_size": 28})],
)
def test_a_bare_backbone_tells_its_architecture_by_its_shapes(
    tmp_path: Path, patch_px: int, name: str, arguments: dict[str, int]
) -> None:
    weights = vit_weights(patch_px)
    torch.save(weights, tmp_path / "pretrain.pth")
    config = imported(tmp_path / "pretrain.pth", tmp_path / "model")
    assert config["architecture"] == name
    assert config["model_args"] == {"dynamic_img_size": True, **arguments}
    assert config["dino_path"]["network"] is None
    check_features(tmp_path / "model", weights)


def test_a_position_embedding_of_another_size_sets_the_image_size(tmp_path: Path) -> None:
    torch.save(vit_weights(16, input_px=96), tmp_path / "pretrain.pth")
    config = imported(tmp_path / "pretrain.pth", tmp_path / "model")
    assert config["model_args"]["img_size"] == 96
    assert config["pretrained_cfg"]["input_size"] == [3, 96, 96]


@pytest.mark.parametrize("layout", ["a training of dinov2", "dinov3", "as UNI's"])
def test_other_published_layouts_give_the_features_of_their_authors(tmp_path: Path, layout: str) -> None:
    record: dict[str, Any]
    arguments: dict[str, Any]
    if layout == "dinov3":
        weights = record = dinov3_weights(width=WIDTH, heads=HEADS, depth=DEPTH, bias=True)
        arguments = {"global_pool": "token"}
        expected = ("vit_tiny_patch16_dinov3_qkvb", arguments, 256, "DINOv3 by facebookresearch/dinov3")
    elif layout == "as UNI's":
        weights = record = published_weights(16, width=WIDTH, depth=DEPTH, grid=14, masks=False)
        arguments = {"init_values": 1e-5}
        expected = ("vit_tiny_patch16_224", arguments, 224, "an unknown method by unknown authors")
    else:
        weights = published_weights(28, width=WIDTH, depth=DEPTH, grid=4, registers=4)
        record = {"teacher": {f"backbone.{key}": value for key, value in grouped(weights, size=3).items()}}
        arguments = {"patch_size": 28, "init_values": 1e-5, "reg_tokens": 4, "no_embed_class": True, "img_size": 112}
        expected = ("vit_tiny_patch16_224", arguments, 112, "DINOv2 by facebookresearch/dinov2")
    torch.save(record, tmp_path / "weights.pth")
    config = imported(tmp_path / "weights.pth", tmp_path / "model")
    name, arguments, input_px, words = expected
    assert config["architecture"] == name
    assert config["model_args"] == {"dynamic_img_size": True, **arguments}
    assert config["pretrained_cfg"]["input_size"] == [3, input_px, input_px]
    assert f"pretrained with {words}" in (tmp_path / "model/README.md").read_text()
    images = torch.randn(2, 3, input_px, input_px)
    theirs = tokens_of(weights, images, heads=HEADS)[:, 0]
    torch.testing.assert_close(features_of(tmp_path / "model", images), theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_resnet_50_of_torchvision_gives_the_same_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.resnet50()
    network.fc = nn.Identity()
    torch.save(network.state_dict(), tmp_path / "resnet50.pth")
    assert imported(tmp_path / "resnet50.pth", tmp_path / "model")["architecture"] == "resnet50"
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        torch.testing.assert_close(features_of(tmp_path / "model", images), network.eval()(images))


def test_what_the_weights_do_not_tell_is_asked_for(tmp_path: Path) -> None:
    torch.save(vit_weights(28, depth=2), tmp_path / "shallow.pth")
    with pytest.raises(CheckpointError, match=r"is not recognised[^$]*--arch NAME"):
        imported(tmp_path / "shallow.pth", tmp_path / "model")
    xcit = {"backbone.patch_embed.proj.0.0.weight": torch.zeros(3)}
    write_training_checkpoint(tmp_path / "xcit.pth", xcit, xcit, arch="xcit_small", is_new_api=False)
    with pytest.raises(CheckpointError, match="its settings say 'xcit_small'"):
        imported(tmp_path / "xcit.pth", tmp_path / "model")
    with pytest.raises(CheckpointError, match="do not fit"):
        imported(tmp_path / "shallow.pth", tmp_path / "model", arch="vit_tiny_patch16_224")
    assert not (tmp_path / "model").exists()


class Payload:
    """What a hostile pickle would do on loading."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch pwned",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "cannot be read"),
        ({"teacher": {"backbone.cls_token": Payload()}}, r"would run \w+\.system on loading"),
        ([torch.zeros(1)], "holds a list"),
        ({"step": 3}, "holds neither a teacher nor a bare backbone"),
        ({}, "holds neither a teacher nor a bare backbone"),
    ],
    ids=["text", "hostile", "list", "other record", "empty"],
)
def test_other_files_are_refused_and_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        Path("file.pth").write_bytes(content)
    else:
        torch.save(content, "file.pth")
    with pytest.raises(CheckpointError, match=message):
        imported(Path("file.pth"), tmp_path / "model")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.pth"]


def test_a_network_that_the_file_lacks_is_refused(tmp_path: Path) -> None:
    torch.save(vit_weights(28), tmp_path / "pretrain.pth")
    with pytest.raises(CheckpointError, match="holds no student"):
        imported(tmp_path / "pretrain.pth", tmp_path / "model", network="student")

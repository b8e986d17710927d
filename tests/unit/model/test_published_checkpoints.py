"""Starting from a training checkpoint of facebookresearch/dino, with its head."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tiny import tiny_config, tiny_learner
from torch import Tensor, nn

from dino_path.errors import CheckpointError
from dino_path.training.learner import Learner

FEATURES, HIDDEN, BOTTLENECK, PROTOTYPES = 32, 32, 16, 64  # those of tiny.TINY


class TheirHead(nn.Module):
    """The layers of its head, with torch's own weight norm, old or new."""

    def __init__(self, *, is_new_api: bool, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(FEATURES, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(),
            nn.Linear(hidden, BOTTLENECK),
        )  # fmt: skip
        layer = nn.Linear(BOTTLENECK, PROTOTYPES, bias=False)
        norm = nn.utils.parametrizations.weight_norm if is_new_api else nn.utils.weight_norm
        self.last_layer = norm(layer)

    def forward(self, features: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(features), dim=-1))


def write_checkpoint(file: Path, learner: Learner, head: nn.Module) -> dict[str, Tensor]:
    """A record as main_dino.py saves it, with random weights in the backbone of `learner`."""
    backbone = {key: torch.randn_like(tensor) for key, tensor in learner.student.backbone.state_dict().items()}
    teacher = {f"backbone.{key}": tensor for key, tensor in backbone.items()}
    teacher |= {f"head.{key}": tensor for key, tensor in head.state_dict().items()}
    record = {
        "teacher": teacher,
        "student": {f"module.{key}": torch.zeros_like(tensor) for key, tensor in teacher.items()},
        "optimizer": {"param_groups": [{"lr": np.float64(0.1)}]},
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small"),
    }
    torch.save(record, file)
    return backbone


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("is_new_api", [False, True], ids=["old weight norm", "new weight norm"])
def test_both_networks_start_from_its_teacher_and_its_head_gives_the_same_logits(
    tiles_folder: Path, tmp_path: Path, is_new_api: bool
) -> None:
    torch.manual_seed(0)
    head = TheirHead(is_new_api=is_new_api)
    with torch.no_grad():
        next(tensor for name, tensor in head.named_parameters() if name.endswith(("weight_g", "original0"))).uniform_()
    file = tmp_path / "checkpoint.pth"
    backbone = write_checkpoint(file, tiny_learner(tiny_config(tiles_folder, tmp_path)), head)
    learner = tiny_learner(tiny_config(tiles_folder, tmp_path, f"model.weights={file}"))
    features = torch.randn(5, FEATURES)
    for network in (learner.student, learner.teacher):
        assert all(torch.equal(network.backbone.state_dict()[key], tensor) for key, tensor in backbone.items())
        torch.testing.assert_close(network.head(features).logits(), head(features))


def test_a_head_of_another_size_is_refused(tiles_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pth"
    learner = tiny_learner(tiny_config(tiles_folder, tmp_path))
    write_checkpoint(file, learner, TheirHead(is_new_api=True, hidden=24))
    with pytest.raises(CheckpointError, match="its head does not fit"):
        tiny_learner(tiny_config(tiles_folder, tmp_path, f"model.weights={file}"))


@pytest.mark.parametrize("kind", ["a bare backbone", "safetensors with a classifier"])
def test_a_file_with_a_backbone_alone_is_a_start_with_a_new_head(tiles_folder: Path, tmp_path: Path, kind: str) -> None:
    scratch = tiny_learner(tiny_config(tiles_folder, tmp_path))
    weights = {key: torch.randn_like(tensor) for key, tensor in scratch.student.backbone.state_dict().items()}
    if kind == "a bare backbone":
        file = tmp_path / "dino_deitsmall16_pretrain.pth"
        torch.save(weights, file)
    else:
        file = tmp_path / "model.safetensors"
        save_file(weights | {"head.weight": torch.ones(5, FEATURES), "head.bias": torch.ones(5)}, file)
    learner = tiny_learner(tiny_config(tiles_folder, tmp_path, f"model.weights={file}"))
    for network in (learner.student, learner.teacher):
        assert all(torch.equal(network.backbone.state_dict()[key], tensor) for key, tensor in weights.items())
    fresh, head = scratch.student.head.state_dict(), learner.student.head.state_dict()
    assert all(torch.equal(head[key], tensor) for key, tensor in fresh.items())


def test_a_file_of_another_backbone_is_refused(tiles_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"cls_token": torch.zeros(1, 1, FEATURES)}, file)
    with pytest.raises(CheckpointError, match="do not fit"):
        tiny_learner(tiny_config(tiles_folder, tmp_path, f"model.weights={file}"))

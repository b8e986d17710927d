"""What sharding refuses, and that everything written for it leaves plain tensors alone (tests/distributed shards)."""

from pathlib import Path

import pytest
import torch
from tiny import ALONE, tiny_config, tiny_learner

from dino_path.distributed import World
from dino_path.errors import ConfigError
from dino_path.training.sharding import load_whole, local, norms, whole

TWO = World(rank=0, size=2, local_rank=0, device=torch.device("cpu"))


def test_one_process_has_nobody_to_share_with() -> None:
    with pytest.raises(ConfigError, match="this is one process") as refusal:
        tiny_learner(tiny_config(Path("unused"), Path("unused"), "training.sharding=fsdp2"))
    assert "training.sharding=null" in refusal.value.remedy


def test_a_backbone_without_blocks_is_refused() -> None:
    resnet = ("model.backbone=resnet10t", "model.arguments={}", "training.sharding=fsdp2")
    with pytest.raises(ConfigError, match="timm's resnet10t has no blocks to shard"):
        tiny_learner(tiny_config(Path("unused"), Path("unused"), *resnet), TWO)


def test_plain_tensors_stay_as_they_are() -> None:
    tensors = [torch.tensor([3.0, 4.0]), torch.zeros(0), torch.tensor([[1.0], [0.0]])]
    assert local(tensors[0]) is tensors[0]
    assert norms(tensors).tolist() == [5, 0, 1]
    state = {"state": {0: {"step": tensors[0]}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    assert whole(state, ALONE) == state
    module = torch.nn.Linear(2, 3)
    load_whole(module, {"weight": torch.ones(3, 2), "bias": torch.zeros(3)})
    assert module(torch.ones(1, 2)).tolist() == [[2, 2, 2]]
    with pytest.raises(RuntimeError, match="Missing key"):
        load_whole(module, {"weight": torch.ones(3, 2)})

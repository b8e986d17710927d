"""What each GPU keeps of student, teacher and AdamW's state, with training.sharding=fsdp2 and without.

    python benchmarks/training/sharding.py [--backbones vit_large_patch16_224 ...] [--processes 2 8 32]

The networks are built on torch's meta device and sharded in a process group that exchanges nothing: the sizes are those
of the tensors that rank 0 would hold, and no GPU is needed. Activations, which sharding does not change, and buffers of
the exchange are not in them.
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from dino_path.config import ModelConfig, ObjectiveConfig, OptimConfig
from dino_path.distributed import World
from dino_path.model.backbone import blocks_of, count_parameters
from dino_path.model.head import DinoNetwork
from dino_path.training.networks import build_network
from dino_path.training.optimizer import build_optimizer
from dino_path.training.sharding import local, shard

GB = 1e9


def num_bytes(network: nn.Module, *, only_trained: bool = False) -> int:
    """Of this rank's parts of the parameters, in fp32."""
    return sum(4 * local(each).numel() for each in network.parameters() if each.requires_grad or not only_trained)


def largest_group(network: DinoNetwork) -> int:
    """Bytes of the parameters that are gathered at once: a block, the head, or the rest."""
    groups = [count_parameters(module) for module in (*blocks_of(network.backbone), *network.heads)]
    return 4 * max(*groups, count_parameters(network) - sum(groups))


def main() -> None:
    parser = argparse.ArgumentParser()
    names = ["vit_small_patch16_224", "vit_large_patch16_224", "vit_huge_patch14_224", "vit_giant_patch14_224"]
    parser.add_argument("--backbones", nargs="+", default=names)
    parser.add_argument("--processes", nargs="+", type=int, default=[1, 2, 8, 32])
    arguments = parser.parse_args()
    print("| backbone | parameters with head, M | processes | networks, GB | gradients, GB | AdamW, GB | together, GB |"
          " gathered at once, GB |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
    for name in arguments.backbones:
        for size in arguments.processes:
            dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
            with torch.device("meta"):
                student, teacher = (
                    build_network(ModelConfig(backbone=name), ObjectiveConfig(), drop_path_rate=0.0) for _ in range(2)
                )
            teacher.requires_grad_(False)
            num_parameters, gathered = count_parameters(student), largest_group(student)
            world = World(rank=0, size=size, local_rank=0, device=torch.device("cpu"))
            for network in (student, teacher):
                if size > 1:
                    shard(network, world, name)
            optimized = {
                id(each) for group in build_optimizer(student, OptimConfig()).param_groups for each in group["params"]
            }
            assert optimized == {id(each) for each in student.parameters() if each.requires_grad}
            networks, gradients = num_bytes(student) + num_bytes(teacher), num_bytes(student, only_trained=True)
            sizes = (networks, gradients, 2 * gradients, networks + 3 * gradients, gathered if size > 1 else 0)
            print(f"| {name} | {num_parameters / 1e6:.0f} | {size} | "
                  + " | ".join(f"{each / GB:.2f}" for each in sizes) + " |", flush=True)  # fmt: skip
            dist.destroy_process_group()


if __name__ == "__main__":
    main()

"""Networks and optimizer state sharded over the ranks (torch's FSDP2), but complete in checkpoints.

A sharded parameter is a DTensor: rank r holds the r-th part of its rows. Everything here also takes plain tensors, and
leaves them as they are, so that a step reads the same with and without sharding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from dino_path.distributed import World
from dino_path.errors import ConfigError
from dino_path.model.backbone import blocks_of
from dino_path.model.head import DinoNetwork


def shard(network: DinoNetwork, world: World, name: str) -> None:
    """Shard a network, given on the CPU, over all ranks: block by block, then the head, then the rest.

    A group is gathered when it is needed and freed afterwards, in the forward and in the backward pass; its gradients
    arrive averaged, each rank's share at that rank. Numbers are gathered in fp32, also under autocast: a ViT's norms,
    which autocast computes in fp32, then are the same as without sharding.

    Raises:
        ConfigError: one process has nobody to share with; the backbone has no blocks.
    """
    blocks = blocks_of(network.backbone)
    if world.size == 1 or not blocks:
        raise ConfigError(
            "training.sharding=fsdp2",
            "this is one process." if world.size == 1 else f"timm's {name} has no blocks to shard.",
            "At least two processes, and a backbone of blocks, such as a ViT, ConvNeXt or Swin, are needed.",
            "Start it with `torchrun` or `srun`, or set training.sharding=null; checkpoints work either way.",
        )
    mesh = init_device_mesh(world.device.type, (world.size,))
    # `reshard_after_forward`: the outermost group would stay gathered, and then `parameters()` gives whole tensors.
    for module in (*blocks, *network.heads, network):
        fully_shard(module, mesh=mesh, reshard_after_forward=True)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor: the same memory, so that a change of the part is one of the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def norms(tensors: Sequence[Tensor]) -> Tensor:
    """(len(tensors),) the L2 norm of each whole tensor, the same on every rank."""
    of_parts = torch.stack(torch._foreach_norm([local(tensor) for tensor in tensors]))
    if not isinstance(tensors[0], DTensor):
        return of_parts
    squares = of_parts.square()
    dist.all_reduce(squares)
    return squares.sqrt()


def whole(state: Any, world: World) -> Any:
    """`state` (of a module or optimizer) with whole tensors, on the CPU, on rank 0; None for each on the others.

    Every rank must call it. Tensors are gathered one by one: beside the parts, a device holds one whole tensor.
    """
    if isinstance(state, Mapping):
        return {key: whole(value, world) for key, value in state.items()}
    if isinstance(state, list):
        return [whole(value, world) for value in state]
    if isinstance(state, DTensor):
        gathered = state.full_tensor()
        return gathered.cpu() if world.is_first else None
    return state


def load_whole(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """`module.load_state_dict(state)`, of which a sharded module takes its part."""
    targets = module.state_dict()
    module.load_state_dict({name: _part(value, targets.get(name)) for name, value in state.items()})


def load_whole_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """`optimizer.load_state_dict(state)`; moments are sharded as their parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parts = {
        number: {name: _part(value, parameters[number]) for name, value in moments.items()}
        for number, moments in state["state"].items()
    }
    factors = [group.get("lr_factor", 1.0) for group in optimizer.param_groups]
    optimizer.load_state_dict({**state, "state": parts})
    for group, factor in zip(optimizer.param_groups, factors, strict=True):  # this run's, not those of the file
        group["lr_factor"] = factor


def _part(value: Any, target: Tensor | None) -> Any:
    """A complete tensor, sharded like `target`; other values (AdamW's step count) are returned unchanged."""
    if not isinstance(target, DTensor) or not isinstance(value, Tensor) or value.shape != target.shape:
        return value
    mine = distribute_tensor(value.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    return torch.empty_like(target, dtype=value.dtype).copy_(mine)  # else it would keep the whole tensor's memory

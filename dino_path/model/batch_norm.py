"""Batch norms with statistics over the batches of all ranks, as in DINO's published ResNet-50."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def share_batch_norms(network: nn.Module, device: torch.device) -> None:
    """Make a network's batch norms average over all ranks: with torch's SyncBatchNorm on CUDA, with ours on a CPU.

    timm's conversion, because torch's turns timm's norm with activation (BatchNormAct2d) into one without; and torch's
    SyncBatchNorm computes on CUDA alone.
    """
    if device.type == "cuda":
        convert_sync_batchnorm(network)
        return
    # Only the class changes: parameters, buffers and their names in checkpoints stay.
    for module in network.modules():
        if isinstance(module, BatchNormAct2d):
            module.__class__ = _BatchNormActOverRanks
        elif isinstance(module, _BatchNorm):
            module.__class__ = _BatchNormOverRanks


class _BatchNormOverRanks(_BatchNorm):
    """A BatchNorm1d or BatchNorm2d on any device of the process group."""

    def forward(self, input: Tensor) -> Tensor:
        return _normalised(self, input)


class _BatchNormActOverRanks(BatchNormAct2d):  # type: ignore[misc]
    """The same for timm's norm with dropout and activation."""

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(_normalised(self, x)))  # type: ignore[no-any-return]


def _normalised(norm: Any, x: Tensor) -> Tensor:
    """Normalise `x`, (B, C, ...), by mean and variance over the batches of all ranks, which have equal sizes.

    The running variance is the unbiased one, as in torch.
    """
    if not norm.training:
        return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    dims = [dim for dim in range(x.ndim) if dim != 1]
    shape = [1, -1, *[1] * (x.ndim - 2)]
    values, num_ranks = x.float() if x.dtype != torch.float64 else x, dist.get_world_size()
    count = x.numel() // x.shape[1] * num_ranks
    mean = _SumOverRanks.apply(values.mean(dims)) / num_ranks
    # Two passes: E[x^2] - E[x]^2 would lose the variance to cancellation where the mean is large.
    centred = values - mean.view(shape)
    variance = _SumOverRanks.apply(centred.square().mean(dims)) / num_ranks
    with torch.no_grad():
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean.to(norm.running_mean), norm.momentum)
        norm.running_var.lerp_((variance * (count / (count - 1))).to(norm.running_var), norm.momentum)
    scale = (variance + norm.eps).rsqrt() * norm.weight
    normalised: Tensor = centred * scale.view(shape) + norm.bias.view(shape)
    return normalised.to(x.dtype)


class _SumOverRanks(torch.autograd.Function):
    """Sum over all ranks. Every rank's result depends on the sum, so the gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total

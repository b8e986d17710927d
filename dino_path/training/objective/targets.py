"""Targets: how the teacher's logits become the distributions that the student is to match.

Shape suffixes: B tiles, K prototypes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import assert_never

import torch
from torch import Tensor

from dino_path.config import TargetsConfig
from dino_path.model.head import Projection


class Centering:
    """softmax((t - center) / temperature), with a running mean of the teacher's logits as center.

    Source: Caron et al. 2021, eq. 4. The center that a step uses is the one from before it.
    """

    def __init__(self, num_prototypes: int, momentum: float, device: torch.device) -> None:
        self.momentum = momentum
        self.center = torch.zeros(1, num_prototypes, device=device)

    def to_average(self, teacher: Projection) -> dict[str, Tensor]:
        return {"center": batch_center(teacher)}

    def update(self, means: Mapping[str, Tensor]) -> None:
        update_center(self.center, means["center"], self.momentum)

    def state(self) -> dict[str, Tensor]:
        return {"center": self.center}


Targets = Centering  # a union, once there are more


def build_targets(config: TargetsConfig, num_prototypes: int, device: torch.device) -> Targets:
    """Those of one head: every head has targets of its own."""
    match config.method:
        case "centering":
            return Centering(num_prototypes, config.center_momentum, device)
        case other:
            assert_never(other)


def batch_center(teacher: Projection) -> Tensor:
    """(1, K) mean of the raw teacher logits of this process's batch: the logits of its mean bottleneck vector."""
    return Projection(teacher.bottleneck.detach().mean(0, keepdim=True), teacher.prototypes.detach()).logits()


@torch.no_grad()
def update_center(center: Tensor, teacher_mean: Tensor, center_momentum: float) -> None:
    """center <- center_momentum * center + (1 - center_momentum) * mean logit of the global batch, all (1, K)."""
    center.lerp_(teacher_mean, 1.0 - center_momentum)

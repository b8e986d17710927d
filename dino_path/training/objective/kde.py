"""KDE: lowers the density of a batch's features at each of them.

Shape suffixes: B tiles, D backbone features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dino_path.config import KdeConfig, TrainingConfig
from dino_path.training.objective.spread import SpreadTerm
from dino_path.training.objective.term import Outputs, TermValue
from dino_path.training.schedules import StepSettings


class KdeTerm(SpreadTerm):
    """Unlike KoLeo's, its gradient stays bounded between nearly equal tiles; `settings.kde_ramp` lets it in slowly."""

    name = "kde"

    def __init__(self, config: KdeConfig, training: TrainingConfig) -> None:
        super().__init__(config.weight, training)
        self.kappa = config.kappa

    def crowding(self, features_BD: Tensor) -> Tensor:
        return kde(features_BD, kappa=self.kappa)

    def measure(self, outputs: Outputs, settings: StepSettings) -> TermValue:
        assert settings.kde_ramp is not None
        value = super().measure(outputs, settings)
        return TermValue(settings.kde_ramp * value.loss, value.logged)


def kde(features_BD: Tensor, *, kappa: float) -> Tensor:
    """Mean log density of each vector under a von Mises-Fisher kernel at all others, up to the kernel's constant.

    (1/B) sum_i log[(1 / (B-1)) sum over j != i of exp(kappa <x_i, x_j>)]: at most kappa, where all are equal.
    Source: Wang and Isola 2020 (uniformity); Virchow2 (Zimmermann et al. 2024) has it in KoLeo's place.

    Args:
        features_BD: unit vectors, two or more.
        kappa: concentration of the kernel.
    """
    num_tiles = len(features_BD)
    is_self_BB = torch.eye(num_tiles, dtype=torch.bool, device=features_BD.device)
    scaled_BB = (kappa * features_BD @ features_BD.T).masked_fill(is_self_BB, -math.inf)
    return torch.logsumexp(scaled_BB, 1).mean() - math.log(num_tiles - 1)

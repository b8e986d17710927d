"""KoLeo: pushes each tile's features away from its nearest neighbour's.

Shape suffixes: B tiles, D backbone features.
"""

from __future__ import annotations

import torch
from torch import Tensor

from dino_path.config import KoleoConfig, TrainingConfig
from dino_path.training.objective.spread import SpreadTerm

EPSILON = 1e-8  # as published, in the distance and in its logarithm


class KoleoTerm(SpreadTerm):
    """The gradient of a pair at distance d grows as 1/d: histology has many nearly equal tiles, see `kde.py`."""

    name = "koleo"

    def __init__(self, config: KoleoConfig, training: TrainingConfig) -> None:
        super().__init__(config.weight, training)

    def crowding(self, features_BD: Tensor) -> Tensor:
        return koleo(features_BD)


def koleo(features_BD: Tensor) -> Tensor:
    """-(1/B) sum_i log |x_i - x_j|, where x_j is the nearest of the others: an estimate of the negative entropy.

    Source: Sablayrolles et al. 2019; facebookresearch/dinov2 `koleo_loss.py`. Both ends of a distance get its
    gradient; the search for the neighbour, by dot products, has none.

    Args:
        features_BD: unit vectors, two or more.
    """
    with torch.no_grad():
        nearest_B = (features_BD @ features_BD.T).fill_diagonal_(-torch.inf).argmax(1)
    distances_B = torch.pairwise_distance(features_BD, features_BD[nearest_B], eps=EPSILON)
    return -torch.log(distances_B + EPSILON).mean()

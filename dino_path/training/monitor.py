"""Health of a run: numbers per interval, and collapse seen and named."""

from __future__ import annotations

import math
from collections import deque

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_path.training.objective.term import Collapse

MAX_FEATURE_ROWS = 2048


class FeatureWindow:
    """The teacher's features of the last batches, for spread and rank."""

    def __init__(self) -> None:
        self._batches: deque[Tensor] = deque()
        self._num_rows = 0

    def add(self, features_BD: Tensor) -> None:
        self._batches.append(features_BD)
        self._num_rows += len(features_BD)
        while self._num_rows - len(self._batches[0]) >= MAX_FEATURE_ROWS:
            self._num_rows -= len(self._batches.popleft())

    def features(self) -> Tensor:
        return torch.cat(list(self._batches))


def feature_spread(features_ND: Tensor) -> float:
    """Mean per-dimension std of L2-normalised features, times sqrt(D): about 1 when spread out, 0 when all alike.

    Source: Chen & He 2021 (SimSiam), section 4.
    """
    unit = F.normalize(features_ND.float(), dim=1)
    return float(unit.std(dim=0, correction=0).mean() * math.sqrt(unit.shape[1]))


def rankme(features_ND: Tensor) -> float:
    """Effective rank: exp of the entropy of the normalised singular values; between 1 and min(N, D).

    Source: Garrido et al. 2023 (RankMe), eq. 1.
    """
    values = torch.linalg.svdvals(features_ND.float())
    shares = values / values.sum().clamp(min=1e-12) + 1e-7
    return float(torch.special.entr(shares).sum().exp())


def find_feature_collapse(spread: float) -> Collapse | None:
    """Collapse of features, for any objective: they no longer distinguish tiles."""
    if spread < 0.02:
        return Collapse(
            "constant features",
            "lower optim.base_lr, warm up longer, or use fewer prototypes; check that the tiles are not all similar",
        )
    return None

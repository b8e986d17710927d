"""Shared by KoLeo and KDE: they push the batch's [CLS] features apart on the sphere.

Shape suffixes: B tiles, D backbone features.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_path.config import TrainingConfig
from dino_path.errors import ConfigError
from dino_path.training.objective.dino_loss import at_least_fp32
from dino_path.training.objective.term import Outputs, Term, TermValue
from dino_path.training.schedules import StepSettings


class SpreadTerm(Term):
    """How crowded the student's normalised features before the head are, for each global view by itself; the two are
    added.

    Tiles are compared with those of the same micro-batch and process, as in DINOv2: unlike the other terms' this one's
    numbers depend on how a global batch is divided. It logs what it measures under its name.

    Raises:
        ConfigError: a micro-batch has one tile.
    """

    def __init__(self, weight: float, training: TrainingConfig) -> None:
        super().__init__(weight)
        if training.batch_size_per_gpu < 2:
            raise ConfigError(
                f"objective.{self.name}.weight={weight:g}",
                f"training.batch_size_per_gpu is {training.batch_size_per_gpu}.",
                "This term compares the tiles of one process and forward pass: it needs at least two.",
                f"Raise training.batch_size_per_gpu (or use fewer processes), or set objective.{self.name}.weight=0.",
            )

    @abstractmethod
    def crowding(self, features_BD: Tensor) -> Tensor:
        """Scalar, the larger the nearer these unit vectors are to one another."""

    def measure(self, outputs: Outputs, settings: StepSettings) -> TermValue:
        features_BD = at_least_fp32(outputs.student.features[: 2 * outputs.num_tiles])
        with torch.autocast(features_BD.device.type, enabled=False):
            first, second = F.normalize(features_BD, dim=-1).chunk(2)
            crowding = self.crowding(first) + self.crowding(second)
        return TermValue(crowding, {self.name: crowding.detach()})

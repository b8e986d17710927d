"""Shared by DINO and iBOT: the student learns to match the distributions of the teacher's head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from dino_path.model.head import NetworkOutput, Projection
from dino_path.training.objective.targets import Targets
from dino_path.training.objective.term import Needs, Outputs, Term
from dino_path.training.schedules import StepSettings


class HeadTerm(Term):
    """A term with targets: their center is summed over ranks and, if it is a running mean, kept in checkpoints."""

    needs = Needs(teacher=True)

    def __init__(self, weight: float, targets: Targets) -> None:
        super().__init__(weight)
        self.targets = targets

    @staticmethod
    @abstractmethod
    def projection(output: NetworkOutput) -> Projection:
        """The one that this term compares."""

    def projections(self, outputs: Outputs) -> tuple[Projection, Projection]:
        """The student's and the teacher's."""
        assert outputs.teacher is not None, "head terms need the teacher's pass"
        return self.projection(outputs.student), self.projection(outputs.teacher)

    def prepare(self, teachers: Sequence[NetworkOutput], settings: StepSettings) -> None:
        self.targets.prepare([self.projection(each) for each in teachers], settings.teacher_temp)

    def to_average(self, outputs: Outputs) -> dict[str, Tensor]:
        return self.targets.to_average(self.projections(outputs)[1])

    def update(self, means: Mapping[str, Tensor]) -> None:
        self.targets.update(means)

    def state(self) -> dict[str, Tensor]:
        return self.targets.state()


def collapse_mode(
    *, entropy: float, kl: float, prototypes_used: float, ln_k: float
) -> Literal["uniform", "one-hot"] | None:
    """uniform: the teacher gives every prototype the same probability (entropy at ln K). one-hot: it gives every row
    the same prototype. In both cases the features no longer distinguish rows; a high entropy alone, at the start, is
    healthy.
    """
    # Seen on the demo: at 99.7 % of ln K and a KL of 0.3 % of it the gradient was gone, and the features stood still.
    if entropy > 0.99 * ln_k and kl < 0.01 * ln_k:
        return "uniform"
    if prototypes_used < 1.5 and entropy < 0.05:
        return "one-hot"
    return None

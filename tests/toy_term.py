"""A second term of the objective, as short as one can be that asks for, logs, sums and remembers something."""

from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_path.config import ObjectiveConfig, TrainingConfig
from dino_path.distributed import World
from dino_path.training import learner
from dino_path.training.objective.term import Collapse, Needs, Outputs, Term, TermValue
from dino_path.training.objective.total import build_terms
from dino_path.training.schedules import StepSettings


@dataclass(frozen=True)
class ToyConfig:
    """What a section `objective.toy` would hold."""

    weight: float = 0.5


class ToyTerm(Term):
    """Keeps the student's patches near the running mean of the teacher's: no use, but it takes part in everything."""

    name = "toy"
    needs = Needs(patches=True)

    def __init__(self, config: ToyConfig, num_features: int, device: torch.device) -> None:
        super().__init__(config.weight)
        self.running_mean = torch.zeros(num_features, device=device)

    def measure(self, outputs: Outputs, settings: StepSettings) -> TermValue:
        patches = outputs.student.patches
        loss = (F.normalize(patches, dim=-1) - self.running_mean).square().mean()
        return TermValue(loss, {"toy_length": patches.detach().norm(dim=-1).mean()})

    def to_average(self, outputs: Outputs) -> dict[str, Tensor]:
        return {"mean": F.normalize(outputs.teacher.patches, dim=-1).mean((0, 1))}

    def update(self, means: Mapping[str, Tensor]) -> None:
        self.running_mean.lerp_(means["mean"], 0.5)

    def state(self) -> dict[str, Tensor]:
        return {"running_mean": self.running_mean}

    def find_collapse(self, averages: Mapping[str, float]) -> Collapse | None:
        return Collapse("toy", "play less") if averages["toy_length"] < 1e-6 else None

    def note(self, averages: Mapping[str, float]) -> str:
        return f"toy {averages['toy_length']:.2f}"


def terms_with_toy(config: ObjectiveConfig, training: TrainingConfig, world: World) -> list[Term]:
    return [*build_terms(config, training, world), ToyTerm(ToyConfig(), 32, world.device)]


def add_toy_term(patch: pytest.MonkeyPatch) -> None:
    """From now on every learner's objective has it.

    A real term is three files: its section in config/objective.py, a file of its own, and its line in `build_terms`.
    """
    patch.setattr(learner, "build_terms", terms_with_toy)

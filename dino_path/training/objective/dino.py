"""DINO: the student's [CLS] of every view says what the teacher's says of another view of the same tile.

Source: Caron et al. 2021. Formula and shapes are in `dino_loss.py`; `fused_loss.py` gives the same numbers without ever
holding all logits; `targets.py` has the center.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from dino_path.config import DinoConfig, TargetsConfig
from dino_path.distributed import World
from dino_path.model.head import NetworkOutput, Projection
from dino_path.training.objective.dino_loss import DinoLoss, dino_loss
from dino_path.training.objective.fused_loss import fused_dino_loss
from dino_path.training.objective.head_term import HeadTerm, collapse_mode
from dino_path.training.objective.targets import Centering, build_targets
from dino_path.training.objective.term import Collapse, Outputs, TermValue
from dino_path.training.schedules import StepSettings


class DinoTerm(HeadTerm):
    """The cross-entropy of the [CLS] head's outputs."""

    name = "dino"

    def __init__(self, config: DinoConfig, targets: TargetsConfig, *, is_fused: bool, world: World) -> None:
        super().__init__(config.weight, build_targets(targets, config.num_prototypes, world, Centering))
        self.student_temp, self.is_fused = config.student_temp, is_fused
        self.ln_k = math.log(config.num_prototypes)

    @staticmethod
    def projection(output: NetworkOutput) -> Projection:
        assert output.projection is not None, "the networks have no head for [CLS]"
        return output.projection

    def measure(self, outputs: Outputs, settings: StepSettings) -> TermValue:
        found = self._loss(outputs, settings.teacher_temp)
        logged = {
            "teacher_entropy": found.teacher_entropy,
            "kl": found.kl,
            "prototypes_used": found.prototypes_used,
        }
        return TermValue(found.loss, logged)

    def _loss(self, outputs: Outputs, teacher_temp: float) -> DinoLoss:
        """With or without all logits at once."""
        student, teacher, center = (*map(self.projection, (outputs.student, outputs.teacher)), self.targets.center)
        if self.is_fused:
            return fused_dino_loss(student, teacher, center, student_temp=self.student_temp, teacher_temp=teacher_temp)
        logits = student.logits(), teacher.logits()
        return dino_loss(*logits, center, student_temp=self.student_temp, teacher_temp=teacher_temp)

    def derived(self, loss: float, averages: Mapping[str, float]) -> dict[str, float]:
        return {"loss_minus_ln_k": loss / self.weight - self.ln_k}

    def find_collapse(self, averages: Mapping[str, float]) -> Collapse | None:
        mode = collapse_mode(
            entropy=averages["teacher_entropy"],
            kl=averages["kl"],
            prototypes_used=averages["prototypes_used"],
            ln_k=self.ln_k,
        )
        match mode:
            case "uniform":
                return Collapse(
                    "uniform",
                    "lower objective.dino.teacher_temp and objective.dino.warmup_teacher_temp (0.04 -> 0.02),"
                    " optim.base_lr, and on a short run training.momentum (0.99 -> 0.98); or make the views milder",
                )
            case "one-hot":
                return Collapse(
                    "one-hot",
                    "raise objective.dino.teacher_temp a little, lower optim.base_lr, or freeze the prototypes longer"
                    " (optim.freeze_last_layer)",
                )
            case None:
                return None

    def note(self, averages: Mapping[str, float]) -> str:
        return f"entropy {averages['teacher_entropy']:.2f}"

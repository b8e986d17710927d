"""DINO: the student's [CLS] of every view says what the teacher's says of another view of the same tile.

Source: Caron et al. 2021. Formula and shapes are in `dino_loss.py`; `fused_loss.py` gives the same numbers without ever
holding all logits; `targets.py` has the center.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from dino_path.config import DinoConfig, TargetsConfig
from dino_path.training.objective.dino_loss import DinoLoss, dino_loss
from dino_path.training.objective.fused_loss import fused_dino_loss
from dino_path.training.objective.targets import build_targets
from dino_path.training.objective.term import Collapse, Outputs, Term, TermValue
from dino_path.training.schedules import StepSettings


class DinoTerm(Term):
    """The cross-entropy of the heads' outputs; its center is summed over ranks and kept in checkpoints."""

    name = "dino"

    def __init__(self, config: DinoConfig, targets: TargetsConfig, *, is_fused: bool, device: torch.device) -> None:
        super().__init__(config.weight)
        self.student_temp, self.is_fused = config.student_temp, is_fused
        self.ln_k = math.log(config.num_prototypes)
        self.targets = build_targets(targets, config.num_prototypes, device)

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
        student, teacher, center = outputs.student.projection, outputs.teacher.projection, self.targets.center
        if self.is_fused:
            return fused_dino_loss(student, teacher, center, student_temp=self.student_temp, teacher_temp=teacher_temp)
        logits = student.logits(), teacher.logits()
        return dino_loss(*logits, center, student_temp=self.student_temp, teacher_temp=teacher_temp)

    def to_average(self, outputs: Outputs) -> dict[str, Tensor]:
        return self.targets.to_average(outputs.teacher.projection)

    def update(self, means: Mapping[str, Tensor]) -> None:
        self.targets.update(means)

    def state(self) -> dict[str, Tensor]:
        return self.targets.state()

    def derived(self, loss: float) -> dict[str, float]:
        return {"loss_minus_ln_k": loss / self.weight - self.ln_k}

    def find_collapse(self, averages: Mapping[str, float]) -> Collapse | None:
        """uniform: the teacher says the same of every prototype (entropy at ln K). one-hot: it says the same prototype
        of every tile. Either way the features stop telling tiles apart; a high entropy alone, at the start, is healthy.
        """
        entropy = averages["teacher_entropy"]
        # Seen on the demo: at 99.7 % of ln K and a KL of 0.3 % of it the gradient was gone, and the features stood
        # still.
        if entropy > 0.99 * self.ln_k and averages["kl"] < 0.01 * self.ln_k:
            return Collapse(
                "uniform",
                "lower objective.dino.teacher_temp and warmup_teacher_temp (0.04 -> 0.02), optim.base_lr, and on a"
                " short run training.momentum (0.99 -> 0.98); or make the views milder",
            )
        if averages["prototypes_used"] < 1.5 and entropy < 0.05:
            return Collapse(
                "one-hot",
                "raise objective.dino.teacher_temp a little, lower optim.base_lr, or freeze the prototypes longer",
            )
        return None

    def note(self, averages: Mapping[str, float]) -> str:
        return f"entropy {averages['teacher_entropy']:.2f}"

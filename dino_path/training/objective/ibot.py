"""iBOT: of patches that are hidden from it the student says what the teacher says who sees them.

Source: Zhou et al. 2022, and DINOv2 (Oquab et al. 2023). Formula and shapes are in `ibot_loss.py`; `fused_ibot_loss.py`
gives the same numbers without ever holding all logits; `targets.py` has the center, of patches alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from dino_path.config import ObjectiveConfig, TrainingConfig
from dino_path.distributed import World
from dino_path.errors import ConfigError
from dino_path.model.head import NetworkOutput, Projection
from dino_path.training.objective.fused_ibot_loss import fused_ibot_loss
from dino_path.training.objective.head_term import HeadTerm, collapse_mode
from dino_path.training.objective.ibot_loss import IbotLoss, ibot_loss
from dino_path.training.objective.targets import PatchCentering, build_targets
from dino_path.training.objective.term import Collapse, Needs, Outputs, TermValue
from dino_path.training.schedules import StepSettings


class IbotTerm(HeadTerm):
    """The cross-entropy of the patch head's outputs for hidden patches, with [CLS]' temperatures.

    Raises:
        ConfigError: so few views are masked that a step has none.
    """

    name = "ibot"
    needs = Needs(masks=True)

    def __init__(self, config: ObjectiveConfig, training: TrainingConfig, world: World) -> None:
        num_prototypes = (config.dino if config.ibot.head == "shared" else config.ibot).num_prototypes
        super().__init__(config.ibot.weight, build_targets(config.targets, num_prototypes, world, PatchCentering))
        self.student_temp, self.is_fused = config.dino.student_temp, training.fused_loss
        self.ln_k = math.log(num_prototypes)
        num_views = 2 * training.batch_size_per_gpu * training.accumulate_steps * world.size
        view_fraction = config.ibot.masks.view_fraction
        num_masked = int(num_views * view_fraction)  # in every step
        if num_masked == 0:
            raise ConfigError(
                f"objective.ibot.masks.view_fraction={view_fraction:g}",
                f"none of a step's {num_views} global views is masked.",
                "iBOT needs a masked view in every step.",
                f"Set it to {math.ceil(1000 / num_views) / 1000:g} or more, or objective.ibot.weight=0.",
            )
        self.masked_share = num_masked / num_views

    @staticmethod
    def projection(output: NetworkOutput) -> Projection:
        assert output.patch_projection is not None, "the networks have no head for patches"
        return output.patch_projection

    def measure(self, outputs: Outputs, settings: StepSettings) -> TermValue:
        found = self._loss(outputs, settings.teacher_temp)
        logged = {  # over the micro-batches and ranks of a step these average to means over its masked views
            "ibot_entropy": found.teacher_entropy / self.masked_share,
            "ibot_kl": found.kl / self.masked_share,
            "ibot_prototypes_used": found.prototypes_used,
        }
        return TermValue(found.loss, logged)

    def _loss(self, outputs: Outputs, teacher_temp: float) -> IbotLoss:
        """With or without all logits at once."""
        assert outputs.masks is not None, "the views have no masks"
        student, teacher = map(self.projection, (outputs.student, outputs.teacher))
        center, weights, num_views = self.targets.center, outputs.masks.weights, 2 * outputs.num_tiles
        if self.is_fused:
            return fused_ibot_loss(
                student,
                teacher,
                center,
                weights,
                num_views=num_views,
                student_temp=self.student_temp,
                teacher_temp=teacher_temp,
            )
        return ibot_loss(
            student.logits(),
            teacher.logits(),
            center,
            weights,
            num_views=num_views,
            student_temp=self.student_temp,
            teacher_temp=teacher_temp,
        )

    def find_collapse(self, averages: Mapping[str, float]) -> Collapse | None:
        mode = collapse_mode(
            entropy=averages["ibot_entropy"],
            kl=averages["ibot_kl"],
            prototypes_used=averages["ibot_prototypes_used"],
            ln_k=self.ln_k,
        )
        match mode:
            case "uniform":
                return Collapse(
                    "uniform patches",
                    "lower objective.dino.teacher_temp and objective.dino.warmup_teacher_temp (0.04 -> 0.02; they are"
                    " iBOT's too), optim.base_lr, or objective.ibot.weight; or hide less (objective.ibot.masks.ratio)",
                )
            case "one-hot":
                return Collapse(
                    "one-hot patches",
                    "raise objective.dino.teacher_temp (it is iBOT's too) a little, lower optim.base_lr or"
                    " objective.ibot.weight, or freeze the prototypes longer (optim.freeze_last_layer)",
                )
            case None:
                return None

    def note(self, averages: Mapping[str, float]) -> str:
        return f"patch entropy {averages['ibot_entropy']:.2f}"

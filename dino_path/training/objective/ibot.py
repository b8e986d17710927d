"""iBOT: the student predicts the teacher's output for patches that are hidden from the student.

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
from dino_path.training.objective.ibot_loss import ibot_loss
from dino_path.training.objective.targets import PatchCentering, build_targets
from dino_path.training.objective.term import Collapse, Needs, Outputs, TermValue
from dino_path.training.schedules import StepSettings


class IbotTerm(HeadTerm):
    """The cross-entropy of the patch head's outputs for hidden patches, with [CLS]' temperatures.

    Raises:
        ConfigError: so few views are masked that a step has none.
    """

    name = "ibot"
    needs = Needs(teacher=True, masks=True)

    def __init__(self, config: ObjectiveConfig, training: TrainingConfig, world: World) -> None:
        num_prototypes = (config.dino if config.ibot.head == "shared" else config.ibot).num_prototypes
        super().__init__(config.ibot.weight, build_targets(config.targets, num_prototypes, world, PatchCentering))
        self.student_temp, self.is_fused = config.dino.student_temp, training.fused_loss
        self.ln_k = math.log(num_prototypes)
        num_views = 2 * training.batch_size_per_gpu * training.accumulate_steps * world.size
        view_fraction = config.ibot.masks.view_fraction
        if int(num_views * view_fraction) == 0:
            raise ConfigError(
                f"objective.ibot.masks.view_fraction={view_fraction:g}",
                f"none of a step's {num_views} global views is masked.",
                "iBOT needs a masked view in every step.",
                f"Set it to {math.ceil(1000 / num_views) / 1000:g} or more, or objective.ibot.weight=0.",
            )

    @staticmethod
    def projection(output: NetworkOutput) -> Projection:
        assert output.patch_projection is not None, "the networks have no head for patches"
        return output.patch_projection

    def measure(self, outputs: Outputs, settings: StepSettings) -> TermValue:
        assert outputs.masks is not None, "the views have no masks"
        student, teacher = self.projections(outputs)
        center, weights, num_views = self.targets.center, outputs.masks.weights, 2 * outputs.num_tiles
        if self.is_fused:
            found = fused_ibot_loss(
                student,
                teacher,
                center,
                weights,
                num_views=num_views,
                student_temp=self.student_temp,
                teacher_temp=settings.teacher_temp,
            )
        else:
            found = ibot_loss(
                student.logits(),
                teacher.logits(),
                center,
                weights,
                num_views=num_views,
                student_temp=self.student_temp,
                teacher_temp=settings.teacher_temp,
            )
        logged = {
            "ibot_entropy": found.teacher_entropy,
            "ibot_kl": found.kl,
            "ibot_prototypes_used": found.prototypes_used,
            "ibot_masked_views": weights.sum() / num_views,  # those with a hidden patch, as a share of all
        }
        return TermValue(found.loss, logged)

    def derived(self, loss: float, averages: Mapping[str, float]) -> dict[str, float]:
        """Entropy and KL as means over masked views; divided only here, because a micro-batch may have none."""
        share = averages["ibot_masked_views"] or 1.0
        return {name: averages[name] / share for name in ("ibot_entropy", "ibot_kl")}

    def find_collapse(self, averages: Mapping[str, float]) -> Collapse | None:
        if averages["ibot_masked_views"] == 0:
            return None
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

"""Distillation: the student's features, through a linear layer, are to be those of a frozen model, the guide.

Shape suffixes: R rows (global views, or their patches), G features of the guide.

Sources: Romero et al. 2015 (FitNets) for features as targets; Ranzinger et al. 2024 (AM-RADIO, arXiv:2312.06709) for
cosine and smooth L1; Beyer et al. 2022 (arXiv:2106.05237) for student and guide seeing the very same view, which is why
local views have no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_path.config import DistillConfig
from dino_path.records.guide import GuideRecord
from dino_path.training.objective.dino_loss import at_least_fp32
from dino_path.training.objective.term import Outputs, Term, TermValue
from dino_path.training.schedules import StepSettings

LEAST_VARIANCE = 1e-6  # of a feature, as a share of its mean square: rounding of a constant one is not blown up


class Standardisation:
    """The guide's features, each standardised by its mean and standard deviation over all rows of all steps so far.

    Some models have a few features hundreds of times larger than the rest, which would dominate every distance. The
    guide is frozen, so that every step tells of the same distribution: all count alike, and the numbers settle. They
    are sums over the global batch, moved after an accepted step; before the first one there are none.
    """

    def __init__(self, num_features: int, device: torch.device) -> None:
        self.num_steps = torch.zeros((), dtype=torch.float64, device=device)
        self.mean = torch.zeros(num_features, dtype=torch.float64, device=device)
        self.mean_square = torch.zeros(num_features, dtype=torch.float64, device=device)

    def __call__(self, rows_RG: Tensor) -> Tensor:
        """(R, G), at least fp32; the rows as they are before the first step."""
        rows_RG = at_least_fp32(rows_RG)
        variance = (self.mean_square - self.mean.square()).clamp(min=0) + LEAST_VARIANCE * self.mean_square
        std = torch.where(variance > 0, variance, 1).sqrt()
        return (rows_RG - self.mean.to(rows_RG.dtype)) / std.to(rows_RG.dtype)

    def to_average(self, rows_RG: Tensor) -> dict[str, Tensor]:
        length_G = torch.linalg.vector_norm(rows_RG, dim=0, dtype=torch.float64)  # which holds no (R, G) in fp64
        return {"mean": rows_RG.mean(0, dtype=torch.float64), "mean_square": length_G.square() / len(rows_RG)}

    def update(self, means: Mapping[str, Tensor]) -> None:
        self.num_steps += 1
        for name, running in (("mean", self.mean), ("mean_square", self.mean_square)):
            running += (means[name] - running) / self.num_steps

    def state(self) -> dict[str, Tensor]:
        return {"num_steps": self.num_steps, "mean": self.mean, "mean_square": self.mean_square}


class DistillTerm(Term):
    """The weighted sum of two distances to the guide's features: of [CLS], and of the patches.

    The student's side is what the other terms see: with iBOT it also predicts hidden patches. A run's very first step
    measures the guide's features and teaches nothing; the term is 0 there.
    """

    name = "distill"

    def __init__(self, config: DistillConfig, guide: GuideRecord, device: torch.device) -> None:
        super().__init__(config.weight)
        self.patch_weight = config.patches
        self.guide = torch.tensor(list(bytes.fromhex(guide.digest)), dtype=torch.uint8)
        self.parts = {"cls": Standardisation(guide.num_features, device)}
        if config.patches > 0:
            self.parts["patches"] = Standardisation(guide.num_features, device)

    def measure(self, outputs: Outputs, settings: StepSettings) -> TermValue:
        match = outputs.student.match
        assert match is not None
        targets = self._targets(outputs)
        with torch.autocast(match.cls.device.type, enabled=False):
            loss, cosine = distance(match.cls, self.parts["cls"](targets["cls"]))
            logged = {"distill_cosine": cosine}
            if match.patches is not None:
                patches, targets_RG = match.patches.flatten(0, 1), self.parts["patches"](targets["patches"])
                patch_loss, logged["distill_patch_cosine"] = distance(patches, targets_RG)
                loss = loss + self.patch_weight * patch_loss
        return TermValue(loss * (self.parts["cls"].num_steps > 0), logged)

    def _targets(self, outputs: Outputs) -> dict[str, Tensor]:
        """(R, G) of each part."""
        guidance = outputs.guidance
        assert guidance is not None
        if "patches" not in self.parts:
            return {"cls": guidance.cls}
        assert guidance.patches is not None
        return {"cls": guidance.cls, "patches": guidance.patches.flatten(0, 1)}

    def to_average(self, outputs: Outputs) -> dict[str, Tensor]:
        return {
            f"{part}_{name}": value
            for part, rows_RG in self._targets(outputs).items()
            for name, value in self.parts[part].to_average(rows_RG).items()
        }

    def update(self, means: Mapping[str, Tensor]) -> None:
        for part, standardisation in self.parts.items():
            standardisation.update({name: means[f"{part}_{name}"] for name in ("mean", "mean_square")})

    def state(self) -> dict[str, Tensor]:
        """With `guide`, the 32 bytes of its digest: a run goes on with the guide that it began with (`same_run`)."""
        moments = {f"{part}_{name}": value for part, each in self.parts.items() for name, value in each.state().items()}
        return {"guide": self.guide, **moments}

    def note(self, averages: Mapping[str, float]) -> str:
        return f"cosine {averages['distill_cosine']:.3f}"


def distance(student_RG: Tensor, target_RG: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over rows of 1 - cos(s, t), plus mean over rows and features of the smooth L1 of s - t; and the mean cosine.

    The first tells directions and the second lengths too. Smooth L1 is d^2 / 2 up to |d| = 1 and |d| - 1/2 beyond, so
    that what lies far off, as a rare feature of the guide does, pulls no harder than the rest.

    Args:
        target_RG: standardised, in at least fp32, without gradient.
    """
    student_RG = at_least_fp32(student_RG)
    cosine = F.cosine_similarity(student_RG, target_RG, dim=-1).mean()
    return 1 - cosine + F.smooth_l1_loss(student_RG, target_RG), cosine.detach()

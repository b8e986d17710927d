"""Random outputs of networks for a batch of tiles, or for some of them, and objectives to measure them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_path.config import (
    DinoConfig,
    IbotConfig,
    KdeConfig,
    KoleoConfig,
    ObjectiveConfig,
    TargetsConfig,
    TrainingConfig,
)
from dino_path.distributed import World
from dino_path.model.head import NetworkOutput, Projection
from dino_path.training.objective.term import Outputs
from dino_path.training.objective.total import Objective, build_terms
from dino_path.training.schedules import StepSettings
from dino_path.views.masks import ViewMasks

SETTINGS = StepSettings(
    lr=0.0, weight_decay=0.0, momentum=1.0, teacher_temp=0.07, last_layer_frozen=False, kde_ramp=0.25
)
NUM_PROTOTYPES, NUM_PATCH_PROTOTYPES, NUM_PATCHES = 11, 13, 6


def objective_config(
    method: str = "sinkhorn-knopp", *, dino: float = 0.0, ibot: float = 0.0, koleo: float = 0.0, kde: float = 0.0
) -> ObjectiveConfig:
    """The numbers are weights."""
    return ObjectiveConfig(
        dino=DinoConfig(weight=dino, num_prototypes=NUM_PROTOTYPES),
        ibot=IbotConfig(weight=ibot, num_prototypes=NUM_PATCH_PROTOTYPES),
        koleo=KoleoConfig(weight=koleo),
        kde=KdeConfig(weight=kde),
        targets=TargetsConfig(method=method),
    )


@dataclass
class Batch:
    """All tiles' arrays; those of the student are leaves that ask for gradients."""

    features: Tensor
    """(V, B, D) of the student."""
    student: Tensor
    """(V, B, H) bottleneck vectors of [CLS]."""
    student_patches: Tensor
    """(2, B, N, H) bottleneck vectors of all patches of the global views."""
    prototypes: Tensor
    """(K, H) of the [CLS] head."""
    patch_prototypes: Tensor
    teacher: Tensor
    """(2, B, H)"""
    teacher_patches: Tensor
    hidden: Tensor
    """(2, B, N) bool."""

    @property
    def leaves(self) -> list[Tensor]:
        return [self.features, self.student, self.student_patches, self.prototypes, self.patch_prototypes]

    def outputs(self, first: int = 0, last: int | None = None) -> Outputs:
        """Those of a micro-batch: of the tiles from `first` on, before `last`."""
        tiles = slice(first, last)
        hidden = self.hidden[:, tiles]
        number = hidden.sum(-1, keepdim=True).expand_as(hidden)[hidden]

        def output(features: Tensor, cls: Tensor, patches: Tensor, *prototypes: Tensor) -> NetworkOutput:
            return NetworkOutput(
                features[:, tiles].flatten(0, 1),
                Projection(cls[:, tiles].flatten(0, 1), prototypes[0]),
                patch_projection=Projection(patches[:, tiles][hidden], prototypes[1]),
            )

        heads = self.prototypes, self.patch_prototypes
        return Outputs(
            student=output(self.features, self.student, self.student_patches, *heads),
            teacher=output(
                self.features[:2].detach(), self.teacher, self.teacher_patches, *(each.detach() for each in heads)
            ),
            masks=ViewMasks(
                hidden=hidden.flatten(0, 1),
                indices=hidden.flatten().nonzero()[:, 0],
                weights=1 / number.to(self.student.dtype),
            ),
        )


def random_batch(hidden: Sequence[Sequence[int]], *, dtype: torch.dtype = torch.float64, seed: int = 0) -> Batch:
    """Two local views of each tile.

    Args:
        hidden: numbers of hidden patches: of every tile's first global view, and of every tile's second.
    """
    generator = torch.Generator().manual_seed(seed)
    num_tiles, width = len(hidden[0]), 6

    def unit(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, width, generator=generator, dtype=dtype), dim=-1)

    def leaf(*shape: int) -> Tensor:
        return unit(*shape).requires_grad_()

    return Batch(
        features=leaf(4, num_tiles),
        student=leaf(4, num_tiles),
        student_patches=leaf(2, num_tiles, NUM_PATCHES),
        prototypes=leaf(NUM_PROTOTYPES),
        patch_prototypes=leaf(NUM_PATCH_PROTOTYPES),
        teacher=unit(2, num_tiles),
        teacher_patches=unit(2, num_tiles, NUM_PATCHES),
        hidden=torch.arange(NUM_PATCHES) < torch.tensor(hidden)[..., None],
    )


def objective_of(config: ObjectiveConfig, world: World, **training: bool | int) -> Objective:
    """In double precision, as the batches are."""
    torch.set_default_dtype(torch.float64)
    try:
        return Objective(build_terms(config, TrainingConfig(num_steps=1, **training), world))  # type: ignore[arg-type]
    finally:
        torch.set_default_dtype(torch.float32)

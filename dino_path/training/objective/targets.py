"""Targets: how the teacher's logits become the distributions that the student is to match.

Both kinds are softmax((t - center) / temperature), and differ in the center: the losses take one, of either kind.

Shape suffixes: n teacher rows ([CLS] of the global views, or masked patches), b rows of one piece,
H width of the bottleneck, K prototypes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import assert_never

import torch
from torch import Tensor

from dino_path.config import TargetsConfig
from dino_path.distributed import World
from dino_path.model.head import Projection
from dino_path.training.objective.fused_loss import PIECE_BYTES

KEPT_BYTES = 2**30  # logits that Sinkhorn-Knopp keeps over its rounds; the student's activations are not there yet


class Centering:
    """The center is a running mean of the teacher's logits.

    Source: Caron et al. 2021, eq. 4. The center that a step uses is the one from before it.
    """

    def __init__(self, num_prototypes: int, momentum: float, device: torch.device) -> None:
        self.momentum = momentum
        self.center = torch.zeros(1, num_prototypes, device=device)

    def prepare(self, teachers: Sequence[Projection], temperature: float) -> None:
        """The center is there already."""

    def to_average(self, teacher: Projection) -> dict[str, Tensor]:
        return {"center": batch_center(teacher)}

    def update(self, means: Mapping[str, Tensor]) -> None:
        update_center(self.center, means["center"], self.momentum)

    def state(self) -> dict[str, Tensor]:
        return {"center": self.center}


class PatchCentering(Centering):
    """The same for masked patches, whose number differs from micro-batch to micro-batch and from rank to rank.

    Every masked patch of the global batch counts alike: sums and numbers are averaged, and then divided. A step without
    any leaves the center.
    """

    def to_average(self, teacher: Projection) -> dict[str, Tensor]:
        bottleneck_nH = teacher.bottleneck.detach()
        total = Projection(bottleneck_nH.sum(0, keepdim=True), teacher.prototypes.detach())
        return {"sum": total.logits(), "count": bottleneck_nH.new_full((), len(bottleneck_nH))}

    def update(self, means: Mapping[str, Tensor]) -> None:
        mean = torch.where(means["count"] > 0, means["sum"] / means["count"], self.center)
        update_center(self.center, mean, self.momentum)


class SinkhornKnopp:
    """The center makes the prototypes equally used by all teacher rows of a step, as far as three rounds go.

    Source: Caron et al. 2020 (SwAV); facebookresearch/dinov2 `dino_clstoken_loss.py`. There exp(t / tau) is
    scaled by turns, three times: every prototype to the same sum over the teacher rows, then every teacher row to sum 1
    over the prototypes. Constants cancel, and the scaling of teacher rows is a softmax: the targets are
    softmax(t / tau + log r), r (K,) being the product of the three scales of the prototypes, so that -tau log r is
    their center. A scale is one by a sum over teacher rows: first of exp(t / tau), as a logsumexp, which does not
    overflow; then, twice, of softmax(t / tau + log r). Just these sums go over all teacher rows of the step, those of
    all its micro-batches and ranks, so that the targets do not depend on how the global batch is divided. Any rank may
    have no row; without a single one the center is 0.

    It remembers nothing: every step has a center of its own.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self._center: Tensor | None = None

    @property
    def center(self) -> Tensor:
        """(1, K), of the step that was prepared last."""
        assert self._center is not None, "prepare comes before measure"
        return self._center

    @torch.no_grad()
    def prepare(self, teachers: Sequence[Projection], temperature: float) -> None:
        """Find the center.

        Args:
            teachers: of all micro-batches of the step on this rank, of one teacher; every rank must call.
            temperature: of the teacher's softmax in the loss.
        """
        rows_nH = torch.cat([each.bottleneck for each in teachers]) / temperature
        with torch.autocast(rows_nH.device.type, enabled=False):
            self._center = -temperature * self._log_scales(rows_nH, teachers[0].prototypes)

    def _log_scales(self, rows_nH: Tensor, prototypes_KH: Tensor) -> Tensor:
        """(1, K) log r."""
        row_bytes = len(prototypes_KH) * rows_nH.element_size()
        pieces_bH = torch.split(rows_nH, max(1, PIECE_BYTES // row_bytes))

        def made() -> Iterator[Tensor]:
            return (piece_bH @ prototypes_KH.T for piece_bH in pieces_bH)

        kept = [*made()] if len(rows_nH) * row_bytes <= KEPT_BYTES else None  # else made again in each round
        logsum_1K = rows_nH.new_full((1, len(prototypes_KH)), -math.inf)
        for logits_bK in kept or made():
            logsum_1K = torch.logaddexp(logsum_1K, logits_bK.logsumexp(0, keepdim=True))
        largest_1K = self.world.max_(logsum_1K.clone())
        largest_1K.masked_fill_(largest_1K == -math.inf, 0)  # no rank has a row
        log_r_1K = -largest_1K - _log(self.world.sum_((logsum_1K - largest_1K).exp()))
        for _ in range(2):
            sum_1K = torch.zeros_like(log_r_1K)
            for logits_bK in kept or made():
                sum_1K += torch.softmax(logits_bK + log_r_1K, 1).sum(0)
            log_r_1K -= _log(self.world.sum_(sum_1K))
        return log_r_1K

    def to_average(self, teacher: Projection) -> dict[str, Tensor]:
        return {}

    def update(self, means: Mapping[str, Tensor]) -> None:
        assert not means

    def state(self) -> dict[str, Tensor]:
        return {}


Targets = Centering | SinkhornKnopp


def build_targets(config: TargetsConfig, num_prototypes: int, world: World, centering: type[Centering]) -> Targets:
    """The targets of one head; every head has its own.

    Args:
        centering: the kind for this head's rows, where the method is centering.
    """
    match config.method:
        case "centering":
            return centering(num_prototypes, config.center_momentum, world.device)
        case "sinkhorn-knopp":
            return SinkhornKnopp(world)
        case other:
            assert_never(other)


def batch_center(teacher: Projection) -> Tensor:
    """(1, K) mean of the raw teacher logits of this process's batch: the logits of its mean bottleneck vector."""
    return Projection(teacher.bottleneck.detach().mean(0, keepdim=True), teacher.prototypes.detach()).logits()


@torch.no_grad()
def update_center(center: Tensor, teacher_mean: Tensor, center_momentum: float) -> None:
    """center <- center_momentum * center + (1 - center_momentum) * mean logit of the global batch, all (1, K)."""
    center.lerp_(teacher_mean, 1.0 - center_momentum)


def _log(sums: Tensor) -> Tensor:
    """Logarithm of sums of non-negative numbers; 0 for an empty sum."""
    return sums.masked_fill(sums == 0, 1).log()

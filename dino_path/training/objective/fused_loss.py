"""The loss of `dino.py` without all logits in memory: prototypes, softmax and cross-entropy of a few tiles at a time.

Shape suffixes: V student views, T = 2 teacher views, b tiles of one piece, B tiles, H width of the bottleneck,
K prototypes; R = (V + T) * b rows of one piece, the student's first.

The logits of B = 64 tiles, 10 views and 65,536 prototypes take 168 MB, and the plain loss holds about six such arrays.
Here the gradients are computed in the forward pass, piece by piece, while a piece's softmax is in memory, so that
nothing is computed twice. The cross-entropy is linear in the teacher's distribution t: <t, logits> is the product of
a row of the bottleneck with the mean prototype under t. So two rows of width H per tile replace the targets (K wide)
of all its views.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dino_path.model.head import Projection
from dino_path.training.objective.dino_loss import DinoLoss

# Of one piece's logits. Every piece adds to the (K, H) gradient of the prototypes, so smaller pieces are slower: at 64
# tiles 16 MB took 1.62 s, 64 MB 1.48 s, 256 MB 1.33 s and 100 MB more (benchmarks/training/README.md).
PIECE_BYTES = 64 * 2**20


def fused_dino_loss(
    student: Projection, teacher: Projection, center: Tensor, *, student_temp: float, teacher_temp: float
) -> DinoLoss:
    """As `dino_loss` of both projections' logits, equal up to rounding; its loss can be differentiated once.

    Args:
        student: of V * B views, view by view, the two global views first.
        teacher: of the 2 * B global views in the same order.
        center: (1, K) running mean of the teacher's logits.
    """
    with torch.autocast(center.device.type, enabled=False):
        loss, entropy, mean_teacher_K = _FusedLoss.apply(
            *student, *(each.detach() for each in teacher), center, student_temp, teacher_temp
        )
        used = torch.special.entr(mean_teacher_K).sum().exp()
    return DinoLoss(loss=loss, teacher_entropy=entropy, kl=loss.detach() - entropy, prototypes_used=used)


class _FusedLoss(torch.autograd.Function):
    """(loss, the teacher's mean entropy, its mean distribution (K,)); gradients for the student's two arguments."""

    @staticmethod
    def forward(
        ctx: Any,
        bottleneck: Tensor,
        prototypes_KH: Tensor,
        teacher_bottleneck: Tensor,
        teacher_prototypes_KH: Tensor,
        center: Tensor,
        student_temp: float,
        teacher_temp: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_prototypes, width = prototypes_KH.shape
        s_VBH = bottleneck.reshape(-1, len(teacher_bottleneck) // 2, width) / student_temp
        t_TBH = teacher_bottleneck.reshape(2, -1, width) / teacher_temp
        offset = center.to(t_TBH.dtype) / -teacher_temp
        num_views, num_tiles = s_VBH.shape[:2]
        # A local view is compared with both teacher views; a global view only with the other one, never with itself.
        weight_V = s_VBH.new_full((num_views, 1), 2.0)
        weight_V[:2].fill_(1.0)

        loss, entropy, mean_teacher_K = s_VBH.new_zeros(()), s_VBH.new_zeros(()), s_VBH.new_zeros(num_prototypes)
        grad_VBH, grad_prototypes_KH = torch.empty_like(s_VBH), torch.zeros_like(prototypes_KH)
        piece_tiles = max(1, PIECE_BYTES // ((num_views + 2) * num_prototypes * s_VBH.element_size()))
        # One buffer for all pieces: otherwise the allocator would hold the logits of two pieces at a time.
        buffer_RK = s_VBH.new_empty((num_views + 2) * min(piece_tiles, num_tiles), num_prototypes)
        for first in range(0, num_tiles, piece_tiles):
            piece = slice(first, first + piece_tiles)
            s_VbH, t_RH = s_VBH[:, piece], t_TBH[:, piece].reshape(-1, width)
            s_RH = s_VbH.reshape(-1, width)
            rows_RK = buffer_RK[: len(s_RH) + len(t_RH)]
            student_RK, teacher_RK = rows_RK[: len(s_RH)], rows_RK[len(s_RH) :]

            torch.addmm(offset, t_RH, teacher_prototypes_KH.T, out=teacher_RK)
            entropy += softmax_(teacher_RK).sum()
            mean_teacher_K += teacher_RK.sum(0)

            # The student's rows stay unnormalised, exp(logit - largest): dividing (R, H) by the sum later is cheaper
            # than another pass over (R, K).
            torch.mm(s_RH, prototypes_KH.T, out=student_RK)
            largest_R1 = student_RK.amax(1, keepdim=True)
            sum_R1 = student_RK.sub_(largest_R1).exp_().sum(1, keepdim=True)
            partition_Vb = (largest_R1 + sum_R1.log()).view(num_views, -1)
            share_Vb1 = (weight_V / sum_R1.view(num_views, -1)).unsqueeze(-1)

            # Both networks' rows are averaged over the *student's* prototypes: the teacher's distribution weighs the
            # student's logits. The student's means still contain the factor sum_R1, which share_Vb1 divides out.
            means_RH = rows_RK @ prototypes_KH
            target_TbH = means_RH[len(s_RH) :].view(2, -1, width)
            target_VbH = torch.cat([target_TbH.flip(0), target_TbH.sum(0, keepdim=True).expand(num_views - 2, -1, -1)])
            loss += (weight_V * partition_Vb).sum() - (s_VbH * target_VbH).sum()
            grad_VBH[:, piece] = share_Vb1 * means_RH[: len(s_RH)].view_as(s_VbH) - target_VbH
            # d loss / d prototypes: each teacher row with the student rows that it is a target of.
            opposite_TbH = s_VbH[:2].flip(0) + s_VbH[2:].sum(0)
            factors_RH = torch.cat([(share_Vb1 * s_VbH).flatten(0, 1), -opposite_TbH.flatten(0, 1)])
            grad_prototypes_KH.addmm_(rows_RK.T, factors_RH)

        num_terms = (2 * num_views - 2) * num_tiles  # pairs of a teacher and a student view, without a view and itself
        ctx.save_for_backward(
            grad_VBH.div_(num_terms * student_temp).view_as(bottleneck), grad_prototypes_KH.div_(num_terms)
        )
        results = loss / num_terms, entropy / (2 * num_tiles), mean_teacher_K / (2 * num_tiles)
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_bottleneck, grad_prototypes = ctx.saved_tensors
        return grad_loss * grad_bottleneck, grad_loss * grad_prototypes, None, None, None, None, None


def softmax_(logits_RK: Tensor) -> Tensor:
    """Turn logits (R, K) into probabilities in place; returns the entropy (R,) of each row, nats."""
    logits_RK -= torch.logsumexp(logits_RK, 1, keepdim=True)
    entropy_R: Tensor = -torch.linalg.vecdot(logits_RK.exp(), logits_RK)
    logits_RK.exp_()
    return entropy_R

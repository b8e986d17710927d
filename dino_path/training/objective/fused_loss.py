"""The loss of `dino.py` without all logits: prototype layer, softmax and cross-entropy of a few tiles at a time.

Shape suffixes: V student views, T = 2 teacher views, b tiles of one piece, B tiles, H width of the bottleneck,
K prototypes; R = (V + T) * b rows of one piece, the student's first.

The logits of B = 64 tiles, 10 views and 65,536 prototypes are 168 MB, and the plain loss holds some six such arrays.
Here the gradients are computed in the forward pass, piece by piece, from softmaxes of whole rows, so that nothing is
computed twice. The cross-entropy is linear in the teacher's distribution t, so that <t, s> is the product of a row of
the bottleneck with the prototypes' mean under t: two rows a tile stand for the targets of all its views.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dino_path.model.head import Projection
from dino_path.training.objective.dino_loss import DinoLoss

PIECE_BYTES = 64 * 2**20  # of one piece's logits; smaller pieces add to the prototypes' gradient more often


def fused_dino_loss(
    student: Projection, teacher: Projection, center: Tensor, *, student_temp: float, teacher_temp: float
) -> DinoLoss:
    """As `dino_loss` of both projections' logits, equal but for rounding; its loss can be differentiated once.

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
        weight_V = s_VBH.new_full((num_views, 1), 2.0)  # a local view meets both teacher views
        weight_V[:2].fill_(1.0)

        loss, entropy, mean_teacher_K = s_VBH.new_zeros(()), s_VBH.new_zeros(()), s_VBH.new_zeros(num_prototypes)
        grad_VBH, grad_prototypes_KH = torch.empty_like(s_VBH), torch.zeros_like(prototypes_KH)
        piece_tiles = max(1, PIECE_BYTES // ((num_views + 2) * num_prototypes * s_VBH.element_size()))
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

            torch.mm(s_RH, prototypes_KH.T, out=student_RK)
            largest_R1 = student_RK.amax(1, keepdim=True)
            sum_R1 = student_RK.sub_(largest_R1).exp_().sum(1, keepdim=True)
            partition_Vb = (largest_R1 + sum_R1.log()).view(num_views, -1)
            share_Vb1 = (weight_V / sum_R1.view(num_views, -1)).unsqueeze(-1)

            means_RH = rows_RK @ prototypes_KH  # of the prototypes: the student's times sum_R1
            target_TbH = means_RH[len(s_RH) :].view(2, -1, width)
            target_VbH = torch.cat([target_TbH.flip(0), target_TbH.sum(0, keepdim=True).expand(num_views - 2, -1, -1)])
            loss += (weight_V * partition_Vb).sum() - (s_VbH * target_VbH).sum()
            grad_VBH[:, piece] = share_Vb1 * means_RH[: len(s_RH)].view_as(s_VbH) - target_VbH
            opposite_TbH = s_VbH[:2].flip(0) + s_VbH[2:].sum(0)
            factors_RH = torch.cat([(share_Vb1 * s_VbH).flatten(0, 1), -opposite_TbH.flatten(0, 1)])
            grad_prototypes_KH.addmm_(rows_RK.T, factors_RH)

        num_terms = (2 * num_views - 2) * num_tiles
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

"""The loss of `ibot_loss.py` without all logits: prototype layer, softmax and cross-entropy of some patches at a time.

Shape suffixes: M hidden patches, b of one piece, H width of the bottleneck, K prototypes.

As in `fused_loss.py` the gradients are computed in the forward pass. Here each student row has one teacher row, so that
the gradient for its logits, the difference of two softmaxes, is there before any product with the prototypes: a piece
costs three products for the student, as an ordinary layer does, and one for the teacher.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dino_path.model.head import Projection
from dino_path.training.objective.fused_loss import PIECE_BYTES, softmax_
from dino_path.training.objective.ibot_loss import IbotLoss


def fused_ibot_loss(
    student: Projection,
    teacher: Projection,
    center: Tensor,
    weights: Tensor,
    *,
    num_views: int,
    student_temp: float,
    teacher_temp: float,
) -> IbotLoss:
    """As `ibot_loss` of both projections' logits, equal but for rounding; its loss can be differentiated once."""
    with torch.autocast(center.device.type, enabled=False):
        loss, entropy, mean_teacher_K = _FusedIbotLoss.apply(
            *student, *(each.detach() for each in teacher), center, weights / num_views, student_temp, teacher_temp
        )
        used = torch.special.entr(mean_teacher_K).sum().exp()
    return IbotLoss(loss=loss, teacher_entropy=entropy, kl=loss.detach() - entropy, prototypes_used=used)


class _FusedIbotLoss(torch.autograd.Function):
    """(loss, the teacher's weighted entropy, its mean distribution (K,)); gradients for the student's two arguments."""

    @staticmethod
    def forward(
        ctx: Any,
        bottleneck_MH: Tensor,
        prototypes_KH: Tensor,
        teacher_bottleneck_MH: Tensor,
        teacher_prototypes_KH: Tensor,
        center: Tensor,
        weights_M: Tensor,
        student_temp: float,
        teacher_temp: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_patches, num_prototypes = len(bottleneck_MH), len(prototypes_KH)
        s_MH, t_MH = bottleneck_MH / student_temp, teacher_bottleneck_MH / teacher_temp
        weights_M = weights_M.to(s_MH.dtype)
        offset = center.to(t_MH.dtype) / -teacher_temp

        loss, entropy, total_K = s_MH.new_zeros(()), s_MH.new_zeros(()), s_MH.new_zeros(num_prototypes)
        grad_MH, grad_prototypes_KH = torch.empty_like(s_MH), torch.zeros_like(prototypes_KH)
        piece_rows = max(1, PIECE_BYTES // (2 * num_prototypes * s_MH.element_size()))
        buffer_2bK = s_MH.new_empty(2, min(piece_rows, num_patches), num_prototypes)
        for first in range(0, num_patches, piece_rows):
            piece = slice(first, first + piece_rows)
            s_bH, t_bH, weights_b = s_MH[piece], t_MH[piece], weights_M[piece]
            student_bK, teacher_bK = buffer_2bK[:, : len(s_bH)]

            torch.addmm(offset, t_bH, teacher_prototypes_KH.T, out=teacher_bK)
            entropy += softmax_(teacher_bK) @ weights_b
            total_K += teacher_bK.sum(0)

            torch.mm(s_bH, prototypes_KH.T, out=student_bK)
            partition_b1 = torch.logsumexp(student_bK, 1, keepdim=True)
            loss += (partition_b1.squeeze(1) - torch.linalg.vecdot(teacher_bK, student_bK)) @ weights_b
            grad_bK = student_bK.sub_(partition_b1).exp_().sub_(teacher_bK).mul_(weights_b.unsqueeze(1))
            grad_MH[piece] = grad_bK @ prototypes_KH
            grad_prototypes_KH.addmm_(grad_bK.T, s_bH)

        ctx.save_for_backward(grad_MH.div_(student_temp), grad_prototypes_KH)
        results = loss, entropy, total_K / max(num_patches, 1)
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        grad_bottleneck, grad_prototypes = ctx.saved_tensors
        return grad_loss * grad_bottleneck, grad_loss * grad_prototypes, None, None, None, None, None, None

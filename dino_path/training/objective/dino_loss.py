"""DINO's term: cross-entropy between the teacher's and the student's [CLS] of two views of the same tile.

Shape suffixes: V student views, T = 2 teacher views, B tiles, K prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DinoLoss:
    """Result of one evaluation of the loss: scalars on the device, without gradient except `loss`."""

    loss: Tensor
    teacher_entropy: Tensor
    """Mean entropy of the teacher's distributions, nats; ln K when it says nothing, 0 when one-hot."""
    kl: Tensor
    """Mean KL(teacher || student), nats: the loss less the teacher's entropy."""
    prototypes_used: Tensor
    """exp of the entropy of the batch's mean teacher distribution: how many prototypes share the work."""


def dino_loss(
    student_logits: Tensor, teacher_logits: Tensor, center: Tensor, *, student_temp: float, teacher_temp: float
) -> DinoLoss:
    """Mean cross-entropy H(teacher view, student view) over all pairs of different views.

    Source: Caron et al. 2021, eq. 3 and algorithm 1; facebookresearch/dino `main_dino.py`, DINOLoss. With
    V student views it averages 2V - 2 terms, all with equal weight. The cross-entropy is linear in the teacher:
    logsumexp(s) - <t, s>, so that no log-softmax is stored and a local view meets the sum of both teacher views.

    Args:
        student_logits: (V * B, K), view by view, the two global views first.
        teacher_logits: (2 * B, K), raw outputs for the two global views in the same order.
        center: (1, K) running mean of the teacher's logits; it is used here and updated after the step.
    """
    s_VBK = at_least_fp32(student_logits) / student_temp
    t_TBK = torch.softmax((at_least_fp32(teacher_logits.detach()) - center) / teacher_temp, dim=-1)
    num_tiles = teacher_logits.shape[0] // 2
    s_VBK = s_VBK.view(-1, num_tiles, s_VBK.shape[-1])
    t_TBK = t_TBK.view(2, num_tiles, t_TBK.shape[-1])
    num_views = s_VBK.shape[0]

    partition_VB = torch.logsumexp(s_VBK, dim=-1)
    agreement = (s_VBK[:2] * t_TBK.flip(0)).sum() + (s_VBK[2:] * t_TBK.sum(0)).sum()
    num_terms = 2 * num_views - 2
    loss = (partition_VB[:2].sum() + 2 * partition_VB[2:].sum() - agreement) / (num_terms * num_tiles)

    with torch.no_grad():
        entropy = torch.special.entr(t_TBK).sum(-1).mean()
        used = torch.special.entr(t_TBK.mean((0, 1))).sum().exp()
    return DinoLoss(loss=loss, teacher_entropy=entropy, kl=loss.detach() - entropy, prototypes_used=used)


def at_least_fp32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor

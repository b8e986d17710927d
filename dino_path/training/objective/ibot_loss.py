"""iBOT's term: cross-entropy between the teacher's and the student's projection of the patches that are hidden from the
student.

Shape suffixes: M hidden patches of all global views of a micro-batch, K prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dino_path.training.objective.dino_loss import at_least_fp32


@dataclass(frozen=True)
class IbotLoss:
    """Result of one evaluation of the loss: scalars on the device, without gradient except `loss`."""

    loss: Tensor
    teacher_entropy: Tensor
    """Entropy of the teacher's distributions, nats, weighted as the loss is: a view without hidden patches adds 0."""
    kl: Tensor
    """KL(teacher || student), nats, with the same weights: the loss minus the teacher's entropy."""
    prototypes_used: Tensor
    """exp of the entropy of the mean teacher distribution of the M patches; 1 where M is 0."""


def ibot_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    center: Tensor,
    weights: Tensor,
    *,
    num_views: int,
    student_temp: float,
    teacher_temp: float,
) -> IbotLoss:
    """Sum over hidden patches of weight * H(teacher, student), by the number of global views.

    Source: Zhou et al. 2022 (iBOT); facebookresearch/dinov2 `ibot_patch_loss.py`, forward_masked. The weight of a patch
    being one by the number of its view's hidden patches, it is a mean over views of means over their hidden patches,
    where a view without any counts as 0. M may be 0: then so are the loss and its gradients.

    Args:
        student_logits: (M, K), of the views with hidden patches.
        teacher_logits: (M, K), of the same patches where nothing is hidden.
        center: (1, K), see `targets.py`.
        weights: (M,).
        num_views: 2 * B, the views without hidden patches too.
    """
    s_MK, t_MK = (at_least_fp32(each) for each in (student_logits, teacher_logits.detach()))
    s_MK = s_MK / student_temp
    t_MK = torch.softmax((t_MK - center) / teacher_temp, dim=-1)
    loss = ((torch.logsumexp(s_MK, dim=-1) - torch.linalg.vecdot(t_MK, s_MK)) * weights).sum() / num_views

    with torch.no_grad():
        entropy = (torch.special.entr(t_MK).sum(-1) * weights).sum() / num_views
        used = torch.special.entr(t_MK.sum(0) / max(len(t_MK), 1)).sum().exp()
    return IbotLoss(loss=loss, teacher_entropy=entropy, kl=loss.detach() - entropy, prototypes_used=used)

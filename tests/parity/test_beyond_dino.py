"""Numbers computed once in float64 from the modules of facebookresearch/dinov2 b8931f7, and from KDE's formula."""

import pytest
import torch
import torch.nn.functional as F
from tiny import ALONE
from torch import Tensor

from dino_path.model.head import Projection
from dino_path.training.objective.dino_loss import dino_loss
from dino_path.training.objective.fused_ibot_loss import fused_ibot_loss
from dino_path.training.objective.fused_loss import fused_dino_loss
from dino_path.training.objective.ibot_loss import ibot_loss
from dino_path.training.objective.kde import kde
from dino_path.training.objective.koleo import koleo
from dino_path.training.objective.targets import SinkhornKnopp

UNIT = torch.eye(5, dtype=torch.float64)  # as prototypes: what is projected are the logits
TEMPERATURES = {"student_temp": 0.1, "teacher_temp": 0.07}


def grid(rows: int, columns: int, a: float, b: float) -> Tensor:
    i, j = (torch.arange(1, number + 1, dtype=torch.float64) for number in (rows, columns))
    return torch.sin(a * i[:, None] * j + b * i[:, None])


def sinkhorn_center(teacher: Tensor) -> Tensor:
    targets = SinkhornKnopp(ALONE)
    targets.prepare([Projection(teacher, UNIT)], 0.07)
    return targets.center


def targets_of(teacher: Tensor) -> Tensor:
    return torch.softmax((teacher - sinkhorn_center(teacher)) / 0.07, 1)


def test_sinkhorn_knopp_gives_the_published_targets() -> None:
    targets = targets_of(grid(6, 5, 0.7, 0.3))
    assert targets[0].tolist() == pytest.approx([0.37621338, 0.608467129, 0.0053060977, 0.010013393, 2e-10], abs=1e-9)
    assert targets[3].tolist() == pytest.approx(
        [2.29e-08, 0.2493744813, 1.41915e-05, 0.2598308673, 0.490780437], abs=1e-9
    )
    assert targets.sum(0).tolist() == pytest.approx(
        [0.8860785906, 1.1251613726, 1.4721680131, 1.5362116423, 0.9803803814], abs=1e-9
    )


CENTERS = {
    "sinkhorn-knopp": (sinkhorn_center(grid(6, 5, 0.7, 0.3)), 10.183095002022462, 2.7118212987910204),
    "centering": (torch.linspace(-0.2, 0.2, 5, dtype=torch.float64)[None], 8.722207755132203, 3.2237336569136743),
}


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("method", CENTERS)
def test_cls_loss_and_gradient_equal_the_published_ones_with_either_targets(method: str, is_fused: bool) -> None:
    student, teacher = grid(12, 5, 0.45, 0.2).requires_grad_(), grid(6, 5, 0.7, 0.3)
    center, value, norm = CENTERS[method]
    if is_fused:
        found = fused_dino_loss(Projection(student, UNIT), Projection(teacher, UNIT), center, **TEMPERATURES)
    else:
        found = dino_loss(student, teacher, center, **TEMPERATURES)
    (gradient,) = torch.autograd.grad(found.loss, student)
    assert float(found.loss.detach()) == pytest.approx(value, abs=1e-12)
    assert float(gradient.norm()) == pytest.approx(norm, abs=1e-12)


@pytest.mark.parametrize("is_fused", [False, True])
def test_ibot_loss_and_gradient_equal_the_published_ones(is_fused: bool) -> None:
    student, teacher = grid(6, 5, 0.5, 0.35).requires_grad_(), grid(6, 5, 0.6, 0.15)
    assert targets_of(teacher)[0].tolist() == pytest.approx(
        [0.019859836, 0.5540181415, 0.3562796336, 0.0048981912, 0.0649441977], abs=1e-9
    )
    hidden = (2, 0, 1, 3, 0, 0)  # patches of each view
    weights = torch.cat([torch.full((number,), 1 / max(number, 1), dtype=torch.float64) for number in hidden])
    rest = sinkhorn_center(teacher), weights
    if is_fused:
        found = fused_ibot_loss(
            Projection(student, UNIT), Projection(teacher, UNIT), *rest, num_views=6, **TEMPERATURES
        )
    else:
        found = ibot_loss(student, teacher, *rest, num_views=6, **TEMPERATURES)
    (gradient,) = torch.autograd.grad(found.loss, student)
    assert float(found.loss.detach()) == pytest.approx(0.7838804939611989, abs=1e-12)
    assert float(gradient.norm()) == pytest.approx(1.5231701157600757, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "value", "norm"),
    [
        ("koleo", -0.3189800283281596, 0.30773757789839),
        ("kde 5", -0.5900611724373795, 2.0693494835031823),
        ("kde 10", -0.47172849278912377, 5.032510794892016),
    ],
)
def test_spread_terms_and_their_gradients_equal_the_published_ones(name: str, value: float, norm: float) -> None:
    features = grid(4, 6, 0.5, 0.9).requires_grad_()
    unit = F.normalize(features, dim=-1)
    loss = koleo(unit) if name == "koleo" else kde(unit, kappa=float(name.split()[1]))
    (gradient,) = torch.autograd.grad(loss, features)
    assert float(loss.detach()) == pytest.approx(value, abs=1e-12)
    assert float(gradient.norm()) == pytest.approx(norm, abs=1e-12)


def test_spread_terms_rise_as_features_collapse() -> None:
    """Both must rise. One public implementation of KDE has an inverted sign, so that it falls."""
    unit, found = F.normalize(grid(8, 6, 0.5, 0.9), dim=-1), []
    for share in (0, 0.5, 0.9, 0.99):
        mixed = F.normalize((1 - share) * unit + share * F.normalize(unit.mean(0), dim=0), dim=-1)
        mean_cosine = (mixed @ mixed.T).fill_diagonal_(0).sum() / (8 * 7)
        found.append((float(mean_cosine), float(kde(mixed, kappa=5)), float(koleo(mixed))))
    cosines, kdes, koleos = zip(*found, strict=True)
    assert cosines == pytest.approx([-0.134, 0.455, 0.989, 1.000], abs=5e-4)
    assert kdes == pytest.approx([1.0722, 2.9015, 4.9436, 4.9995], abs=5e-5)
    assert koleos == pytest.approx([0.1308, 0.6306, 2.5835, 4.9695], abs=5e-5)

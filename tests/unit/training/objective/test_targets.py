"""Sinkhorn-Knopp as its formula says, at any size and however divided; centers of patches."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
import torch.nn.functional as F
from tiny import ALONE
from torch import Tensor

from dino_path.model.head import Projection
from dino_path.training.objective import targets as module
from dino_path.training.objective.targets import Centering, PatchCentering, SinkhornKnopp


def literal_sinkhorn_knopp(teacher: list[list[float]], temperature: float) -> list[list[float]]:
    """Step by step as in facebookresearch/dinov2, in numbers whose exponents do not end: rows are prototypes there."""
    num_samples, num_prototypes = len(teacher), len(teacher[0])
    with localcontext() as context:
        context.prec, context.Emax, context.Emin = 40, 10**9, -(10**9)
        q = [[(Decimal(row[k]) / Decimal(temperature)).exp() for row in teacher] for k in range(num_prototypes)]
        total = sum(map(sum, q))
        q = [[value / total for value in row] for row in q]
        for _ in range(3):
            q = [[value / sum(row) / num_prototypes for value in row] for row in q]
            sums = [sum(column) for column in zip(*q, strict=True)]
            q = [[value / of_sample / num_samples for value, of_sample in zip(row, sums, strict=True)] for row in q]
        return [[float(value * num_samples) for value in column] for column in zip(*q, strict=True)]


def found_targets(*teachers: Projection, temperature: float) -> Tensor:
    """Of the samples of all micro-batches."""
    targets = SinkhornKnopp(ALONE)
    targets.prepare(teachers, temperature)
    logits = torch.cat([each.logits() for each in teachers])
    return torch.softmax((logits - targets.center) / temperature, 1)


def random_teacher(
    num_samples: int, num_prototypes: int, *, length: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Projection:
    generator = torch.Generator().manual_seed(seed)
    bottleneck, prototypes = (
        F.normalize(torch.randn(number, 4, generator=generator, dtype=torch.float64), dim=1).to(dtype)
        for number in (num_samples, num_prototypes)
    )
    return Projection(bottleneck, length * prototypes)


@pytest.mark.parametrize(("num_samples", "num_prototypes"), [(9, 4), (4, 9), (1, 5)])
@pytest.mark.parametrize("largest", [1, 15, 1e4], ids=lambda largest: f"t over tau to {largest:g}")
def test_targets_are_those_of_the_literal_formula(num_samples: int, num_prototypes: int, largest: float) -> None:
    """exp(1e4) overflows in any floating point format of a GPU."""
    teacher = random_teacher(num_samples, num_prototypes, length=0.07 * largest, seed=num_samples)
    expected = torch.tensor(literal_sinkhorn_knopp(teacher.logits().tolist(), 0.07), dtype=torch.float64)
    torch.testing.assert_close(found_targets(teacher, temperature=0.07), expected, rtol=1e-8, atol=1e-10)


def test_in_fp32_targets_are_those_of_double_precision_but_for_rounding() -> None:
    """In bf16 and fp16 exp(1 / 0.01) overflows; the center is fp32."""
    exact, single = (random_teacher(64, 500, dtype=dtype) for dtype in (torch.float64, torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        targets = SinkhornKnopp(ALONE)
        targets.prepare([single], 0.01)
    assert targets.center.dtype == torch.float32
    found = torch.softmax((single.logits() - targets.center) / 0.01, 1)
    assert float((found - found_targets(exact, temperature=0.01)).abs().max()) < 1e-4


def test_all_prototypes_come_into_use_where_a_softmax_would_use_one() -> None:
    teacher = random_teacher(400, 16)
    teacher = teacher._replace(bottleneck=F.normalize(teacher.bottleneck + 2 * teacher.prototypes[0], dim=1))
    plain, balanced = torch.softmax(teacher.logits() / 0.04, 1), found_targets(teacher, temperature=0.04)
    used = [float(torch.special.entr(each.mean(0)).sum().exp()) for each in (plain, balanced)]
    assert used[0] < 2
    assert used[1] > 15


@pytest.mark.parametrize("kept_bytes", [2**30, 0], ids=["kept", "made again"])
def test_targets_do_not_depend_on_pieces_or_micro_batches(monkeypatch: pytest.MonkeyPatch, kept_bytes: int) -> None:
    teacher = random_teacher(23, 9)
    expected = found_targets(teacher, temperature=0.05)
    monkeypatch.setattr(module, "PIECE_BYTES", 4 * 9 * 8)  # of four samples
    monkeypatch.setattr(module, "KEPT_BYTES", kept_bytes)
    divided = [teacher._replace(bottleneck=part) for part in teacher.bottleneck.split((10, 0, 13))]
    torch.testing.assert_close(found_targets(*divided, temperature=0.05), expected, rtol=1e-12, atol=1e-13)


def test_without_a_sample_the_center_is_zero() -> None:
    targets = SinkhornKnopp(ALONE)
    targets.prepare([random_teacher(0, 5), random_teacher(0, 5)], 0.05)
    assert torch.equal(targets.center, torch.zeros(1, 5, dtype=torch.float64))


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_not_hidden_and_do_not_outlive_the_step(broken: float) -> None:
    targets, teacher = SinkhornKnopp(ALONE), random_teacher(6, 5)
    bad = teacher.bottleneck.clone()
    bad[2, 1] = broken
    targets.prepare([teacher._replace(bottleneck=bad)], 0.05)
    assert not targets.center.isfinite().any()
    targets.prepare([teacher], 0.05)
    assert targets.center.isfinite().all()


def test_sinkhorn_knopp_remembers_nothing() -> None:
    targets = SinkhornKnopp(ALONE)
    with pytest.raises(AssertionError, match="prepare comes before measure"):
        _ = targets.center
    targets.prepare([random_teacher(6, 5)], 0.05)
    assert targets.to_average(random_teacher(6, 5)) == targets.state() == {}


def test_the_center_of_patches_moves_by_the_mean_of_all_whatever_their_numbers() -> None:
    """Micro-batches of 5, 0 and 2 masked patches."""
    teacher = random_teacher(7, 5, dtype=torch.float32)
    targets = PatchCentering(5, 0.9, torch.device("cpu"))
    parts = [targets.to_average(teacher._replace(bottleneck=part)) for part in teacher.bottleneck.split((5, 0, 2))]
    means = {name: sum(part[name] for part in parts) / 3 for name in parts[0]}
    targets.update(means)
    torch.testing.assert_close(targets.center, 0.1 * teacher.logits().mean(0, keepdim=True))


def test_a_step_without_masked_patches_leaves_their_center() -> None:
    targets, teacher = PatchCentering(5, 0.9, torch.device("cpu")), random_teacher(4, 5, dtype=torch.float32)
    targets.update(targets.to_average(teacher))
    before = targets.center.clone()
    targets.update(targets.to_average(teacher._replace(bottleneck=teacher.bottleneck[:0])))
    assert torch.equal(targets.center, before)
    assert before.any()


def test_preparing_does_not_move_a_running_center() -> None:
    targets = Centering(5, 0.9, torch.device("cpu"))
    targets.prepare([random_teacher(4, 5)], 0.04)
    assert not targets.center.any()

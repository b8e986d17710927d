"""iBOT's loss without all logits equals the plain one, also without a masked patch, and holds less."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_path.model.head import Projection
from dino_path.training.objective import fused_ibot_loss as module
from dino_path.training.objective.fused_ibot_loss import fused_ibot_loss
from dino_path.training.objective.ibot_loss import IbotLoss, ibot_loss

SCALARS = ("loss", "teacher_entropy", "kl", "prototypes_used")
OPTIONS = {"num_views": 8, "student_temp": 0.1, "teacher_temp": 0.05}
Inputs = tuple[Projection, Projection, Tensor, Tensor]


def inputs(
    num_patches: int,
    num_prototypes: int = 37,
    *,
    dtype: torch.dtype = torch.float64,
    length: float = 1.0,
    seed: int = 0,
) -> Inputs:
    """Student (leaves), teacher, center, weights."""
    generator = torch.Generator().manual_seed(seed)

    def unit(rows: int) -> Tensor:
        return F.normalize(torch.randn(rows, 6, generator=generator, dtype=torch.float64), dim=1).to(dtype)

    student = Projection(unit(num_patches).requires_grad_(), (length * unit(num_prototypes)).requires_grad_())
    teacher = Projection(unit(num_patches), length * unit(num_prototypes))
    center = 0.1 * torch.randn(1, num_prototypes, generator=generator, dtype=torch.float64).to(dtype)
    return student, teacher, center, torch.rand(num_patches, generator=generator, dtype=torch.float64).to(dtype)


def plain_loss(student: Projection, teacher: Projection, center: Tensor, weights: Tensor) -> IbotLoss:
    return ibot_loss(student.logits(), teacher.logits(), center, weights, **OPTIONS)


def fused_loss(student: Projection, teacher: Projection, center: Tensor, weights: Tensor) -> IbotLoss:
    return fused_ibot_loss(student, teacher, center, weights, **OPTIONS)


def both(given: Inputs) -> tuple[tuple[IbotLoss, list[Tensor]], tuple[IbotLoss, list[Tensor]]]:
    """What is found, and the student's gradients: plain, and fused."""
    plain, fused = plain_loss(*given), fused_loss(*given)
    one, other = (list(torch.autograd.grad(found.loss, [*given[0]])) for found in (plain, fused))
    return (plain, one), (fused, other)


@pytest.mark.parametrize("rows", [1000, 1, 2], ids=["one piece", "row by row", "a shorter last piece"])
@pytest.mark.parametrize("length", [1.0, 1000.0], ids=["unit prototypes", "huge logits"])
def test_in_double_precision_value_and_gradients_are_the_plain_ones(
    monkeypatch: pytest.MonkeyPatch, rows: int, length: float
) -> None:
    monkeypatch.setattr(module, "PIECE_BYTES", rows * 2 * 37 * 8)
    (plain, gradients), (fused, others) = both(inputs(7, length=length))
    for name in SCALARS:
        torch.testing.assert_close(getattr(fused, name), getattr(plain, name), rtol=1e-10, atol=1e-10)
    assert all(float(gradient.abs().max()) > 1e-3 for gradient in gradients)
    torch.testing.assert_close(others, gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(2))
def test_in_single_precision_it_is_about_as_near_to_the_exact_loss_as_the_plain_one(seed: int) -> None:
    (exact, expected), _ = both(inputs(16, 20_000, seed=seed))
    for found, gradients in both(inputs(16, 20_000, dtype=torch.float32, seed=seed)):
        assert found.loss.dtype == torch.float32
        assert float(found.loss.detach()) == pytest.approx(float(exact.loss.detach()), rel=1e-6)
        assert float(found.teacher_entropy) == pytest.approx(float(exact.teacher_entropy), rel=1e-5)
        for gradient, reference in zip(gradients, expected, strict=True):
            assert float((gradient - reference).norm() / reference.norm()) < 5e-5


def test_gradients_are_those_of_finite_differences() -> None:
    student, *rest = inputs(3, 5)
    assert torch.autograd.gradcheck(lambda *leaves: fused_loss(Projection(*leaves), *rest).loss, (*student,))


@pytest.mark.parametrize("loss", [plain_loss, fused_loss])
def test_without_a_masked_patch_loss_and_gradients_are_zero_and_are_there(loss: object) -> None:
    """DDP waits for the gradient of every parameter on every rank."""
    given = inputs(0)
    found = loss(*given)  # type: ignore[operator]
    assert [float(getattr(found, name)) for name in ("teacher_entropy", "kl", "prototypes_used")] == [0, 0, 1]
    assert float(found.loss.detach()) == 0
    found.loss.backward()
    for leaf in given[0]:
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_loss_is_the_teachers_entropy_plus_the_divergence_and_uniform_ones_cost_ln_k() -> None:
    student, teacher, _, weights = inputs(5)
    found = plain_loss(student, teacher, torch.zeros(1, 37), weights)
    shares = torch.softmax(teacher.logits() / 0.05, 1)
    entropy = -((shares * shares.log()).sum(1) * weights).sum() / 8
    used = -(shares.mean(0) * shares.mean(0).log()).sum()
    assert float(found.teacher_entropy) == pytest.approx(float(entropy))
    assert float(found.kl) == pytest.approx(float(found.loss.detach() - entropy))
    assert float(found.prototypes_used) == pytest.approx(float(used.exp()))
    same = Projection(torch.zeros(5, 6), torch.zeros(37, 6))
    assert float(plain_loss(same, same, torch.zeros(1, 37), torch.full((5,), 8 / 5)).loss) == pytest.approx(
        torch.tensor(37.0).log().item()
    )


def test_it_is_computed_in_fp32_under_autocast() -> None:
    given = inputs(7, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside = fused_loss(*given)
    assert torch.equal(inside.loss, fused_loss(*given).loss)


def test_the_backward_pass_keeps_no_array_of_the_size_of_the_logits() -> None:
    given = inputs(64, 1000, dtype=torch.float32)
    kept = []
    for loss in (fused_loss, plain_loss):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):  # type: ignore[misc]
            loss(*given)
        kept.append(sum(sizes))
    assert kept[0] <= sum(each.numel() for each in given[0])
    assert kept[1] > 64 * 1000

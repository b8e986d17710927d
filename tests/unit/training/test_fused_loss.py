"""The loss without all logits equals the plain one in value, gradient, monitors and center, and holds less."""

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny import differences, state_of, tiny_batches, tiny_config, tiny_learner, tiny_schedules
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from dino_path.model.head import DinoHead, Projection
from dino_path.training.objective import fused_loss
from dino_path.training.objective.dino_loss import DinoLoss, dino_loss
from dino_path.training.objective.fused_loss import fused_dino_loss
from dino_path.training.objective.targets import batch_center
from dino_path.training.step import StepReport, train_step

OUT = Path("unused")
SCALARS = ("loss", "teacher_entropy", "kl", "prototypes_used")


def projections(
    dtype: torch.dtype, *, num_tiles: int, num_local: int, num_prototypes: int = 37, lengths: float = 1.0, seed: int = 0
) -> tuple[Projection, Projection, Tensor]:
    """Fresh random inputs: the student's (leaves with gradients), the teacher's, and a center."""
    generator = torch.Generator().manual_seed(seed)

    def unit(rows: int, length: float = 1.0) -> Tensor:
        vectors = torch.randn(rows, 6, generator=generator, dtype=dtype)
        return length * vectors / vectors.norm(dim=1, keepdim=True)

    student = Projection(
        unit((2 + num_local) * num_tiles).requires_grad_(), unit(num_prototypes, lengths).requires_grad_()
    )
    teacher = Projection(unit(2 * num_tiles), unit(num_prototypes, lengths))
    return student, teacher, 0.1 * torch.randn(1, num_prototypes, generator=generator, dtype=dtype)


def in_double(projection: Projection) -> Projection:
    return Projection(*(each.detach().double().requires_grad_() for each in projection))


def both(
    student: Projection, teacher: Projection, center: Tensor, *, teacher_temp: float = 0.04
) -> tuple[tuple[DinoLoss, list[Tensor]], tuple[DinoLoss, list[Tensor]]]:
    """The objective and the student's gradients: plain, and fused."""
    plain = dino_loss(student.logits(), teacher.logits(), center, student_temp=0.1, teacher_temp=teacher_temp)
    fused = fused_dino_loss(student, teacher, center, student_temp=0.1, teacher_temp=teacher_temp)
    one, other = (list(torch.autograd.grad(objective.loss, [*student])) for objective in (plain, fused))
    return (plain, one), (fused, other)


@pytest.fixture(params=["one piece", "tile by tile", "a shorter last piece"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over how many pieces five tiles go: 1, 5, 3 (of 2, 2, 1)."""
    rows_of_two = 2 * 7 * 37 * 8  # of 7 rows a tile, float64
    limit = {"one piece": 2**30, "tile by tile": 1, "a shorter last piece": rows_of_two}[request.param]
    monkeypatch.setattr(fused_loss, "PIECE_BYTES", limit)


@pytest.mark.parametrize("num_local", [0, 3])
@pytest.mark.parametrize("lengths", [1.0, 20.0], ids=["unit prototypes", "long prototypes"])
def test_in_double_precision_value_and_gradients_are_the_plain_ones(
    pieces: None, num_local: int, lengths: float
) -> None:
    inputs = projections(torch.float64, num_tiles=5, num_local=num_local, lengths=lengths)
    (plain, gradients), (fused, others) = both(*inputs)
    for name in SCALARS:
        torch.testing.assert_close(getattr(fused, name), getattr(plain, name), rtol=1e-10, atol=1e-10)
    for gradient, other in zip(gradients, others, strict=True):
        assert float(gradient.abs().max()) > 1e-3
        torch.testing.assert_close(other, gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_in_single_precision_it_is_about_as_near_to_the_exact_loss_as_the_plain_one(seed: int) -> None:
    """Of a loss of about 11 and of a gradient; seen: 2e-6 and 2.4e-5, and 2e-6 and 1.5e-5 of the plain one."""
    student, teacher, center = projections(torch.float32, num_tiles=2, num_local=2, num_prototypes=65536, seed=seed)
    (exact, expected), _ = both(in_double(student), in_double(teacher), center.double())
    for objective, gradients in both(student, teacher, center):
        assert float(objective.loss.detach()) == pytest.approx(float(exact.loss.detach()), abs=4e-6)
        assert float(objective.teacher_entropy) == pytest.approx(float(exact.teacher_entropy), abs=1e-5)
        for gradient, reference in zip(gradients, expected, strict=True):
            assert float((gradient - reference).norm() / reference.norm()) < 5e-5


def test_gradients_are_those_of_finite_differences() -> None:
    student, teacher, center = projections(torch.float64, num_tiles=2, num_local=2, num_prototypes=5)

    def loss(bottleneck: Tensor, prototypes: Tensor) -> Tensor:
        return fused_dino_loss(
            Projection(bottleneck, prototypes), teacher, center, student_temp=0.1, teacher_temp=0.07
        ).loss

    assert torch.autograd.gradcheck(loss, (*student,))


def test_the_loss_may_be_scaled_before_the_backward_pass_and_is_computed_in_fp32_under_autocast() -> None:
    student, teacher, center = projections(torch.float32, num_tiles=3, num_local=2)
    plain = torch.autograd.grad(
        fused_dino_loss(student, teacher, center, student_temp=0.1, teacher_temp=0.04).loss, [*student]
    )
    with torch.autocast("cpu", torch.bfloat16):
        objective = fused_dino_loss(student, teacher, center, student_temp=0.1, teacher_temp=0.04)
    scaled = torch.autograd.grad(objective.loss / 4, [*student])
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(4 * other, one, rtol=1e-6, atol=0)


def test_huge_logits_neither_overflow_nor_lose_the_gradient() -> None:
    inputs = projections(torch.float64, num_tiles=2, num_local=2, lengths=1000.0)
    (plain, gradients), (fused, others) = both(*inputs)
    assert math.isfinite(float(fused.loss.detach()))
    assert float(fused.loss.detach()) == pytest.approx(float(plain.loss.detach()), rel=1e-12)
    torch.testing.assert_close(others, gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_through_the_head_it_gives_all_parameters_the_plain_gradients(norm_last_layer: bool) -> None:
    torch.manual_seed(0)
    sizes = {"hidden": 16, "bottleneck": 6, "num_layers": 3, "batch_norm": False, "norm_last_layer": norm_last_layer}
    head = DinoHead(8, 40, **sizes).double()  # type: ignore[arg-type]
    features, center = torch.randn(12, 8, dtype=torch.float64), torch.randn(1, 40, dtype=torch.float64)
    gradients = []
    for is_fused in (False, True):
        student = head(features)
        teacher = Projection(*(each.detach() for each in head(features[:6] + 1)))
        if is_fused:
            loss = fused_dino_loss(student, teacher, center, student_temp=0.1, teacher_temp=0.04).loss
        else:
            logits = student.logits(), teacher.logits()
            loss = dino_loss(*logits, center, student_temp=0.1, teacher_temp=0.04).loss
        wanted = {name: value for name, value in head.named_parameters() if value.requires_grad}
        gradients.append(dict(zip(wanted, torch.autograd.grad(loss, [*wanted.values()]), strict=True)))
    assert ("last_layer.weight_g" in gradients[0]) is not norm_last_layer
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-10, atol=1e-10)


def test_the_centers_batch_mean_is_that_of_all_logits() -> None:
    _, teacher, _ = projections(torch.float64, num_tiles=7, num_local=0)
    torch.testing.assert_close(batch_center(teacher), teacher.logits().mean(0, keepdim=True), rtol=1e-12, atol=1e-12)


def run(
    store: Path, *settings: str, dtype: torch.dtype, num_steps: int = 6
) -> tuple[dict[str, Tensor], list[StepReport]]:
    """The state after some steps of four tiles with fixed seed, frozen prototypes in the first two; and the reports."""
    config = tiny_config(store, OUT, *settings)
    torch.set_default_dtype(dtype)
    try:
        learner = tiny_learner(config)
    finally:
        torch.set_default_dtype(torch.float32)
    batches, schedules = tiny_batches(config), tiny_schedules(config)
    count = learner.training.accumulate_steps
    reports = [
        train_step(learner, [batches.batch(step * count + n) for n in range(count)], schedules.at(step), step=step)
        for step in range(num_steps)
    ]
    return state_of(learner), reports


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("objective.dino.norm_last_layer=false", "optim.clip_norm=0.05"),
        ("training.batch_size_per_gpu=2", "training.accumulate_steps=2"),
        ("views.num_local=0",),
    ],
    ids=["as it is", "trained lengths", "accumulated", "no local views"],
)
def test_a_run_with_fixed_seed_is_the_run_of_the_plain_loss(
    tiles_folder: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...]
) -> None:
    monkeypatch.setattr(fused_loss, "PIECE_BYTES", 1)  # tile by tile
    plain, reports = run(tiles_folder, "training.fused_loss=false", *settings, dtype=torch.float64)
    fused, others = run(tiles_folder, *settings, dtype=torch.float64)
    assert differences(plain, fused) != []
    for report, other in zip(reports, others, strict=True):
        for name in (*SCALARS, "grad_norm", "grad_norm_prototypes"):
            torch.testing.assert_close(other.numbers[name], report.numbers[name], rtol=1e-6, atol=1e-7)
    for name, value in plain.items():
        torch.testing.assert_close(fused[name], value, rtol=1e-8, atol=1e-8, msg=lambda text, n=name: f"{n}: {text}")


def test_ddps_hooks_see_the_gradient_of_the_prototypes_also_accumulated(tiles_folder: Path) -> None:
    """A process group of one; tests/distributed trains with two."""
    settings = ("training.batch_size_per_gpu=2", "training.accumulate_steps=2", "objective.dino.norm_last_layer=false")
    config = tiny_config(tiles_folder, OUT, *settings)
    batches, schedules = tiny_batches(config), tiny_schedules(config)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        states, averaged = [], []
        for is_ddp in (False, True):
            learner = tiny_learner(config)
            if is_ddp:
                ddp = learner._forward_student = DistributedDataParallel(learner.student)
                ddp.register_comm_hook(averaged, sum_of_buckets)
            for step in range(4):
                train_step(learner, [batches.batch(2 * step + n) for n in range(2)], schedules.at(step), step=step)
            states.append(state_of(learner))
    finally:
        dist.destroy_process_group()
    assert differences(*states) == []
    trained = sum(value.numel() for value in learner.student.parameters() if value.requires_grad)
    assert sum(averaged) == 4 * trained, "once a step, every gradient"


def sum_of_buckets(seen: list[int], bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Instead of DDP's averaging: notes how many numbers would travel."""
    seen.append(sum(gradient.numel() for gradient in bucket.gradients()))
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def test_in_bfloat16_a_run_stays_with_the_plain_one_but_for_rounding(tiles_folder: Path) -> None:
    settings = ("training.precision=bf16", "objective.dino.num_prototypes=512")
    _, reports = run(tiles_folder, "training.fused_loss=false", *settings, dtype=torch.float32)
    _, others = run(tiles_folder, *settings, dtype=torch.float32)
    losses = [[float(report.loss) for report in each] for each in (reports, others)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6), "the same weights give the same loss"


def test_the_backward_pass_keeps_no_array_of_the_size_of_the_logits() -> None:
    student, teacher, center = projections(torch.float32, num_tiles=16, num_local=8, num_prototypes=1000)
    kept: dict[str, int] = {}
    for name, is_fused in (("plain", False), ("fused", True)):
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):  # type: ignore[misc]
            if is_fused:
                fused_dino_loss(student, teacher, center, student_temp=0.1, teacher_temp=0.04)
            else:
                logits = student.logits(), teacher.logits()
                dino_loss(*logits, center, student_temp=0.1, teacher_temp=0.04)
        kept[name] = sum(sizes)
    assert kept["fused"] <= sum(each.numel() for each in student)
    assert kept["plain"] > 160 * 1000

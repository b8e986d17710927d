"""One step: what moves, what must not, and by how much."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import center_of, differences, outputs_of, state_of, tiny_batches, tiny_config, tiny_learner, tiny_schedules
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dino_path.config import Config, OptimConfig
from dino_path.model.head import NetworkOutput
from dino_path.training.learner import Learner
from dino_path.training.optimizer import clip_gradients
from dino_path.training.schedules import StepSettings
from dino_path.training.step import _HostCopy, train_step
from dino_path.views.batches import ViewBatch

OUT = Path("unused")
SETTINGS = StepSettings(lr=1e-3, weight_decay=0.1, momentum=0.75, teacher_temp=0.04, last_layer_frozen=False)


@pytest.fixture
def batch(tiles_folder: Path) -> ViewBatch:
    return tiny_batches(tiny_config(tiles_folder, OUT)).batch(0)


@pytest.fixture
def learner(tiles_folder: Path) -> Learner:
    return tiny_learner(tiny_config(tiles_folder, OUT))


def with_broken_student(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the student's projections infinite from now on."""
    study = learner.study

    def broken(global_views: Tensor, batch: ViewBatch, *, backbone_frozen: bool) -> NetworkOutput:
        output = study(global_views, batch, backbone_frozen=backbone_frozen)
        assert output.projection is not None
        infinite = output.projection._replace(bottleneck=output.projection.bottleneck + math.inf)
        return output._replace(projection=infinite)

    monkeypatch.setattr(learner, "study", broken)


def test_student_and_teacher_start_alike_and_share_no_storage(learner: Learner) -> None:
    student, teacher = learner.student.state_dict(), learner.teacher.state_dict()
    assert student.keys() == teacher.keys()
    assert all(torch.equal(student[name], teacher[name]) for name in student)
    student_places = {value.untyped_storage().data_ptr() for value in student.values()}
    assert student_places.isdisjoint(value.untyped_storage().data_ptr() for value in teacher.values())
    assert not center_of(learner).any()


def test_two_learners_of_one_seed_are_equal_and_of_two_seeds_are_not(tiles_folder: Path) -> None:
    first, second = (state_of(tiny_learner(tiny_config(tiles_folder, OUT))) for _ in range(2))
    other = state_of(tiny_learner(tiny_config(tiles_folder, OUT, "training.seed=1")))
    assert differences(first, second) == []
    assert "student.head.last_layer.weight_v" in differences(first, other)


def test_teacher_gets_no_gradient(learner: Learner, batch: ViewBatch) -> None:
    train_step(learner, [batch], SETTINGS, step=0)
    assert all(value.grad is None and not value.requires_grad for value in learner.teacher.parameters())
    optimized = {id(value) for group in learner.optimizer.param_groups for value in group["params"]}
    assert optimized.isdisjoint(id(value) for value in learner.teacher.parameters())


def test_teacher_follows_the_student_of_after_the_step(learner: Learner, batch: ViewBatch) -> None:
    train_step(learner, [batch], SETTINGS, step=0)
    teacher_before = [value.clone() for value in learner.teacher.parameters()]
    student_before = [value.detach().clone() for value in learner.student.parameters()]
    train_step(learner, [batch], SETTINGS, step=1)
    student_after, teacher_after = list(learner.student.parameters()), list(learner.teacher.parameters())
    for before, student, teacher in zip(teacher_before, student_after, teacher_after, strict=True):
        torch.testing.assert_close(teacher, 0.75 * before + 0.25 * student, rtol=1e-6, atol=1e-7)
    too_early = [0.75 * t + 0.25 * s for t, s in zip(teacher_before, student_before, strict=True)]
    assert not all(torch.allclose(a, b, atol=1e-7) for a, b in zip(too_early, teacher_after, strict=True))


def test_teacher_has_no_stochastic_depth_and_the_students_depends_on_seed_and_step_alone(
    tiles_folder: Path, batch: ViewBatch
) -> None:
    config = tiny_config(tiles_folder, OUT, "model.drop_path_rate=0.5")
    losses = {}
    for step in (0, 0, 1):
        torch.manual_seed(step + 17)  # what was drawn before has no influence
        loss = train_step(tiny_learner(config), [batch], SETTINGS, step=step).loss
        assert losses.setdefault(step, loss) == loss
    assert losses[0] != losses[1]
    learner = tiny_learner(config)
    views = [learner.normalised(batch.global_views, batch.global_parameters)]
    assert torch.equal(learner.teacher(views)[0], learner.teacher(views)[0])
    assert not torch.equal(learner.student(views)[0], learner.student(views)[0])


def test_frozen_prototypes_get_neither_update_nor_moments(learner: Learner, batch: ViewBatch) -> None:
    before = learner.student.head.last_layer["weight_v"].detach().clone()
    train_step(learner, [batch], replace(SETTINGS, last_layer_frozen=True), step=0)
    assert torch.equal(learner.student.head.last_layer["weight_v"], before)
    assert learner.student.head.last_layer["weight_v"] not in learner.optimizer.state
    train_step(learner, [batch], SETTINGS, step=1)
    assert not torch.equal(learner.student.head.last_layer["weight_v"], before)
    assert float(learner.optimizer.state[learner.student.head.last_layer["weight_v"]]["step"]) == 1


def test_prototypes_frozen_by_their_learning_rate_get_moments_and_no_update(
    tiles_folder: Path, batch: ViewBatch
) -> None:
    learner = tiny_learner(tiny_config(tiles_folder, OUT, "optim.freeze_by=zero_lr"))
    prototypes = learner.student.head.last_layer["weight_v"]
    before = prototypes.detach().clone()
    train_step(learner, [batch], replace(SETTINGS, last_layer_frozen=True), step=0)
    assert torch.equal(prototypes, before)
    assert learner.optimizer.state[prototypes]["exp_avg"].any()
    train_step(learner, [batch], SETTINGS, step=1)
    assert not torch.equal(prototypes, before)
    assert float(learner.optimizer.state[prototypes]["step"]) == 2


def test_embeddings_may_be_spared_from_weight_decay(tiles_folder: Path) -> None:
    learner = tiny_learner(tiny_config(tiles_folder, OUT, "optim.decay_embeddings=false"))
    decayed, plain = ([*group["params"]] for group in learner.optimizer.param_groups)
    backbone = learner.student.backbone
    assert {id(backbone.pos_embed), id(backbone.cls_token)} <= {id(value) for value in plain}
    assert id(backbone.patch_embed.proj.weight) in {id(value) for value in decayed}


@pytest.mark.parametrize("extra", ["objective.dino.head_batch_norm=false", "objective.dino.head_batch_norm=true"])
def test_a_loss_that_is_not_finite_moves_nothing_and_is_counted(
    tiles_folder: Path, batch: ViewBatch, monkeypatch: pytest.MonkeyPatch, extra: str
) -> None:
    learner = tiny_learner(tiny_config(tiles_folder, OUT, extra))
    train_step(learner, [batch], SETTINGS, step=0)
    before = state_of(learner)
    with monkeypatch.context() as patch:
        with_broken_student(learner, patch)
        report = train_step(learner, [batch], SETTINGS, step=1)
    assert report.is_skipped
    assert not report.loss.isfinite()
    assert learner.num_skipped == 1
    assert differences(before, state_of(learner)) == []
    report = train_step(learner, [batch], SETTINGS, step=2)
    assert not report.is_skipped
    assert learner.num_skipped == 1
    assert {"center", "student.backbone.pos_embed", "teacher.backbone.pos_embed"} <= {
        *differences(before, state_of(learner))
    }


def gradients_of(config: Config, batch: ViewBatch, *, frozen: bool = False) -> tuple[list[Tensor], float]:
    """All gradients that the optimizer sees in the first step, and the norm that it reports."""
    learner = tiny_learner(config)
    report = train_step(learner, [batch], replace(SETTINGS, last_layer_frozen=frozen), step=0)
    gradients = [value.grad for value in learner.student.parameters() if value.grad is not None]
    return gradients, float(report.numbers["grad_norm"])


def length(gradients: Sequence[Tensor]) -> float:
    """The norm of all gradients together, in double precision."""
    return math.sqrt(sum(float((value.double() ** 2).sum()) for value in gradients))


def holders_of(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Leaf tensors with these gradients, for torch's own clipping."""
    holders = [torch.zeros_like(value) for value in gradients]
    for holder, value in zip(holders, gradients, strict=True):
        holder.grad = value.clone()
    return holders


def test_clipping_by_parameter_equals_torch_on_each_tensor(tiles_folder: Path, batch: ViewBatch) -> None:
    plain, norm = gradients_of(tiny_config(tiles_folder, OUT, "optim.clip_norm=null"), batch)
    assert norm == pytest.approx(length(plain), rel=1e-5)
    limit = sorted(length([value]) for value in plain)[len(plain) // 2]
    expected = holders_of(plain)
    for holder in expected:
        torch.nn.utils.clip_grad_norm_([holder], limit)
    clipped, norm = gradients_of(tiny_config(tiles_folder, OUT, f"optim.clip_norm={limit}"), batch)
    assert norm == pytest.approx(length(plain), rel=1e-5)
    torch.testing.assert_close(clipped, [holder.grad for holder in expected], rtol=1e-5, atol=1e-9)
    untouched = sum(torch.equal(value, before) for value, before in zip(clipped, plain, strict=True))
    assert 0 < untouched < len(plain)


def test_clipping_of_the_whole_equals_torch_on_all_tensors(tiles_folder: Path, batch: ViewBatch) -> None:
    plain, _ = gradients_of(tiny_config(tiles_folder, OUT, "optim.clip_norm=null"), batch)
    expected = holders_of(plain)
    torch.nn.utils.clip_grad_norm_(expected, 0.05)
    config = tiny_config(tiles_folder, OUT, "optim.clip_norm=0.05", "optim.clip_scope=global")
    clipped, norm = gradients_of(config, batch)
    assert norm == pytest.approx(length(plain), rel=1e-5)
    torch.testing.assert_close(clipped, [holder.grad for holder in expected], rtol=1e-5, atol=1e-9)


def test_frozen_prototypes_do_not_count_in_a_global_norm(tiles_folder: Path, batch: ViewBatch) -> None:
    head = (
        "objective.dino.head_layers=1"  # a deeper head this narrow has backbone gradients that hide the prototypes' own
    )
    whole, _ = gradients_of(tiny_config(tiles_folder, OUT, head, "optim.clip_norm=null"), batch)
    plain, _ = gradients_of(tiny_config(tiles_folder, OUT, head, "optim.clip_norm=null"), batch, frozen=True)
    assert length(plain) < 0.9995 * length(whole)
    config = tiny_config(tiles_folder, OUT, head, "optim.clip_norm=0.05", "optim.clip_scope=global")
    clipped, norm = gradients_of(config, batch, frozen=True)
    assert norm == pytest.approx(length(plain), rel=1e-5)
    assert length(clipped) == pytest.approx(0.05, rel=1e-4)


def test_gradients_below_the_limit_stay_to_the_bit() -> None:
    module = torch.nn.Linear(3, 2)
    for value in module.parameters():
        value.grad = torch.full_like(value, 0.1)
    before = [value.grad.clone() for value in module.parameters() if value.grad is not None]
    clip_gradients({"all": list(module.parameters())}, OptimConfig(clip_norm=3.0))
    assert all(torch.equal(a, b.grad) for a, b in zip(before, module.parameters(), strict=True) if b.grad is not None)


def test_sgd_trains_with_momentum_as_the_paper_does_for_resnets(tiles_folder: Path, batch: ViewBatch) -> None:
    learner = tiny_learner(tiny_config(tiles_folder, OUT, "optim.optimizer=sgd"))
    before = state_of(learner)
    train_step(learner, [batch], SETTINGS, step=0)
    assert learner.optimizer.param_groups[0]["momentum"] == 0.9
    assert "student.backbone.cls_token" in differences(before, state_of(learner))


def test_views_are_normalised_by_the_models_mean_and_std(learner: Learner) -> None:
    views = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 1, 1, 3).expand(2, 4, 5, 3)
    normalised = learner.normalised(views, torch.empty(2, 0))
    assert normalised.shape == (2, 3, 4, 5)
    expected = [-0.485 / 0.229, (128 / 255 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert normalised[1, :, 3, 4].tolist() == pytest.approx(expected, abs=1e-6)


def test_a_step_sees_the_same_views_whether_workers_or_the_device_finish_them(tiles_folder: Path) -> None:
    batches = [
        tiny_batches(tiny_config(tiles_folder, Path("unused"), f"views.colour_on_device={where}")).batch(0)
        for where in ("false", "true")
    ]
    learner = tiny_learner(tiny_config(tiles_folder, Path("unused")))
    raw_batch = replace(batches[1], global_parameters=torch.empty(8, 0), local_parameters=torch.empty(8, 0))
    finished, on_device, raw = (
        outputs.teacher.projection.logits()
        for batch in (*batches, raw_batch)
        if (outputs := outputs_of(learner, batch)).teacher.projection is not None
    )
    assert torch.isfinite(on_device).all()
    assert (on_device - finished).abs().mean() < 0.2 * (raw - finished).abs().mean()


class Waits(TorchDispatchMode):
    """Notes every operation whose result the host has to wait for, were its tensors on a GPU."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "lift_fresh")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.num_operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_operations += 1
        name = func.overloadpacket.__name__
        has_mask = name == "index" and any(at is not None and at.dtype == torch.bool for at in args[1])
        if has_mask or name.strip("_") in [each.strip("_") for each in self.WAITING]:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "extra", ["optim.clip_scope=parameter", "optim.clip_scope=global", "training.fused_loss=false"]
)
def test_a_step_asks_the_device_for_no_number_but_the_verdict(
    tiles_folder: Path, batch: ViewBatch, monkeypatch: pytest.MonkeyPatch, extra: str
) -> None:
    """On a GPU each such read would let it idle; tests/gpu asks CUDA itself, which also sees copies."""
    learner, reads = tiny_learner(tiny_config(tiles_folder, OUT, extra)), []
    read = _HostCopy.read
    monkeypatch.setattr(_HostCopy, "read", lambda self: reads.append(self) or read(self))
    train_step(learner, [batch], SETTINGS, step=0)
    with Waits() as waits:
        train_step(learner, [batch], SETTINGS, step=1)
    assert waits.num_operations > 100
    assert waits.seen == []
    assert len(reads) == 2
    with Waits() as waits:
        float(center_of(learner).sum())
        center_of(learner)[center_of(learner) > 0]
    assert waits.seen == ["_local_scalar_dense", "index"], "the instrument must see what it is for"


def test_a_short_run_in_bfloat16_keeps_weights_loss_and_center_in_fp32(tiles_folder: Path, batch: ViewBatch) -> None:
    config = tiny_config(tiles_folder, OUT, "training.precision=bf16")
    learner, schedules = tiny_learner(config), tiny_schedules(config)
    report = train_step(learner, [batch], schedules.at(3), step=3)
    exact = train_step(tiny_learner(tiny_config(tiles_folder, OUT)), [batch], schedules.at(3), step=3)
    assert report.loss.dtype == center_of(learner).dtype == torch.float32
    assert {value.dtype for value in learner.student.parameters()} == {torch.float32}
    assert float(report.loss) == pytest.approx(float(exact.loss), rel=0.02)
    assert report.loss != exact.loss

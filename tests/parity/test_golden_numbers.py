"""Numbers recorded once from facebookresearch/dino 7c446df: loss, schedules, head, parameter groups."""

from pathlib import Path

import pytest
import torch
from tiny import tiny_config, tiny_learner

from dino_path.config import DinoConfig, ObjectiveConfig, OptimConfig, TrainingConfig
from dino_path.model.head import DinoHead, Projection
from dino_path.training.objective.dino_loss import dino_loss
from dino_path.training.objective.fused_loss import fused_dino_loss
from dino_path.training.objective.targets import batch_center, update_center
from dino_path.training.optimizer import set_schedules
from dino_path.training.schedules import StepSettings, resolve_clock, resolve_schedules

# DINOLoss in float64, K = 5, B = 2, V = 4, student temperature 0.1, center momentum 0.9: three consecutive calls with
# (teacher temperature, loss, norm of the gradient for the student's logits, center afterwards).
LOSS_CALLS = (
    (0.04, 9.4109239872, 3.4414388664, (-0.0078774314, 0.0136809703, 0.022661151, 0.010806774, -0.0109833012)),
    (0.055, 9.3796702722, 3.4243523549, (-0.0149671197, 0.0259938435, 0.0430561868, 0.0205328706, -0.0208682722)),
    (0.07, 9.3565023205, 3.4030174367, (-0.0213478391, 0.0370754294, 0.0614117191, 0.0292863575, -0.0297647461)),
)


@pytest.mark.parametrize("is_fused", [False, True])
def test_loss_gradient_and_center_equal_the_published_code_over_three_calls(is_fused: bool) -> None:
    student = torch.sin(torch.arange(40, dtype=torch.float64)).view(8, 5).requires_grad_()
    unit = torch.eye(5, dtype=torch.float64)  # as prototypes: what is projected are the logits
    teacher = Projection(torch.cos(torch.arange(20, dtype=torch.float64)).view(4, 5), unit)
    center = torch.zeros(1, 5, dtype=torch.float64)
    for teacher_temp, loss, gradient_norm, center_after in LOSS_CALLS:
        if is_fused:
            objective = fused_dino_loss(
                Projection(student, unit), teacher, center, student_temp=0.1, teacher_temp=teacher_temp
            )
        else:
            objective = dino_loss(student, teacher.logits(), center, student_temp=0.1, teacher_temp=teacher_temp)
        (gradient,) = torch.autograd.grad(objective.loss, student)
        assert float(objective.loss.detach()) == pytest.approx(loss, abs=1e-8)
        assert float(gradient.norm()) == pytest.approx(gradient_norm, abs=1e-8)
        update_center(center, batch_center(teacher), 0.9)
        assert center[0].tolist() == pytest.approx(center_after, abs=1e-8)


def test_loss_is_the_teachers_entropy_plus_the_divergence() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(12, 7, generator=generator), torch.randn(4, 7, generator=generator)
    objective = dino_loss(student, teacher, torch.zeros(1, 7), student_temp=0.1, teacher_temp=0.5)
    shares = torch.softmax(teacher / 0.5, dim=1)
    entropy = -(shares * shares.log()).sum(1).mean()
    used = -(shares.mean(0) * shares.mean(0).log()).sum()
    assert float(objective.teacher_entropy) == pytest.approx(float(entropy), rel=1e-5)
    assert float(objective.kl) == pytest.approx(float(objective.loss - entropy), rel=1e-5)
    assert float(objective.kl) > 0
    assert float(objective.prototypes_used) == pytest.approx(float(used.exp()), rel=1e-5)


def test_half_precision_logits_give_a_loss_in_fp32() -> None:
    logits = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    half = dino_loss(logits.bfloat16(), logits[:4].bfloat16(), torch.zeros(1, 16), student_temp=0.1, teacher_temp=0.04)
    full = dino_loss(
        logits.bfloat16().float(),
        logits[:4].bfloat16().float(),
        torch.zeros(1, 16),
        student_temp=0.1,
        teacher_temp=0.04,
    )
    assert half.loss.dtype == torch.float32
    assert torch.equal(half.loss, full.loss)


def test_schedules_equal_the_published_values() -> None:
    optim = OptimConfig(base_lr=5e-4, final_lr=1e-6)
    training = TrainingConfig(num_epochs=100, batch_size_per_gpu=512, momentum=0.996)
    schedules = resolve_schedules(
        optim, ObjectiveConfig(), training, resolve_clock(training, num_tiles=2502 * 512, world_size=1)
    )
    last = 250_200 - 1
    assert schedules.clock.num_steps == last + 1
    assert schedules.at(0).lr == 0
    assert schedules.at(25_019).lr == pytest.approx(1e-3, abs=1e-18)
    assert schedules.at(25_020).lr == pytest.approx(1e-3, abs=1e-18)
    assert schedules.at(last).lr == pytest.approx(1.0000000486e-06, abs=1e-16)
    assert schedules.at(0).weight_decay == pytest.approx(0.04, abs=1e-15)
    assert schedules.at(last).weight_decay == pytest.approx(0.39999999998581, abs=1e-14)
    assert schedules.at(0).momentum == 0.996
    assert schedules.at(125_100).momentum == pytest.approx(0.998, abs=1e-12)
    assert schedules.at(last).momentum == pytest.approx(0.9999999999998423, abs=1e-15)
    assert [schedules.at(step).last_layer_frozen for step in (0, 2501, 2502)] == [True, True, False]


def test_teacher_temperature_warms_up_from_end_to_end() -> None:
    training = TrainingConfig(num_steps=10)
    objective = ObjectiveConfig(dino=DinoConfig(teacher_temp=0.07, teacher_temp_warmup="3 steps"))
    clock = resolve_clock(training, num_tiles=640, world_size=1)
    schedules = resolve_schedules(OptimConfig(), objective, training, clock)
    temperatures = [schedules.at(step).teacher_temp for step in range(10)]
    assert temperatures == pytest.approx([0.04, 0.055, *[0.07] * 8], abs=1e-15)


@pytest.fixture(scope="module")
def published_head() -> DinoHead:
    """The head of ViT-S/16 in the paper."""
    torch.manual_seed(0)
    return DinoHead(384, 65536, hidden=2048, bottleneck=256, num_layers=3, batch_norm=False, norm_last_layer=True)


def test_head_has_the_published_parameters_and_start(published_head: DinoHead) -> None:
    shapes = {name: tuple(value.shape) for name, value in published_head.state_dict().items()}
    assert shapes == {
        "mlp.0.weight": (2048, 384), "mlp.0.bias": (2048,), "mlp.2.weight": (2048, 2048), "mlp.2.bias": (2048,),
        "mlp.4.weight": (256, 2048), "mlp.4.bias": (256,),
        "last_layer.weight_g": (65536, 1), "last_layer.weight_v": (65536, 256),
    }  # fmt: skip
    assert sum(parameter.numel() for parameter in published_head.parameters()) == 22_352_128
    state = published_head.state_dict()
    assert float(state["last_layer.weight_v"].std()) == pytest.approx(0.0361, abs=5e-5)
    assert float(state["last_layer.weight_v"].abs().max()) <= 1 / 16
    assert float(state["mlp.2.weight"].std()) == pytest.approx(0.0200, abs=5e-5)
    assert bool((state["last_layer.weight_g"] == 1).all())
    assert all(not state[f"mlp.{layer}.bias"].any() for layer in (0, 2, 4))


def test_head_starts_with_the_published_logits(published_head: DinoHead) -> None:
    features = torch.randn(16, 384, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = published_head(features).logits()
    assert float(logits.std()) == pytest.approx(0.0625, abs=1e-3)
    entropy = torch.special.entr(torch.softmax(logits / 0.04, dim=1)).sum(1).mean()
    assert float(entropy) == pytest.approx(9.89, abs=0.03)


@pytest.mark.parametrize(("norm_last_layer", "trains"), [(True, False), (False, True)])
def test_lengths_of_prototypes_train_only_when_not_normalised(norm_last_layer: bool, trains: bool) -> None:
    head = DinoHead(8, 16, hidden=8, bottleneck=4, num_layers=2, batch_norm=False, norm_last_layer=norm_last_layer)
    assert head.last_layer["weight_g"].requires_grad is trains


def test_head_normalises_features_and_prototypes() -> None:
    torch.manual_seed(0)
    head = DinoHead(8, 16, hidden=8, bottleneck=4, num_layers=2, batch_norm=False, norm_last_layer=True)
    features = torch.randn(32, 8) * 100
    with torch.no_grad():
        logits = head(features).logits()
        head.last_layer["weight_v"].mul_(7)
        torch.testing.assert_close(head(features).logits(), logits)
    assert float(logits.abs().max()) <= 1 + 1e-6


def test_batch_norm_of_the_head_stands_between_linear_and_gelu() -> None:
    head = DinoHead(8, 16, hidden=8, bottleneck=4, num_layers=3, batch_norm=True, norm_last_layer=True)
    kinds = [type(layer).__name__ for layer in head.mlp]
    assert kinds == ["Linear", "BatchNorm1d", "GELU", "Linear", "BatchNorm1d", "GELU", "Linear"]


def test_optimizer_decays_what_the_published_code_decays(tiles_folder: Path) -> None:
    learner = tiny_learner(tiny_config(tiles_folder, Path("unused"), "objective.dino.norm_last_layer=false"))
    names = {id(value): name for name, value in learner.student.named_parameters()}
    decayed, plain = ({names[id(value)] for value in group["params"]} for group in learner.optimizer.param_groups)
    assert {
        "backbone.pos_embed", "backbone.cls_token", "backbone.patch_embed.proj.weight",
        "backbone.blocks.0.mlp.fc1.weight", "head.last_layer.weight_v", "head.last_layer.weight_g", "head.mlp.0.weight",
    } <= decayed  # fmt: skip
    assert plain == {name for name in names.values() if name.endswith(".bias") or ".norm" in name}
    assert decayed | plain == {*names.values()}


def test_schedules_reach_all_groups_but_decay_only_the_decayed(tiles_folder: Path) -> None:
    optimizer = tiny_learner(tiny_config(tiles_folder, Path("unused"))).optimizer
    settings = StepSettings(lr=0.25, weight_decay=0.125, momentum=0.9, teacher_temp=0.04, last_layer_frozen=False)
    set_schedules(optimizer, settings)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.125, 0.0]
    assert all(group["betas"] == (0.9, 0.999) and group["eps"] == 1e-8 for group in optimizer.param_groups)

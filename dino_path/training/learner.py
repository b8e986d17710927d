"""Student, teacher, center and optimizer, and one training step: the DINO algorithm, in its published order."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dino_path.config import ModelConfig, OptimConfig, TrainingConfig
from dino_path.distributed import World
from dino_path.model.backbone import build_backbone
from dino_path.model.batch_norm import share_batch_norms
from dino_path.model.head import DinoHead, DinoNetwork, Projection
from dino_path.model.pretrained import load_start
from dino_path.model.published import load_published
from dino_path.model.weights import load_weights, read_weights
from dino_path.training.acceleration import (
    attend_explicitly,
    checkpoint_activations,
    compile_blocks,
    recompute_elementwise,
)
from dino_path.training.fused_loss import fused_objective
from dino_path.training.objective import Objective, batch_center, dino_objective
from dino_path.training.schedules import StepSettings
from dino_path.training.sharding import local, norms, shard, whole
from dino_path.views.batches import ViewBatch
from dino_path.views.device import finish_views


@dataclass(frozen=True)
class StepReport:
    """What one step tells the log; scalars on the device, means over the micro-batches."""

    loss: Tensor
    teacher_entropy: Tensor
    kl: Tensor
    prototypes_used: Tensor
    """Of one micro-batch."""
    grad_norm: Tensor
    """Of all gradients, before clipping; then of their three parts."""
    grad_norm_backbone: Tensor
    grad_norm_head: Tensor
    grad_norm_prototypes: Tensor
    teacher_features: Tensor
    """(B, D) of the first global view of every tile."""
    is_skipped: bool
    """The loss was not finite on some rank: nothing was updated."""
    is_stopping: bool
    """Some rank wants to stop after this step; every rank is told so in the same step."""


class Learner:
    """Everything that training changes: two networks, center, optimizer, and the count of skipped steps."""

    def __init__(self, model: ModelConfig, optim: OptimConfig, training: TrainingConfig, world: World) -> None:
        torch.manual_seed(training.seed)
        self.model, self.optim, self.training, self.world = model, optim, training, world
        self.student = build_network(model, drop_path_rate=model.drop_path_rate)
        if model.weights is not None:
            load_start_weights(self.student, model)
        self.teacher = build_network(model, drop_path_rate=0.0)
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)
        self.precision = resolve_precision(training, world.device)
        self._forward_student = self._prepare_networks()
        self.center = torch.zeros(1, model.num_prototypes, device=world.device)
        self.num_skipped = 0
        head = self.student.head
        self.parts = tuple(list(part) for part in (
            self.student.backbone.parameters(), head.mlp.parameters(), head.last_layer.values()
        ))  # fmt: skip
        self.optimizer = build_optimizer(self.student, optim)
        self.mean = torch.tensor(model.mean, device=world.device).view(1, 3, 1, 1)
        self.std = torch.tensor(model.std, device=world.device).view(1, 3, 1, 1)

    def _prepare_networks(self) -> nn.Module:
        """Put both networks on our device, as fast and as small as was asked; returns the student to call."""
        training, world, name = self.training, self.world, self.model.backbone
        recompute = training.activation_checkpointing  # of the student; the teacher keeps nothing anyway
        if recompute is True:
            checkpoint_activations(self.student.backbone, name)
        elif recompute == "elementwise" and not training.compile:
            recompute_elementwise(self.student.backbone, name)
        for network in (self.student, self.teacher):
            if world.size > 1:  # as published; a network without batch norm stays as it is
                share_batch_norms(network, world.device)
            if world.device.type == "cpu" and self.precision == "bf16":
                attend_explicitly(network.backbone)
            if training.compile:
                compile_blocks(network.backbone, name, recompute_elementwise=recompute == "elementwise")
            if training.sharding is not None:
                shard(network, world, name)
            network.to(world.device)
        if world.size == 1 or training.sharding is not None:
            return self.student
        devices = [world.device] if world.device.type == "cuda" else None
        return DistributedDataParallel(self.student, device_ids=devices, gradient_as_bucket_view=True)

    @property
    def global_batch_size(self) -> int:
        """Tiles per step on all ranks."""
        return self.training.batch_size_per_gpu * self.training.accumulate_steps * self.world.size

    def normalised(self, views: Tensor, parameters: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, H, W) float on our device, finished and normalised by the model's mean and std.

        Args:
            parameters: (N, P), of a ViewBatch.
        """
        return (finish_views(views, parameters, self.world.device) - self.mean) / self.std

    def autocast(self) -> torch.autocast:
        """The precision of backbone and head; loss, softmax and center are fp32 in any case."""
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def teacher_backbone(self) -> nn.Module | None:
        """A copy of the teacher's backbone for inference, on rank 0; all ranks must call, for each may hold a part."""
        state = whole(self.teacher.backbone.state_dict(), self.world)
        if not self.world.is_first:
            return None
        backbone = build_backbone(self.model.backbone, self.model.backbone_arguments)
        backbone.load_state_dict(state)
        return backbone.to(self.world.device).eval()

    def gradients_stay_here(self) -> AbstractContextManager[None]:
        """Inside, a backward pass adds to this rank's gradients without averaging them over the ranks."""
        if isinstance(self._forward_student, DistributedDataParallel):
            return self._forward_student.no_sync()
        return nullcontext()

    def forward(self, batch: ViewBatch) -> tuple[Projection, Projection, Tensor]:
        """The student's projection of all views, the teacher's and its features of the global views."""
        global_views = self.normalised(batch.global_views, batch.global_parameters)
        student_views = [global_views]
        if len(batch.local_views):
            student_views.append(self.normalised(batch.local_views, batch.local_parameters))
        with self.autocast():
            with torch.no_grad():
                teacher_features, teacher = self.teacher([global_views])
            _, student = self._forward_student(student_views)
        return student, teacher, teacher_features

    def objective(self, student: Projection, teacher: Projection, *, teacher_temp: float) -> Objective:
        """The DINO loss, with or without all logits at once."""
        student_temp = self.training.student_temp
        if self.training.fused_loss:
            return fused_objective(student, teacher, self.center, student_temp=student_temp, teacher_temp=teacher_temp)
        return dino_objective(
            student.logits(), teacher.logits(), self.center, student_temp=student_temp, teacher_temp=teacher_temp
        )


def train_step(
    learner: Learner,
    micro_batches: Sequence[ViewBatch],
    settings: StepSettings,
    *,
    step: int,
    wants_stop: bool = False,
) -> StepReport:
    """One update: loss, gradients, student, then teacher, then center (facebookresearch/dino, train_one_epoch).

    With several micro-batches it is the update of one batch of them all: the loss and the center's new value are
    means over them, and all meet the same center and teacher. The global random state is set from (seed, step, rank)
    first, so that stochastic depth depends on nothing else and a resumed run repeats it. A loss that is not finite on
    any rank moves nothing on all of them.

    Args:
        wants_stop: this rank asks all to stop after this step; see `StepReport.is_stopping`.
    """
    training, world = learner.training, learner.world
    torch.manual_seed(_step_seed(training.seed, step, world.rank))
    set_schedules(learner.optimizer, settings)
    learner.optimizer.zero_grad(set_to_none=True)
    # Batch norms move in the forward pass; a skipped step puts them back. ViTs have no buffers.
    buffers = [*learner.student.buffers(), *learner.teacher.buffers()]
    buffers_before = [buffer.clone() for buffer in buffers]

    objectives: list[Objective] = []
    features: list[Tensor] = []
    teacher_mean = torch.zeros_like(learner.center)
    for number, batch in enumerate(micro_batches, 1):
        is_last = number == len(micro_batches)
        with nullcontext() if is_last else learner.gradients_stay_here():
            student, teacher, teacher_features = learner.forward(batch)
            objective = learner.objective(student, teacher, teacher_temp=settings.teacher_temp)
            objectives.append(replace(objective, loss=objective.loss.detach()))
            features.append(teacher_features[: len(batch.tiles)].float())
            teacher_mean += batch_center(teacher) / len(micro_batches)
            if is_last:
                # Queued before the last backward pass: the center's sum travels while that runs, and the verdict is
                # on the host by the time it is wanted, without the device ever running out of work.
                center_sum = world.start_sum(teacher_mean)
                verdict = _verdict([each.loss for each in objectives], world, wants_stop=wants_stop)
            del student, teacher  # their prototypes, 67 MB each of 65,536, are of no use to the backward pass
            (objective.loss / len(micro_batches)).backward()  # type: ignore[no-untyped-call]

    num_bad, num_stopping = verdict.read()
    center_sum.wait()
    is_skipped = num_bad > 0
    part_norms = [torch.zeros((), device=world.device)] * len(learner.parts)
    if is_skipped:
        learner.num_skipped += 1
        for buffer, before in zip(buffers, buffers_before, strict=True):
            buffer.copy_(before)
    else:
        if settings.last_layer_frozen and learner.optim.freeze_by == "no_gradient":
            # AdamW then skips the prototypes (no moments, no decay), and they do not count in a global norm.
            for parameter in learner.student.head.last_layer.values():
                parameter.grad = None
        part_norms = clip_gradients(learner.parts, learner.optim)
        learner.optimizer.step()
        update_teacher(learner.teacher, learner.student, settings.momentum)
        update_center(learner.center, teacher_mean / world.size, training.center_momentum)
    return StepReport(
        loss=_mean(each.loss for each in objectives),
        teacher_entropy=_mean(each.teacher_entropy for each in objectives),
        kl=_mean(each.kl for each in objectives),
        prototypes_used=_mean(each.prototypes_used for each in objectives),
        grad_norm=torch.stack(part_norms).norm(),
        grad_norm_backbone=part_norms[0],
        grad_norm_head=part_norms[1],
        grad_norm_prototypes=part_norms[2],
        teacher_features=torch.cat(features),
        is_skipped=is_skipped,
        is_stopping=num_stopping > 0,
    )


def build_network(model: ModelConfig, *, drop_path_rate: float) -> DinoNetwork:
    """A freshly initialised backbone with its head."""
    backbone = build_backbone(model.backbone, model.backbone_arguments, drop_path_rate=drop_path_rate)
    head = DinoHead(
        int(backbone.num_features),  # type: ignore[arg-type]
        model.num_prototypes,
        hidden=model.head_hidden,
        bottleneck=model.head_bottleneck,
        num_layers=model.head_layers,
        batch_norm=model.head_batch_norm,
        norm_last_layer=model.norm_last_layer,
    )
    return DinoNetwork(backbone, head)


def load_start_weights(network: DinoNetwork, model: ModelConfig) -> None:
    """Start from `model.weights`: from a training of facebookresearch/dino with its head, else the head stays random.

    Raises:
        CheckpointError: the weights cannot be had, or belong to another architecture.
    """
    assert model.weights is not None
    file = Path(model.weights)
    if file.is_file() and file.suffix != ".safetensors":
        load_published(network, file)
        return
    weights = read_weights(file) if file.is_file() else load_start(model.backbone, model.weights).module.state_dict()
    load_weights(network.backbone, weights, source=f"model.weights={model.weights}")


def build_optimizer(student: DinoNetwork, optim: OptimConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over two groups: decayed, and not decayed (biases and everything one-dimensional).

    As published, position embeddings, class token and prototypes are decayed; without `optim.decay_embeddings` what
    timm's `no_weight_decay` names is not. Prototypes that `optim.freeze_by` freezes by their learning rate are a
    third group.
    """
    spared: set[str] = set()
    if not optim.decay_embeddings and hasattr(student.backbone, "no_weight_decay"):
        spared = {f"backbone.{name}" for name in student.backbone.no_weight_decay()}  # type: ignore[operator]
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    prototypes: list[nn.Parameter] = []
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.startswith("head.last_layer.") and optim.freeze_by == "zero_lr":
            prototypes.append(parameter)
        elif name.endswith(".bias") or parameter.ndim == 1 or name in spared:
            plain.append(parameter)
        else:
            decayed.append(parameter)
    groups = [
        {"params": decayed, "is_decayed": True},
        {"params": plain, "is_decayed": False, "weight_decay": 0.0},
    ]
    if prototypes:
        groups.append({"params": prototypes, "is_decayed": True, "is_frozen_first": True})
    match optim.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=0.0, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr=0.0, momentum=0.9)


def set_schedules(optimizer: torch.optim.Optimizer, settings: StepSettings) -> None:
    """Write this step's learning rate to all groups, and its weight decay to the decayed ones."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if settings.last_layer_frozen and group.get("is_frozen_first") else settings.lr
        if group["is_decayed"]:
            group["weight_decay"] = settings.weight_decay


def clip_gradients(parts: Sequence[Sequence[nn.Parameter]], optim: OptimConfig) -> list[Tensor]:
    """Clip all gradients in place; returns the norm of each part from before, 0 for a part without gradients.

    `parameter`: each tensor whose own norm exceeds the limit is scaled to it (facebookresearch/dino); `global`: all
    tensors by one factor (dinov2). The first bites far less often; the numbers are not comparable.
    """
    by_part = [[parameter.grad for parameter in part if parameter.grad is not None] for part in parts]
    gradients = [gradient for part in by_part for gradient in part]
    lengths = norms(gradients)
    if optim.clip_norm is not None:
        measured = lengths if optim.clip_scope == "parameter" else lengths.norm().expand(len(gradients))
        factors = (optim.clip_norm / (measured + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local(gradient) for gradient in gradients], list(factors.unbind()))
    return [part.norm() for part in torch.split(lengths, [len(gradients) for gradients in by_part])]


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, over parameters (not buffers), after the step."""
    ours, theirs = ([local(parameter) for parameter in network.parameters()] for network in (teacher, student))
    torch._foreach_lerp_(ours, theirs, 1.0 - momentum)


@torch.no_grad()
def update_center(center: Tensor, teacher_mean: Tensor, center_momentum: float) -> None:
    """center <- center_momentum * center + (1 - center_momentum) * mean logit of the global batch, all (1, K)."""
    center.lerp_(teacher_mean, 1.0 - center_momentum)


def resolve_precision(training: TrainingConfig, device: torch.device) -> str:
    """`bf16` on CUDA by default; `fp32` on CPUs, most of which have no fast bf16."""
    if training.precision != "auto":
        return training.precision
    return "bf16" if device.type == "cuda" else "fp32"


def _step_seed(*numbers: int) -> int:
    """One 63-bit seed from several numbers."""
    state = 0
    for number in numbers:
        state = (state * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return state


def _mean(scalars: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(scalars)).mean()


def _verdict(losses: Sequence[Tensor], world: World, *, wants_stop: bool) -> _HostCopy:
    """How many ranks have a loss that is not finite, and how many want to stop."""
    is_bad = ~torch.stack(list(losses)).isfinite().all()
    stops = torch.full((), float(wants_stop), device=world.device)  # filled there: a copy from the host would wait
    return _HostCopy(world.sum_(torch.stack([is_bad.float(), stops])))


class _HostCopy:
    """Numbers on their way to the host. `read` waits for them, and not for what was queued on the device after them.

    A plain `.item()` after the backward pass would let the device run dry once a step: everything queued must end
    before the host may queue the optimizer.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers.to("cpu", non_blocking=True)
        self._arrival = torch.cuda.Event() if numbers.is_cuda else None  # type: ignore[no-untyped-call]
        if self._arrival is not None:
            self._arrival.record()

    def read(self) -> list[float]:
        if self._arrival is not None:
            self._arrival.synchronize()
        numbers: list[float] = self._numbers.tolist()
        return numbers

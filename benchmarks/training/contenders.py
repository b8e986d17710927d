"""The implementations that benchmarks/training and benchmarks/gpu compare: whole steps, and steps in their stages."""

from __future__ import annotations

import contextlib
import io
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from dino_path.config import (
    Config,
    DinoConfig,
    DistillConfig,
    IbotConfig,
    KoleoConfig,
    MasksConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimConfig,
    TargetsConfig,
    TrainingConfig,
    ViewsConfig,
)
from dino_path.distributed import World
from dino_path.training.acceleration import attend_explicitly
from dino_path.training.guide import open_guide
from dino_path.training.learner import Learner
from dino_path.training.networks import update_teacher
from dino_path.training.objective.term import Outputs
from dino_path.training.optimizer import clip_gradients
from dino_path.training.schedules import StepSettings
from dino_path.training.step import train_step
from dino_path.views.batches import ViewBatch
from dino_path.views.masks import MaskDrawer, ViewMasks

OBJECTIVES = ("dino", "dinov2")
ARCHS = ("vit_tiny", "vit_small", "vit_base", "vit_large")  # all with patches of 16 px
SETTINGS = StepSettings(lr=5e-4, weight_decay=0.04, momentum=0.996, teacher_temp=0.04, last_layer_frozen=False)
# Targets: the center's update, or Sinkhorn-Knopp's rounds.
STAGES = ("views", "teacher", "targets", "student", "head", "loss", "backward", "clip, optimizer", "EMA")
Stages = dict[str, float]


@dataclass(frozen=True)
class Work:
    """The work of one step."""

    arch: str
    batch: int
    prototypes: int
    global_px: int
    local_px: int
    num_local: int
    device: torch.device
    objective: str = "dino"
    """dinov2: [CLS] and masked patches, a head for each with trained lengths, Sinkhorn-Knopp, KoLeo, LayerScale"""
    drop_path_rate: float = 0.1
    drop_path_schedule: Literal["linear", "constant"] = "linear"


@dataclass
class Contender:
    """One implementation in one precision: a whole step, a step in its stages, and its own loop over a loader."""

    name: str
    step: Callable[[], object]
    staged_step: Callable[[Stopwatch], None]
    loop: Callable[[Iterable[Any]], object] | None = None


class Stopwatch:
    """Seconds since the last look: CPU seconds, or wall seconds after waiting for the GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stages: Stages = {}
        self.start_s = self._now()

    def _now(self) -> float:
        if self.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    def lap(self, stage: str = "") -> float:
        now_s = self._now()
        elapsed_s, self.start_s = now_s - self.start_s, now_s
        self.stages[stage] = self.stages.get(stage, 0.0) + elapsed_s
        return elapsed_s

    @contextlib.contextmanager
    def around(self, module: nn.Module, *, before: str, inside: str) -> Iterator[None]:
        """While open, a call of `module` ends stage `before`, and is itself the stage `inside`."""
        hooks = (
            module.register_forward_pre_hook(lambda *_: void(self.lap(before))),
            module.register_forward_hook(lambda *_: void(self.lap(inside))),
        )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def void(_: object) -> None:
    """Returns nothing: a hook's return value would replace what it observes."""


def random_batch(work: Work, parameters: tuple[torch.Tensor, torch.Tensor] | None = None) -> ViewBatch:
    """Noise: the arithmetic does not depend on what the views show. `parameters`: the remaining work on the device."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2 * work.batch, work.global_px), (work.num_local * work.batch, work.local_px))
    global_views, local_views = (
        torch.randint(0, 256, (number, edge, edge, 3), generator=generator, dtype=torch.uint8)
        for number, edge in shapes
    )
    left = parameters or [torch.empty(number, 0) for number, _ in shapes]
    batch = ViewBatch(global_views, local_views, *left, torch.arange(work.batch))
    return replace(batch, masks=random_masks(work)) if work.objective == "dinov2" else batch


def random_masks(work: Work) -> ViewMasks:
    """Of one step, drawn as in training, with the defaults: half of the views, 10 to 50 % of their patches."""
    rows = work.global_px // 16
    drawer = MaskDrawer(MasksConfig(), (rows, rows), seed=0, global_batch_size=work.batch)
    return drawer.draw(0, 0, np.zeros(work.batch, np.int64), np.arange(work.batch))


def our_learner(work: Work, precision: str, *, teacher: str | None = None, **options: Any) -> Learner:
    """`teacher`: of `objective.distill`, beside DINO; `options`: of TrainingConfig."""
    world = World(rank=0, size=1, local_rank=0, device=work.device)
    model = ModelConfig(
        backbone=f"{work.arch}_patch16_224",
        drop_path_rate=work.drop_path_rate,
        drop_path_schedule=work.drop_path_schedule,
    )
    distill = DistillConfig(weight=1.0 if teacher else 0.0, teacher=teacher)
    objective = ObjectiveConfig(dino=DinoConfig(num_prototypes=work.prototypes), distill=distill)
    optim = OptimConfig()
    if work.objective == "dinov2":
        model = model.model_copy(update={"arguments": {"init_values": 1e-5}})
        objective = ObjectiveConfig(
            dino=DinoConfig(num_prototypes=work.prototypes, norm_last_layer=False),
            ibot=IbotConfig(num_prototypes=work.prototypes, norm_last_layer=False, weight=1.0),
            koleo=KoleoConfig(weight=0.1),
            targets=TargetsConfig(method="sinkhorn-knopp"),
        )
        optim = OptimConfig(layer_decay=0.9, patch_embed_lr=0.2, clip_scope="module", freeze_by="zero_lr")
    training = TrainingConfig(
        num_steps=1,
        precision=precision,
        batch_size_per_gpu=work.batch,
        **options,  # type: ignore[arg-type]
    )
    config = Config(model=model, objective=objective, views=ViewsConfig(global_px=work.global_px))
    guide = open_guide(config, Namespace(mpp=None), world)  # type: ignore[arg-type]
    return Learner(model, objective, optim, training, world, guide)


def our_contender(
    work: Work, precision: str, *, parameters: tuple[torch.Tensor, torch.Tensor] | None = None, **options: Any
) -> Contender:
    """`options`: of `our_learner`; `parameters`: of the views, as `random_batch` takes them."""
    learner, batch = our_learner(work, precision, **options), random_batch(work, parameters)
    if work.device.type == "cuda":
        batch = batch.pin_memory()

    def step() -> None:
        train_step(learner, [batch.sent_to(work.device)], SETTINGS, step=0)

    def staged_step(watch: Stopwatch) -> None:
        watch.lap()
        sent = batch.sent_to(work.device)
        seen = learner.global_views(sent)
        watch.lap("views")
        taught = learner.teach(seen, sent.masks)
        watch.lap("teacher")
        learner.objective.prepare([taught], SETTINGS)
        watch.lap("targets")
        with contextlib.ExitStack() as stack:
            for head in learner.student.heads:
                stack.enter_context(watch.around(head, before="student", inside="head"))
            outputs = Outputs(learner.study(seen, sent), taught, sent.masks)
        loss, _ = learner.objective.measure(outputs, SETTINGS)
        watch.lap("loss")
        learner.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        watch.lap("backward")
        clip_gradients(learner.parts, learner.optim)
        learner.optimizer.step()
        watch.lap("clip, optimizer")
        update_teacher(learner.teacher, learner.student, SETTINGS.momentum)
        watch.lap("EMA")
        learner.objective.update(learner.objective.to_average(outputs))
        watch.lap("targets")

    return Contender(f"dino_path, {precision}", step, staged_step)


def peer_views(work: Work) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The same views as `random_batch`'s, as a peer's loader gives them: normalised floats, channels first."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (ModelConfig().mean, ModelConfig().std))
    batch = random_batch(work)
    stacks = (batch.global_views, batch.local_views)
    found = [
        [view.permute(0, 3, 1, 2).float().div(255).sub(mean).div(std).contiguous() for view in stack.split(work.batch)]
        for stack in stacks
    ]
    return found[0], found[1]


def peer_contender(work: Work, precision: str, peer: Path) -> Contender:
    """facebookresearch/dino as its main builds it; `train_one_epoch` itself runs, over an epoch of one batch."""
    if str(peer) not in sys.path:
        sys.path.insert(0, str(peer))
    import main_dino  # type: ignore[import-not-found]
    import utils  # type: ignore[import-not-found]
    import vision_transformer  # type: ignore[import-not-found]

    utils.is_dist_avail_and_initialized = lambda: False  # its averages of the log are made on a GPU, in any case
    vision_transformer.vit_large = partial(  # it has none: timm's numbers, its class
        vision_transformer.VisionTransformer, embed_dim=1024, depth=24, num_heads=16, mlp_ratio=4, qkv_bias=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
    )  # fmt: skip
    torch.manual_seed(0)
    build, device = getattr(vision_transformer, work.arch), work.device
    student_backbone, teacher_backbone = build(patch_size=16, drop_path_rate=0.1), build(patch_size=16)
    width = student_backbone.embed_dim
    student = utils.MultiCropWrapper(student_backbone, main_dino.DINOHead(width, work.prototypes))
    teacher = utils.MultiCropWrapper(teacher_backbone, main_dino.DINOHead(width, work.prototypes)).to(device)
    student = DistributedDataParallel(student.to(device))
    teacher.load_state_dict(student.module.state_dict())
    teacher.requires_grad_(False)
    dino_loss = main_dino.DINOLoss(work.prototypes, work.num_local + 2, 0.04, 0.04, 0, 2).to(device)
    optimizer = torch.optim.AdamW(utils.get_params_groups(student))
    scaler = torch.amp.GradScaler("cuda") if precision == "fp16" else None
    views = [view for views in peer_views(work) for view in views]
    if device.type == "cuda":
        views = [view.pin_memory() for view in views]
    settings = Namespace(clip_grad=3.0, freeze_last_layer=0, epochs=2)

    def autocast() -> Any:
        return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()

    def loop(loader: Any) -> None:
        steps = 2 * len(loader)
        schedule = ([SETTINGS.lr] * steps, [SETTINGS.weight_decay] * steps, [SETTINGS.momentum] * steps)
        with autocast(), contextlib.redirect_stdout(io.StringIO()):
            main_dino.train_one_epoch(
                student, teacher, teacher, dino_loss, loader, optimizer, *schedule, 1, scaler, settings
            )

    def staged_step(watch: Stopwatch) -> None:
        watch.lap()
        images = [view.to(device, non_blocking=True) for view in views]
        watch.lap("views")
        update, dino_loss.update_center = dino_loss.update_center, lambda _: void(watch.lap("loss"))
        with autocast() if scaler is None else torch.autocast("cuda", torch.float16):
            teacher_output = teacher(images[:2])
            watch.lap("teacher")
            with watch.around(student.module.head, before="student", inside="head"):
                student_output = student(images)
            loss = dino_loss(student_output, teacher_output, 1)
            dino_loss.update_center = update
            update(teacher_output)
            watch.lap("targets")
        optimizer.zero_grad()
        (loss if scaler is None else scaler.scale(loss)).backward()
        watch.lap("backward")
        if scaler is not None:
            scaler.unscale_(optimizer)
        utils.clip_gradients(student, 3.0)
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        watch.lap("clip, optimizer")
        with torch.no_grad():
            for param_q, param_k in zip(student.module.parameters(), teacher.parameters(), strict=True):
                param_k.data.mul_(SETTINGS.momentum).add_((1 - SETTINGS.momentum) * param_q.detach().data)
        watch.lap("EMA")

    return Contender(f"facebookresearch/dino, {precision}", lambda: loop([(views, None)]), staged_step, loop)


@contextlib.contextmanager
def peer_without_gpu(device: torch.device) -> Iterator[None]:
    """Its loop calls `.cuda()` and synchronises: on a CPU both do nothing. Starts its process group of one."""
    if device.type == "cpu":
        torch.Tensor.cuda = lambda tensor, **_: tensor  # type: ignore[method-assign]
        torch.cuda.synchronize = lambda: None  # type: ignore[assignment]
    dist.init_process_group("gloo" if device.type == "cpu" else "nccl", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def flops_per_tile(work: Work) -> float:
    """Multiplications and additions of the matrix products that the method needs for one tile, none computed twice.

    Counted on our step with the plain loss and explicit attention, on a CPU, with one tile.
    """
    one = Work(**{**vars(work), "batch": 1, "device": torch.device("cpu")})
    learner = our_learner(one, "fp32", fused_loss=False)
    for network in (learner.student, learner.teacher):
        attend_explicitly(network.backbone)
    with FlopCounterMode(display=False) as counter:
        train_step(learner, [random_batch(one)], SETTINGS, step=0)
    return float(counter.get_total_flops())

"""One training step against facebookresearch/dino's own: same model, same views, same batch, one process.

    uv run python benchmarks/training/bench.py --peer CHECKOUT_OF_facebookresearch/dino

Prints tiles/s of whole steps (ours: `train_step`, uint8 views in; theirs: `train_one_epoch` of main_dino.py, unchanged,
normalised float views in), then the time of each stage of both. The views lie in memory: the loader has a benchmark of
its own. The rounds are interleaved, so that a change of the machine's speed hits all alike, and medians are quoted.

On a CPU: CPU seconds of one thread, fp32 and bf16; the peer has no bf16, so it gets an autocast around its whole epoch.
On a GPU: wall seconds after synchronising; the peer in its own fp16 with GradScaler; and peak memory, and the share of
the GPU's peak arithmetic rate (MFU, of `--peak-tflops`).
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from dino_path.config import ModelConfig, OptimConfig, TrainingConfig
from dino_path.distributed import World
from dino_path.training.learner import Learner, clip_gradients, train_step, update_teacher
from dino_path.training.objective import batch_center, dino_objective
from dino_path.training.schedules import StepSettings
from dino_path.views.batches import ViewBatch

MODELS = {"vit_tiny": "vit_tiny_patch16_224", "vit_small": "vit_small_patch16_224", "vit_base": "vit_base_patch16_224"}
SETTINGS = StepSettings(lr=5e-4, weight_decay=0.04, momentum=0.996, teacher_temp=0.04, last_layer_frozen=False)
STAGES = ("teacher forward", "student forward", "loss", "backward", "clip, AdamW", "teacher, center")
Stages = dict[str, float]


@dataclass
class Contender:
    """One implementation in one precision: a whole step, and a step in its stages."""

    name: str
    step: Callable[[int], None]
    staged_step: Callable[[Stopwatch], None]
    step_s: list[float] = field(default_factory=list)
    stages_s: list[Stages] = field(default_factory=list)
    peak_memory_gb: float = 0.0


class Stopwatch:
    """Seconds since the last look: CPU seconds, or wall seconds of a GPU that has caught up."""

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


def random_batch(arguments: Namespace) -> ViewBatch:
    """Noise: the arithmetic does not depend on what the views show."""
    generator = torch.Generator().manual_seed(0)
    count, num_local = arguments.batch, arguments.num_local
    shapes = ((2 * count, arguments.global_px), (num_local * count, arguments.local_px))
    global_views, local_views = (
        torch.randint(0, 256, (number, edge, edge, 3), generator=generator, dtype=torch.uint8)
        for number, edge in shapes
    )
    return ViewBatch(global_views, local_views, torch.arange(count))


def our_contender(arguments: Namespace, precision: str, device: torch.device) -> Contender:
    world = World(rank=0, size=1, local_rank=0, device=device)
    model = ModelConfig(backbone=MODELS[arguments.arch], num_prototypes=arguments.prototypes)
    training = TrainingConfig(num_steps=1, precision=precision, compile=arguments.compile)
    learner = Learner(model, OptimConfig(), training, world)
    batch = random_batch(arguments)
    if device.type == "cuda":
        batch = batch.pin_memory()

    def staged_step(watch: Stopwatch) -> None:
        watch.lap()
        views = [
            learner.normalised(batch.global_views, batch.global_parameters),
            learner.normalised(batch.local_views, batch.local_parameters),
        ]
        with learner.autocast():
            with torch.no_grad():
                _, teacher_logits = learner.teacher(views[:1])
            watch.lap(STAGES[0])
            _, student_logits = learner.student(views)
        watch.lap(STAGES[1])
        objective = dino_objective(
            student_logits, teacher_logits, learner.center, student_temp=0.1, teacher_temp=SETTINGS.teacher_temp
        )
        watch.lap(STAGES[2])
        learner.optimizer.zero_grad(set_to_none=True)
        objective.loss.backward()
        watch.lap(STAGES[3])
        clip_gradients(learner.parts, learner.optim)
        learner.optimizer.step()
        watch.lap(STAGES[4])
        update_teacher(learner.teacher, learner.student, SETTINGS.momentum)
        learner.center.lerp_(batch_center(teacher_logits), 0.1)
        watch.lap(STAGES[5])

    name = f"dino_path, {precision}" + (", compiled" if arguments.compile else "")
    return Contender(name, lambda number: train_step(learner, [batch], SETTINGS, step=number), staged_step)


def peer_contender(arguments: Namespace, precision: str, device: torch.device) -> Contender:
    """facebookresearch/dino as its main builds it; `train_one_epoch` itself runs, over an epoch of one batch."""
    sys.path.insert(0, str(arguments.peer))
    import main_dino  # type: ignore[import-not-found]
    import utils  # type: ignore[import-not-found]
    import vision_transformer  # type: ignore[import-not-found]

    utils.is_dist_avail_and_initialized = lambda: False  # its averages of the log are made on a GPU, in any case
    torch.manual_seed(0)
    build = getattr(vision_transformer, arguments.arch)
    student_backbone, teacher_backbone = build(patch_size=16, drop_path_rate=0.1), build(patch_size=16)
    width = student_backbone.embed_dim
    student = utils.MultiCropWrapper(student_backbone, main_dino.DINOHead(width, arguments.prototypes))
    teacher = utils.MultiCropWrapper(teacher_backbone, main_dino.DINOHead(width, arguments.prototypes)).to(device)
    student = DistributedDataParallel(student.to(device))
    teacher.load_state_dict(student.module.state_dict())
    teacher.requires_grad_(False)
    num_views = arguments.num_local + 2
    dino_loss = main_dino.DINOLoss(arguments.prototypes, num_views, 0.04, 0.04, 0, 2).to(device)
    optimizer = torch.optim.AdamW(utils.get_params_groups(student))
    scaler = torch.amp.GradScaler("cuda") if precision == "fp16" else None
    batch = random_batch(arguments)
    views = [
        view.permute(0, 3, 1, 2).float().div(255).sub(0.45).div(0.22).contiguous()
        for stack in (batch.global_views, batch.local_views)
        for view in stack.split(arguments.batch)
    ]
    schedule = ([SETTINGS.lr] * 2, [SETTINGS.weight_decay] * 2, [SETTINGS.momentum] * 2)
    settings = Namespace(clip_grad=3.0, freeze_last_layer=0, epochs=2)

    def autocast() -> Any:
        return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()

    def step(_: int) -> None:
        with autocast(), contextlib.redirect_stdout(io.StringIO()):
            main_dino.train_one_epoch(
                student, teacher, teacher, dino_loss, [(views, None)], optimizer, *schedule, 1, scaler, settings
            )

    def staged_step(watch: Stopwatch) -> None:
        watch.lap()
        images = [view.to(device) for view in views]
        with autocast() if scaler is None else torch.autocast("cuda", torch.float16):
            teacher_output = teacher(images[:2])
            watch.lap(STAGES[0])
            student_output = student(images)
            watch.lap(STAGES[1])
            loss = dino_loss(student_output, teacher_output, 1)
            watch.lap(STAGES[2])
        optimizer.zero_grad()
        loss.backward()
        watch.lap(STAGES[3])
        utils.clip_gradients(student, 3.0)
        optimizer.step()
        watch.lap(STAGES[4])
        with torch.no_grad():
            for param_q, param_k in zip(student.module.parameters(), teacher.parameters(), strict=True):
                param_k.data.mul_(SETTINGS.momentum).add_((1 - SETTINGS.momentum) * param_q.detach().data)
        watch.lap(STAGES[5])

    return Contender(f"facebookresearch/dino, {precision}", step, staged_step)


@contextlib.contextmanager
def peer_without_gpu() -> Iterator[None]:
    """Its loop says `.cuda()` and synchronises: on a CPU both do nothing. And its process group, of one."""
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda tensor, **_: tensor  # type: ignore[method-assign]
        torch.cuda.synchronize = lambda: None  # type: ignore[assignment]
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def measure(contenders: list[Contender], arguments: Namespace, device: torch.device) -> None:
    for number in range(arguments.rounds + 1):
        for contender in contenders:
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            watch = Stopwatch(device)
            for _ in range(arguments.steps):
                contender.step(number)
            step_s = watch.lap() / arguments.steps
            if device.type == "cuda":
                contender.peak_memory_gb = torch.cuda.max_memory_allocated() / 1e9
            staged = Stopwatch(device)
            contender.staged_step(staged)
            if number > 0:  # the first round warms up
                contender.step_s.append(step_s)
                contender.stages_s.append(staged.stages)


def flops_per_step(arguments: Namespace) -> int:
    """Multiplications and additions of a step's matrix products, as ours makes them."""
    contender = our_contender(Namespace(**{**vars(arguments), "compile": False}), "fp32", torch.device("cpu"))
    with FlopCounterMode(display=False) as counter:
        contender.step(0)
    return counter.get_total_flops()


def print_tables(contenders: list[Contender], arguments: Namespace, device: torch.device) -> None:
    seconds = {contender.name: statistics.median(contender.step_s) for contender in contenders}
    print(f"\n{'whole step':34s} tiles/s    s/step (min - max)        against the peer")
    peers = {name.split(", ")[1]: value for name, value in seconds.items() if name.startswith("facebook")}
    for contender in contenders:
        median = seconds[contender.name]
        ratios = "  ".join(f"{precision}: {value / median:.2f} x" for precision, value in peers.items())
        print(
            f"{contender.name:34s} {arguments.batch / median:7.2f}   {median:7.3f}"
            f" ({min(contender.step_s):.3f} - {max(contender.step_s):.3f})   {ratios}"
        )
    if device.type == "cuda":
        flops = flops_per_step(arguments)
        for contender in contenders:
            share = flops / seconds[contender.name] / (arguments.peak_tflops * 1e12)
            print(f"{contender.name:34s} {contender.peak_memory_gb:6.2f} GB peak   MFU {share:.1%}")
    print(f"\n{'seconds by stage':34s} " + "  ".join(f"{stage:>15s}" for stage in STAGES))
    for contender in contenders:
        medians = [statistics.median(stages[stage] for stages in contender.stages_s) for stage in STAGES]
        print(f"{contender.name:34s} " + "  ".join(f"{value:15.3f}" for value in medians))


def main() -> None:
    has_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="checkout of facebookresearch/dino")
    parser.add_argument("--arch", choices=[*MODELS], default="vit_small" if has_gpu else "vit_tiny", help="patch 16")
    parser.add_argument("--batch", type=int, default=64 if has_gpu else 4, help="tiles per step")
    parser.add_argument("--prototypes", type=int, default=65536 if has_gpu else 4096)
    parser.add_argument("--global-px", type=int, default=224)
    parser.add_argument("--local-px", type=int, default=96)
    parser.add_argument("--num-local", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10 if has_gpu else 1, help="whole steps per round")
    parser.add_argument("--compile", action="store_true", help="ours with training.compile")
    parser.add_argument("--peak-tflops", type=float, default=989.0, help="of the GPU, bf16 dense (H100, H200: 989)")
    arguments = parser.parse_args()
    device = torch.device("cuda" if has_gpu else "cpu")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the peer is of 2021
    print(
        f"{arguments.arch}/16, {arguments.batch} tiles, 2 x {arguments.global_px} + {arguments.num_local} x"
        f" {arguments.local_px} px, {arguments.prototypes} prototypes; torch {torch.__version__},"
        f" {torch.cuda.get_device_name() if has_gpu else 'CPU, one thread'}"
    )
    with peer_without_gpu():
        contenders = [our_contender(arguments, precision, device) for precision in ("fp32", "bf16")]
        if arguments.peer:
            precisions = ("fp32", "fp16") if has_gpu else ("fp32", "bf16")
            contenders += [peer_contender(arguments, precision, device) for precision in precisions]
        measure(contenders, arguments, device)
    print_tables(contenders, arguments, device)


if __name__ == "__main__":
    main()

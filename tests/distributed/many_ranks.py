"""The work of each of several processes; `test_many_processes.py` starts it.

python many_ranks.py SIZE STORE OUT
"""

import contextlib
import math
import shutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo  # before the fork: it takes seconds
from forked import run_ranks
from runs import keep_only_step, objective_state
from tiny import ALL_TERMS, PATCHES, tiny_batches, tiny_config, tiny_learner, tiny_schedules
from toy_term import add_toy_term

from dino_path.distributed import World, open_world
from dino_path.run import RunFolder
from dino_path.training.learner import Learner
from dino_path.training.loop import pretrain
from dino_path.training.sharding import local, whole
from dino_path.training.step import train_step

NUM_STEPS = 4
GLOBAL_BATCH = 4
SETTINGS = ("model.drop_path_rate=0", f"training.num_steps={NUM_STEPS}", "training.checkpoint_every_steps=2")
CENTERED, BALANCED = (f"objective.targets.method={method}" for method in ("centering", "sinkhorn-knopp"))
# Of whole runs: their checkpoints hold two centers, a mask token, and groups of parameters with rates of their own.
RUN_SETTINGS = (*SETTINGS, *PATCHES, CENTERED, "optim.layer_decay=0.8", "optim.freeze_by=zero_lr")
ACCUMULATED = ("training.accumulate_steps=2", "optim.clip_scope=global", "optim.clip_norm=0.5")
RESNET = (
    "model.backbone=resnet10t",
    "model.arguments={}",
    "objective.dino.head_batch_norm=true",
    "optim.optimizer=sgd",
)
DISTILLED = (
    "objective.dino.weight=0", "views.num_local=0", "objective.distill.weight=1",
    "objective.distill.teacher=untrained:timm:vit_tiny_patch16_224",
)  # fmt: skip
LORA = ("model.lora_rank=2", "model.lora_alpha=4")
# What is trained, on all ranks and by one process with the same global batch.
CASES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "accumulated": ACCUMULATED,
    "resnet": RESNET,
    "sharded": ("training.sharding=fsdp2",),
    "sharded, accumulated": ("training.sharding=fsdp2", "objective.dino.norm_last_layer=false", *ACCUMULATED),
    "sharded, recomputed": ("training.sharding=fsdp2", "training.activation_checkpointing=true"),
    "sharded, elementwise": ("training.sharding=fsdp2", "training.activation_checkpointing=elementwise"),
    # Of eight views two are masked: with four ranks some rank never has a masked patch, with two in some steps.
    "patches, centering": (*PATCHES, CENTERED, "objective.ibot.masks.view_fraction=0.25", "optim.clip_scope=module"),
    "patches, Sinkhorn-Knopp, accumulated": (
        *PATCHES,
        BALANCED,
        "objective.ibot.head=shared",
        "objective.ibot.masks.view_fraction=0.07",
        *ACCUMULATED,
    ),
    "sharded, patches, Sinkhorn-Knopp": (
        *PATCHES,
        BALANCED,
        "training.sharding=fsdp2",
        "objective.ibot.masks.view_fraction=0.25",
        "optim.layer_decay=0.8",
        "optim.patch_embed_lr=0.2",
        "optim.freeze_by=zero_lr",
        "optim.clip_scope=module",
    ),
    "all terms": (*ALL_TERMS, BALANCED, "optim.layer_decay=0.8"),
    "sharded, all terms": (*ALL_TERMS, CENTERED, "training.sharding=fsdp2"),
    "frozen, accumulated": ("training.freeze_backbone=2 steps", *ACCUMULATED),
    "sharded, frozen": ("training.sharding=fsdp2", "training.freeze_backbone=2 steps"),
    "adapters": LORA,
    "sharded, adapters": ("training.sharding=fsdp2", *LORA),
    "second term": (),
    "sharded, second term, accumulated": ("training.sharding=fsdp2", *ACCUMULATED),
    "distilled": DISTILLED,
    "sharded, distilled, accumulated": ("training.sharding=fsdp2", *DISTILLED, *ACCUMULATED),
}
IN_BF16 = {
    "bf16": ("training.precision=bf16",),
    "bf16, sharded": ("training.precision=bf16", "training.sharding=fsdp2"),
}
SKIPPING = ("plain", "sharded", "patches, centering", "sharded, patches, Sinkhorn-Knopp")
TILES_EACH = 2  # in a pass of the cases "all terms": KoLeo and KDE compare the tiles of one pass


def division(name: str, num_ranks: int, world: World) -> tuple[int, tuple[str, ...]]:
    """How that case's global batch, which `num_ranks` ranks share, is divided in `world`: tiles in a pass, settings."""
    if "all terms" not in name:
        return GLOBAL_BATCH // world.size, ()
    return TILES_EACH, (f"training.accumulate_steps={num_ranks // world.size}",)


@contextlib.contextmanager
def terms_of(name: str) -> Iterator[None]:
    """Inside, learners have the terms of that case."""
    with pytest.MonkeyPatch.context() as patch:
        if "second term" in name:
            add_toy_term(patch)
        yield


def state_of(learner: Learner) -> dict[str, Any]:
    """Everything that a step changes, whole, on rank 0; None for each sharded tensor on the others."""
    optimizer = whole(learner.optimizer.state_dict()["state"], learner.world)
    state = {f"optimizer.{number}.{name}": value for number, of in optimizer.items() for name, value in of.items()}
    for name, network in (("student", learner.student), ("teacher", learner.teacher)):
        state |= {f"{name}.{key}": value for key, value in whole(network.state_dict(), learner.world).items()}
    state |= objective_state(learner.objective.state())
    return {name: None if value is None else torch.as_tensor(value).detach().clone() for name, value in state.items()}


def num_numbers_here(learner: Learner) -> int:
    """In this rank's parts of both networks and of the moments."""
    parameters = [*learner.student.parameters(), *learner.teacher.parameters()]
    moments = [value for of in learner.optimizer.state.values() for value in of.values() if value.ndim > 0]
    return sum(local(each).numel() for each in (*parameters, *moments))


def train(
    store: Path,
    settings: tuple[str, ...],
    world: World,
    dtype: torch.dtype = torch.float64,
    *,
    tiles_each: int | None = None,
) -> tuple[Learner, dict[str, Any]]:
    """Some steps with weights of `dtype`; returns the learner, and what it has and saw.

    Args:
        tiles_each: in a rank's pass; None: an equal part of `GLOBAL_BATCH`.
    """
    tiles_each = tiles_each or GLOBAL_BATCH // world.size
    config = tiny_config(store, Path("unused"), *SETTINGS, f"training.batch_size_per_gpu={tiles_each}", *settings)
    torch.set_default_dtype(dtype)
    learner = tiny_learner(config, world)
    torch.set_default_dtype(torch.float32)
    batches = tiny_batches(config, rank=world.rank, world_size=world.size)
    # The learning rate follows from the global batch, which is the same for every number of ranks.
    size = f"training.batch_size_per_gpu={tiles_each * world.size}"
    together = tiny_config(store, Path("unused"), *SETTINGS, size, *settings)
    schedules, tiles, losses, num_masked = tiny_schedules(together), [], [], []
    count = learner.training.accumulate_steps
    start = state_of(learner)
    for step in range(NUM_STEPS):
        micro_batches = [batches.batch(step * count + number) for number in range(count)]
        report = train_step(learner, micro_batches, schedules.at(step), step=step)
        losses.append(float(world.sum_(report.loss.clone())) / world.size)
        tiles += [tile for batch in micro_batches for tile in batch.tiles.tolist()]
        num_masked += [len(batch.masks.indices) for batch in micro_batches if batch.masks]
    return learner, {
        "start": start, "state": state_of(learner), "tiles": tiles, "losses": losses, "num_masked": num_masked,
        "grad_norm": float(report.numbers["grad_norm"]), "num_numbers_here": num_numbers_here(learner),
    }  # fmt: skip


def skip_one_step(store: Path, settings: tuple[str, ...], learner: Learner) -> dict[str, Any]:
    """A step that is not finite on the last rank only, then a good step."""
    world = learner.world
    size = f"training.batch_size_per_gpu={GLOBAL_BATCH // world.size}"
    config = tiny_config(store, Path("unused"), *SETTINGS, size, *settings)
    batches, schedules = tiny_batches(config, rank=world.rank, world_size=world.size), tiny_schedules(config)
    before, std = state_of(learner), learner.std
    if world.rank == world.size - 1:
        learner.std = std * math.nan
    report = train_step(learner, [batches.batch(4)], schedules.at(3), step=4)
    after_skip = state_of(learner)
    learner.std = std
    train_step(learner, [batches.batch(5)], schedules.at(3), step=5)
    return {
        "is_skipped": report.is_skipped, "num_skipped": learner.num_skipped, "before": before,
        "after_skip": after_skip, "after": state_of(learner),
    }  # fmt: skip


def run_folders(store: Path, out: Path, world: World) -> None:
    """Whole runs: replicated, sharded, sharded and continued, and a sharded end of what one process began."""
    size = f"training.batch_size_per_gpu={GLOBAL_BATCH // world.size}"
    sharded = (*RUN_SETTINGS, size, "training.sharding=fsdp2")
    pretrain(tiny_config(store, out / "replicated", *RUN_SETTINGS, size, "training.num_workers=1"), world)
    pretrain(tiny_config(store, out / "sharded", *sharded), world)
    if world.is_first:
        shutil.copytree(out / "sharded", out / "continued")
        keep_only_step(RunFolder(out / "continued"), 2)
    world.barrier()
    pretrain(tiny_config(store, out / "continued", *sharded), world)
    pretrain(tiny_config(store, out / "begun_by_one", *sharded), world)
    few = tiny_config(out / "few_tiles", out / "few", *SETTINGS, size)  # fewer tiles than the ranks take in a step
    pretrain(few, world)


def main(store: Path, out: Path) -> None:
    warnings.simplefilter("error")
    with open_world("cpu", timeout_s=120) as world:
        record = {}
        for name, settings in CASES.items():
            with terms_of(name):
                tiles_each, divided = division(name, world.size, world)
                learner, record[name] = train(store, (*settings, *divided), world, tiles_each=tiles_each)
            if name in SKIPPING:
                record[name]["skipping"] = skip_one_step(store, settings, learner)
        for name, settings in IN_BF16.items():
            record[name] = train(store, settings, world, torch.float32)[1]
        torch.save(record, out / f"rank_{world.rank}.pt")
        torch.set_default_dtype(torch.float64)
        run_folders(store, out, world)


if __name__ == "__main__":
    size, store, out = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    sys.exit(max(abs(code) for code in run_ranks(range(size), size, lambda: main(store, out))))

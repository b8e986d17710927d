"""The smallest pretraining there is: a ViT of two blocks on 32 px views, and tiles to train it on."""

from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from dino_path.config import Config, TrainingConfig
from dino_path.distributed import World
from dino_path.model.sizes import patch_grid
from dino_path.settings import load_config
from dino_path.tiles.source import open_tiles
from dino_path.training.learner import Learner
from dino_path.training.objective.term import Outputs
from dino_path.training.schedules import Schedules, resolve_clock, resolve_schedules
from dino_path.views.batches import ViewBatch, ViewBatches
from dino_path.views.masks import MaskDrawer

torch.set_num_threads(1)  # models this small lose more by waiting for each other's threads than they gain

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))
VIT = "model.arguments={img_size: 32, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}"
TINY = (
    "views.global_px=32", "views.local_px=16", "views.num_local=2",
    "model.backbone=vit_tiny_patch16_224", VIT, "objective.dino.num_prototypes=64", "objective.dino.head_hidden=32",
    "objective.dino.head_bottleneck=16", "optim.base_lr=0.003", "optim.lr_warmup=2 steps",
    "optim.freeze_last_layer=2 steps",
    "training.num_steps=10", "training.batch_size_per_gpu=4", "training.num_workers=0", "training.device=cpu",
    "training.checkpoint_every_steps=5", "training.momentum=0.9", "monitor.log_every_steps=1", "wandb.mode=disabled",
)  # fmt: skip
PATCHES = (  # iBOT beside DINO; a global view has 16 patches
    "objective.ibot.weight=1", "objective.ibot.num_prototypes=48", "objective.ibot.head_hidden=32",
    "objective.ibot.head_bottleneck=16", "objective.ibot.norm_last_layer=false",
)  # fmt: skip
ALL_TERMS = (
    *PATCHES, "objective.koleo.weight=0.1", "objective.kde.weight=0.05", "objective.kde.ramp_start=1 steps",
    "objective.kde.ramp_end=3 steps",
)  # fmt: skip


def tile_image(seed: int, edge_px: int = 48) -> NDArray[np.uint8]:
    """Pink tissue with purple dots, (edge_px, edge_px, 3) uint8 RGB; every seed is another tile."""
    rng = np.random.default_rng(seed)
    image = np.full((edge_px, edge_px, 3), rng.integers((195, 110, 150), (235, 160, 200)), np.uint8)
    for _ in range(int(rng.integers(3, 25))):
        centre, radius = rng.integers(0, edge_px, 2).tolist(), int(rng.integers(1, 6))
        cv2.circle(image, centre, radius, rng.integers((70, 30, 110), (130, 80, 170)).tolist(), cv2.FILLED)
    return np.clip(image + rng.normal(0, 6, image.shape), 0, 255).astype(np.uint8)


def write_tiles(folder: Path, count: int = 12, edge_px: int = 48) -> Path:
    """A folder of `count` PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        encoded = cv2.imencode(".png", tile_image(number, edge_px)[..., ::-1])[1]
        (folder / f"{number:03d}.png").write_bytes(encoded.tobytes())
    return folder


def tiny_config(store: Path, out: Path, *settings: str) -> Config:
    """A run of ten steps of four tiles; `settings` are further `dotted.key=value`."""
    return load_config(None, [*TINY, *settings], settings={"store": store, "out": out})


def training_of(config: Config) -> TrainingConfig:
    assert config.training is not None
    return config.training


def tiny_learner(config: Config, world: World = ALONE) -> Learner:
    return Learner(config.model, config.objective, config.optim, training_of(config), world)


def tiny_schedules(config: Config, num_tiles: int = 12) -> Schedules:
    clock = resolve_clock(training_of(config), num_tiles=num_tiles, world_size=1)
    return resolve_schedules(config.optim, config.objective, training_of(config), clock)


def tiny_batches(config: Config, *, rank: int = 0, world_size: int = 1) -> ViewBatches:
    assert config.store is not None
    training, masks = training_of(config), None
    if config.objective.ibot.weight > 0:
        size = training.batch_size_per_gpu * training.accumulate_steps * world_size
        grid = patch_grid(config.model.backbone, config.model.backbone_arguments, config.views.global_px)
        masks = MaskDrawer(config.objective.ibot.masks, grid, seed=training.seed, global_batch_size=size)
    return ViewBatches(
        open_tiles(config.store),
        config.views,
        balance=training.balance,
        seed=training.seed,
        batch_size_per_gpu=training.batch_size_per_gpu,
        rank=rank,
        world_size=world_size,
        accumulate_steps=training.accumulate_steps,
        masks=masks,
    )


def center_of(learner: Learner) -> torch.Tensor:
    """(1, K) of DINO's term."""
    return learner.objective.state()["dino"]["center"]


def state_of(learner: Learner) -> dict[str, torch.Tensor]:
    """Copies of everything that a step changes, by name."""
    state = {f"student.{name}": value.detach().clone() for name, value in learner.student.state_dict().items()}
    state |= {f"teacher.{name}": value.detach().clone() for name, value in learner.teacher.state_dict().items()}
    state["center"] = center_of(learner).clone()
    for number, moments in learner.optimizer.state_dict()["state"].items():
        state |= {f"optimizer.{number}.{name}": torch.as_tensor(value).clone() for name, value in moments.items()}
    return state


def differences(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names whose values are not equal to the bit, or that one side lacks."""
    names = sorted({*one, *other})
    return [name for name in names if name not in one or name not in other or not torch.equal(one[name], other[name])]


def outputs_of(learner: Learner, batch: ViewBatch) -> Outputs:
    """What both networks make of a micro-batch."""
    views = learner.global_views(batch)
    return Outputs(learner.study(views, batch), learner.teach(views, batch.masks), batch.masks)

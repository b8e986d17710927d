"""What each of two processes does; `test_two_processes.py` starts it with torchrun's variables.

python two_ranks.py STORE OUT
"""

import math
import sys
from pathlib import Path

import torch
from tiny import state_of, tiny_batches, tiny_config, tiny_learner, tiny_schedules

from dino_path.distributed import World, open_world
from dino_path.training.learner import Learner, train_step
from dino_path.training.loop import pretrain

NUM_STEPS = 4
SETTINGS = ("model.drop_path_rate=0", "training.batch_size_per_gpu=2", f"training.num_steps={NUM_STEPS}")


def train(store: Path, world: World) -> tuple[Learner, list[int]]:
    """Some steps in double precision; returns the learner and the tiles that this rank saw."""
    config = tiny_config(store, Path("unused"), *SETTINGS)
    torch.set_default_dtype(torch.float64)
    learner = tiny_learner(config, world)
    torch.set_default_dtype(torch.float32)
    batches = tiny_batches(config, rank=world.rank, world_size=world.size)
    schedules, tiles = tiny_schedules(tiny_config(store, Path("unused"), "training.num_steps=4")), []
    for step in range(NUM_STEPS):
        batch = batches.batch(step)
        train_step(learner, [batch], schedules.at(step), step=step)
        tiles += batch.tiles.tolist()
    return learner, tiles


def skip_one_step(store: Path, learner: Learner, world: World) -> dict[str, object]:
    """A step that is not finite on rank 1 only, and a good one after it."""
    config = tiny_config(store, Path("unused"), *SETTINGS)
    batches, schedules = tiny_batches(config, rank=world.rank, world_size=world.size), tiny_schedules(config)
    before, std = state_of(learner), learner.std
    if world.rank == 1:
        learner.std = std * math.nan
    report = train_step(learner, [batches.batch(4)], schedules.at(3), step=4)
    after_skip = state_of(learner)
    learner.std = std
    train_step(learner, [batches.batch(5)], schedules.at(3), step=5)
    return {
        "is_skipped": report.is_skipped, "num_skipped": learner.num_skipped, "before": before,
        "after_skip": after_skip, "after": state_of(learner),
    }  # fmt: skip


def main(store: Path, out: Path) -> None:
    with open_world("cpu", timeout_s=60) as world:
        learner, tiles = train(store, world)
        trained = state_of(learner)
        record = {"state": trained, "tiles": tiles, "skipping": skip_one_step(store, learner, world)}
        torch.save(record, out / f"rank_{world.rank}.pt")
        torch.set_default_dtype(torch.float64)
        settings = (*SETTINGS, "training.num_workers=1", "training.checkpoint_every_steps=2")
        pretrain(tiny_config(store, out / "run", *settings), world)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

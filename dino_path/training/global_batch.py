"""A run keeps the global batch that it began with, also on another number of processes."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from dino_path.config import Config
from dino_path.model.torch_file import UNREADABLE
from dino_path.run import RunFolder

logger = logging.getLogger(__name__)


def keep_global_batch(config: Config, world_size: int) -> Config:
    """`config` with the batch divided differently, if the run in `config.out` started with another global batch.

    A job that was queued again with fewer nodes makes more passes per step, one with more nodes fewer; no process gets
    more tiles in a pass than `training.batch_size_per_gpu`. A batch that so many processes cannot share out evenly is
    left as it is: `restore` refuses it.
    """
    assert config.out is not None
    assert config.training is not None
    training, files = config.training, RunFolder(config.out).checkpoint_files()
    sizes = (_global_batch_size(file) for file in reversed(files))
    global_batch_size = next((size for size in sizes if size is not None), None)
    most = training.batch_size_per_gpu
    if global_batch_size is None or global_batch_size == most * training.accumulate_steps * world_size:
        return config
    if global_batch_size % world_size:
        return config
    tiles_each = global_batch_size // world_size
    passes = next(
        count for count in range(1, tiles_each + 1) if tiles_each % count == 0 and tiles_each // count <= most
    )
    logger.warning(
        "global batch of %d tiles, as before: %d process(es) now take %d in each of %d pass(es) per step, not %d in"
        " %d",
        global_batch_size, world_size, tiles_each // passes, passes, most, training.accumulate_steps,
    )  # fmt: skip
    divided = {"batch_size_per_gpu": tiles_each // passes, "accumulate_steps": passes}
    return config.model_copy(update={"training": training.model_copy(update=divided)})


def _global_batch_size(checkpoint: Path) -> int | None:
    """The record of a checkpoint without its tensors; None if it is damaged (`restore` reports it)."""
    try:
        record = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
        return int(record["global_batch_size"])
    except UNREADABLE:
        return None

"""Batches of views, step by step: which tiles a step sees, and their views, on one rank."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dino_path.config import ViewsConfig
from dino_path.errors import DinoPathError
from dino_path.tiles.source import TileSource
from dino_path.views.parameters import draw_views
from dino_path.views.rendering import render_view
from dino_path.views.sampling import ShuffledTiles


@dataclass(frozen=True)
class ViewBatch:
    """The views of B tiles, uint8, channels last, view by view (all tiles' first view, then all second views...)."""

    global_views: Tensor
    """(2 * B, global_px, global_px, 3)"""
    local_views: Tensor
    """(num_local * B, local_px, local_px, 3)"""
    tiles: Tensor
    """(B,) int64, the tiles' indices in the source"""

    def pin_memory(self) -> ViewBatch:
        """For the DataLoader: the same batch in page-locked memory."""
        return ViewBatch(self.global_views.pin_memory(), self.local_views.pin_memory(), self.tiles)


class ViewBatches(Dataset["ViewBatch | DinoPathError"]):
    """`self[number]` is this rank's micro-batch of that number: a pure function of (seed, number, rank).

    At step s the world reads the stream's positions s * global_batch ... ; rank r takes the r-th part of them, in
    `accumulate_steps` pieces: its micro-batches s * accumulate_steps ... (without accumulation: batch s).
    """

    def __init__(
        self,
        source: TileSource,
        config: ViewsConfig,
        *,
        seed: int,
        batch_size_per_gpu: int,
        rank: int,
        world_size: int,
        accumulate_steps: int,
    ) -> None:
        self.source = source
        self.config = config
        self.seed = seed
        self.batch_size = batch_size_per_gpu
        self.rank, self.world_size, self.accumulate_steps = rank, world_size, accumulate_steps
        self.order = ShuffledTiles(len(source), seed)

    def __getitem__(self, number: int) -> ViewBatch | DinoPathError:
        try:
            return self.batch(number)
        except DinoPathError as error:  # raised again by `iterate_batches`: a worker would turn it into a RuntimeError
            return error

    def batch(self, number: int) -> ViewBatch:
        """This rank's views of its micro-batch `number`.

        Raises:
            TileStoreError: a tile cannot be read or decoded.
        """
        step, piece = divmod(number, self.accumulate_steps)
        first = ((step * self.world_size + self.rank) * self.accumulate_steps + piece) * self.batch_size
        epochs, tiles = self.order(np.arange(first, first + self.batch_size))
        config, size = self.config, self.batch_size
        global_views = np.empty((2, size, config.global_px, config.global_px, 3), np.uint8)
        local_views = np.empty((config.num_local, size, config.local_px, config.local_px, 3), np.uint8)
        for place, (epoch, tile) in enumerate(zip(epochs.tolist(), tiles.tolist(), strict=True)):
            for number, view in enumerate(self.tile_views(epoch, tile)):
                target = global_views[number] if number < 2 else local_views[number - 2]
                target[place] = view
        return ViewBatch(
            torch.from_numpy(global_views.reshape(-1, *global_views.shape[2:])),
            torch.from_numpy(local_views.reshape(-1, *local_views.shape[2:])),
            torch.from_numpy(tiles),
        )

    def tile_views(self, epoch: int, tile: int) -> list[NDArray[np.uint8]]:
        """All views of one tile in one epoch: two global ones, then the local ones."""
        image = self.source.read_image(tile)
        parameters = draw_views(
            self.config,
            tile_width=image.shape[1],
            tile_height=image.shape[0],
            seed=self.seed,
            epoch=epoch,
            tile=tile,
        )
        return [render_view(image, view) for view in parameters]


def iterate_batches(
    batches: ViewBatches, *, start: int, num_steps: int, num_workers: int, pin_memory: bool
) -> Iterator[ViewBatch]:
    """The micro-batches of steps `start` to `num_steps` - 1, made ahead of time by `num_workers` processes."""
    loader: DataLoader[ViewBatch | DinoPathError] = DataLoader(
        batches,
        batch_size=None,
        sampler=range(start * batches.accumulate_steps, num_steps * batches.accumulate_steps),
        num_workers=num_workers,
        prefetch_factor=2 if num_workers else None,
        worker_init_fn=_prepare_worker,
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else the loader draws from the global random state
    )
    for batch in loader:
        if isinstance(batch, DinoPathError):
            raise batch
        yield batch


def _prepare_worker(_: int) -> None:
    """One thread per worker: OpenCV and torch would otherwise start one per core in every worker.

    SLURM sends its warnings to every process. The main one answers them at the end of its step, and until then it
    needs its workers; they end with it.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

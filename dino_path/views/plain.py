"""Whole tiles as views, without augmentation."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dino_path.config import ViewsConfig
from dino_path.errors import TileStoreError
from dino_path.tiles.source import TileSource
from dino_path.views.batches import prepare_worker
from dino_path.views.normalisation import normalise_stain
from dino_path.views.parameters import draw_views
from dino_path.views.rendering import render_view


class PlainBatch(NamedTuple):
    """Some tiles in order."""

    views: Tensor
    """(B, global_px, global_px, 3) uint8; black where a tile cannot be read."""
    unreadable: list[tuple[int, TileStoreError]]
    """Their numbers, and why."""


class PlainViews(Dataset[PlainBatch]):
    """`self[number]` has the tiles of the range of that number, stain normalised as `config` says."""

    def __init__(self, tiles: TileSource, config: ViewsConfig, ranges: Sequence[range]) -> None:
        self.tiles, self.ranges = tiles, ranges
        changes: dict[str, object] = {"global_scale": (1.0, 1.0), "global_um": None, "aspect": (1.0, 1.0)}
        changes |= {"num_local": 0, "dihedral": False, "blur_prob": (0.0, 0.0, 0.0)}
        changes |= dict.fromkeys(("flip_prob", "stain_prob", "colour_prob", "grey_prob", "solarize_prob"), 0.0)
        self.config = config.model_copy(update=changes)

    def __getitem__(self, number: int) -> PlainBatch:
        numbers, edge_px = self.ranges[number], self.config.global_px
        views, unreadable = np.zeros((len(numbers), edge_px, edge_px, 3), np.uint8), []
        for place, tile in enumerate(numbers):
            try:
                image = normalise_stain(self.tiles.read_image(tile), self.config.stain_normalisation)
            except TileStoreError as error:
                unreadable.append((tile, error))
                continue
            height, width = image.shape[:2]
            whole = draw_views(self.config, tile_width=width, tile_height=height, seed=0, epoch=0, tile=tile)[0]
            views[place] = render_view(image, whole)
        return PlainBatch(torch.from_numpy(views), unreadable)


def iterate_plain(views: PlainViews, *, num_workers: int, pin_memory: bool) -> Iterator[PlainBatch]:
    """All batches in order, made ahead of time by `num_workers` processes."""
    loader: DataLoader[PlainBatch] = DataLoader(
        views,
        batch_size=None,
        sampler=range(len(views.ranges)),
        num_workers=num_workers,
        prefetch_factor=2 if num_workers else None,
        worker_init_fn=partial(prepare_worker, os.getpid()),
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else the loader draws from the global random state
    )
    yield from loader

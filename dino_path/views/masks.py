"""Masks: the patches of the global views that are hidden from the student. All their random numbers are drawn here.

They come from streams of their own, so a view has the same bits with and without a mask. How many patches of a view are
hidden follows from (seed, step) and its place in the global batch, which of them from (seed, epoch, tile, view): no
worker, rank, division of the batch or resume changes a mask.

Sources: blocks as in BEiT (Bao et al. 2022), with the numbers of DINOv2 (Oquab et al. 2024), whose even spread of the
ratios is used too; masks for self-distillation: iBOT (Zhou et al. 2022).

Shape suffixes: B tiles, G tiles of the global batch, N patches of a view, M hidden patches of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_path.config import MasksConfig
from dino_path.views.parameters import Draw

FEWEST_PATCHES = 4  # of a block, where so many are still to be hidden
MOST_ELONGATED = 1 / 0.3  # aspect ratio of a block
BLOCK_TRIES = 10
NUM_VIEWS = 2  # the global ones: their streams are 0 and 1
_COUNTS = NUM_VIEWS  # the stream of how many patches are hidden


@dataclass(frozen=True)
class ViewMasks:
    """The hidden patches of a batch's global views, view by view as in `ViewBatch`; patches row by row."""

    hidden: Tensor
    """(2 * B, N) bool"""
    indices: Tensor
    """(M,) int64, where `hidden`, flattened to (2 * B * N,), is True: in rising order"""
    weights: Tensor
    """(M,) float32, for each hidden patch 1 / (number of hidden patches of its view)"""

    @staticmethod
    def of(hidden: Tensor) -> ViewMasks:
        """The masks that hide the True entries of (2 * B, N) bool."""
        counts = hidden.sum(dim=1)
        return ViewMasks(hidden, hidden.flatten().nonzero().flatten(), (1.0 / counts).repeat_interleave(counts))

    def pin_memory(self) -> ViewMasks:
        """The same masks in page-locked memory."""
        return ViewMasks(self.hidden.pin_memory(), self.indices.pin_memory(), self.weights.pin_memory())

    def sent_to(self, device: torch.device) -> ViewMasks:
        """The same masks on the device: queued, not waited for. M stays known on the host, as their shape."""
        hidden, indices, weights = (one.to(device, non_blocking=True) for one in self.tensors())
        return ViewMasks(hidden, indices, weights)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """All that there is to send."""
        return self.hidden, self.indices, self.weights


class MaskDrawer:
    """Draws the masks of batches, as `config` says."""

    def __init__(self, config: MasksConfig, grid: tuple[int, int], *, seed: int, global_batch_size: int) -> None:
        """For global views of `grid` (rows, columns) patches, in steps of `global_batch_size` tiles."""
        self.config = config
        self.grid = grid
        self.seed = seed
        self.global_batch_size = global_batch_size
        self.num_patches = grid[0] * grid[1]
        # A mask is drawn as an integer, a bit a patch: [h] has a bit at the start of the first h rows.
        self._row_starts = [sum(1 << row * grid[1] for row in range(height)) for height in range(grid[0])]

    def draw(self, step: int, first_place: int, epochs: NDArray[np.int64], tiles: NDArray[np.int64]) -> ViewMasks:
        """The masks of B tiles of a step.

        Args:
            first_place: of the tiles in the step's global batch; the others follow it.
            epochs, tiles: (B,) each, as `TileOrder` gives them.
        """
        counts = self.counts(step)[:, first_place : first_place + len(tiles)]
        hidden = np.zeros((*counts.shape, self.num_patches), np.bool_)
        for view, place in np.argwhere(counts).tolist():
            hidden[view, place] = self.pattern(
                int(counts[view, place]), epoch=int(epochs[place]), tile=int(tiles[place]), view=view
            )
        return ViewMasks.of(torch.from_numpy(hidden.reshape(-1, self.num_patches)))

    def counts(self, step: int) -> NDArray[np.int64]:
        """(2, G): how many patches of each global view of the step are to be hidden; 0 of those that stay whole.

        int(2 * G * view_fraction) views are masked, drawn at random. The i-th of n has a ratio that is uniform in the
        i-th of n equal parts of `ratio`.
        """
        num_views = NUM_VIEWS * self.global_batch_size
        num_masked = int(num_views * self.config.view_fraction)
        rng = self._stream(step, of=_COUNTS)
        low, high = self.config.ratio
        ratios = low + (high - low) * (np.arange(num_masked) + rng.random(num_masked)) / max(num_masked, 1)
        slots = np.argsort(rng.random(num_views))[:num_masked]  # in random order
        counts = np.zeros(num_views, np.int64)
        counts[slots] = self.num_patches * ratios
        return counts.reshape(NUM_VIEWS, -1)

    def pattern(self, count: int, *, epoch: int, tile: int, view: int) -> NDArray[np.bool_]:
        """(N,) of one view: `count` patches hidden, at least one; in blocks fewer where no further block fits."""
        rng = self._stream(epoch, tile, of=view)
        match self.config.shape:
            case "patches":
                hidden = np.zeros(self.num_patches, np.bool_)
                hidden[np.argpartition(rng.random(self.num_patches), count - 1)[:count]] = True
                return hidden
            case "blocks":
                numbers: Iterable[list[float]] = iter(lambda: rng.random(64).tolist(), [])
                bits = self._blocks(count, chain.from_iterable(numbers).__next__)
                packed = np.frombuffer(bits.to_bytes(-(-self.num_patches // 8), "little"), np.uint8)
                return np.unpackbits(packed, count=self.num_patches, bitorder="little").view(np.bool_)

    def _blocks(self, count: int, draw: Draw) -> int:
        """The bits of rectangles that together hide `count` patches, or as many as fit.

        Each hides at most what is left of `count` and half the grid, and is smaller than the grid in both directions.
        """
        rows, columns = self.grid
        log_aspect = math.log(MOST_ELONGATED)
        hidden, left = 0, count
        while left > 0:
            most = min(left, self.num_patches / 2)
            for _ in range(BLOCK_TRIES):
                area = FEWEST_PATCHES + (most - FEWEST_PATCHES) * draw()
                aspect = math.exp(log_aspect * (2 * draw() - 1))
                height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
                if height >= rows or width >= columns:
                    continue
                corner = int(draw() * (rows - height + 1)) * columns + int(draw() * (columns - width + 1))
                new = self._row_starts[height] * ((1 << width) - 1) << corner & ~hidden
                if 0 < new.bit_count() <= most:
                    break
            else:
                break
            hidden |= new
            left -= new.bit_count()
        return hidden

    def _stream(self, *key: int, of: int) -> np.random.Generator:
        """Random numbers that those of views and orders, seeded without a spawn key, have nothing in common with."""
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence((self.seed, *key), spawn_key=(of,))))

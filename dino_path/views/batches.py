"""Batches of views, step by step: which tiles a step sees, and their views, on one rank."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dino_path.config import ViewsConfig
from dino_path.errors import ConfigError, DinoPathError, TileStoreError
from dino_path.processes import become_worker
from dino_path.tiles.source import TileSource
from dino_path.views.device import NUM_COLUMNS, pack
from dino_path.views.masks import MaskDrawer, ViewMasks
from dino_path.views.normalisation import normalise_stain
from dino_path.views.parameters import ViewParameters, draw_views
from dino_path.views.rendering import crop_and_resize, render_view
from dino_path.views.sampling import tile_order

NUM_SUBSTITUTES = 8  # tried where a tile cannot be read; where 1 % cannot, all fail once in 10 ** 16


@dataclass(frozen=True)
class ViewBatch:
    """The views of B tiles, uint8, channels last, view by view (all tiles' first view, then all second views...)."""

    global_views: Tensor
    """(2 * B, global_px, global_px, 3)"""
    local_views: Tensor
    """(num_local * B, local_px, local_px, 3)"""
    global_parameters: Tensor
    local_parameters: Tensor
    """(2 * B, P) and (num_local * B, P) float32: what `finish_views` has still to do; P = 0: nothing."""
    tiles: Tensor
    """(B,) int64, the tiles' indices in the source"""
    unreadable: tuple[tuple[int, TileStoreError], ...] = ()
    """Tiles that could not be read, and why; each was replaced by another, which is in `tiles`"""
    masks: ViewMasks | None = None
    """Patches of the global views that are hidden from the student; None: it sees all"""

    def pin_memory(self) -> ViewBatch:
        """For the DataLoader: the same batch in page-locked memory."""
        return ViewBatch(
            self.global_views.pin_memory(),
            self.local_views.pin_memory(),
            self.global_parameters.pin_memory(),
            self.local_parameters.pin_memory(),
            self.tiles,
            self.unreadable,
            self.masks.pin_memory() if self.masks else None,
        )

    def sent_to(self, device: torch.device) -> ViewBatch:
        """The same batch, pixels and masks on the device: queued, not waited for. The host keeps the parameters."""
        return replace(
            self,
            global_views=self.global_views.to(device, non_blocking=True),
            local_views=self.local_views.to(device, non_blocking=True),
            masks=self.masks.sent_to(device) if self.masks else None,
        )


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
        balance: Literal["slide", "patient"] | None,
        seed: int,
        batch_size_per_gpu: int,
        rank: int,
        world_size: int,
        accumulate_steps: int,
        masks: MaskDrawer | None = None,
    ) -> None:
        assert masks is None or masks.global_batch_size == world_size * accumulate_steps * batch_size_per_gpu
        self.source = source
        self.config = config
        self.seed = seed
        self.batch_size = batch_size_per_gpu
        self.rank, self.world_size, self.accumulate_steps = rank, world_size, accumulate_steps
        self.masks = masks
        self.order = tile_order(source, balance=balance, seed=seed)
        if source.mpp is None and self._sizes_um():
            raise ConfigError(
                f"views.{', '.join(self._sizes_um())}",
                "gives sizes in microns, but the tiles' microns per pixel are unknown.",
                "A tile store has them; a folder of images does not.",
                "Tile the slides with `dino-path tile`, or use views.global_scale and views.local_scale.",
            )

    def __getitem__(self, number: int) -> ViewBatch | DinoPathError:
        try:
            return self.batch(number)
        except DinoPathError as error:  # raised again by `iterate_batches`: a worker would turn it into a RuntimeError
            return error

    def batch(self, number: int) -> ViewBatch:
        """This rank's views of its micro-batch `number`.

        Raises:
            TileStoreError: a tile cannot be read, and neither can its substitutes.
        """
        step, piece = divmod(number, self.accumulate_steps)
        first_place = (self.rank * self.accumulate_steps + piece) * self.batch_size  # in the global batch
        first = step * self.world_size * self.accumulate_steps * self.batch_size + first_place
        epochs, tiles = self.order(np.arange(first, first + self.batch_size))
        masks = self.masks.draw(step, first_place, epochs, tiles) if self.masks else None
        config, size = self.config, self.batch_size
        global_views = np.empty((2, size, config.global_px, config.global_px, 3), np.uint8)
        local_views = np.empty((config.num_local, size, config.local_px, config.local_px, 3), np.uint8)
        num_columns = NUM_COLUMNS if config.colour_on_device else 0
        unreadable: list[tuple[int, TileStoreError]] = []
        packed = np.empty((2 + config.num_local, size, num_columns), np.float32)
        for place, (epoch, tile) in enumerate(zip(epochs.tolist(), tiles.tolist(), strict=True)):
            tiles[place], image = self._readable(tile, unreadable)
            for of_tile, view in enumerate(self.tile_parameters(epoch, tile, image)):
                target = global_views[of_tile] if of_tile < 2 else local_views[of_tile - 2]
                if config.colour_on_device:
                    target[place] = crop_and_resize(image, view)
                    packed[of_tile, place] = pack(view)
                else:
                    target[place] = render_view(image, view)
        return ViewBatch(
            torch.from_numpy(global_views.reshape(-1, *global_views.shape[2:])),
            torch.from_numpy(local_views.reshape(-1, *local_views.shape[2:])),
            torch.from_numpy(packed[:2].reshape(2 * size, num_columns)),
            torch.from_numpy(packed[2:].reshape(config.num_local * size, num_columns)),
            torch.from_numpy(tiles),
            tuple(unreadable),
            masks,
        )

    def tile_views(self, epoch: int, tile: int) -> list[NDArray[np.uint8]]:
        """All views of one tile in one epoch, finished: two global ones, then the local ones."""
        image = self.tile_image(tile)
        return [render_view(image, view) for view in self.tile_parameters(epoch, tile, image)]

    def tile_image(self, tile: int) -> NDArray[np.uint8]:
        """One tile's pixels, its stain normalised where that is configured."""
        return normalise_stain(self.source.read_image(tile), self.config.stain_normalisation)

    def _readable(self, tile: int, unreadable: list[tuple[int, TileStoreError]]) -> tuple[int, NDArray[np.uint8]]:
        """The tile's number and pixels; those of a substitute where it cannot be read, and the tile goes on the list.

        The number of the unreadable tile alone decides which one substitutes it: no worker, rank or hour does. Its
        views and masks are drawn as the unreadable tile's would be, so that they differ from those at its own turn.

        Raises:
            TileStoreError: the substitutes cannot be read either.
        """
        first, num_tiles = len(unreadable), len(self.source)
        steps = np.random.default_rng(tile).integers(1, max(2, num_tiles), size=NUM_SUBSTITUTES)
        for number in (tile, *((tile + steps) % num_tiles).tolist()):
            try:
                return number, self.tile_image(number)
            except TileStoreError as error:
                unreadable.append((number, error))
        raise unreadable[first][1]

    def tile_parameters(self, epoch: int, tile: int, image: NDArray[np.uint8]) -> list[ViewParameters]:
        """The parameters of a tile's views in one epoch; `image` holds its pixels."""
        height, width = image.shape[:2]
        mpp = self.source.mpp
        for name, size_um in self._sizes_um().items():
            if mpp is not None and size_um[1] > min(width, height) * mpp:
                raise TileStoreError(
                    self.source.name(tile),
                    f"is {width * mpp:g} x {height * mpp:g} um, but views.{name} goes up to {size_um[1]:g} um.",
                    "A view is cut from one tile.",
                    f"Lower views.{name}, or tile with a larger tiles.size_px.",
                )
        return draw_views(
            self.config, tile_width=width, tile_height=height, mpp=mpp, seed=self.seed, epoch=epoch, tile=tile
        )

    def _sizes_um(self) -> dict[str, tuple[float, float]]:
        """The sizes that are given in microns, by the setting's name."""
        given = {"global_um": self.config.global_um, "local_um": self.config.local_um}
        return {name: size_um for name, size_um in given.items() if size_um is not None}


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
        worker_init_fn=partial(prepare_worker, os.getpid()),
        pin_memory=pin_memory,
        generator=torch.Generator(),  # else the loader draws from the global random state
    )
    for batch in loader:
        if isinstance(batch, DinoPathError):
            raise batch
        yield batch


def sent_ahead(batches: Iterator[ViewBatch], device: torch.device) -> Iterator[ViewBatch]:
    """The same batches; for a GPU, the pixels of each are copied while the previous batch is in use.

    The copies have a stream of their own, so that they run beside the arithmetic of the step; 33 MB for 64 tiles.
    """
    if device.type != "cuda":
        yield from batches
        return
    copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[ViewBatch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(copies):
            sent = batch.sent_to(device)
            arrival = copies.record_event()
        if ahead is not None:
            yield _received(*ahead)
        ahead = sent, arrival
    if ahead is not None:
        yield _received(*ahead)


def _received(batch: ViewBatch, arrival: torch.cuda.Event) -> ViewBatch:
    """A batch that the current stream may use: it waits for the copy, the host does not."""
    stream = torch.cuda.current_stream()
    stream.wait_event(arrival)
    for sent in (batch.global_views, batch.local_views, *(batch.masks.tensors() if batch.masks else ())):
        sent.record_stream(stream)  # else its memory could be given to the next copy while it is still read
    return batch


def prepare_worker(parent: int, _: int) -> None:
    """One thread per worker: OpenCV and torch would otherwise start one per core in every worker.

    SLURM sends its warnings to every process. The main one answers them at the end of its step, and until then it
    needs its workers; they end with it.
    """
    become_worker(parent)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)

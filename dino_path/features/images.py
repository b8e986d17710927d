"""Images as models take them: resized, cut square, and read ahead by processes, a batch at a time.

Shape suffixes: B images of a batch, H and W their edges in pixels, C channels.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from dino_path.errors import TileStoreError
from dino_path.preprocessing import StainNormalisation
from dino_path.processes import become_worker
from dino_path.tiles.source import TileSource
from dino_path.views.normalisation import normalise_stain

BATCHES_AHEAD = 2  # per process

Batch = Tensor | list[Tensor] | TileStoreError


def stain_normalised(source: TileSource, method: StainNormalisation | None) -> TileSource:
    """The source with each whole image in the colours that a training with `method` saw; None: the source itself."""
    return source if method is None else _StainNormalised(source, method)


class _StainNormalised:
    """Another source's images, stain normalised."""

    def __init__(self, source: TileSource, method: StainNormalisation) -> None:
        self.source, self.method = source, method
        self.mpp, self.digest = source.mpp, f"{source.digest} {method}"

    def __len__(self) -> int:
        return len(self.source)

    def read_image(self, index: int) -> NDArray[np.uint8]:
        return normalise_stain(self.source.read_image(index), self.method)

    def read_bytes(self, index: int) -> bytes:
        return self.source.read_bytes(index)

    def name(self, index: int) -> str:
        return self.source.name(index)


def read_batches(
    source: TileSource,
    batches: Sequence[NDArray[np.int64]],
    input_px: int | None,
    *,
    num_workers: int,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Yield each batch of prepared images, (B, H, W, C) uint8, or a list if they differ in size.

    A batch that cannot be read, or that crashes the process reading it, is yielded as its error; other batches are
    unaffected.

    Args:
        batches: numbers of the images in the source.
        num_workers: processes that read and decode ahead; 0: none but this one, which a crash ends too. Threads would
            not do: a reader of slides keeps what it decoded last, for one reader at a time.
        pin_memory: hand them over in page-locked memory, for a GPU.
    """
    images, first = _Images(source, batches, input_px), 0
    while first < len(batches):
        try:
            for batch in _loaded(images, range(first, len(batches)), num_workers, pin_memory=pin_memory):
                yield batch
                first += 1
        except (RuntimeError, OSError, EOFError) as error:
            if not _is_death(error):
                raise
            yield _read_alone(images, first)  # the first that is missing may be to blame, or one that was read ahead
            first += 1


def _loaded(images: _Images, numbers: Sequence[int], num_workers: int, *, pin_memory: bool = False) -> Iterator[Batch]:
    """Some of the batches, read ahead.

    Raises:
        RuntimeError, OSError, EOFError: a process died; see `_is_death`.
    """
    batches = iter(
        DataLoader(
            images,  # type: ignore[arg-type]
            batch_size=None,
            sampler=numbers,
            num_workers=num_workers,
            prefetch_factor=BATCHES_AHEAD if num_workers else None,
            worker_init_fn=partial(_prepare_worker, os.getpid()),
            pin_memory=pin_memory,
            generator=torch.Generator(),  # else the loader draws from the global random state
        )
    )
    if num_workers and threading.current_thread() is threading.main_thread():
        # Torch's handler would raise wherever the death finds us, in the model too; the loader looks for it anyway.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    return batches


def _is_death(error: Exception) -> bool:
    """Whether the loader lost a process; what a process raised itself reads "Caught ... in DataLoader worker".

    The memory of a batch is fetched from the process that read it: one that died in between refuses the connection or
    resets it, also for batches that it had finished.
    """
    if isinstance(error, RuntimeError):
        return str(error).startswith("DataLoader worker (pid")
    return "in DataLoader worker process" not in str(error)


def _read_alone(images: _Images, number: int) -> Batch:
    """One batch read in a separate process, or the error that ended that process."""
    try:
        return next(_loaded(images, [number], 1))
    except (RuntimeError, OSError, EOFError) as error:
        if not _is_death(error):
            raise
        return TileStoreError(
            images.source.name(int(images.batches[number][0])),
            "reading it, or a tile soon after it, crashed the process (out of memory, or an error in a decoder).",
            "Decodable tiles, and enough memory for the processes that decode them, are needed.",
            "Try fewer --workers; if that does not help, copy the slide again or leave it out.",
        )


@dataclass(frozen=True)
class _Images:
    """A data set whose items are whole batches."""

    source: TileSource
    batches: Sequence[NDArray[np.int64]]
    input_px: int | None

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch:
        try:
            images = [prepare_image(self.source.read_image(int(at)), self.input_px) for at in self.batches[number]]
        except TileStoreError as error:
            return error
        if len({image.shape for image in images}) == 1:
            return torch.from_numpy(np.stack(images))
        return [torch.from_numpy(np.ascontiguousarray(image)) for image in images]


def _prepare_worker(parent: int, _: int) -> None:
    """One thread per process: OpenCV and torch would otherwise start one per core in each."""
    become_worker(parent)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def prepare_image(image_HWC: NDArray[np.uint8], input_px: int | None) -> NDArray[np.uint8]:
    """The (input_px, input_px, 3) centre of the image after its shorter side became `input_px`.

    The geometry is timm's evaluation transform with `crop_pct` 1: tissue at the rim of a tile counts as much as in
    its middle. Shrinking averages over areas, enlarging is bicubic. None: the image as it is.
    """
    if input_px is None:
        return image_HWC
    height, width = image_HWC.shape[:2]
    shorter = min(height, width)
    if shorter != input_px:
        width, height = width * input_px // shorter, height * input_px // shorter
        interpolation = cv2.INTER_AREA if shorter > input_px else cv2.INTER_CUBIC
        image_HWC = np.asarray(cv2.resize(image_HWC, (width, height), interpolation=interpolation), np.uint8)
    top, left = round((height - input_px) / 2), round((width - input_px) / 2)
    return image_HWC[top : top + input_px, left : left + input_px]

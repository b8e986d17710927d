"""Batches of images for end-to-end training: decoding, and augmentation on the batch.

Shape suffixes: B images of a batch, C channels, H and W edges in pixels.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dino_path.features.images import prepare_image
from dino_path.progress import meter
from dino_path.tiles.source import TileSource

logger = logging.getLogger(__name__)

MAX_KEPT_BYTES = 2 * 2**30
BATCHES_AHEAD = 3

BRIGHTNESS = 0.2
CONTRAST = 0.2
CHANNEL = 0.1
AUGMENTATION = (
    "all eight flips and quarter turns, uniformly; per image: contrast x U(1-0.2, 1+0.2) about its mean colour, "
    "brightness x U(1-0.2, 1+0.2), each colour channel x U(1-0.1, 1+0.1)"
)


class SquareImages:
    """The images of a source as squares of `edge_px` pixels, prepared as for feature extraction.

    Up to MAX_KEPT_BYTES (2 GiB) they are decoded once and kept; more are decoded again for every batch, ahead of the
    model, by `num_workers` threads (OpenCV decodes outside Python's lock).
    """

    def __init__(self, source: TileSource, edge_px: int, *, num_workers: int) -> None:
        self.source, self.edge_px = source, edge_px
        self._num_threads = max(1, num_workers)
        self._kept = self._decode_all() if len(source) * edge_px**2 * 3 <= MAX_KEPT_BYTES else None
        if self._kept is None:
            logger.info("%d images exceed %d GiB: decoding them again each time", len(source), MAX_KEPT_BYTES >> 30)

    def batches(self, orders: Sequence[NDArray[np.int64]]) -> Iterator[Tensor]:
        """One (B, H, W, C) uint8 tensor per array of image numbers.

        Raises:
            TileStoreError: an image cannot be read.
        """
        if self._kept is not None:
            for order in orders:
                yield torch.from_numpy(self._kept[order])
            return
        with ThreadPoolExecutor(self._num_threads) as pool:
            waiting: deque[list[Future[NDArray[np.uint8]]]] = deque()
            try:
                for order in orders:
                    waiting.append([pool.submit(self._decode, int(index)) for index in order])
                    if len(waiting) > BATCHES_AHEAD:
                        yield _stack(waiting.popleft())
                while waiting:
                    yield _stack(waiting.popleft())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _decode(self, index: int) -> NDArray[np.uint8]:
        return prepare_image(self.source.read_image(index), self.edge_px)

    def _decode_all(self) -> NDArray[np.uint8]:
        kept = np.empty((len(self.source), self.edge_px, self.edge_px, 3), np.uint8)
        with (
            meter("decoding", len(self.source), "images") as counter,
            ThreadPoolExecutor(self._num_threads) as pool,
        ):
            for start in range(0, len(self.source), 256):
                piece = range(start, min(start + 256, len(self.source)))
                for index, image in zip(piece, pool.map(self._decode, piece), strict=True):
                    kept[index] = image
                counter.advance(len(piece))
        return kept


def image_edge_px(source: TileSource) -> int:
    """Shorter side of the first image, in pixels."""
    height, width = source.read_image(0).shape[:2]
    return int(min(height, width))


def augment(images_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """The AUGMENTATION of each image; values stay in [0, 1].

    Args:
        images_BCHW: square RGB images in [0, 1].
        generator: of the CPU, whatever device the images are on: a seed gives the same draws everywhere.
    """
    num_images, device = len(images_BCHW), images_BCHW.device
    turn_B = torch.randint(8, (num_images,), generator=generator)
    jitter = torch.rand(num_images, 5, 1, 1, generator=generator).to(device) * 2 - 1
    turned = torch.empty_like(images_BCHW)
    for turn in range(8):
        chosen = (turn_B == turn).nonzero().flatten().to(device)
        part = torch.rot90(images_BCHW[chosen], turn % 4, dims=(2, 3))
        turned[chosen] = part.flip(3) if turn >= 4 else part
    mean = turned.mean(dim=(2, 3), keepdim=True)
    contrast, brightness = 1 + CONTRAST * jitter[:, :1], 1 + BRIGHTNESS * jitter[:, 1:2]
    channel = 1 + CHANNEL * jitter[:, 2:]
    return (((turned - mean) * contrast + mean) * brightness * channel).clamp_(0, 1)


def _stack(images: list[Future[NDArray[np.uint8]]]) -> Tensor:
    return torch.from_numpy(np.stack([future.result() for future in images]))

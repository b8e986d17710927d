"""Processes that read ahead: one that dies costs its batch alone."""

import os
import signal
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dino_path.errors import TileStoreError
from dino_path.features.images import read_batches

FATAL = 13


@dataclass(frozen=True)
class FatalImages:
    """Images of which one ends the process that reads it."""

    digest: str = "fatal"
    mpp: float | None = None

    def __len__(self) -> int:
        return 20

    def read_image(self, index: int) -> NDArray[np.uint8]:
        if index == FATAL:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full((4, 4, 3), index, np.uint8)

    def read_bytes(self, index: int) -> bytes:
        return self.read_image(index).tobytes()

    def name(self, index: int) -> str:
        return f"image {index}"


@pytest.mark.slow
def test_an_image_that_ends_the_process_costs_its_batch_alone() -> None:
    batches = [np.arange(first, first + 2) for first in range(0, 20, 2)]
    found = list(read_batches(FatalImages(), batches, None, num_workers=2))
    assert len(found) == len(batches)
    for numbers, batch in zip(batches, found, strict=True):
        if FATAL in numbers:
            assert isinstance(batch, TileStoreError)
            assert "image 12" in str(batch)
        else:
            assert isinstance(batch, torch.Tensor)
            assert batch[:, 0, 0, 0].tolist() == numbers.tolist()

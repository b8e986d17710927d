"""Processes that read ahead: one that dies costs its batch alone."""

import os
import signal
import time
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
@pytest.mark.parametrize("pause_s", [0.0, 0.5], ids=["batches taken at once", "a process dies with finished batches"])
def test_an_image_that_ends_the_process_costs_its_batch_alone(pause_s: float) -> None:
    batches = [np.arange(first, first + 2) for first in range(0, 20, 2)]
    found = []
    for batch in read_batches(FatalImages(), batches, None, num_workers=2):
        found.append(batch)
        time.sleep(pause_s)
    assert len(found) == len(batches)
    for numbers, batch in zip(batches, found, strict=True):
        if FATAL in numbers:
            assert isinstance(batch, TileStoreError)
            assert "image 12" in str(batch)
        else:
            assert isinstance(batch, torch.Tensor)
            assert batch[:, 0, 0, 0].tolist() == numbers.tolist()


@dataclass(frozen=True)
class FaultyImages(FatalImages):
    """Images of which one raises what is not its fault."""

    def read_image(self, index: int) -> NDArray[np.uint8]:
        if index == FATAL:
            raise OSError("no such device")
        return np.full((4, 4, 3), index, np.uint8)


@pytest.mark.slow
def test_an_unexpected_error_in_a_process_is_raised_not_taken_for_its_death() -> None:
    batches = [np.arange(first, first + 2) for first in range(0, 20, 2)]
    with pytest.raises(OSError, match="no such device"):
        list(read_batches(FaultyImages(), batches, None, num_workers=2))

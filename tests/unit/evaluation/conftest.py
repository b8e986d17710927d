"""Small images on disk, and one torch thread: two threads on a busy machine wait for each other."""

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

WriteImage = Callable[..., Path]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def write_image() -> WriteImage:
    """Writes a PNG: noise from `seed` around an RGB colour."""

    def write(path: Path, seed: int, colour: tuple[int, int, int] = (128, 128, 128), edge_px: int = 16) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(seed).integers(-20, 21, (edge_px, edge_px, 3))
        pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
        assert cv2.imwrite(str(path), pixels[..., ::-1])
        return path

    return write


@pytest.fixture
def class_folders(tmp_path: Path, write_image: WriteImage) -> Path:
    """Three classes of 12 images whose colours differ: red, green, blue."""
    colours = {"blood": (190, 90, 90), "leaf": (90, 190, 90), "sea": (90, 90, 190)}
    for number, (name, colour) in enumerate(colours.items()):
        for index in range(12):
            write_image(tmp_path / "data" / name / f"{index:02d}.png", 100 * number + index, colour)
    return tmp_path / "data"

"""Patch tokens of tiles, in separate files: readers of feature files load every data set in a file.

Shape suffixes: N tiles of a slide, B of a batch, P patches of a tile, D width.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from dino_path.errors import ConfigError
from dino_path.features.coordinates import Coordinates, add_coordinates
from dino_path.features.extractor import Extractor, Forward
from dino_path.features.files import Origin, origin_attributes
from dino_path.features.hdf5 import new_hdf5
from dino_path.features.layouts import Attributes
from dino_path.model.tokens import refuse_no_patch_tokens

Tokens = NDArray[np.float16]
GB = 1e9


@dataclass(frozen=True)
class TokenShape:
    """Shape of the tokens of one tile.

    Attributes:
        grid: rows and columns of patches.
        width: D of a token.
        patch_px: edge of a patch, in px of the image that the network sees.
    """

    grid: tuple[int, int]
    width: int
    patch_px: float

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    def num_bytes(self, num_tiles: int) -> int:
        return num_tiles * self.num_patches * self.width * np.dtype(np.float16).itemsize

    def text(self, num_tiles: int) -> str:
        """`patch tokens of 5,000 tiles, 14 x 14 x 384 in fp16: 0.8 GB`."""
        rows, columns = self.grid
        size = f"{self.num_bytes(num_tiles) / GB:,.3g} GB"
        return f"patch tokens of {num_tiles:,} tiles, {rows} x {columns} x {self.width} in fp16: {size}"


def token_shape(extractor: Extractor, device: torch.device) -> TokenShape:
    """The patch tokens of a tile as this model sees it, found by one blank tile.

    Raises:
        CheckpointError: the model has none.
    """
    refuse_no_patch_tokens(extractor.backbone, extractor.name, "--tokens")
    edge_px = extractor.preprocessing.input_px
    assert edge_px is not None
    _, tokens_BPD = Forward(extractor, device).features_and_patches(torch.zeros(1, edge_px, edge_px, 3).byte())
    edge = math.isqrt(tokens_BPD.shape[1])
    assert edge**2 == tokens_BPD.shape[1], "tiles are square"
    return TokenShape((edge, edge), tokens_BPD.shape[2], edge_px / edge)


def refuse_too_large(shape: TokenShape, num_tiles: int, out: Path) -> None:
    """Check that the disk of `out` can hold the tokens of so many tiles.

    Raises:
        ConfigError: it cannot.
    """
    place = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if shape.num_bytes(num_tiles) > free:
        raise ConfigError(
            f"--tokens in {out}",
            f"{free / GB:,.3g} GB are free on this disk.",
            f"The {shape.text(num_tiles)} are needed.",
            "Give another --out, embed fewer slides at a time, or leave --tokens out.",
        )


@contextmanager
def token_file(
    file: Path, shape: TokenShape, coords_N2: Coordinates, attributes: Attributes, origin: Origin
) -> Iterator[Callable[[Tokens], None]]:
    """A function that appends the tokens (B, P, D) of the next tiles of a slide to `file`, which appears when full.

    `tokens` is (N, P, D) fp16, patches row by row, without [CLS] and registers; its attributes say `grid`, `patch_px`
    and what made it. `coords` is as in the feature file. Memory holds one batch.
    """
    start, shape_NPD = 0, (len(coords_N2), shape.num_patches, shape.width)
    with new_hdf5(file) as (h5, check):
        stored = h5.create_dataset("tokens", shape_NPD, np.float16, chunks=(1, *shape_NPD[1:]), fletcher32=True)
        stored.attrs.update(origin_attributes(origin, name=str(attributes["name"])))
        stored.attrs.update({"grid": shape.grid, "patch_px": shape.patch_px})
        add_coordinates(h5, coords_N2, attributes)

        def append(tokens_BPD: Tokens) -> None:
            nonlocal start
            stored[start : start + len(tokens_BPD)] = tokens_BPD
            check()
            start += len(tokens_BPD)

        yield append
        assert start == len(coords_N2)

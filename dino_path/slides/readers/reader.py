"""What a reader of slide files can do. `opening.py` chooses one; the rest of the package sees a `Slide`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

RgbaImage = NDArray[np.uint8]  # (H, W, 4); alpha is 255 where the scanner recorded something, and 0 where nothing
Size = tuple[int, int]  # (width, height)


@dataclass(frozen=True)
class SlideFacts:
    """The facts that a file gives.

    Attributes:
        vendor: the reader's name of the format, such as `aperio` or `ome-tiff`.
        sizes: (width, height) of every level in its own px, finest first.
        downsamples: of every level to level 0.
        properties: the names that `resolution.find_mpp` knows, with their values as text.
        flags: what a person should know of this slide, such as `grey`; they go into its record.
    """

    vendor: str
    sizes: tuple[Size, ...]
    downsamples: tuple[float, ...]
    properties: Mapping[str, str]
    flags: tuple[str, ...] = ()


class Reader(Protocol):
    """One open file. It belongs to one process, and to one thread at a time."""

    @property
    def facts(self) -> SlideFacts: ...

    def read_region(self, corner_level0: tuple[int, int], level: int, size: Size) -> RgbaImage:
        """Pixels of one level; alpha is 0 outside the slide.

        Args:
            corner_level0: (x, y) of the top-left corner, in level-0 px.
            size: (width, height), in px of `level`.

        Raises:
            SlideError: the region cannot be decoded.
        """

    def close(self) -> None: ...


def downsamples_of(sizes: Sequence[Size]) -> tuple[float, ...]:
    """Of every level to level 0: the mean of its two sides' factors, as OpenSlide counts it."""
    width, height = sizes[0]
    return tuple((width / level_width + height / level_height) / 2 for level_width, level_height in sizes)


def corner_on_level(corner_level0: tuple[int, int], downsample: float) -> tuple[int, int]:
    """The nearest whole px of a level: tiles' corners are whole px of theirs, rounded to level 0 on their way here."""
    x, y = (round(at / downsample) for at in corner_level0)
    return x, y


def place_on_level(corner: tuple[int, int], size: Size, level_size: Size) -> tuple[tuple[int, int], Size, Size]:
    """The part of a region that lies on its level.

    Returns:
        (x, y) of that part's corner on the level, its (width, height), and (x, y) of where it goes in the region. Width
        or height is 0 where nothing of the region lies on the level.
    """
    starts = [max(0, at) for at in corner]
    stops = [min(at + length, end) for at, length, end in zip(corner, size, level_size, strict=True)]
    width, height = (max(0, stop - start) for start, stop in zip(starts, stops, strict=True))
    return (starts[0], starts[1]), (width, height), (starts[0] - corner[0], starts[1] - corner[1])

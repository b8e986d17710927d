"""Slides through OpenSlide. The only module that imports `openslide`."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import openslide

from dino_path.slides.readers.damage import damaged
from dino_path.slides.readers.reader import RgbaImage, Size, SlideFacts

CACHE_BYTES = 64 * 2**20


class OpenSlideReader:
    """One slide, opened by OpenSlide."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            NotOpened: OpenSlide refuses the file.
        """
        self._path = path
        try:
            self._handle: Any = openslide.OpenSlide(path)
            self._handle.set_cache(_process_cache(os.getpid()))
            properties = dict(self._handle.properties)
            self.facts = SlideFacts(
                properties.get("openslide.vendor", ""),
                tuple(self._handle.level_dimensions),
                tuple(float(one) for one in self._handle.level_downsamples),
                properties,
                ("fluorescence",) if _is_fluorescence(properties) else (),
            )
        except openslide.OpenSlideError as error:
            raise NotOpened(" ".join(str(error).split())) from None

    def read_region(self, corner_level0: tuple[int, int], level: int, size: Size) -> RgbaImage:
        """See `Reader`. After one failure every later read of this handle fails: OpenSlide latches."""
        try:
            return np.asarray(self._handle.read_region(corner_level0, level, size), dtype=np.uint8)
        except openslide.OpenSlideError as error:
            raise damaged(self._path, " ".join(str(error).split())) from None

    def close(self) -> None:
        self._handle.close()


class NotOpened(Exception):
    """What OpenSlide says when it refuses a file."""


def detect_vendor(path: Path) -> str | None:
    """OpenSlide's name of the file's format; None where it knows none."""
    vendor: str | None = openslide.OpenSlide.detect_format(path)
    return vendor


@lru_cache(maxsize=1)
def _process_cache(_pid: int) -> Any:
    """OpenSlide's cache of decoded tiles, one for all slides of a process: its own would be 32 MiB for each."""
    return openslide.OpenSlideCache(CACHE_BYTES)


def _is_fluorescence(properties: dict[str, str]) -> bool:
    """Whether a MIRAX slide says that it is no brightfield scan; OpenSlide shows its channels as colours."""
    return "fluorescence" in properties.get("mirax.GENERAL.SLIDE_TYPE", "").lower()

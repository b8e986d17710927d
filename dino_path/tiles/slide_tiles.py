"""Tiles of a store of coordinates: read from their slides, of which few are open at a time."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from dino_path.config import TilesConfig
from dino_path.errors import SlideError, TileStoreError
from dino_path.records.slide import SlideRecord
from dino_path.slides.find import SlideRow
from dino_path.slides.pseudonyms import without_names
from dino_path.slides.resolution import FROM_CSV
from dino_path.slides.slide import RgbImage, Slide
from dino_path.tiles.reading import TileReader, spec_of
from dino_path.tiles.slide_identity import is_slide_of, slide_identity

MOST_OPEN_SLIDES = 32  # per process; opening one costs 1 to 100 ms


class SlideTiles:
    """Reads tiles of many slides. Handles are opened per process, and pickling carries none.

    Threads may share it, and take turns: a reader keeps the native tiles that it decoded last.
    """

    def __init__(self, config: TilesConfig, rows: Mapping[str, SlideRow] | None = None) -> None:
        """
        Args:
            rows: by slide id, of slides under pseudonyms, whose records do not say where they lie.
        """
        self._config, self._rows = config, rows or {}
        self._start()

    def read(self, record: SlideRecord, corner_level0: tuple[int, int]) -> RgbImage:
        """One tile, the pixels that a store with pixels would have encoded: (size_px, size_px, 3) uint8 RGB.

        Raises:
            TileStoreError: the slide is gone, is another file now, or cannot be decoded there.
        """
        if self._pid != os.getpid():  # a forked child: handles are its parent's, whose lock may be held for ever
            self._start()
        try:
            with self._lock:
                return self._reader(record).read(corner_level0).pixels
        except SlideError as error:
            raise TileStoreError(
                f"{record.slide_id} x={corner_level0[0]} y={corner_level0[1]}",
                f"cannot be read from {self._shown(record, f'{error.thing}: {error.found}')}",
                "The store has coordinates only: every slide must be where it was when it was tiled, and as it was.",
                "Mount its disk, or tile again with tiles.coordinates_only=false.",
            ) from None

    def _reader(self, record: SlideRecord) -> TileReader:
        reader = self._readers.get(record.slide_id)
        if reader is None:
            reader = self._open(record)
            while len(self._readers) >= MOST_OPEN_SLIDES:
                _, oldest = self._readers.popitem(last=False)
                oldest.close()
                oldest.slide.close()
            self._readers[record.slide_id] = reader
        self._readers.move_to_end(record.slide_id)
        return reader

    def _shown(self, record: SlideRecord, text: str) -> str:
        row = self._rows.get(record.slide_id)
        return text if row is None else without_names(row, text)

    def _open(self, record: SlideRecord) -> TileReader:
        row = self._rows.get(record.slide_id)
        slide = Slide.open(
            Path(record.path) if row is None else row.path, mpp=record.mpp if record.mpp_source == FROM_CSV else None
        )
        if not is_slide_of(record, slide.path, slide_identity(slide.path, record.identity)):
            slide.close()
            raise SlideError(record.path, "is not the file that was tiled.", "", "")
        return TileReader.again(slide, spec_of(slide, self._config), reader=record.reader, shrink=record.shrink)

    def _start(self) -> None:
        self._readers: OrderedDict[str, TileReader] = OrderedDict()
        self._lock = threading.Lock()
        self._pid = os.getpid()

    def __reduce__(self) -> tuple[type[SlideTiles], tuple[TilesConfig, Mapping[str, SlideRow]]]:
        return SlideTiles, (self._config, self._rows)

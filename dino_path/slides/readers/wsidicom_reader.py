"""DICOM slides through wsidicom (an extra), where OpenSlide refuses them: JPEG-LS and other transfer syntaxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from wsidicom import WsiDicom, errors

from dino_path.errors import SlideError
from dino_path.slides.readers.damage import damage_refused
from dino_path.slides.readers.dicom import series_files
from dino_path.slides.readers.reader import RgbaImage, Size, SlideFacts, corner_on_level, downsamples_of, place_on_level

OWN_ERRORS = tuple(one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Exception))


class WsidicomReader:
    """One DICOM series, opened by wsidicom."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            SlideError: it is damaged, in a transfer syntax that nobody decodes, or has several optical paths.
        """
        self._path = path
        with damage_refused(path, *OWN_ERRORS):
            self._slide: Any = WsiDicom.open(series_files(path))
            self._levels = list(self._slide.levels)
            sizes = tuple((level.size.width, level.size.height) for level in self._levels)
            finest = self._levels[0]
            num_paths, num_planes = len(finest.optical_paths), len(finest.focal_planes)
            properties = {"wsidicom:mpp-x": str(finest.mpp.width), "wsidicom:mpp-y": str(finest.mpp.height)}
        if num_paths > 1 or num_planes > 1:
            self.close()
            raise SlideError(
                str(path),
                f"has {num_paths} optical paths and {num_planes} focal planes.",
                "One of each is needed; only you can choose it.",
                "Write it to a separate series, or list the slide under slides.exclude.",
            )
        self.facts = SlideFacts("dicom", sizes, downsamples_of(sizes), properties)

    def read_region(self, corner_level0: tuple[int, int], level: int, size: Size) -> RgbaImage:
        """See `Reader`."""
        corner = corner_on_level(corner_level0, self.facts.downsamples[level])
        start, inside, (x, y) = place_on_level(corner, size, self.facts.sizes[level])
        rgba: RgbaImage = np.zeros((size[1], size[0], 4), dtype=np.uint8)
        if min(inside):
            with damage_refused(self._path, *OWN_ERRORS):
                picture = self._slide.read_region(start, self._levels[level].level, inside)
                rgba[y : y + inside[1], x : x + inside[0], :3] = np.asarray(picture.convert("RGB"))
                rgba[y : y + inside[1], x : x + inside[0], 3] = 255
        return rgba

    def close(self) -> None:
        self._slide.close()

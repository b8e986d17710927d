"""Slides through slideio (an extra): VSI, and CZI that OpenSlide refuses.

slideio gives the channels of a CZI as they lie in the file: blue first where it is not compressed; in JPEG XR the order
is the stream's, and nothing says which. So a CZI in JPEG XR is refused. A VSI in JPEG comes red first (slideio's own
tests hold pictures of it); in other compressions that is assumed, and flagged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import slideio

from dino_path.errors import SlideError
from dino_path.slides.readers.damage import damage_refused
from dino_path.slides.readers.reader import RgbaImage, Size, SlideFacts, corner_on_level, downsamples_of, place_on_level

LARGE_SHARE = 0.25  # of the slide's area: another scene of this size may be another piece of tissue
MICRONS_PER_METRE = 1e6


class SlideioReader:
    """One slide, opened by slideio: the largest of the file's scenes."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            SlideError: it is damaged, or its pixels are no 8-bit colours.
        """
        self._path = path
        with damage_refused(path):
            self._slide: Any = slideio.open_slide(str(path), path.suffix[1:].upper())
            scenes = [self._slide.get_scene(number) for number in range(self._slide.num_scenes)]
        if not scenes:
            raise SlideError(
                str(path), "holds no picture.", "At least one scene is needed.", "List it under slides.exclude."
            )
        self._scene = max(scenes, key=_area)
        self._refuse_other_than_colour()
        self._is_blue_first = path.suffix.lower() == ".czi"
        with damage_refused(path):
            sizes = tuple(self._size(level) for level in range(self._scene.num_zoom_levels))
            num_others = sum(_area(one) >= LARGE_SHARE * _area(self._scene) for one in scenes) - 1
            flags = (f"other large images in the file: {num_others}",) if num_others else ()
            if not self._is_blue_first and self._scene.compression != slideio.Compression.Jpeg:
                flags = (*flags, "colours assumed: red, green, blue")
            vendor = path.suffix[1:].lower()
            self.facts = SlideFacts(vendor, sizes, downsamples_of(sizes), self._properties(), flags)

    def read_region(self, corner_level0: tuple[int, int], level: int, size: Size) -> RgbaImage:
        """See `Reader`."""
        corner = corner_on_level(corner_level0, self.facts.downsamples[level])
        start, inside, (x, y) = place_on_level(corner, size, self.facts.sizes[level])
        rgba: RgbaImage = np.zeros((size[1], size[0], 4), dtype=np.uint8)
        if min(inside):
            with damage_refused(self._path):
                rgb = self._scene.read_block_from_level(level, (*start, *inside))
                rgba[y : y + inside[1], x : x + inside[0], :3] = rgb[..., ::-1] if self._is_blue_first else rgb
                rgba[y : y + inside[1], x : x + inside[0], 3] = 255
        return rgba

    def close(self) -> None:
        self._scene.close()
        self._slide.close()

    def _size(self, level: int) -> Size:
        size = self._scene.get_zoom_level_info(level).size
        return size.width, size.height

    def _properties(self) -> dict[str, str]:
        x, y = (metres * MICRONS_PER_METRE for metres in self._scene.resolution)
        power = str(self._scene.magnification)
        return {"slideio:resolution-x": str(x), "slideio:resolution-y": str(y), "openslide.objective-power": power}

    def _refuse_other_than_colour(self) -> None:
        scene = self._scene
        channels = range(scene.num_channels)
        types = {str(scene.get_channel_data_type(channel)) for channel in channels}
        num_planes = max(1, scene.num_z_slices) * max(1, scene.num_t_frames)
        compression = scene.compression
        if num_planes > 1:
            found = f"is a stack of {num_planes} focal planes or times."
        elif len(channels) != 3 or types != {"uint8"}:
            found = f"has {len(channels)} channel{'s' * (len(channels) != 1)} of {' and '.join(sorted(types))}."
        elif self._path.suffix.lower() == ".czi" and compression != slideio.Compression.Uncompressed:
            found = (
                "OpenSlide refuses this CZI, and slideio shows the true colours of such files only if they are"
                " uncompressed; this one is {compression.name}."
            )
        else:
            return
        raise SlideError(
            str(self._path),
            found,
            "Three 8-bit colours (red, green, blue) in one plane are needed.",
            "Export it as 8-bit RGB, such as OME-TIFF, from the tool that wrote it, or list it under slides.exclude.",
        )


def _area(scene: Any) -> int:
    width, height = scene.size
    return int(width) * int(height)

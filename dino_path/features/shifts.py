"""Simulated changes of laboratory or scanner, of known kind and strength, the same for all images.

Each is a measured change of the image, not a random draw: what a model makes of it can be drawn as a curve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import assert_never

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.config import ShiftName
from dino_path.tiles.source import TileSource
from dino_path.views.rendering import blur
from dino_path.views.stain import jitter_stain

LEVELS = (1, 2, 3)  # mild, clear and strong
STRENGTHS: Mapping[ShiftName, tuple[float, float, float]] = {
    "haematoxylin": (0.1, 0.2, 0.4),
    "eosin": (0.1, 0.2, 0.4),
    "gamma": (1.2, 1.5, 2.0),
    "blur": (0.5, 1.0, 2.0),
    "jpeg": (70, 40, 15),
    "resolution": (1.5, 2.0, 4.0),
}
MEANINGS: Mapping[ShiftName, str] = {  # of a strength, for people
    "haematoxylin": "haematoxylin denser and eosin paler by this share",
    "eosin": "eosin denser and haematoxylin paler by this share",
    "gamma": "grey levels raised to this power: darker mid-tones",
    "blur": "standard deviation of a Gaussian blur, px of the stored image",
    "jpeg": "quality of a further JPEG compression",
    "resolution": "shrunk by this factor and enlarged again",
}


@dataclass(frozen=True)
class Shift:
    """One change of all images; `level` is one of LEVELS."""

    name: ShiftName
    level: int

    @property
    def strength(self) -> float:
        """As STRENGTHS has it; MEANINGS says what it is."""
        return STRENGTHS[self.name][self.level - 1]

    def __str__(self) -> str:
        return f"{self.name} {self.strength:g}"

    def apply(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The changed (H, W, 3) uint8 RGB image.

        Stains are separated as in Ruifrok & Johnston 2001 and scaled as in Tellez et al. 2019.
        """
        strength = self.strength
        match self.name:
            case "haematoxylin":
                return jitter_stain(image_HWC, (1 + strength, 1 - strength, 1.0), (0.0, 0.0, 0.0))
            case "eosin":
                return jitter_stain(image_HWC, (1 - strength, 1 + strength, 1.0), (0.0, 0.0, 0.0))
            case "gamma":
                table = np.round(255 * (np.arange(256) / 255) ** strength).astype(np.uint8)
                return _image(cv2.LUT(image_HWC, table))
            case "blur":
                return blur(image_HWC, strength)
            case "jpeg":
                bgr = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR)
                stream = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, int(strength)])[1]
                decoded = cv2.imdecode(stream, cv2.IMREAD_COLOR)
                assert decoded is not None  # it was encoded here
                return _image(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB))
            case "resolution":
                height, width = image_HWC.shape[:2]
                small = (max(1, round(width / strength)), max(1, round(height / strength)))
                shrunk = cv2.resize(image_HWC, small, interpolation=cv2.INTER_AREA)
                return _image(cv2.resize(shrunk, (width, height), interpolation=cv2.INTER_CUBIC))
        assert_never(self.name)


class ShiftedImages:
    """Another source's images under a shift."""

    def __init__(self, source: TileSource, shift: Shift) -> None:
        self.source, self.shift = source, shift
        self.mpp, self.digest = source.mpp, f"{source.digest} {shift}"

    def __len__(self) -> int:
        return len(self.source)

    def read_image(self, index: int) -> NDArray[np.uint8]:
        return self.shift.apply(self.source.read_image(index))

    def read_bytes(self, index: int) -> bytes:
        return self.read_image(index).tobytes()

    def name(self, index: int) -> str:
        return self.source.name(index)


def _image(pixels: cv2.typing.MatLike) -> NDArray[np.uint8]:
    return np.asarray(pixels, np.uint8)

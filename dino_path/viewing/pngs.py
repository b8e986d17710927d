"""Small pictures as PNG."""

from __future__ import annotations

import base64

import cv2
import numpy as np
from numpy.typing import NDArray


def png(pixels: NDArray[np.uint8]) -> bytes:
    """PNG of (H, W, 3) RGB or (H, W, 4) RGBA."""
    code = cv2.COLOR_RGBA2BGRA if pixels.shape[2] == 4 else cv2.COLOR_RGB2BGR
    return cv2.imencode(".png", cv2.cvtColor(pixels, code))[1].tobytes()


def data_url(pixels: NDArray[np.uint8]) -> str:
    """The same, as an address that holds it."""
    return f"data:image/png;base64,{base64.b64encode(png(pixels)).decode()}"

"""Pictures inside the page: decoded, made smaller, encoded again without metadata, as data addresses."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

import cv2

from dino_path.slides.images.decoding import BadImage, decode_image
from dino_path.slides.slide import RgbImage

SUFFIXES = (".png", ".jpg", ".jpeg")
JPEG_QUALITY = 84


@dataclass(frozen=True)
class Picture:
    """A picture as an address that holds it, with its caption; width and height in px."""

    address: str
    caption: str
    width: int
    height: int


def inline_picture(file: Path, *, caption: str, max_edge_px: int) -> Picture | None:
    """The picture in `file`, its longer edge at most `max_edge_px`; None when it cannot be decoded.

    Transparency becomes white.
    """
    try:
        return picture_of(decode_image(file.read_bytes()), caption=caption, max_edge_px=max_edge_px)
    except BadImage:
        return None


def picture_of(image_HWC: RgbImage, *, caption: str, max_edge_px: int) -> Picture:
    """The image as a JPEG or a PNG, whichever is smaller: drawings gain as PNG, tissue as JPEG."""
    pixels = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2BGR)
    scale = max_edge_px / max(pixels.shape[:2])
    if scale < 1:
        size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    jpeg = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1].tobytes()
    png = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    if len(png) < 2 * len(jpeg):  # else it is tissue, on which the best compression would be seconds in vain
        png = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 9])[1].tobytes()
    kind, encoded = ("png", png) if len(png) <= len(jpeg) else ("jpeg", jpeg)
    address = f"data:image/{kind};base64,{base64.b64encode(encoded).decode()}"
    return Picture(address, caption, width=pixels.shape[1], height=pixels.shape[0])

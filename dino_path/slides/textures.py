"""Synthetic tissue: haematoxylin and eosin density maps of seven tissue classes, at 0.5 um per pixel.

Not anatomy, but enough of it that structure (nuclei, glands, fibres, vacuoles, debris) tells the classes apart.
Every painter returns two (height, width) float32 maps of optical density, haematoxylin and eosin.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]
Painter = Callable[[int, int, np.random.Generator], tuple[Map, Map]]
PX_PER_UM = 2.0


def smooth_noise(height: int, width: int, size_px: float, rng: np.random.Generator, stretch: float = 1.0) -> Map:
    """Gaussian noise (mean 0, std about 1) whose blobs are `size_px` high and `size_px * stretch` wide."""
    rows, columns = max(4, round(height / size_px) + 3), max(4, round(width / (size_px * stretch)) + 3)
    coarse = rng.standard_normal((rows, columns)).astype(np.float32)
    fine = np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.float32)
    return fine * np.float32(1.4)


def fibres(height: int, width: int, rng: np.random.Generator, angle_deg: float, size_px: float) -> Map:
    """Noise drawn out along `angle_deg` and gently bent: bundles of fibres."""
    edge = int(np.hypot(height, width)) + 64
    straight = smooth_noise(edge, edge, size_px, rng, stretch=14.0)
    ys, xs = np.mgrid[0:height, 0:width].astype(np.float32)
    bend = 18.0 * smooth_noise(height, width, 160.0, rng)
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    along = (cos * (xs - width / 2) + sin * (ys - height / 2) + edge / 2).astype(np.float32)
    across = (-sin * (xs - width / 2) + cos * (ys - height / 2) + edge / 2 + bend).astype(np.float32)
    bent = cv2.remap(straight, along, across, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(bent, np.float32)


def jittered_grid(
    height: int, width: int, spacing_px: float, rng: np.random.Generator, keep: float = 1.0
) -> Iterator[tuple[float, float]]:
    """Points (x, y) about `spacing_px` apart, a share `keep` of them."""
    for row, y in enumerate(np.arange(0, height + spacing_px, spacing_px * 0.9)):
        for x in np.arange(-(row % 2) * spacing_px / 2, width + spacing_px, spacing_px):
            if rng.random() < keep:
                shift_x, shift_y = rng.uniform(-0.35, 0.35, 2) * spacing_px
                yield float(x + shift_x), float(y + shift_y)


def draw_nucleus(
    haematoxylin: Map, x: float, y: float, radius_um: float, rng: np.random.Generator, *, aspect: float = 1.0,
    angle_deg: float | None = None, density: float = 0.9,
) -> None:  # fmt: skip
    """Draw one nucleus with a darker rim into the haematoxylin map."""
    axes = (radius_um * PX_PER_UM * aspect**0.5, radius_um * PX_PER_UM / aspect**0.5)
    angle = rng.uniform(0, 180) if angle_deg is None else angle_deg
    box = ((x, y), (2 * axes[0], 2 * axes[1]), angle)
    cv2.ellipse(haematoxylin, box, density * rng.uniform(0.7, 0.95), thickness=-1, lineType=cv2.LINE_8)
    cv2.ellipse(haematoxylin, box, density * rng.uniform(1.0, 1.25), thickness=1, lineType=cv2.LINE_8)


def _ground(height: int, width: int, rng: np.random.Generator, level: float, contrast: float) -> Map:
    ground = (
        level
        + contrast * smooth_noise(height, width, 24.0, rng)
        + 0.5 * contrast * smooth_noise(height, width, 6.0, rng)
    )
    return np.clip(ground, 0.02, None).astype(np.float32)


def paint_tumour(height: int, width: int, rng: np.random.Generator) -> tuple[Map, Map]:
    """Crowded, large, pleomorphic nuclei; some with a nucleolus."""
    eosin = _ground(height, width, rng, 0.45, 0.07)
    haematoxylin = np.full((height, width), 0.06, np.float32)
    for x, y in jittered_grid(height, width, rng.uniform(21, 26), rng, keep=0.9):
        radius_um = rng.uniform(3.4, 6.2)
        draw_nucleus(haematoxylin, x, y, radius_um, rng, aspect=rng.uniform(1.0, 1.7), density=rng.uniform(0.6, 1.1))
        if radius_um > 4.8:
            cv2.circle(haematoxylin, (int(x), int(y)), 2, 1.6, -1)
    return haematoxylin, eosin


def paint_lymphocytes(height: int, width: int, rng: np.random.Generator) -> tuple[Map, Map]:
    """Sheets of small, round, dark nuclei."""
    eosin = _ground(height, width, rng, 0.3, 0.05)
    haematoxylin = np.full((height, width), 0.05, np.float32)
    for x, y in jittered_grid(height, width, rng.uniform(15, 18), rng, keep=0.85):
        draw_nucleus(haematoxylin, x, y, rng.uniform(2.4, 3.2), rng, aspect=rng.uniform(1, 1.15), density=1.2)
    return haematoxylin, eosin


def paint_stroma(height: int, width: int, rng: np.random.Generator) -> tuple[Map, Map]:
    """Bundles of eosinophilic fibres with few spindle nuclei along them."""
    angle_deg = rng.uniform(0, 180)
    eosin = 0.5 + 0.2 * fibres(height, width, rng, angle_deg, 7.0) + 0.1 * fibres(height, width, rng, angle_deg, 3.0)
    haematoxylin = np.full((height, width), 0.05, np.float32)
    for x, y in jittered_grid(height, width, rng.uniform(55, 75), rng, keep=0.8):
        tilt = angle_deg + rng.normal(0, 8)
        draw_nucleus(haematoxylin, x, y, 3.2, rng, aspect=rng.uniform(3.5, 6), angle_deg=tilt, density=1.0)
    return haematoxylin, np.clip(eosin, 0.03, None).astype(np.float32)


def paint_glands(height: int, width: int, rng: np.random.Generator) -> tuple[Map, Map]:
    """Round glands in stroma: empty lumen, epithelium, a basal ring of nuclei."""
    haematoxylin, eosin = paint_stroma(height, width, rng)
    spacing_px = rng.uniform(150, 190)
    for x, y in jittered_grid(height, width, spacing_px, rng):
        outer_px = spacing_px * rng.uniform(0.36, 0.46)
        inner_px = outer_px * rng.uniform(0.35, 0.55)
        centre = (round(x), round(y))
        for surface, epithelium in ((haematoxylin, 0.12), (eosin, 0.55)):
            cv2.circle(surface, centre, round(outer_px), epithelium, -1)
            cv2.circle(surface, centre, round(inner_px), 0.02, -1)
        ring_px = 0.78 * outer_px + 0.22 * inner_px
        num_nuclei = int(2 * np.pi * ring_px / (7.5 * PX_PER_UM))
        for turn in np.arange(num_nuclei) / max(num_nuclei, 1):
            phi = 2 * np.pi * turn + rng.normal(0, 0.05)
            draw_nucleus(
                haematoxylin, x + ring_px * np.cos(phi), y + ring_px * np.sin(phi), rng.uniform(3.0, 3.8), rng,
                aspect=1.6, angle_deg=float(np.degrees(phi)), density=0.9,
            )  # fmt: skip
    return haematoxylin, eosin


def paint_fat(height: int, width: int, rng: np.random.Generator) -> tuple[Map, Map]:
    """Large empty vacuoles with thin septa and flat nuclei in them."""
    eosin = _ground(height, width, rng, 0.9, 0.1)
    haematoxylin = np.full((height, width), 0.15, np.float32)
    spacing_px = rng.uniform(80, 105)
    for x, y in jittered_grid(height, width, spacing_px, rng):
        axes = (spacing_px * rng.uniform(0.84, 1.0), spacing_px * rng.uniform(0.84, 1.0))
        for surface in (haematoxylin, eosin):
            cv2.ellipse(surface, ((x, y), axes, rng.uniform(0, 180)), 0.02, thickness=-1)
        if rng.random() < 0.5:
            draw_nucleus(haematoxylin, x + spacing_px / 2, y, 2.6, rng, aspect=3.0, density=1.1)
    return haematoxylin, eosin


def paint_mucin(height: int, width: int, rng: np.random.Generator) -> tuple[Map, Map]:
    """Pale pools with bluish wisps and a few floating cells."""
    wisps = np.abs(fibres(height, width, rng, rng.uniform(0, 180), 22.0))
    haematoxylin = np.clip(0.34 - 0.22 * wisps + 0.04 * smooth_noise(height, width, 60.0, rng), 0.02, None)
    haematoxylin = haematoxylin.astype(np.float32)
    eosin = np.clip(0.22 + 0.06 * smooth_noise(height, width, 90.0, rng), 0.02, None).astype(np.float32)
    for x, y in jittered_grid(height, width, 150, rng, keep=0.4):
        for _ in range(int(rng.integers(2, 6))):
            shift = rng.normal(0, 9, 2)
            draw_nucleus(haematoxylin, x + shift[0], y + shift[1], rng.uniform(2.8, 4), rng, aspect=1.3, density=0.9)
    return haematoxylin, eosin


def paint_necrosis(height: int, width: int, rng: np.random.Generator) -> tuple[Map, Map]:
    """Smudged eosin, ghost outlines, nuclear dust."""
    smudge = 0.2 * smooth_noise(height, width, 40.0, rng) + 0.14 * smooth_noise(height, width, 9.0, rng)
    eosin = np.clip(0.55 + smudge, 0.05, None).astype(np.float32)
    haematoxylin = np.clip(0.08 + 0.05 * smooth_noise(height, width, 14.0, rng), 0.0, None).astype(np.float32)
    for x, y in jittered_grid(height, width, rng.uniform(11, 15), rng, keep=0.6):
        cv2.circle(haematoxylin, (int(x), int(y)), int(rng.integers(1, 4)), float(rng.uniform(0.5, 1.2)), -1)
    return haematoxylin, eosin


PAINTERS: dict[str, Painter] = {
    "tumour": paint_tumour,
    "lymphocytes": paint_lymphocytes,
    "stroma": paint_stroma,
    "glands": paint_glands,
    "fat": paint_fat,
    "mucin": paint_mucin,
    "necrosis": paint_necrosis,
}
CLASSES = tuple(PAINTERS)

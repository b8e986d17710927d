"""Pen ink: how much is found, and how much tissue is mistaken for it. From this come the limits in `slides/quality.py`.

    python benchmarks/tiling/inks.py [--data ../shared/data]

Ink is painted over glass, over synthetic tissue and over real tiles (of every set in --data that is there) in cells of
INK_CELL_UM, as opaque as a solid line, a felt tip (the demo's pen) or a faded one. Two tables:

- recall: share of the inked cells that are found, whatever colour they are taken for;
- false alarms: share of the real tiles without ink that `tiles.max_pen_fraction`'s default refuses, and of their cells
  that count as ink; once as they are, and once at twice their density, which is what a fold looks like.

A third table sweeps the limits of black ink, and shows what a better recall costs.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.config import TilesConfig
from dino_path.slides import quality
from dino_path.slides.quality import INK_CELL_UM, ink_pixels, shrink_to
from dino_path.slides.synthetic import SyntheticSlide, draw_regions, paint_slide

Cells = NDArray[np.uint8]  # (N, H, W, 3): the cells of N tiles

INKS = {
    "black": [(30, 30, 35), (10, 10, 10), (50, 50, 55)],
    "blue": [(20, 70, 190), (30, 60, 170), (20, 30, 120)],
    "green": [(20, 140, 80), (20, 120, 60), (10, 70, 40)],
    "red": [(200, 25, 35), (160, 15, 30), (220, 40, 40)],
}
OPACITIES = {"solid": 1.0, "felt tip": 0.8, "faded": 0.5}
# Set -> (pattern, um per pixel, every how many-th file). Without ink, as far as eyes can tell.
REAL = {
    "lung": ("lc25000-lung-dev/*/*.jpeg", 0.5, 3),
    "colon": ("nct-crc-108/*/*.tif", 0.5, 1),
    "lymph node": ("pcam-dev/*/*.jpg", 1.0, 4),
    "organs": ("nuinsseg-dev/images/**/*.jpg", 0.25, 1),
    "oral": ("oral-oscc/*/*400x*.jpg", 0.5, 1),
}
SYNTHETIC_SEEDS = range(6)
SYNTHETIC_EDGE_PX = 1024
LEVELS, SPREADS, GROWTHS = (60, 70, 80, 90), (15, 22, 30), (0.0, 0.4)


def real_cells(data: Path) -> Iterator[tuple[str, Cells]]:
    """The cells of each set's tiles."""
    for name, (pattern, mpp, step) in REAL.items():
        files = sorted(data.glob(pattern))[::step]
        tiles = [shrink_to(_read(file), INK_CELL_UM / mpp) for file in files]
        if tiles:
            yield name, np.stack(tiles)


def synthetic_cells() -> Cells:
    """Tissue like the demo's but without pen, in cells; six slides with different stains."""
    slides = []
    for seed in SYNTHETIC_SEEDS:
        slide = SyntheticSlide("s", "train", seed, SYNTHETIC_EDGE_PX, has_pen=False, has_blur=False)
        rng = np.random.default_rng(slide.seed)
        image = paint_slide(slide.edge_px, *draw_regions(slide.edge_px, rng), rng)
        centre = np.s_[SYNTHETIC_EDGE_PX // 4 : -SYNTHETIC_EDGE_PX // 4]
        slides.append(shrink_to(np.ascontiguousarray(image[centre, centre]), INK_CELL_UM / 0.5))
    return np.stack(slides)


def recall(cells: Cells, inks: Sequence[tuple[int, int, int]], opacity: float) -> float:
    """Share of the cells that are found when all of them are painted over."""
    found = [ink_pixels(_as_picture(opacity * np.array(ink) + (1 - opacity) * cells)).mean() for ink in inks]
    return float(np.mean(found))


def false_alarms(cells: Cells, layers: int = 1) -> tuple[float, float]:
    """Shares of the tiles that would be rejected, and of the cells that count as ink."""
    thick = 255 * (cells / 255.0) ** layers
    ink = ink_pixels(_as_picture(thick)).reshape(len(cells), -1)
    limit = TilesConfig(mpp=0.5).max_pen_fraction
    return float((ink.mean(axis=1) > limit).mean()), float(ink.mean())


def main() -> None:
    """Print the three tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    real = dict(real_cells(parser.parse_args().data))
    glass = np.full((1, 8, 8, 3), 243, np.uint8)
    grounds = {"glass": glass, "synthetic": synthetic_cells(), **real}
    print("| recall, % | " + " | ".join(grounds) + " |")
    print("|---|" + "---|" * len(grounds))
    for ink, shades in INKS.items():
        for kind, opacity in OPACITIES.items():
            shares = [f"{100 * recall(cells, shades, opacity):.0f}" for cells in grounds.values()]
            print(f"| {ink}, {kind} | " + " | ".join(shares) + " |")
    print("\n| false alarms | tiles | refused, % | cells, % | twice as dense: refused, % | cells, % |")
    print("|---|---|---|---|---|---|")
    for name, cells in {"synthetic": grounds["synthetic"], **real}.items():
        shares = [f"{100 * share:.2f}" for layers in (1, 2) for share in false_alarms(cells, layers)]
        print(f"| {name} | {len(cells)} | " + " | ".join(shares) + " |")
    _print_sweep(grounds, real)


def _print_sweep(grounds: dict[str, Cells], real: dict[str, Cells]) -> None:
    black = INKS["black"]
    felt = OPACITIES["felt tip"]
    columns = ["black: brightest, spread, growth", "demo's pen on glass, %", "on synthetic, %", "felt tip on real, %"]
    columns += [f"{name} refused, %" for name in real]
    print(f"\n| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for limits in itertools.product(LEVELS, SPREADS, GROWTHS):
        quality.BLACK_INK_LEVEL, quality.BLACK_INK_SPREAD, quality.BLACK_INK_GROWTH = limits
        shares = [recall(grounds[name], black[:1], felt) for name in ("glass", "synthetic")]
        shares.append(float(np.mean([recall(cells, black, felt) for cells in real.values()])) if real else 0.0)
        shares += [false_alarms(cells)[0] for cells in real.values()]
        print(f"| {', '.join(map(str, limits))} | " + " | ".join(f"{100 * share:.2f}" for share in shares) + " |")


def _as_picture(cells: NDArray[np.floating]) -> NDArray[np.uint8]:
    """(N, H, W, 3) -> (N H, W, 3)."""
    return np.ascontiguousarray(np.rint(cells).astype(np.uint8).reshape(-1, cells.shape[2], 3))


def _read(file: Path) -> NDArray[np.uint8]:
    picture = cv2.imread(str(file))
    if picture is None:
        raise SystemExit(f"{file}: cannot be read")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), dtype=np.uint8)


if __name__ == "__main__":
    main()

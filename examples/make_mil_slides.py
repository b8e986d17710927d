"""Synthetic slides with a label each: half of them contain a small focus of one tissue class.

    python examples/make_mil_slides.py OUT [--slides 40]

Writes OUT/*.tif and OUT/labels.csv (slide_id,label,patient_id). Every slide has a stain of its own, and its tissue is
of the painter's classes but the last; in the slides labelled `focus` one region in nine is of that class.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from dino_path.slides.synthetic import CLASSES, draw_regions, paint_slide, write_pyramid

EDGE_PX = 2560


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--slides", type=int, default=40)
    parser.add_argument("--edge-px", type=int, default=EDGE_PX)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(arguments.slides):
        rng = np.random.default_rng(1000 + number)
        region_map, regions = draw_regions(arguments.edge_px, rng)
        others = [int(rng.integers(len(CLASSES) - 1)) if one == len(CLASSES) - 1 else one for one in regions]
        has_focus = number % 2 == 1
        if has_focus:
            others[len(others) // 2] = len(CLASSES) - 1  # in the middle of the tissue
        with (arguments.out / f"mil_{number:03d}.tif").open("wb") as stream:
            write_pyramid(stream, paint_slide(arguments.edge_px, region_map, others, rng))
        rows.append((f"mil_{number:03d}", "focus" if has_focus else "none", f"patient_{number:03d}"))
        print(f"{rows[-1][0]}: {rows[-1][1]}")
    with (arguments.out / "labels.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("slide_id", "label", "patient_id"), *rows])


if __name__ == "__main__":
    main()

"""Small slides for tests: pyramidal tiled TIFFs whose every pixel is known (deflate loses nothing)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

GLASS, PINK, PURPLE = (243, 243, 243), (214, 120, 170), (110, 60, 140)


def write_slide_file(
    path: Path, levels: Sequence[NDArray[np.uint8]], mpp: float | None = 0.5, unit: str = "cm"
) -> Path:
    """A TIFF that OpenSlide opens, with these RGB levels (finest first); `mpp` goes into the resolution tags."""
    path.parent.mkdir(parents=True, exist_ok=True)
    resolution = {}
    if mpp is not None:
        per_unit = {"cm": 10_000, "inch": 25_400}[unit] / mpp
        resolution = {
            "resolution": (per_unit, per_unit),
            "resolutionunit": {"cm": "CENTIMETER", "inch": "INCH"}[unit],
        }
    with tifffile.TiffWriter(path) as file:
        for number, level in enumerate(levels):
            file.write(
                level,
                tile=(256, 256),
                photometric="rgb",
                compression="zlib",
                compressionargs={"level": 1},
                subfiletype=1 if number else 0,
                metadata=None,
                **(resolution if number == 0 else {}),
            )
    return path


def tissue_image(width: int = 1024, height: int = 768) -> NDArray[np.uint8]:
    """Glass with slight noise and a rectangle of textured pink tissue: x from 256 to width - 256, y from 128."""
    rng = np.random.default_rng(0)
    image = np.full((height, width, 3), GLASS, dtype=np.int16) + rng.integers(-2, 3, (height, width, 1))
    tissue = image[128 : height - 128, 256 : width - 256]
    tissue[:] = np.array(PINK) + rng.integers(-20, 21, tissue.shape[:2])[..., None]
    tissue[::16] = PURPLE
    return image.astype(np.uint8)

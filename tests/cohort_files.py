"""Small cohorts: feature files as `dino-path embed` writes them, with a table of labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np


def write_slide(file: Path, features: np.ndarray, *, encoder: str = "model", digest: str = "0") -> None:
    """One feature file, its tiles of 256 px side by side."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(file, "w") as h5:
        h5["features"] = features.astype(np.float32)
        h5["features"].attrs.update(encoder=encoder, encoder_digest=digest)
        h5["coords"] = np.stack([np.arange(len(features)) * 256, np.zeros(len(features))], axis=1).astype(np.int64)
        h5["coords"].attrs.update(patch_size=256, patch_size_level0=256)


def write_cohort(
    folder: Path, *, num_patients: int = 24, slides_each: int = 1, gain: float = 2.0, width: int = 4, seed: int = 0
) -> tuple[Path, Path, Path]:
    """A table, features that separate the classes by `gain` standard deviations, and those of an untrained network.

    Patients are of the classes `normal` and `tumour` in turn; slides are called P003_1 and have 5 to 12 tiles.
    """
    rng = np.random.default_rng(seed)
    told, null = folder / "features_mine", folder / "features_untrained-mine"
    rows = []
    for patient in range(num_patients):
        label = patient % 2
        for slide in range(slides_each):
            name = f"P{patient:03d}_{slide + 1}"
            tiles = rng.normal(size=(int(rng.integers(5, 13)), width))
            write_slide(null / f"{name}.h5", tiles, encoder="untrained-mine", digest="1")
            tiles[: len(tiles) // 2 + 1, 0] += gain * label
            write_slide(told / f"{name}.h5", tiles)
            rows.append((name, f"P{patient:03d}", ("normal", "tumour")[label]))
    return write_table(folder / "labels.csv", ("slide_id", "patient_id", "label"), rows), told, null


def write_table(file: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> Path:
    """A CSV."""
    file.write_text("\n".join(",".join(map(str, row)) for row in (header, *rows)) + "\n")
    return file

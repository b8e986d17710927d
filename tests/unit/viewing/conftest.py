"""One small store for the viewer: two slides of two patients, one with pen ink, and one without tissue."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from slide_files import GLASS, tissue_image, write_slide_file

from dino_path.config import TilesConfig
from dino_path.slides.find import SlideRow
from dino_path.tiles.tiling import tile_slides
from dino_path.viewing.viewer import Viewer

TILES = TilesConfig(mpp=0.5, size_px=64, mask_mpp=4.0, min_area_um2=500)
INK = (20, 60, 200)


@pytest.fixture(scope="session")
def slides(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """Level 0 of each slide, by its path."""
    folder = tmp_path_factory.mktemp("slides")
    inked = tissue_image()
    inked[272:288, 320:512] = INK  # a stripe over three tiles
    other = tissue_image(800, 600)
    glass = (np.array(GLASS) + np.random.default_rng(0).integers(-2, 3, (300, 300, 1))).astype(np.uint8)
    for name, image in (("a", inked), ("b", other), ("glass", glass)):
        half = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
        write_slide_file(folder / f"{name}.tif", [image, half])
    return {str(folder / f"{name}.tif"): image for name, image in (("a", inked), ("b", other), ("glass", glass))}


@pytest.fixture(scope="session")
def view_store(slides: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("stores") / "store"
    rows = [SlideRow(Path(path), Path(path).stem, patient_id=f"P {Path(path).stem}") for path in slides]
    tile_slides(rows, TILES, store, num_workers=0)
    return store


@pytest.fixture
def viewer(view_store: Path) -> Viewer:
    return Viewer(view_store)

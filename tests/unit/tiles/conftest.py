"""One small store, made once: two slides with tiles, one without tissue."""

from pathlib import Path

import numpy as np
import pytest
from slide_files import GLASS, tissue_image, write_slide_file

from dino_path.config import TilesConfig
from dino_path.slides.find import SlideRow
from dino_path.tiles.tiling import tile_slides

TILES = TilesConfig(mpp=0.5, size_px=64, mask_mpp=4.0, min_area_um2=500)


@pytest.fixture(scope="session")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[SlideRow]:
    folder = tmp_path_factory.mktemp("slides")
    noise = np.random.default_rng(0).integers(-2, 3, (300, 300, 1))
    return [
        SlideRow(write_slide_file(folder / "a.tif", [tissue_image()]), "a", patient_id="P1", split="train"),
        SlideRow(write_slide_file(folder / "b.tif", [tissue_image(800, 600)]), "b", patient_id="P2", split="test"),
        SlideRow(write_slide_file(folder / "glass.tif", [(np.array(GLASS) + noise).astype(np.uint8)]), "glass"),
    ]


@pytest.fixture(scope="session")
def store_path(rows: list[SlideRow], tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("stores") / "store"
    tile_slides(rows, TILES, store, num_workers=0)
    return store

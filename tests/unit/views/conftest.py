"""A small tile store, made once: slides of 64 and 24 tiles from two patients."""

from pathlib import Path

import pytest
from slide_files import tissue_image, write_slide_file

from dino_path.config import TilesConfig
from dino_path.slides.find import SlideRow
from dino_path.tiles.tiling import tile_slides


@pytest.fixture(scope="session")
def store_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    rows = [
        SlideRow(write_slide_file(folder / "large.tif", [tissue_image()]), "large", patient_id="P1"),
        SlideRow(write_slide_file(folder / "small.tif", [tissue_image(600, 400)]), "small", patient_id="P2"),
    ]
    store = tmp_path_factory.mktemp("stores") / "store"
    tile_slides(rows, TilesConfig(mpp=0.5, size_px=64, mask_mpp=4.0, min_area_um2=500), store, num_workers=0)
    return store

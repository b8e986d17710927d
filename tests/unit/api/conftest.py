"""A tile store of two slides, made once."""

from collections.abc import Callable
from pathlib import Path

import pytest
from slide_files import tissue_image, write_slide_file
from tiny import write_tiles

from dino_path.settings import load_config
from dino_path.slides.find import find_slides
from dino_path.tiles.tiling import tile_slides


@pytest.fixture(scope="package")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Slides `a` (train, patient p1) and `b` (test, patient p2) in tiles of 64 px at 0.5 um/px."""
    folder = tmp_path_factory.mktemp("api")
    write_slide_file(folder / "a.tif", [tissue_image()])
    write_slide_file(folder / "b.tif", [tissue_image(1280)])
    table = folder / "slides.csv"
    table.write_text("path,slide_id,patient_id,split\na.tif,a,p1,train\nb.tif,b,p2,test\n")
    words = ("tiles.mpp=0.5", "tiles.size_px=64", "tiles.mask_mpp=4", "tiles.min_area_um2=500")
    config = load_config(None, words, needs=("tiles",)).tiles
    assert config is not None
    tile_slides(find_slides([table]), config, folder / "store", num_workers=0)
    return folder / "store"


@pytest.fixture
def make_class_folders() -> Callable[[Path], Path]:
    """A function that writes 10 images of each of the classes A and B."""

    def make(folder: Path) -> Path:
        write_tiles(folder / "A", 10)
        write_tiles(folder / "B", 20)
        for number in range(10):  # the same seeds as in A
            (folder / f"B/{number:03d}.png").unlink()
        return folder

    return make

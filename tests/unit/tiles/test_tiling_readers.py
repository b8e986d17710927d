"""The same tissue in files of every kind gives the same tiles, whoever reads it: in tars, and from the slides."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from slide_files import tissue_image, write_slide_file

from dino_path.config import TilesConfig
from dino_path.records.slide import read_slide_record
from dino_path.slides.find import SlideRow, find_slides
from dino_path.slides.slide import Slide
from dino_path.tiles.layout import StoreFolder
from dino_path.tiles.store import TileStore
from dino_path.tiles.tiling import tile_slides

SETTINGS: dict[str, Any] = {"mpp": 1.0, "size_px": 64, "mask_mpp": 4.0, "min_area_um2": 500}
IMAGE = tissue_image()
HALF = np.asarray(cv2.resize(IMAGE, (512, 384), interpolation=cv2.INTER_AREA), dtype=np.uint8)
MICRONS = {"PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5, "PhysicalSizeYUnit": "µm"}
CENTIMETRES: dict[str, Any] = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}


def write_every_kind(folder: Path) -> None:
    """The image of `slide_files.tissue_image` in six containers, some with the half level and some without."""
    write_slide_file(folder / "generic.tif", [IMAGE, HALF])
    with tifffile.TiffWriter(folder / "sub_ifds.tif", ome=True) as file:
        how: dict[str, Any] = {"photometric": "rgb", "tile": (128, 128), "compression": "deflate"}
        file.write(IMAGE, subifds=1, metadata={"axes": "YXS", **MICRONS}, **how)
        file.write(HALF, subfiletype=1, metadata=None, **how)
    with tifffile.TiffWriter(folder / "channels.tif", ome=True) as file:
        how = {"photometric": "minisblack", "tile": (128, 128), "compression": "lzw"}
        names = {"Channel": {"Name": ["Red", "Green", "Blue"]}}
        planes, half = (np.ascontiguousarray(np.moveaxis(one, 2, 0)) for one in (IMAGE, HALF))
        file.write(planes, subifds=1, metadata={"axes": "CYX", **names, **MICRONS}, **how)
        file.write(half, subfiletype=1, metadata=None, **how)
    with tifffile.TiffWriter(folder / "png.tif") as file:
        for number, level in enumerate((IMAGE, HALF)):
            how = {"photometric": "rgb", "tile": (128, 128), "compression": "png", "subfiletype": number}
            file.write(level, metadata=None, **how, **CENTIMETRES)
    tifffile.imwrite(folder / "strips.tif", IMAGE, photometric="rgb", metadata=None, **CENTIMETRES)


@pytest.mark.parametrize("coordinates_only", [False, True])
def test_tiles_do_not_depend_on_who_reads_the_slide(tmp_path: Path, coordinates_only: bool) -> None:
    (tmp_path / "slides").mkdir()
    write_every_kind(tmp_path / "slides")
    config = TilesConfig(**SETTINGS, coordinates_only=coordinates_only)
    summary = tile_slides(find_slides([tmp_path / "slides"]), config, tmp_path / "store", num_workers=0)
    assert (summary.num_done, summary.num_failed) == (5, 0)
    readers = {record.slide_id: record.reader.partition(":")[0] for record in summary.records}
    assert readers.pop("generic") == "openslide"
    assert set(readers.values()) == {"tifffile"}
    assert all(record.num_tiles == 16 and record.flags == () for record in summary.records)
    store = TileStore.open(tmp_path / "store")
    tiles = np.stack([store.read_image(index) for index in range(len(store))]).reshape(5, 16, 64, 64, 3)
    names = [record.slide_id for record in summary.records]
    reference = tiles[names.index("generic")].astype(int)
    for name, slide in zip(names, tiles, strict=True):
        # The same pixels, so the same JPEG; "strips" has no half level: averaged down here, and rounded once more.
        largest = 0 if name != "strips" else 1 if coordinates_only else 8
        assert np.abs(slide - reference).max() <= largest
    assert (tmp_path / "store/overlays/channels.jpg").exists()


def test_a_grey_slide_is_flagged_and_asks_for_a_mask_and_has_tiles_with_one(tmp_path: Path) -> None:
    path = tmp_path / "slides/a.tif"
    path.parent.mkdir()
    grey = IMAGE[..., 1].copy()
    tifffile.imwrite(path, grey, photometric="minisblack", tile=(128, 128), metadata=None, **CENTIMETRES)
    (record,) = tile_slides([SlideRow(path, "a")], TilesConfig(**SETTINGS), tmp_path / "s1", num_workers=0).records
    assert (record.status, record.flags[0]) == ("empty", "grey")
    assert "slides.masks" in record.reason
    masks = tmp_path / "masks"
    masks.mkdir()
    cv2.imwrite(str(masks / "a.png"), np.full((96, 128), 255, np.uint8))
    tile_slides(find_slides([path.parent], masks=masks), TilesConfig(**SETTINGS), tmp_path / "s2", num_workers=0)
    record = read_slide_record(StoreFolder(tmp_path / "s2").record_file("a"))
    assert (record.status, record.num_tiles, record.flags[0]) == ("done", 48, "grey")


def test_jpeg_ls_is_tiled_and_read_again_through_wsidicom(shared_data: Path, tmp_path: Path) -> None:
    pytest.importorskip("wsidicom")
    config = TilesConfig(mpp=0.499, size_px=16, mask_mpp=1.0, min_tissue_fraction=0, coordinates_only=True)
    row = SlideRow(shared_data / "slides-odd/dicom_refused/sm_image_jpegls.dcm", "a")
    (record,) = tile_slides([row], config, tmp_path / "store", num_workers=0).records
    assert (record.status, record.num_tiles, record.reader) == ("done", 9, "wsidicom: its format is dicom")
    store = TileStore.open(tmp_path / "store")
    with Slide.open(shared_data / "slides-odd/dicom_folder_with_seg_ann/sm_image.dcm") as twin:
        for index in range(9):
            corner = int(store.x_level0[index]), int(store.y_level0[index])
            np.testing.assert_array_equal(store.read_image(index), twin.read_region(corner, 0, (16, 16)))

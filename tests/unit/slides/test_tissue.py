from pathlib import Path

import cv2
import numpy as np
import pytest
from slide_files import GLASS, PINK, tissue_image, write_slide_file

from dino_path.config import TilesConfig
from dino_path.slides.overview import Overview
from dino_path.slides.slide import Slide
from dino_path.slides.tissue import certain_background, drop_small, fill_holes, otsu_saturation, tissue_mask


def mask_of(tmp_path: Path, image: np.ndarray, **settings: object) -> np.ndarray:
    """The tissue mask at 4 um/px of an image at 0.5 um/px, brought back to the image's size."""
    config = TilesConfig.model_validate({"mpp": 0.5, "mask_mpp": 4.0, "min_area_um2": 500, **settings})
    with Slide.open(write_slide_file(tmp_path / "a.tif", [image])) as slide:
        tissue = tissue_mask(slide, config).tissue
    return cv2.resize(tissue.astype(np.uint8), image.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0


@pytest.mark.parametrize("method", ["otsu", "saturation"])
def test_the_tissue_is_found_to_within_a_mask_pixel_and_a_half(tmp_path: Path, method: str) -> None:
    truth = np.zeros((768, 1024), dtype=bool)
    truth[128:-128, 256:-256] = True
    found = mask_of(tmp_path, tissue_image(), tissue=method)
    assert (found & truth).sum() / (found | truth).sum() > 0.96


def test_pale_tissue_beside_dense_tissue_is_not_lost(tmp_path: Path) -> None:
    image = tissue_image()
    image[128:-128, 640:-256] = (236, 214, 228)  # saturation 0.09, the dense half has 0.44
    assert mask_of(tmp_path, image)[200:-200, 660:-280].all()


def test_otsu_has_a_floor_so_that_empty_glass_stays_empty(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    glass = (np.array(GLASS) + rng.integers(-3, 4, (512, 512, 3))).astype(np.uint8)
    assert not mask_of(tmp_path, glass).any()


def test_black_padding_and_ink_are_no_tissue_and_do_not_move_the_threshold(tmp_path: Path) -> None:
    image = tissue_image()
    image[:, :100] = (4, 0, 1)  # black, though its saturation is 1
    image[:100, 300:400] = (30, 60, 170)  # blue marker
    image[:100, 500:600] = (20, 120, 60)  # green marker
    found = mask_of(tmp_path, image)
    assert not found[:, :90].any()
    assert not found[:90].any()
    assert found[160:-160, 280:-280].all()
    as_stain = mask_of(tmp_path, image, max_pen_fraction=1)
    assert as_stain[10:90, 310:390].all()
    assert as_stain[10:90, 510:590].all()
    assert not as_stain[:, :90].any()


def test_what_looks_like_ink_is_measured_against_all_that_is_no_glass(tmp_path: Path) -> None:
    image = tissue_image()  # 512 x 512 px of it are tissue
    image[128:-128, 256:512] = (30, 60, 170)
    with Slide.open(write_slide_file(tmp_path / "a.tif", [image])) as slide:
        for limit in (0.05, 1.0):
            ink = tissue_mask(slide, TilesConfig(mpp=0.5, mask_mpp=4.0, max_pen_fraction=limit)).ink
            assert ink is not None
            assert ink.colour == "blue"
            assert ink.share == pytest.approx(0.5, abs=0.02)
    with Slide.open(write_slide_file(tmp_path / "b.tif", [tissue_image()])) as slide:
        assert tissue_mask(slide, TilesConfig(mpp=0.5, mask_mpp=4.0)).ink is None


def test_what_was_never_recorded_is_background_before_the_threshold() -> None:
    rgb = np.full((40, 60, 3), PINK, dtype=np.uint8)
    rgb[:, :20] = GLASS  # flat: painted, not scanned
    rgb[::2, 20:30] = (240, 241, 240)
    rgb[1::2, 20:30] = (243, 241, 242)  # glass with scanner noise
    covered = np.ones((40, 60), dtype=bool)
    covered[:, 50:] = False
    background = certain_background(Overview(rgb, covered, (1.0, 1.0)))
    assert background[1:-1, 1:18].all()
    assert not background[:, 22:49].any()
    assert background[:, 50:].all()


def test_otsu_of_nothing_is_zero() -> None:
    assert otsu_saturation(np.zeros(0, dtype=np.uint8)) == 0


def test_small_holes_are_filled_and_bays_and_large_holes_stay() -> None:
    tissue = np.ones((20, 30), dtype=bool)
    tissue[5:8, 5:8] = False  # 9 px
    tissue[5:15, 15:25] = False  # 100 px
    tissue[0:2, 0:2] = False  # a bay at the edge, 4 px
    filled = fill_holes(tissue, max_px=9)
    assert filled[5:8, 5:8].all()
    assert not filled[5:15, 15:25].any()
    assert not filled[0:2, 0:2].any()
    assert not fill_holes(np.zeros((5, 5), dtype=bool), max_px=100).any()


def test_small_pieces_are_dropped() -> None:
    tissue = np.zeros((20, 20), dtype=bool)
    tissue[2:4, 2:4] = tissue[10:18, 10:18] = True
    kept = drop_small(tissue, min_px=5)
    assert not kept[:9].any()
    assert kept[10:18, 10:18].all()


def test_areas_are_in_microns_whatever_the_mask_mpp(tmp_path: Path) -> None:
    image = np.full((512, 512, 3), GLASS, dtype=np.uint8) + np.uint8(1) * (np.indices((512, 512)).sum(0) % 2)[..., None]
    image[100:228, 100:228] = PINK  # 64 x 64 um = 4,096 um2
    image = image.astype(np.uint8)
    for mask_mpp in (2.0, 4.0):
        assert mask_of(tmp_path, image, mask_mpp=mask_mpp, min_area_um2=3_000).any()
        assert not mask_of(tmp_path, image, mask_mpp=mask_mpp, min_area_um2=6_000).any()


@pytest.mark.slow
def test_the_mask_of_a_real_section_agrees_with_an_independent_one(shared_data: Path) -> None:
    with Slide.open(shared_data / "slides/p2_0039_section1.tif") as slide:
        tissue = tissue_mask(slide, TilesConfig(mpp=0.5)).tissue
    reference = (
        cv2.imread(str(shared_data / "slides/p2_0039_section1_tissue_mask_ds32.png"), cv2.IMREAD_GRAYSCALE) > 127
    )
    mine = cv2.resize(tissue.astype(np.uint8), reference.shape[::-1], interpolation=cv2.INTER_AREA) > 0
    assert (mine & reference).sum() / (mine | reference).sum() > 0.9

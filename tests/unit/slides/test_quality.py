from pathlib import Path

import cv2
import numpy as np
import pytest

from dino_path.slides.quality import TileQuality, black_fraction, ink_pixels, measure_quality, sharpness
from dino_path.slides.synthetic import draw_regions, paint_slide

INKS = {
    "blue": [(30, 60, 170), (50, 80, 190), (70, 130, 210), (20, 30, 120)],
    "green": [(20, 120, 60), (60, 150, 110), (10, 70, 40), (90, 190, 120)],
    "red": [(200, 25, 35), (160, 15, 30), (220, 40, 40)],
    "black": [(35, 32, 38), (50, 50, 55), (10, 10, 10), (72, 72, 76), (67, 48, 62)],  # a felt tip on glass, on eosin
}
TISSUE = {
    "eosin": [(214, 120, 170), (230, 90, 150), (200, 60, 120)],
    "blood": [(190, 70, 90), (170, 50, 70), (205, 60, 85)],
    "haematoxylin": [(80, 50, 120), (60, 40, 100), (110, 90, 160), (95, 105, 165)],
    "blue counterstain": [(140, 160, 200), (110, 125, 175), (70, 85, 130)],
    "brown DAB": [(130, 80, 40), (90, 50, 25)],
    "glass": [(243, 243, 243), (255, 255, 255), (225, 228, 226)],
}


def patch_of(colour: tuple[int, int, int]) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.clip(np.array(colour) + rng.integers(-6, 7, (64, 64, 1)), 0, 255).astype(np.uint8)


def quality_of(tile: np.ndarray, mpp: float = 0.5) -> TileQuality:
    return measure_quality(tile, mpp, sharpness_mpp=1.0)


def grey_of(tile: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)


def test_tiles_that_are_passed_over_in_a_hurry_hold_no_ink() -> None:
    colours = np.stack(np.meshgrid(*[np.arange(0, 256, 15)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 1, 3)
    ink = ink_pixels(colours.reshape(-1, 1, 3).astype(np.uint8))[:, 0]
    fractions = [quality_of(colour, 8.0).pen_fraction for colour in colours[ink].astype(np.uint8)]
    assert len(fractions) > 500
    assert min(fractions) == 1


@pytest.mark.parametrize("colour", [colour for colours in INKS.values() for colour in colours])
def test_ink_of_every_colour_is_seen(colour: tuple[int, int, int]) -> None:
    assert quality_of(patch_of(colour)).pen_fraction > 0.9


@pytest.mark.parametrize("ink", [(20, 70, 190), (20, 140, 80), (30, 30, 35)])
def test_the_pen_of_the_demo_is_found_in_most_tiles_that_it_crosses_and_in_no_other(ink: tuple[int, int, int]) -> None:
    crossed: list[float] = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        image = paint_slide(768, *draw_regions(768, rng), rng)
        inked = image.copy()
        stroke = np.zeros(image.shape[:2], np.uint8)
        cv2.line(stroke, (100, 150), (660, 600), 1, 26)
        inked[stroke > 0] = (0.8 * np.array(ink) + 0.2 * image[stroke > 0]).astype(np.uint8)  # as `draw_pen` does
        for y, x in np.ndindex(8, 8):
            square = np.s_[96 * y : 96 * (y + 1), 96 * x : 96 * (x + 1)]
            assert quality_of(image[square]).pen_fraction == 0
            if stroke[square].mean() > 0.2:
                crossed.append(quality_of(inked[square]).pen_fraction)
    assert len(crossed) >= 20
    assert np.mean(np.array(crossed) > 0.05) > 0.85


@pytest.mark.parametrize("colour", [colour for colours in TISSUE.values() for colour in colours])
def test_no_stain_is_taken_for_ink(colour: tuple[int, int, int]) -> None:
    assert quality_of(patch_of(colour)).pen_fraction == 0


@pytest.mark.parametrize("mpp", [0.25, 0.5, 1.0, 10.0])
def test_the_pen_fraction_is_the_share_of_the_area_at_any_mpp(mpp: float) -> None:
    tile = np.full((256, 256, 3), 240, dtype=np.uint8)
    tile[:, :64] = (30, 60, 170)
    assert quality_of(tile, mpp).pen_fraction == pytest.approx(0.25, abs=0.07)


def test_black_grains_are_no_pen() -> None:
    tile = np.full((256, 256, 3), (214, 120, 170), dtype=np.uint8)
    tile[::8, ::8] = (20, 20, 22)
    assert quality_of(tile).pen_fraction == 0


def test_the_black_fraction_counts_pixels_without_light() -> None:
    tile = np.full((100, 100, 3), 200, dtype=np.uint8)
    tile[:30] = (30, 12, 0)
    tile[30:40] = (31, 0, 0)
    assert quality_of(tile).black_fraction == pytest.approx(0.3)
    assert black_fraction(np.full_like(tile, 31), grey_of(np.full_like(tile, 31))) == 0
    dark_but_coloured = np.full_like(tile, (30, 12, 31))
    assert black_fraction(dark_but_coloured, grey_of(dark_but_coloured)) == 0


def test_sharpness_is_the_variance_of_the_laplacian_and_falls_with_blur() -> None:
    tile = np.full((64, 64, 3), 100, dtype=np.uint8)
    assert sharpness(grey_of(tile)) == 0
    tile[32, 32] = 110  # Laplacian -40 there, +10 at its four neighbours
    assert sharpness(grey_of(tile)) == pytest.approx((40**2 + 4 * 10**2) / 64**2, rel=1e-6)
    noisy = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    blurred = np.asarray(cv2.GaussianBlur(noisy, (0, 0), 2), dtype=np.uint8)
    assert sharpness(grey_of(blurred)) < 0.05 * sharpness(grey_of(noisy))
    assert sharpness(grey_of(noisy)) == pytest.approx(cv2.Laplacian(grey_of(noisy), cv2.CV_64F).var(), rel=1e-9)


@pytest.mark.slow
def test_no_tile_of_real_tissue_is_lost_to_the_pen_filter(shared_data: Path) -> None:
    files = [*sorted(shared_data.glob("nct-crc-108/*/*"))]
    files += sorted(shared_data.glob("lc25000-lung-dev/*/*"))[::20] + sorted(shared_data.glob("pcam-dev/*/*"))[::20]
    assert len(files) > 500
    for file in files:
        tile = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        mpp = 1.0 if "pcam" in str(file) else 0.5
        assert quality_of(np.asarray(tile, dtype=np.uint8), mpp).pen_fraction <= 0.05, file


def test_sharpness_is_measured_at_the_stated_mpp_whatever_the_tile_has() -> None:
    rng = np.random.default_rng(0)
    fine = cv2.GaussianBlur(rng.integers(0, 256, (512, 512, 3), dtype=np.uint8), (0, 0), 4)
    half = cv2.resize(fine, (256, 256), interpolation=cv2.INTER_AREA)
    assert quality_of(fine, 0.25).sharpness == pytest.approx(quality_of(half, 0.5).sharpness, rel=0.02)
    assert quality_of(half, 2.0).sharpness == sharpness(grey_of(half))  # never upsampled


def test_folded_tissue_is_dark_and_the_same_tissue_in_one_layer_is_not() -> None:
    rng = np.random.default_rng(0)
    single = np.clip(np.array((150, 90, 150)) + rng.integers(-20, 21, (256, 256, 1)), 0, 255).astype(np.uint8)
    assert quality_of(single).dark_fraction == 0
    folded = single.copy()
    folded[:, :64] = np.rint((single[:, :64] / 255.0) ** 3 * 255)  # three layers: transmittances multiply
    assert quality_of(folded).dark_fraction == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("folder", ["lc25000-lung-dev/lung_n", "lc25000-lung-dev/lung_aca", "nct-crc-108/TUM"])
def test_ordinary_tissue_is_not_dark(shared_data: Path, folder: str) -> None:
    files = sorted((shared_data / folder).iterdir())[:40]
    fractions = [quality_of(cv2.imread(str(file))[..., ::-1].copy()).dark_fraction for file in files]
    assert np.mean(fractions) < 0.03

import pickle

import numpy as np
import pytest

from dino_path.features.shifts import LEVELS, MEANINGS, STRENGTHS, Shift, ShiftedImages
from dino_path.tiles.images import ImageFiles
from dino_path.views.stain import STAIN_RGB

ALL = [Shift(name, level) for name in STRENGTHS for level in LEVELS]


@pytest.fixture
def tissue():
    """Two stains in varying density over smooth fields, (64, 48, 3) uint8."""
    rows, columns = np.mgrid[:64, :48] / 10
    density = np.stack([0.8 + 0.5 * np.sin(rows), 0.6 + 0.4 * np.cos(columns), np.zeros_like(rows)], axis=-1)
    return np.round(255 * np.exp(-density @ STAIN_RGB)).astype(np.uint8)


@pytest.mark.parametrize("shift", ALL, ids=str)
def test_a_shift_keeps_the_size_and_is_the_same_each_time(shift, tissue):
    changed = shift.apply(tissue)
    assert (changed.shape, changed.dtype) == (tissue.shape, np.uint8)
    assert (shift.apply(tissue) == changed).all()
    assert shift.strength == STRENGTHS[shift.name][shift.level - 1]


@pytest.mark.parametrize("name", STRENGTHS)
def test_a_higher_level_changes_more(name):
    noise = np.random.default_rng(0).integers(60, 200, (64, 64, 3)).astype(np.uint8)
    changes = [np.abs(Shift(name, level).apply(noise).astype(int) - noise).mean() for level in LEVELS]
    assert 0 < changes[0] < changes[1] < changes[2]
    assert MEANINGS[name]


@pytest.mark.parametrize("name", ["blur", "resolution", "jpeg"])
def test_what_is_of_one_colour_stays_as_it_is(name):
    flat = np.full((32, 32, 3), (200, 120, 160), np.uint8)
    for level in LEVELS:
        assert np.abs(Shift(name, level).apply(flat).astype(int) - flat).max() <= (8 if name == "jpeg" else 0)


def test_stains_are_scaled_as_the_strength_says(tissue):
    changed = Shift("haematoxylin", 2).apply(tissue)
    before, after = (-np.log(np.maximum(image, 1) / 255) @ np.linalg.inv(STAIN_RGB) for image in (tissue, changed))
    assert np.allclose(after[..., 0], 1.2 * before[..., 0], atol=0.04)
    assert np.allclose(after[..., 1], 0.8 * before[..., 1], atol=0.04)
    turned = Shift("eosin", 2).apply(tissue)
    assert np.allclose((-np.log(np.maximum(turned, 1) / 255) @ np.linalg.inv(STAIN_RGB))[..., 0], 0.8 * before[..., 0],
                       atol=0.04)  # fmt: skip


def test_gamma_keeps_black_and_white_and_darkens_between():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None].repeat(3, axis=2)
    changed = Shift("gamma", 3).apply(levels)
    assert (changed == np.round(levels.astype(float) ** 2 / 255).astype(np.uint8)).all()


def test_shifted_images_stand_for_their_source(tmp_path, tissue):
    import cv2

    cv2.imwrite(str(tmp_path / "a.png"), tissue[..., ::-1])
    source = ImageFiles([tmp_path / "a.png"], mpp=0.5)
    shifted = pickle.loads(pickle.dumps(ShiftedImages(source, Shift("blur", 1))))
    assert (len(shifted), shifted.mpp, shifted.name(0)) == (1, 0.5, source.name(0))
    assert (shifted.read_image(0) == Shift("blur", 1).apply(tissue)).all()
    assert shifted.read_bytes(0) != source.read_bytes(0)
    assert shifted.digest != source.digest

import numpy as np
import pytest
import torch

from dino_path.evaluation.labelled import images
from dino_path.evaluation.labelled.images import SquareImages, augment, image_edge_px
from dino_path.tiles.images import ImageFiles


@pytest.fixture
def source(class_folders):
    return ImageFiles(sorted(class_folders.rglob("*.png")))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_images_kept_and_images_decoded_anew_are_the_same(source, monkeypatch):
    orders = [np.array([3, 1, 35]), np.array([0]), *np.array_split(np.arange(36), 9)]
    kept = list(SquareImages(source, 12, num_workers=2).batches(orders))
    monkeypatch.setattr(images, "MAX_KEPT_BYTES", 0)
    again = list(SquareImages(source, 12, num_workers=2).batches(orders))
    assert [batch.shape for batch in kept[:2]] == [(3, 12, 12, 3), (1, 12, 12, 3)]
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_the_edge_is_the_shorter_side_of_the_first_image(source):
    assert image_edge_px(source) == 16


def test_augmentation_repeats_with_its_seed_and_stays_in_range():
    batch = torch.rand(16, 3, 8, 8, generator=generator())
    first, again = augment(batch, generator(1)), augment(batch, generator(1))
    assert torch.equal(first, again)
    assert not torch.equal(first, augment(batch, generator(2)))
    assert first.min() >= 0
    assert first.max() <= 1


def test_all_eight_flips_and_turns_occur_and_nothing_else(monkeypatch):
    for name in ("BRIGHTNESS", "CONTRAST", "CHANNEL"):
        monkeypatch.setattr(images, name, 0.0)
    picture = torch.arange(12.0).reshape(3, 2, 2).div(12)
    turned = augment(picture.expand(200, -1, -1, -1), generator())
    wanted = {
        tuple(np.round(variant.flatten().tolist(), 5))
        for turn in range(4)
        for variant in (picture.rot90(turn, (1, 2)), picture.rot90(turn, (1, 2)).flip(2))
    }
    assert {tuple(np.round(image.flatten().tolist(), 5)) for image in turned} == wanted
    assert len(wanted) == 8


def test_colour_jitter_scales_channels_within_the_stated_ranges(monkeypatch):
    monkeypatch.setattr(images, "CONTRAST", 0.0)
    factors = augment(torch.full((500, 3, 2, 2), 0.5), generator())[:, :, 0, 0] / 0.5
    assert factors.min() >= 0.8 * 0.9 - 1e-5
    assert factors.max() <= 1.2 * 1.1 + 1e-5
    assert factors.std(dim=1).mean() > 0.02  # channels move on their own
    assert factors.mean() == pytest.approx(1, abs=0.02)

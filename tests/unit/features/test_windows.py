"""Patch vectors of whole images against windows cut by hand, and against colours computed with numpy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from frozen_models import MEAN, STD, write_guide

from dino_path.errors import ConfigError
from dino_path.features.extractor import Extractor, load_extractor
from dino_path.features.windows import WindowModel, resized, window_models

CPU = torch.device("cpu")


def image_of(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def ready(*extractors: Extractor, scale: float = 1.0, input_px: int | None = None) -> list[WindowModel]:
    return window_models(list(extractors), CPU, scale=scale, input_px=input_px, batch_size=3)


@pytest.fixture
def vit(tmp_path: Path) -> Extractor:
    """Windows of 24 px, patches of 4 px."""
    return load_extractor(str(write_guide(tmp_path / "vit")), device=CPU)


def tokens_by_hand(extractor: Extractor, window: np.ndarray) -> np.ndarray:
    """Patch tokens (6, 6, D) of a window of 24 px by timm's own method."""
    pixels = torch.from_numpy(window).permute(2, 0, 1)[None] / 255
    normalised = (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        return extractor.backbone.forward_features(normalised)[0, 1:].reshape(6, 6, -1).numpy()


def test_an_image_of_two_windows_has_the_tokens_of_both(vit: Extractor) -> None:
    (model,) = ready(vit)
    image = image_of(24, 48)
    patches = model.patches(image)
    assert (model.window_px, model.patch_px, patches.shape[:2]) == (24, 4, (6, 12))
    assert patches[:, :6] == pytest.approx(tokens_by_hand(vit, image[:, :24]), abs=1e-5)
    assert patches[:, 6:] == pytest.approx(tokens_by_hand(vit, image[:, 24:]), abs=1e-5)


def test_where_windows_overlap_a_patch_is_of_the_window_whose_centre_is_nearest(vit: Extractor) -> None:
    """32 px are 8 patches: windows begin at patch 0 and 2, and their centres lie at patch 3 and 5."""
    (model,) = ready(vit)
    image = image_of(24, 32)
    patches = model.patches(image)
    assert patches[:, :4] == pytest.approx(tokens_by_hand(vit, image[:, :24])[:, :4], abs=1e-5)
    assert patches[:, 4:] == pytest.approx(tokens_by_hand(vit, image[:, 8:])[:, 2:], abs=1e-5)


@pytest.mark.parametrize("shape", [(24, 24), (5, 7), (25, 50), (61, 24)])
def test_every_patch_that_holds_a_part_of_the_image_has_a_vector(vit: Extractor, shape: tuple[int, int]) -> None:
    (model,) = ready(vit)
    assert model.patches(image_of(*shape)).shape == (-(-shape[0] // 4), -(-shape[1] // 4), 48)


def test_colour_controls_have_the_smallest_patches_beside_them(vit: Extractor, tmp_path: Path) -> None:
    colour = load_extractor("mean-colour", device=CPU)
    large = load_extractor(str(write_guide(tmp_path / "large", model_args={
        "img_size": 16, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 2})), device=CPU)  # fmt: skip
    assert [model.patch_px for model in ready(colour, large, vit)] == [4, 8, 4]
    (alone,) = ready(colour)
    image = image_of(32, 48)
    means = image.reshape(2, 16, 3, 16, 3).mean(axis=(1, 3)) / 255
    assert alone.patch_px == 16
    assert alone.patches(image)[..., :3] == pytest.approx(means, abs=1e-5)


SWIN = {"img_size": 64, "window_size": 2, "embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}


@pytest.mark.parametrize(("architecture", "arguments"), [("resnet18", {}), ("swin_tiny_patch4_window7_224", SWIN)])
def test_a_cnn_or_a_swin_gives_its_last_map(architecture: str, arguments: dict[str, object], tmp_path: Path) -> None:
    """Pooled by both networks as the mean of this map, and nothing more."""
    folder = write_guide(tmp_path / "network", architecture=architecture, model_args=arguments)
    extractor = load_extractor(str(folder), device=CPU)
    (model,) = ready(extractor, input_px=64)
    image = image_of(64, 128)
    patches = model.patches(image)
    assert (model.patch_px, patches.shape) == (32, (2, 4, extractor.num_features))
    features = model.forward(torch.from_numpy(image[None, :, :64].copy()))[0]
    assert patches[:, :2].mean(axis=(0, 1)) == pytest.approx(features, abs=1e-4)


def test_a_window_that_is_no_whole_number_of_patches_is_refused(vit: Extractor) -> None:
    with pytest.raises(ConfigError) as refusal:
        ready(vit, input_px=25)
    assert "evaluation.input_px=25" in str(refusal.value)
    assert "multiple" in refusal.value.remedy


def test_a_scale_of_2_doubles_the_grid_and_sees_the_enlarged_image(vit: Extractor) -> None:
    (model,), (plain,) = ready(vit, scale=2.0), ready(vit)
    image = image_of(24, 30)
    assert model.patches(image).shape[:2] == (12, 15)
    assert np.array_equal(model.patches(image), plain.patches(resized(image, 2.0)))

"""The device path shows the same views as the CPU path, image by image: only rounding differs."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import tile_image, tiny_batches, tiny_config

from dino_path.config import ViewsConfig
from dino_path.views.device import finish_views, pack
from dino_path.views.parameters import ViewParameters, draw_views
from dino_path.views.rendering import crop_and_resize, render_view

CPU = torch.device("cpu")
EDGE = 64
PLAIN = ViewParameters(
    x=0, y=0, width=EDGE, height=EDGE, size_px=EDGE, dihedral=0, stain_scale=None, stain_bias=None, colour_order=None,
    brightness=1, contrast=1, saturation=1, hue=0, is_grey=False, blur_sigma_px=None, is_solarized=False,
)  # fmt: skip
STAINED = replace(PLAIN, stain_scale=(1.2, 0.85, 1.1), stain_bias=(0.02, -0.01, 0.01))
JITTERED = replace(PLAIN, colour_order=(2, 0, 3, 1), brightness=1.3, contrast=0.7, saturation=1.2, hue=0.0)


def on_device(tile: NDArray[np.uint8], views: list[ViewParameters]) -> NDArray[np.float32]:
    """Views of one size of one tile, (N, H, H, 3) in grey levels."""
    cropped = torch.from_numpy(np.stack([crop_and_resize(tile, view) for view in views]))
    finished = finish_views(cropped, torch.tensor([pack(view) for view in views]), CPU)
    assert finished.dtype == torch.float32
    return 255 * finished.permute(0, 2, 3, 1).numpy()


def distance(tile: NDArray[np.uint8], views: list[ViewParameters]) -> NDArray[np.float64]:
    """Mean absolute difference of each view from the CPU path's, in grey levels."""
    expected = np.stack([render_view(tile, view) for view in views])
    return np.asarray(np.abs(on_device(tile, views) - expected).mean((1, 2, 3)))


@pytest.mark.parametrize(
    ("views", "tolerance"),
    [
        ([replace(PLAIN, dihedral=number) for number in range(8)], 0.0),
        ([STAINED, PLAIN], 0.3),
        ([JITTERED, PLAIN, replace(JITTERED, colour_order=(0, 1, 2, 3)), replace(JITTERED, contrast=1.4)], 0.5),
        ([replace(JITTERED, hue=0.05), replace(JITTERED, hue=-0.1)], 0.8),
        ([replace(PLAIN, is_grey=True), PLAIN], 0.3),
        ([replace(PLAIN, blur_sigma_px=sigma) for sigma in (0.1, 0.5, 1.0, 2.0)], 0.3),
        ([replace(PLAIN, is_solarized=True), PLAIN], 0.01),
    ],
    ids=["turns", "stain", "colour", "hue", "grey", "blur", "solarisation"],
)
def test_each_operation_does_on_the_device_what_it_does_on_the_cpu(
    views: list[ViewParameters], tolerance: float
) -> None:
    tile = tile_image(4, EDGE)
    untouched = [np.array_equal(render_view(tile, view), tile) for view in views]
    assert not all(untouched)
    assert distance(tile, views).max() <= tolerance + 1e-4


@pytest.mark.parametrize("recipe", ["histology", "dino"])
def test_whole_views_differ_by_a_grey_level_in_the_mean_from_those_of_the_cpu(recipe: str) -> None:
    """The CPU path rounds to grey levels after each operation, and computes hues in 8 bits."""
    config = ViewsConfig.model_validate({"recipe": recipe, "global_px": 48, "local_px": 24, "num_local": 3})
    for sizes in (slice(0, 2), slice(2, None)):
        distances = []
        for number in range(40):
            tile = tile_image(number, 96)
            views = draw_views(config, tile_width=96, tile_height=96, seed=0, epoch=0, tile=number)[sizes]
            distances.append(distance(tile, views))
        assert np.mean(distances) <= 0.8
        assert np.max(distances) <= 2.5


def test_a_batch_shows_the_same_views_on_either_path(tiles_folder: Path) -> None:
    finished = tiny_batches(tiny_config(tiles_folder, Path("unused"))).batch(1)
    halfway = tiny_batches(tiny_config(tiles_folder, Path("unused"), "views.colour_on_device=true")).batch(1)
    assert torch.equal(finished.tiles, halfway.tiles)
    for name in ("global", "local"):
        expected, views = getattr(finished, f"{name}_views"), getattr(halfway, f"{name}_views")
        assert not torch.equal(expected, views)
        one = finish_views(expected, getattr(finished, f"{name}_parameters"), CPU)
        other = finish_views(views, getattr(halfway, f"{name}_parameters"), CPU)
        assert float((one - other).abs().mean()) <= 1 / 255


def test_a_view_does_not_depend_on_its_neighbours_in_the_batch() -> None:
    tile = tile_image(1, 96)
    config = ViewsConfig.model_validate({"recipe": "dino", "global_px": 48, "num_local": 0})
    views = [
        view
        for number in range(12)
        for view in draw_views(config, tile_width=96, tile_height=96, seed=0, epoch=0, tile=number)
    ]
    together = on_device(tile, views)
    for number, view in enumerate(views):
        assert np.abs(on_device(tile, [view])[0] - together[number]).max() < 0.01


def test_finishing_touches_neither_its_input_nor_a_random_state() -> None:
    views = [replace(STAINED, blur_sigma_px=1.0), JITTERED]
    cropped = torch.from_numpy(np.stack([crop_and_resize(tile_image(0, EDGE), view) for view in views]))
    before, parameters = cropped.clone(), torch.tensor([pack(view) for view in views])
    packed = parameters.clone()
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
    finish_views(cropped, parameters, CPU)
    assert torch.equal(cropped, before)
    assert torch.equal(parameters, packed)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (np.random.get_state()[1].tolist(), random.getstate())  # type: ignore[index]

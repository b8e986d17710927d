"""Colours of patch tokens against scikit-learn's PCA, and attention as the page gets it."""

import base64
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from frozen_models import write_guide
from sklearn.decomposition import PCA

from dino_path.features.extractor import load_extractor
from dino_path.tiles.store import TileStore
from dino_path.viewing.patch_maps import PatchMaps, TokenColours

CPU = torch.device("cpu")


def test_colours_are_the_first_three_principal_components() -> None:
    random = np.random.default_rng(0)
    tokens_ND = (random.standard_normal((500, 8)) * [9, 5, 3, 1, 1, 1, 1, 1]).astype(np.float32) + 4
    colours = TokenColours.of(tokens_ND)
    reference = PCA(n_components=3).fit(tokens_ND)
    assert colours.variance == pytest.approx(reference.explained_variance_ratio_, rel=1e-4)
    assert np.abs(np.sum(colours.components * reference.components_, axis=1)) == pytest.approx([1, 1, 1], abs=1e-4)
    largest = np.abs(colours.components).argmax(axis=1)
    assert (colours.components[np.arange(3), largest] > 0).all()
    painted = colours.paint(tokens_ND, (20, 25))
    scores = (tokens_ND - tokens_ND.mean(axis=0)) @ colours.components.T
    low, high = np.percentile(scores, (1, 99), axis=0)
    expected = np.clip((scores - low) / (high - low), 0, 1).reshape(20, 25, 3) * 255
    assert np.abs(painted - expected).max() <= 1


@pytest.fixture(scope="module")
def maps(view_store: Path, tmp_path_factory: pytest.TempPathFactory) -> PatchMaps:
    folder = write_guide(tmp_path_factory.mktemp("models") / "vit", mpp=0.5)
    return PatchMaps(load_extractor(str(folder), device=CPU), TileStore.open(view_store), CPU)


def test_a_vit_has_tokens_and_attention_at_several_sizes(maps: PatchMaps) -> None:
    assert (maps.no_tokens, maps.no_attention) == ("", "")
    assert (maps.fields, maps.num_heads) == ((1, 2, 3, 4), 2)
    assert maps.colours_of(3).shape == (6, 6, 3)
    assert np.array_equal(maps.colours_of(3), maps.colours_of(3))
    assert maps.attention_of(3).shape == (6, 6, 4)


def test_attention_comes_per_head_of_cls_and_of_the_point(maps: PatchMaps) -> None:
    image = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    found = maps.attention(image, 2, (0.9, 0.1))
    assert [(one["of"], one["head"]) for one in found] == [(of, head) for of in ("cls", "point") for head in (0, 1, 2)]
    for one in found:
        for name in ("weights", "mass"):
            encoded = base64.b64decode(one[name].removeprefix("data:image/png;base64,"))
            assert cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED).shape == (12, 12, 4)
        assert 0 < one["mass_share"] <= 0.61
        assert one["largest"] >= 0.99 * 144 / 145


@pytest.mark.parametrize("spec", ["resnet", "mean-colour"])
def test_what_has_no_patches_says_so(spec: str, view_store: Path, tmp_path: Path) -> None:
    name = spec
    if spec == "resnet":
        name = str(write_guide(tmp_path / "resnet", architecture="resnet10t"))
    maps = PatchMaps(load_extractor(name, device=CPU), TileStore.open(view_store), CPU)
    assert "has no patch tokens" in maps.no_tokens
    assert "no [CLS] token whose attention could be shown" in maps.no_attention
    assert maps.fields == ()

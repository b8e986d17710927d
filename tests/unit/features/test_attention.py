"""Attention maps: their numbers against a slow reference, and the pictures."""

import itertools
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from feature_samples import CPU, write_model_folder
from slide_files import stained_image, write_slide_file

from dino_path.errors import CheckpointError, ConfigError
from dino_path.features.attention import (
    CAPTION_PX,
    GAP_PX,
    PANEL_PX,
    attention_sheet,
    draw_attention,
    draw_region_attention,
    mass_mask,
)
from dino_path.features.extractor import load_extractor
from dino_path.model.attention import LastAttention, last_attention
from dino_path.model.backbone import build_backbone
from dino_path.slides.slide import Slide

NAME = "vit_tiny_patch16_224"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize("arguments", [{}, {"locality_self_attention": True}, {"reg_tokens": 3}], ids=str)
def test_the_weights_are_those_that_mix_the_values(arguments: dict[str, bool | int]) -> None:
    """With them the attention's own output follows from the values, token by token."""
    torch.manual_seed(0)
    backbone = build_backbone(NAME, {**SMALL, **arguments}).eval()
    images = torch.randn(2, 3, 40, 48)
    attention = backbone.blocks[-1].attn
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    attention.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    found = last_attention(backbone, images, name="tiny")
    tokens, expected = seen[0]
    assert (found.grid, found.num_prefix) == ((5, 6), 1 + arguments.get("reg_tokens", 0))
    with torch.inference_mode():
        values = attention.qkv(tokens)[..., 48:].unflatten(2, (2, 12))  # (B, N, heads, 12)
        mixed = torch.stack(
            [sum(found.weights[:, :, n, m, None] * values[:, m] for m in range(tokens.shape[1])) for n in range(4)],
            dim=1,
        )
        torch.testing.assert_close(attention.proj(mixed.flatten(2)), expected[:, :4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.weights.sum(dim=-1), torch.ones(2, 2, tokens.shape[1]))
    if "locality_self_attention" in arguments:
        assert (found.weights.diagonal(dim1=2, dim2=3) == 0).all()


def test_maps_lie_on_the_grid_row_by_row_without_the_prefix() -> None:
    backbone = build_backbone(NAME, {**SMALL, "reg_tokens": 3}).eval()
    found = last_attention(backbone, torch.randn(1, 3, 40, 48), name="tiny")
    assert found.of_cls().shape == (1, 2, 5, 6)
    assert torch.equal(found.of_cls()[0, 1, 2, 3], found.weights[0, 1, 0, 4 + 2 * 6 + 3])
    assert torch.equal(found.of_patch(4, 5)[0, 0, 0, 1], found.weights[0, 0, 4 + 29, 4 + 1])


def test_a_cnn_has_no_attention_to_show() -> None:
    with pytest.raises(CheckpointError, match=r"is a ResNet: it has no \[CLS\] token"):
        last_attention(build_backbone("resnet18", {}), torch.zeros(1, 3, 64, 64), name="cnn")


def test_every_image_becomes_a_sheet_of_its_heads_and_points(model_folder: Path, tmp_path: Path) -> None:
    for name in ("x/tile.png", "y/tile.png"):
        (tmp_path / name).parent.mkdir()
        cv2.imwrite(str(tmp_path / name), np.full((50, 50, 3), 180, np.uint8))
    extractor = load_extractor(str(model_folder), device=CPU)
    images = [tmp_path / "x/tile.png", tmp_path / "y/tile.png"]
    files = [sheet.file for sheet in draw_attention(extractor, images, tmp_path / "out", edge_px=48)]
    assert [file.name for file in files] == ["000_tile.png", "001_tile.png"]
    sheet = cv2.imread(str(files[0]))
    assert sheet.shape == (3 * (PANEL_PX + CAPTION_PX), 6 * (PANEL_PX + GAP_PX), 3)
    assert (sheet[:PANEL_PX, :PANEL_PX] == 180).all()


def test_a_map_is_bright_where_the_weight_is() -> None:
    weights = torch.zeros(1, 2, 37, 37)
    weights[0, :, 0, 1 + 2 * 6 + 3] = 1  # all of [CLS]'s attention on the patch in row 2, column 3 of six
    weights[0, :, 1:, 1:] = 1 / 36
    sheet = attention_sheet(np.full((48, 48, 3), 180, np.uint8), LastAttention(weights, 1, (6, 6)))
    map_panel = sheet[:PANEL_PX, PANEL_PX + GAP_PX :][:, :PANEL_PX].astype(int)
    patch_px = PANEL_PX / 6
    is_coloured = (map_panel != 180).any(axis=2)  # elsewhere the image is as it was
    rows, columns = np.nonzero(is_coloured)
    assert is_coloured.mean() == pytest.approx(1 / 36, rel=0.1)
    assert (rows.mean() / patch_px, columns.mean() / patch_px) == pytest.approx((2.5, 3.5), abs=0.1)


@pytest.mark.parametrize(("largest", "is_drawn"), [(1.4, False), (1.6, True)])
def test_even_attention_is_not_drawn(largest: float, is_drawn: bool) -> None:
    weights = torch.full((1, 2, 37, 37), 1 / 36)
    weights[0, :, 0, 1 + 2 * 6 + 3] = largest / 36
    sheet = attention_sheet(np.full((48, 48, 3), 180, np.uint8), LastAttention(weights, 1, (6, 6)))
    panels = sheet[:PANEL_PX, PANEL_PX + GAP_PX :]
    assert bool((panels[:, :PANEL_PX] != 180).any()) == is_drawn


def test_an_edge_that_the_model_does_not_take_is_refused(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "tile.png"), np.full((50, 50, 3), 180, np.uint8))
    extractor = load_extractor(str(write_model_folder(tmp_path / "m" / "tiny")), device=CPU)
    with pytest.raises(ConfigError, match="--px 45"):
        draw_attention(extractor, [tmp_path / "tile.png"], tmp_path / "out", edge_px=45)


@pytest.mark.parametrize(
    ("mass", "expected"),
    [(0.4, [0, 0, 0, 1]), (0.5, [0, 0, 1, 1]), (0.7, [0, 0, 1, 1]), (0.71, [0, 1, 1, 1]), (1.0, [1, 1, 1, 1])],
)
def test_the_fewest_patches_that_hold_the_mass_are_marked(mass: float, expected: list[int]) -> None:
    weights = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32) * 0.9  # the prefix tokens hold the rest
    assert mass_mask(weights, mass).ravel().tolist() == [bool(one) for one in expected]
    every = [
        chosen for size in range(1, 5) for chosen in itertools.combinations(range(4), size)
        if weights.ravel()[[*chosen]].sum() >= mass * weights.sum() - 1e-6
    ]  # fmt: skip
    assert sum(expected) == min(map(len, every))


def test_the_middle_row_fades_what_holds_little_and_points_are_those_that_are_given() -> None:
    weights = torch.full((1, 2, 37, 37), 1 / 36)
    weights[0, :, 0] = 0.01
    weights[0, :, 0, 1 + 2 * 6 + 3] = 0.9
    sheet = attention_sheet(np.full((48, 48, 3), 100, np.uint8), LastAttention(weights, 1, (6, 6)), [(0.99, 0.99)], 0.6)
    assert sheet.shape[1] == 4 * (PANEL_PX + GAP_PX)
    middle = sheet[PANEL_PX + CAPTION_PX :][:PANEL_PX, PANEL_PX + GAP_PX :][:, :PANEL_PX]
    assert (middle == 100).all(axis=2).mean() == pytest.approx(1 / 36, rel=0.1)
    assert middle[0, 0].tolist() == [216, 216, 216]


def test_a_region_of_a_slide_is_seen_at_the_mpp_of_the_training(tmp_path: Path) -> None:
    image = stained_image(600, 500)
    extractor = load_extractor(str(write_model_folder(tmp_path / "m" / "tiny", mpp=0.5)), device=CPU)
    extractor = replace(extractor, preprocessing=replace(extractor.preprocessing, tile_px=64))  # 32 px see 1 um/px
    with Slide.open(write_slide_file(tmp_path / "s.tif", [image], mpp=0.5)) as slide:
        (sheet,) = draw_region_attention(extractor, slide, [(100, 50, 192)], tmp_path / "out", edge_px=None)
        assert sheet.file.name == "s_100_50_192.png"
        assert (sheet.edge_px, sheet.seen_mpp) == (96, 1.0)
        shown = cv2.imread(str(sheet.file))[:PANEL_PX, :PANEL_PX, ::-1]
        expected = cv2.resize(
            cv2.resize(image[50:242, 100:292], (96, 96), interpolation=cv2.INTER_AREA), (PANEL_PX, PANEL_PX)
        )
        assert np.abs(shown.astype(int) - expected).mean() < 3
        (sheet,) = draw_region_attention(extractor, slide, [(0, 0, 192)], tmp_path / "out", edge_px=48)
        assert (sheet.edge_px, sheet.seen_mpp) == (48, 2.0)
        with pytest.raises(ConfigError, match=r"is outside s\.tif"):
            draw_region_attention(extractor, slide, [(600, 0, 64)], tmp_path / "out", edge_px=None)
        with pytest.raises(ConfigError, match="it has 3,000 x 3,000 px"):
            draw_region_attention(extractor, slide, [(0, 0, 6000)], tmp_path / "out", edge_px=None)

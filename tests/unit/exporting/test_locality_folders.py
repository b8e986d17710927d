"""Model folders of ViTs with Shifted Patch Tokenization or Locality Self-Attention, which timm alone cannot build."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from tiny import ALONE, tiny_config

from dino_path.errors import CheckpointError
from dino_path.exporting.checkpoint import export_checkpoint
from dino_path.exporting.model_folder import ExportResult, ExportSource, export_model
from dino_path.features.extractor import load_extractor
from dino_path.model.backbone import build_backbone
from dino_path.preprocessing import Preprocessing
from dino_path.training.loop import pretrain

NAME = "vit_tiny_patch16_224"
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
BOTH = {"shifted_patch_tokenization": True, "locality_self_attention": True}
CPU = torch.device("cpu")


def exported(switches: dict[str, bool], out: Path) -> ExportResult:
    torch.manual_seed(0)
    arguments = {**SMALL, **switches}
    state = build_backbone(NAME, arguments).state_dict()
    source = ExportSource(NAME, arguments, state, Preprocessing((0.7, 0.5, 0.6), (0.2, 0.25, 0.3), 32, mpp=0.5))
    return export_model(source, out)


@pytest.fixture(params=[{key: True} for key in BOTH], ids=list(BOTH))
def folder(request: pytest.FixtureRequest, tmp_path: Path, reload_here: None) -> Path:
    return exported(request.param, tmp_path / "local").folder


@pytest.mark.slow
def test_the_export_is_checked_by_loading_it_with_dino_path_in_a_fresh_process(tmp_path: Path) -> None:
    result = exported(BOTH, tmp_path / "local")
    assert result.reload.loader == "dino_path"
    assert "reloaded by dino_path" in result.text()


def test_a_model_folder_gives_back_the_features(folder: Path) -> None:
    arguments = json.loads((folder / "config.json").read_text())["model_args"]
    backbone = build_backbone(NAME, arguments).eval()
    backbone.load_state_dict(load_file(folder / "model.safetensors"))
    images = torch.randn(2, 3, 48, 48)
    extractor = load_extractor(str(folder), device=CPU)
    with torch.inference_mode():
        torch.testing.assert_close(extractor.module(images), backbone(images))
    assert load_extractor(f"untrained:{folder}", device=CPU).num_features == 24


@pytest.mark.parametrize("keywords", [{}, {"num_classes": 3}], ids=["as it is", "with a classifier"])
def test_timm_refuses_the_folder_loudly(folder: Path, keywords: dict[str, int]) -> None:
    """With a classifier timm loads weights loosely: missing and surplus ones would pass without a word."""
    with pytest.raises(TypeError, match=r"unexpected keyword argument '(shifted_patch|locality_self)"):
        timm.create_model(f"local-dir:{folder}", pretrained=True, **keywords)


def test_a_plain_vit_does_not_take_the_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"patch_embed|inverse_temperature"):
        timm.create_model(NAME, num_classes=0, **SMALL).load_state_dict(weights, strict=True)
    config = json.loads((folder / "config.json").read_text())
    for key in BOTH:
        config["model_args"].pop(key, None)
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="do not fit"):
        load_extractor(str(folder), device=CPU)


def test_the_card_says_how_to_load_it_and_its_snippet_works(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert "timm cannot load this model" in card
    (snippet,) = card.split("```python\n")[1:]
    names: dict[str, Any] = {}
    exec(snippet.split("```")[0].replace("FOLDER", str(folder)), names)
    assert names["features"].shape == (1, 24)


@pytest.mark.usefixtures("reload_here")
def test_a_pretrained_vit_with_both_is_exported_from_its_run(tiles_folder: Path, tmp_path: Path) -> None:
    switches = [f"model.{key}=true" for key in BOTH]
    checkpoint = pretrain(tiny_config(tiles_folder, tmp_path / "run", "training.num_steps=2", *switches), ALONE)
    weights = torch.load(checkpoint, weights_only=True)["teacher"]["backbone"]
    export_checkpoint(tmp_path / "run", tmp_path / "model")
    module = load_extractor(str(tmp_path / "model"), device=CPU).module
    assert {key: tensor.shape for key, tensor in module.state_dict().items()} == {
        key: tensor.shape for key, tensor in weights.items()
    }
    temperature = "blocks.1.attn.inverse_temperature"
    assert torch.equal(module.state_dict()[temperature], weights[temperature])

"""Model folders that give another kind of features than timm pools: config, card, timm, and graphs."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_model_folder import ARCHITECTURE, ARGUMENTS, source, write_run

from dino_path.errors import CheckpointError
from dino_path.exporting.checkpoint import export_checkpoint
from dino_path.exporting.model_folder import export_model
from dino_path.features.extractor import load_extractor
from dino_path.model.backbone import build_backbone
from dino_path.preprocessing import Preprocessing
from dino_path.records.feature_kinds import FeatureKind

CPU = torch.device("cpu")


@torch.inference_mode()
def features_of_source(kind: FeatureKind, images: torch.Tensor) -> torch.Tensor:
    backbone = build_backbone(ARCHITECTURE, ARGUMENTS).eval()
    backbone.load_state_dict(dict(source().state_dict))
    tokens = backbone.forward_features(images)  # type: ignore[operator]
    parts = {"cls": tokens[:, 0], "mean": tokens[:, 1:].mean(dim=1)}
    return torch.cat([parts[part] for part in kind.split("+")], dim=1)


@pytest.mark.usefixtures("reload_here")
@pytest.mark.parametrize(("kind", "num_features"), [("mean", 24), ("cls+mean", 48)])
def test_the_folder_names_its_kind_and_the_card_says_how_timm_gives_it(
    kind: FeatureKind, num_features: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = export_model(replace(source(), features=kind), tmp_path / "model")
    assert (result.features, result.num_features, result.reload.loader) == (kind, num_features, "timm")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert (config["features"], config["num_features"]) == (kind, num_features)
    pooled = {"global_pool": "avg", "fc_norm": False} if kind == "mean" else {}
    assert config["model_args"] == {"dynamic_img_size": True, **ARGUMENTS, **pooled}
    images = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        given = load_extractor(str(tmp_path / "model"), device=CPU).module(images)
    torch.testing.assert_close(given, features_of_source(kind, images), rtol=1e-5, atol=1e-6)
    card = (tmp_path / "model" / "README.md").read_text()
    words = {"mean": "the mean of the patch tokens", "cls+mean": "the [CLS] token, then the mean of the patch tokens"}
    assert f"It turns a tile into {num_features} features: {words[kind]}." in card
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40), (200, 120, 180)).save("tile.png")
    values: dict[str, torch.Tensor] = {}
    exec(re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0].replace("FOLDER", "model"), values)
    assert values["features"].shape == (1, num_features)


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_graphs_give_the_kind_and_do_not_stay_beside_another(tmp_path: Path) -> None:
    both = replace(source(), features="cls+mean")
    result = export_model(both, tmp_path / "model", formats=("timm", "onnx", "pt2"))
    assert max(result.graphs.values()) <= 1e-4
    assert {*result.graphs} == {"onnx", "pt2"}
    assert "model.onnx, of the same weights, stays" in export_model(both, tmp_path / "model").text()
    assert "model.onnx, model.pt2 of that model were deleted" in export_model(source(), tmp_path / "model").text()


@pytest.mark.usefixtures("reload_here")
def test_a_graph_beside_a_folder_that_names_no_kind_is_of_the_kind_that_timm_pools(tmp_path: Path) -> None:
    export_model(source(), tmp_path)
    tree = json.loads((tmp_path / "config.json").read_text())
    assert tree.pop("features") == "cls"
    (tmp_path / "config.json").write_text(json.dumps({**tree, "format_version": 1}))
    (tmp_path / "model.onnx").write_bytes(b"of these weights")
    assert "model.onnx, of the same weights, stays" in export_model(source(), tmp_path).text()


@pytest.mark.usefixtures("reload_here")
def test_a_run_exports_the_kind_that_is_asked_for(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    assert export_checkpoint(tmp_path / "run", tmp_path / "model", features="cls+mean").num_features == 48


def test_a_cnn_has_one_kind_and_a_refusal_leaves_nothing_behind(tmp_path: Path) -> None:
    weights = build_backbone("resnet10t", {}).state_dict()
    known = Preprocessing((0.7, 0.5, 0.6), (0.2, 0.25, 0.3), 64)
    cnn = replace(source(), backbone="resnet10t", arguments={}, state_dict=weights, preprocessing=known)
    with pytest.raises(CheckpointError, match="is a ResNet: it has no patch tokens, but features mean are requested"):
        export_model(replace(cnn, features="mean"), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []

"""The backbones that the README promises: they build, take both sizes of views, and their folders give them back."""

from pathlib import Path

import pytest
import timm
import torch
from timm.layers import DropPath
from timm.models import save_for_hf

from dino_path.errors import ConfigError
from dino_path.exporting.model_folder import ExportSource, export_model
from dino_path.features.extractor import load_extractor
from dino_path.model.backbone import Argument, build_backbone, check_input_sizes
from dino_path.preprocessing import Preprocessing

SHALLOW: dict[str, Argument] = {"depth": 2}
BACKBONES: list[tuple[str, dict[str, Argument], tuple[int, int]]] = [
    *((f"vit_{size}_patch16_224", SHALLOW, (224, 96)) for size in ("tiny", "small", "base")),
    ("vit_small_patch8_224", {**SHALLOW, "img_size": 112}, (112, 48)),
    ("vit_base_patch8_224", {**SHALLOW, "img_size": 112}, (112, 48)),
    ("vit_small_patch16_224", {**SHALLOW, "patch_size": 14}, (224, 98)),
    ("vit_small_patch14_dinov2", {**SHALLOW, "img_size": 224}, (224, 98)),
    ("vit_small_patch14_reg4_dinov2", {**SHALLOW, "img_size": 224}, (224, 98)),
    ("vit_large_patch16_224", {"depth": 1}, (224, 96)),
    ("vit_tiny_patch16_224", {**SHALLOW, "reg_tokens": 4, "init_values": 1e-5}, (224, 96)),
    ("resnet50", {}, (112, 48)),
    ("convnext_atto", {}, (112, 48)),
    ("swin_tiny_patch4_window7_224", {"strict_img_size": False}, (224, 96)),
]


def label(value: object) -> str:
    return str(value).replace(" ", "")


@pytest.mark.parametrize(("name", "arguments", "sizes_px"), BACKBONES, ids=label)
@pytest.mark.usefixtures("reload_here")
def test_a_backbone_takes_both_sizes_of_views_and_comes_back_from_its_folder(
    name: str, arguments: dict[str, Argument], sizes_px: tuple[int, int], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, arguments, drop_path_rate=0.1).eval()
    check_input_sizes(backbone, name, sizes_px)
    source = ExportSource(
        backbone=name,
        arguments=arguments,
        state_dict=backbone.state_dict(),
        preprocessing=Preprocessing((0.7, 0.5, 0.6), (0.2, 0.25, 0.3), sizes_px[0], mpp=0.5),
    )
    assert export_model(source, tmp_path / "model").reload.loader == "timm"
    module = load_extractor(str(tmp_path / "model"), device=torch.device("cpu")).module
    for edge_px in sizes_px:
        images = torch.randn(2, 3, edge_px, edge_px)
        with torch.inference_mode():
            features = module(images)
            torch.testing.assert_close(features, backbone(images))
        assert features.shape == (2, backbone.num_features)


def test_a_timm_model_downloaded_whole_loads_without_its_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=7)
    save_for_hf(model, tmp_path / "model", safe_serialization=True)
    module = load_extractor(str(tmp_path / "model"), device=torch.device("cpu")).module
    weights = model.state_dict()
    assert {*weights} - {*module.state_dict()} == {"fc.weight", "fc.bias"}
    assert all(torch.equal(tensor, weights[key]) for key, tensor in module.state_dict().items())


@pytest.mark.parametrize(
    ("name", "local_px", "remedy"),
    [
        ("swin_tiny_patch4_window7_224", 96, r"model\.arguments=\{strict_img_size: false\}"),
        ("vit_small_patch16_224", 100, "a multiple of its patch size"),
        ("beit_base_patch16_224", 96, "another backbone"),
    ],
)
def test_a_size_that_a_backbone_does_not_take_is_refused_with_a_way_out(name: str, local_px: int, remedy: str) -> None:
    backbone = build_backbone(name, {"depths": (1, 1, 1, 1)} if "swin" in name else SHALLOW)  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=rf"does not take views of {local_px} px[^$]*{remedy}"):
        check_input_sizes(backbone, name, (224, local_px))


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "vit_tiny_patch16_224", "convnext_atto"])
def test_stochastic_depth_is_off_unless_asked_for(name: str) -> None:
    """The teacher stays in training mode; a Swin of timm has a rate of 0.1 when nothing is said."""

    def largest_rate(rate: float) -> float:
        layers = build_backbone(name, {}, drop_path_rate=rate).modules()
        return max((layer.drop_prob for layer in layers if isinstance(layer, DropPath)), default=0.0)

    assert largest_rate(0.0) == 0.0
    assert largest_rate(0.3) == pytest.approx(0.3)


@pytest.mark.parametrize("arguments", [{"depth": 1_000_000}, {"embed_dim": 10**9}, {"img_size": -(10**6)}])
def test_a_network_that_no_machine_could_hold_is_refused_before_it_is_built(arguments: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="At most"):
        build_backbone("vit_tiny_patch16_224", arguments)

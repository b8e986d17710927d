"""Weights come in whole, or are refused: nothing is loaded in part, and no random feature comes out."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dino_path.errors import CheckpointError
from dino_path.features.extractor import load_extractor
from dino_path.model.pretrained import load_start, load_timm_weights
from dino_path.model.weights import load_weights, looks_like

Weights = dict[str, Tensor]
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}


@pytest.fixture(scope="module")
def resnet() -> Weights:
    """A classifier of seven classes with weights that no construction gives."""
    torch.manual_seed(3)
    state = timm.create_model("resnet10t", num_classes=7).state_dict()
    return {key: torch.rand_like(value) if value.is_floating_point() else value for key, value in state.items()}


def below(prefix: str) -> Callable[[Weights], object]:
    return lambda weights: {f"{prefix}{key}": value for key, value in weights.items()}


WHOLE: dict[str, Callable[[Weights], object]] = {
    "as timm saves it": lambda weights: weights,
    "without classifier": lambda weights: {key: value for key, value in weights.items() if not key.startswith("fc.")},
    "wrapped": below("module."),
    "backbone of a pair": below("backbone."),
    "teacher beside student": lambda weights: {
        **{f"student.backbone.{key}": torch.zeros_like(value) for key, value in weights.items()},
        **{f"teacher.backbone.{key}": value for key, value in weights.items()},
        "teacher.head.mlp.0.weight": torch.ones(3, 3),
    },
    "in a container": lambda weights: {"state_dict": below("module.")(weights), "epoch": 3},
    "as facebookresearch/dino saves it": lambda weights: {
        "teacher": {**below("backbone.")(weights), "head.mlp.0.weight": torch.ones(3, 3)},  # type: ignore[dict-item]
        "student": {f"module.backbone.{key}": torch.zeros_like(value) for key, value in weights.items()},
    },
    "before batches were counted": lambda weights: {
        key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")
    },
}
PART: dict[str, tuple[Callable[[Weights], object], str]] = {
    "nothing": (lambda _: {}, "holds no weights"),
    "a list": (lambda _: [1, 2], "holds a list"),
    "half of them": (lambda weights: dict(list(weights.items())[: len(weights) // 2]), "tensors are missing"),
    "other names": (below("layer."), "do not belong to this model"),
    "all but one": (
        lambda weights: {key: value for key, value in weights.items() if key != "bn1.bias"},
        r"1 of \d+ tensors are missing \(bn1.bias\)",
    ),
    "one more": (
        lambda weights: {**weights, "decoder.weight": torch.ones(2)},
        r"1 do not belong to this model \(decoder",
    ),
    "another shape": (
        lambda weights: {**weights, "bn1.bias": torch.ones(3)},
        r"1 have another shape \(bn1.bias \(3,\) instead of \(64,\)\)",
    ),
    "a ViT": (
        lambda _: timm.create_model("vit_small_patch16_224").state_dict(),
        r"looks like vit_small_patch16_224 \(a ViT of width 384, patch size 16 and 12 blocks\)",
    ),
    "another ResNet": (lambda _: timm.create_model("resnet50").state_dict(), "looks like resnet50"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", WHOLE)
def test_all_of_a_backbone_is_loaded_whatever_stands_around_it(
    resnet: Weights, tmp_path: Path, kind: str, suffix: str
) -> None:
    record, file = WHOLE[kind](resnet), tmp_path / f"weights{suffix}"
    assert isinstance(record, dict)
    if suffix == ".pth":
        torch.save(record, file)
    elif all(isinstance(value, Tensor) for value in record.values()):
        save_file(record, file)
    else:
        return  # safetensors has no containers
    loaded = load_timm_weights(f"resnet10t@{file}").module.state_dict()
    assert all(torch.equal(value, resnet[key]) or key.endswith("num_batches_tracked") for key, value in loaded.items())


@pytest.mark.parametrize("kind", PART)
def test_anything_else_is_refused_and_named(resnet: Weights, tmp_path: Path, kind: str) -> None:
    make, message = PART[kind]
    file = tmp_path / "weights.pth"
    torch.save(make(resnet), file)
    with pytest.raises(CheckpointError, match=message):
        load_extractor(f"timm:resnet10t@{file}", device=torch.device("cpu"))


def test_a_file_that_would_run_code_is_not_opened(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(nn.Linear(1, 1), file)
    with pytest.raises(CheckpointError, match=r"would run torch\.nn\.\S+ on loading"):
        load_timm_weights(f"resnet10t@{file}")


def test_what_was_taken_off_is_said(resnet: Weights, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "weights.pth"
    torch.save(below("module.")(resnet), file)
    with caplog.at_level("INFO"):
        load_timm_weights(f"resnet10t@{file}")
    assert "'module.' was removed from the names of" in caplog.text
    assert "left out, because they do not belong to a backbone: fc" in caplog.text


def test_a_refusal_leaves_the_backbone_as_it_was(resnet: Weights) -> None:
    backbone = timm.create_model("resnet10t", num_classes=0)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(CheckpointError):
        load_weights(backbone, {**resnet, "bn1.bias": torch.ones(3)}, source="weights")
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())


def test_a_training_does_not_start_from_another_architecture(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    config = {
        "architecture": "resnet10t",
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0] * 3, "std": [1] * 3},
    }
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match="a model folder: its weights belong to resnet10t, but resnet18 is to be trained"
    ):
        load_start("resnet18", str(folder), {})


def test_names_of_a_models_authors_become_timms() -> None:
    convnext = timm.create_model("convnext_atto", num_classes=0)
    theirs = {}
    for key, value in convnext.state_dict().items():
        name = key.replace("stem.0.", "downsample_layers.0.0.").replace("stem.1.", "downsample_layers.0.1.")
        for stage in range(4):
            name = name.replace(f"stages.{stage}.downsample.", f"downsample_layers.{stage}.")
            name = name.replace(f"stages.{stage}.blocks.", f"stages.{stage}.")
        name = name.replace("conv_dw.", "dwconv.").replace("mlp.fc", "pwconv").replace("head.norm.", "norm.")
        theirs[name] = torch.rand_like(value)
    load_weights(convnext, theirs, source="theirs")
    assert torch.equal(convnext.state_dict()["stages.1.blocks.0.conv_dw.weight"], theirs["stages.1.0.dwconv.weight"])


@pytest.mark.parametrize("change", [{"patch_size": 4}, {"img_size": 64}])
def test_embeddings_of_another_size_are_not_resampled(change: dict[str, int]) -> None:
    source = timm.create_model("vit_tiny_patch16_224", num_classes=0, **(SMALL | change))
    target = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SMALL)
    with pytest.raises(CheckpointError, match="another shape"):
        load_weights(target, source.state_dict(), source="another size")


@pytest.mark.parametrize("name", ["vit_base_patch16_224", "resnet18", "resnet34"])
def test_known_architectures_are_told_by_their_shapes(name: str) -> None:
    with torch.device("meta"):
        weights = timm.create_model(name, num_classes=0).state_dict()
    assert str(looks_like(weights)).startswith(name)
    assert looks_like({"a": torch.ones(1)}) is None

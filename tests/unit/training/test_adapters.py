"""`model.lora_rank`: adapters learn, the backbone's own weights stay to the bit, and what is exported is plain."""

from pathlib import Path

import pytest
import torch
from runs import keep_only_step, state_in
from safetensors.torch import save_file
from tiny import ALONE, differences, tiny_batches, tiny_config, tiny_learner, tiny_schedules

from dino_path.config import Config
from dino_path.errors import CheckpointError, ConfigError
from dino_path.exporting.checkpoint import export_source
from dino_path.model.backbone import build_backbone
from dino_path.model.checkpoint import read_checkpoint
from dino_path.model.lora import DOWN, UP, LoraLinear, merged
from dino_path.run import RunFolder
from dino_path.training.loop import pretrain
from dino_path.training.optimizer import lr_factors
from dino_path.training.step import train_step

LORA = ("model.lora_rank=2", "model.lora_alpha=6", "optim.layer_decay=0.7")
ADAPTED = [f"blocks.{block}.{layer}" for block in (0, 1) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")]


@pytest.fixture
def config(tiles_folder: Path, tmp_path: Path) -> Config:
    torch.manual_seed(3)
    plain = tiny_config(tiles_folder, tmp_path)
    start = build_backbone(plain.model.backbone, plain.model.backbone_arguments).state_dict()
    save_file(start, tmp_path / "start.safetensors")
    return tiny_config(tiles_folder, tmp_path / "run", f"model.weights={tmp_path / 'start.safetensors'}", *LORA)


def backbone_of(config: Config, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    backbone = build_backbone(config.model.backbone, config.model.backbone_arguments).eval()
    backbone.load_state_dict(weights)
    return backbone


def test_only_adapters_and_heads_learn_and_a_run_resumes_to_the_bit(config: Config) -> None:
    assert config.out is not None
    start, run = tiny_learner(config), RunFolder(config.out)
    whole = state_in(pretrain(config, ALONE))
    before = {f"student_backbone.{name}": value for name, value in start.student.backbone.state_dict().items()}
    moved = {name.removeprefix("student_backbone.") for name in before if not torch.equal(before[name], whole[name])}
    assert moved == {layer + part for layer in ADAPTED for part in (DOWN, UP)}
    number = sum(one.requires_grad for one in start.student.parameters())
    assert len({name.split(".")[1] for name in whole if name.startswith("optimizer.")}) == number
    keep_only_step(run, 5)
    assert differences(whole, state_in(pretrain(config, ALONE))) == []


def test_the_start_is_the_base_and_merged_weights_give_the_features_of_the_adapted_network(config: Config) -> None:
    learner = tiny_learner(config)
    images = torch.randn(3, 3, 32, 32)
    student = learner.student.backbone.eval()
    adapters = [one for one in student.modules() if isinstance(one, LoraLinear)]
    assert len(adapters) == len(ADAPTED)
    with torch.no_grad():
        base = merged(student.state_dict(), config.model)
        assert torch.equal(student(images), backbone_of(config, base)(images))
        for one in adapters:
            torch.nn.init.normal_(one.lora_up)
        plain = backbone_of(config, merged(student.state_dict(), config.model))
        assert (student(images) - backbone_of(config, base)(images)).abs().max() > 0.1
        torch.testing.assert_close(student(images), plain(images), rtol=1e-5, atol=1e-5)


def test_export_and_running_tests_see_plain_networks(config: Config) -> None:
    file = pretrain(config, ALONE)
    checkpoint = read_checkpoint(file)
    source = export_source(checkpoint, RunFolder(file.parent.parent), name="run", network="teacher")
    plain = backbone_of(config, dict(source.state_dict))
    learner = tiny_learner(config)
    learner.teacher.backbone.load_state_dict(checkpoint.teacher["backbone"])
    copy = learner.teacher_backbone()
    assert copy is not None
    assert differences(copy.state_dict(), plain.state_dict()) == []
    assert any(
        not torch.equal(value, checkpoint.teacher["backbone"][name]) for name, value in source.state_dict.items()
    )


def test_layer_decay_reaches_adapters(config: Config) -> None:
    factors = lr_factors(tiny_learner(config).student, config.optim)
    assert factors["backbone.blocks.0.attn.qkv.lora_up"] == pytest.approx(0.7**2)
    assert factors["backbone.blocks.1.mlp.fc2.lora_down"] == pytest.approx(0.7)


def test_adapters_need_a_start_and_layers_to_adapt(tiles_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adapters on random weights"):
        pretrain(tiny_config(tiles_folder, tmp_path / "run", "model.lora_rank=2"), ALONE)
    resnet = ("model.backbone=resnet10t", "model.arguments={}", "model.lora_rank=2")
    with pytest.raises(ConfigError, match="resnet10t has no blocks with linear layers"):
        tiny_learner(tiny_config(tiles_folder, tmp_path / "run", *resnet))
    beit = "model.arguments={img_size: 32, patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}"
    with pytest.raises(ConfigError, match="without calling the layer"):
        tiny_learner(
            tiny_config(tiles_folder, tmp_path, "model.backbone=beit_base_patch16_224", beit, "model.lora_rank=2")
        )
    with pytest.raises(ConfigError, match="lora_alpha needs lora_rank"):
        tiny_config(tiles_folder, tmp_path / "run", "model.lora_alpha=2")


def test_a_run_without_adapters_is_another_network(config: Config, tmp_path: Path) -> None:
    assert config.store is not None
    pretrain(tiny_config(config.store, tmp_path / "plain"), ALONE)
    start = f"training.continue_from={tmp_path / 'plain'}"
    with pytest.raises(CheckpointError, match=r"model.lora_rank \(None -> 2\)"):
        pretrain(tiny_config(config.store, tmp_path / "next", start, "training.num_steps=12", *LORA), ALONE)


def test_adapters_beside_layer_scale_learn_too(tiles_folder: Path) -> None:
    arguments = "{img_size: 32, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2, init_values: 0.1}"
    config = tiny_config(tiles_folder, Path("unused"), *LORA, f"model.arguments={arguments}")
    learner, settings = tiny_learner(config), tiny_schedules(config).at(3)
    train_step(learner, [tiny_batches(config).batch(0)], settings, step=0)
    ups = {name: value.grad for name, value in learner.student.backbone.named_parameters() if name.endswith(UP)}
    assert len(ups) == 8
    assert all(grad is not None and grad.any() for grad in ups.values())

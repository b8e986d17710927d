"""`model.weights`: published layouts give their authors' features, a run its teacher's; the rest is refused whole."""

import logging
from pathlib import Path

import pytest
import timm
import torch
from published_files import (
    Weights,
    dinov3_weights,
    grouped,
    head_weights,
    logits_of,
    tokens_of,
    vit_weights,
)
from safetensors.torch import save_file
from torch import nn

from dino_path.errors import CheckpointError
from dino_path.model.backbone import build_backbone
from dino_path.model.checkpoint import Checkpoint, as_record
from dino_path.model.head import DinoHead, DinoNetwork, MaskToken
from dino_path.model.shapes import timm_model_of_shapes
from dino_path.model.start import read_start, start_network
from dino_path.model.weights import load_weights

HEADS = 2
TINY = {"embed_dim": 32, "depth": 2, "num_heads": HEADS}
PLAIN = {**TINY, "patch_size": 8, "img_size": 24}
V2 = {**TINY, "img_size": 42}
V3 = {**TINY, "img_size": 48, "global_pool": "token"}
V2_PACKED = {**V2, "mlp_ratio": 5.5}  # two times 88 hidden units, by DINOv2's rule, for a width of 32

LAYOUTS = {
    "dino": (vit_weights(8, layer_scale=False, masks=False), "vit_tiny_patch16_224", PLAIN),
    "dinov2": (vit_weights(14), "vit_small_patch14_dinov2", V2),
    "dinov2 with registers": (vit_weights(14, registers=4), "vit_small_patch14_reg4_dinov2", V2),
    "dinov2 without its mask token": (vit_weights(14, registers=4, masks=False), "vit_small_patch14_reg4_dinov2", V2),
    "dinov2 with SwiGLU": (vit_weights(14, mlp="w12 w3"), "vit_giant_patch14_dinov2", V2_PACKED),
    "dinov2 with both": (vit_weights(14, registers=4, mlp="w12 w3"), "vit_giant_patch14_reg4_dinov2", V2_PACKED),
    "dinov3": (dinov3_weights(bias=False), "vit_small_patch16_dinov3", V3),
    "dinov3 with biases": (dinov3_weights(bias=True), "vit_small_patch16_dinov3_qkvb", V3),
    "UNI": (vit_weights(16, masks=False), "vit_large_patch16_224", {**TINY, "img_size": 48, "init_values": 1e-5}),
}  # fmt: skip


def network(name: str, arguments: dict, *, masks: bool = False, heads: tuple[str, ...] = ()) -> DinoNetwork:
    """A tiny network with the heads that are named, for 20 prototypes."""
    torch.manual_seed(9)
    sizes = {"hidden": 24, "bottleneck": 16, "num_layers": 3, "batch_norm": False, "norm_last_layer": True}
    head, patch_head = (DinoHead(32, 20, **sizes) if part in heads else None for part in ("head", "patch_head"))
    backbone = build_backbone(name, arguments)
    return DinoNetwork(backbone, head, mask_token=MaskToken(32) if masks else None, patch_head=patch_head).eval()


def started(file: Path, name: str, arguments: dict, **parts: object) -> DinoNetwork:
    built = network(name, arguments, **parts)  # type: ignore[arg-type]
    start_network(built, read_start(name, arguments, str(file)), source=str(file))
    return built


def written(folder: Path, record: object) -> Path:
    torch.save(record, folder / "weights.pth")
    return folder / "weights.pth"


def training(backbone: Weights, *, plain: bool = False) -> tuple[dict[str, Weights], Weights, Weights]:
    """The `teacher_checkpoint.pth` of dinov2 (or dinov3: plain), and its two heads."""
    heads = head_weights(32, plain=plain), head_weights(32, plain=plain)
    parts = zip(("backbone", "dino_head", "ibot_head"), (backbone, *heads), strict=True)
    return {"teacher": {f"{part}.{key}": value for part, of in parts for key, value in of.items()}}, *heads


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_backbone_gives_the_tokens_of_its_authors(tmp_path: Path, layout: str, suffix: str) -> None:
    weights, name, arguments = LAYOUTS[layout]
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(weights, file)
    else:
        save_file(weights, file)
    backbone = started(file, name, arguments).backbone
    images = torch.randn(2, 3, arguments["img_size"], arguments["img_size"])
    with torch.inference_mode():
        theirs = tokens_of(weights, images, heads=HEADS)
        torch.testing.assert_close(backbone.forward_features(images), theirs, rtol=1e-4, atol=1e-5)  # type: ignore[operator]
        torch.testing.assert_close(backbone(images), theirs[:, 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("plain", [False, True], ids=["weight norm", "plain prototypes"])
def test_a_training_of_dinov2_brings_its_mask_token_and_both_heads(tmp_path: Path, plain: bool) -> None:
    backbone = vit_weights(14, registers=4)
    record, head, patch_head = training(grouped(backbone), plain=plain)
    name, arguments = "vit_small_patch14_reg4_dinov2", V2
    built = started(written(tmp_path, record), name, arguments, masks=True, heads=("head", "patch_head"))
    assert built.mask_token is not None
    assert torch.equal(built.mask_token.weight, backbone["mask_token"])
    images, features = torch.randn(1, 3, 42, 42), torch.randn(5, 32)
    with torch.inference_mode():
        tokens = tokens_of(backbone, images, heads=HEADS)
        torch.testing.assert_close(built.backbone.forward_features(images), tokens, rtol=1e-4, atol=1e-5)  # type: ignore[operator]
        for ours, theirs in ((built.head, head), (built.patch_head, patch_head)):
            torch.testing.assert_close(ours(features).logits(), logits_of(theirs, features), rtol=1e-4, atol=1e-5)


def test_the_teacher_is_found_among_all_networks_of_a_training(tmp_path: Path) -> None:
    backbone = vit_weights(14)
    networks = {f"student.backbone.{key}": torch.zeros_like(value) for key, value in backbone.items()}
    networks |= {f"teacher.backbone.{key}": value for key, value in grouped(backbone).items()}
    built = started(written(tmp_path, {"model": networks, "iteration": 3}), "vit_small_patch14_dinov2", V2)
    assert torch.equal(built.backbone.cls_token, backbone["cls_token"])  # type: ignore[arg-type]


def test_what_is_loaded_left_out_and_left_random_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    record, *_ = training(dinov3_weights(bias=False), plain=True)
    name, arguments = "vit_small_patch16_dinov3", {**TINY, "img_size": 48}
    started(written(tmp_path, record), name, arguments, heads=("head",))
    for line in (
        "its teacher is loaded",
        "all 32 tensors of vit_small_patch16_dinov3 are loaded",
        "left out, because the mask token for hidden patches is not part of the backbone: mask_token",
        "left out, because the model computes it, with the same values: rope_embed.periods",
        "left out, because it zeroes the bias of keys, which has no effect: blocks.0.attn.qkv.bias_mask, blocks.1",
        "left out, because it is zero, and the model has none: blocks.0.attn.qkv.bias, blocks.1.attn.qkv.bias",
        "left out, because it is used only in their training, for local views: local_cls_norm.weight, local_cls",
        "the head of [CLS] is loaded",
        "its head of masked patches is left out, because the objective has none",
        "features are the mean of the patches here, but [CLS] in DINOv3; set model.arguments={global_pool: token}",
    ):
        assert line in caplog.text
    caplog.clear()
    file = written(tmp_path, vit_weights(14, masks=False))
    started(file, "vit_small_patch14_dinov2", V2, masks=True, heads=("head", "patch_head"))
    assert "it has no mask token; ours starts at zero" in caplog.text
    assert "it has no head of masked patches, which starts at random" in caplog.text


@pytest.mark.parametrize("registers", [0, 4])
def test_position_embeddings_of_another_grid_are_resampled_as_the_model_does_it(
    tmp_path: Path, registers: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    name = f"vit_small_patch14_{'reg4_' if registers else ''}dinov2"
    file = written(tmp_path, vit_weights(14, grid=5, registers=registers))
    whole = started(file, name, {**V2, "img_size": 70}).backbone
    assert "became" not in caplog.text
    small = started(file, name, V2).backbone
    assert "position embeddings of 5 x 5 patches became 3 x 3 (bicubic, antialiased)" in caplog.text
    images = torch.randn(2, 3, 42, 42)
    with torch.inference_mode():
        torch.testing.assert_close(small(images), whole(images))
    with pytest.raises(CheckpointError, match=r"1 have another shape \(pos_embed"):
        load_weights(small, torch.load(file), source="a model folder")


REFUSED: dict[str, tuple[Weights, str]] = {
    "no registers": (vit_weights(14), r"1 of 35 tensors are missing \(reg_token\)"),
    "another patch size": (vit_weights(16, registers=4), r"patch_embed.proj.weight \(32, 3, 16, 16\) instead of"),
    "deeper": (vit_weights(14, registers=4, depth=3), r"14 do not belong to this model [^$]*3 blocks, with 4"),
    "gated": (vit_weights(14, registers=4, mlp="w12 w3"), "mlp.fc1.weight[^$]*LayerScale, gated MLPs"),
    "dinov3": (dinov3_weights(bias=True), "pos_embed[^$]*rotary positions"),
    "half of it": (
        {key: value for key, value in vit_weights(14, registers=4).items() if not key.startswith("blocks.1.")},
        r"14 of 35 tensors are missing \(blocks.1",
    ),
    "one more": (vit_weights(14, registers=4) | {"cls_norm.weight": torch.ones(32)}, r"belong to this model \(cls_"),
    "a parameter that timm would drop": (
        dinov3_weights(bias=False) | {"rope_embed.learned": torch.ones(3)},
        r"1 do not belong to this model \(rope_embed.learned\)",
    ),
    "biases that timm would drop": (
        dinov3_weights(bias=True),
        r"2 do not belong to this model \(blocks.0.attn.qkv.bias, blocks.1.attn.qkv.bias\)",
    ),
    "other rotary positions": (
        dinov3_weights(bias=False, heads=4),
        r"1 do not belong to this model \(rope_embed.periods\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_and_named_and_nothing_is_loaded(
    tmp_path: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, message = REFUSED[case]
    of_v3 = "timm would drop" in case or "rotary" in case
    name, arguments = ("vit_small_patch16_dinov3", V3) if of_v3 else ("vit_small_patch14_reg4_dinov2", V2)
    built = network(name, arguments)
    before = {key: value.clone() for key, value in built.state_dict().items()}
    start = read_start(name, arguments, str(written(tmp_path, weights)))
    with pytest.raises(CheckpointError, match=message):
        start_network(built, start, source="model.weights=weights.pth")
    assert all(torch.equal(value, before[key]) for key, value in built.state_dict().items())
    assert capsys.readouterr().out == ""


def test_a_head_of_another_size_is_refused_with_the_settings_that_fit(tmp_path: Path) -> None:
    record, *_ = training(vit_weights(14))
    record["teacher"] |= {f"ibot_head.{k}": v for k, v in head_weights(32, prototypes=30, plain=False).items()}
    with pytest.raises(CheckpointError, match=r"its head does not fit objective\.ibot") as refusal:
        started(written(tmp_path, record), "vit_small_patch14_dinov2", V2, heads=("head", "patch_head"))
    assert (
        "objective.ibot.num_prototypes=30 objective.ibot.head_hidden=24 objective.ibot.head_bottleneck=16"
        " objective.ibot.head_layers=3 objective.ibot.head_batch_norm=false" in refusal.value.remedy
    )


def write_run(folder: Path, built: DinoNetwork, model: dict) -> Path:
    """A run folder with one checkpoint."""
    parts = {name: {k: v.clone() for k, v in module.state_dict().items()} for name, module in built.named_children()}
    student = {part: {key: torch.zeros_like(value) for key, value in of.items()} for part, of in parts.items()}
    checkpoint = Checkpoint(
        step=7, config={"model": model}, num_tiles=12, num_slides=None, tiles_digest=None, contents_digest="",
        tile_mpp=0.5, world_size=1, global_batch_size=4, num_skipped=0, student=student, teacher=parts, objective={},
        optimizer={},
    )  # fmt: skip
    (folder / "checkpoints").mkdir(parents=True)
    torch.save(as_record(checkpoint), folder / "checkpoints/step_00000007.pt")
    return folder


@pytest.mark.parametrize("place", [".", "checkpoints/step_00000007.pt"], ids=["run folder", "checkpoint"])
def test_a_run_brings_its_teachers_backbone_and_mask_token(
    tmp_path: Path, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    before = network("vit_tiny_patch16_224", PLAIN, masks=True, heads=("head",))
    nn.init.normal_(before.mask_token.weight)  # type: ignore[union-attr]
    run = write_run(tmp_path / "run", before, {"backbone": "vit_tiny_patch16_224", "arguments": PLAIN})
    torch.manual_seed(4)
    after = started(run / place, "vit_tiny_patch16_224", {**PLAIN, "img_size": 32}, masks=True, heads=("head",))
    assert "the teacher's backbone at step 7 is loaded, without its heads" in caplog.text
    assert "position embeddings of 3 x 3 patches became 4 x 4" in caplog.text
    for key, value in before.state_dict().items():
        if key.startswith(("backbone.blocks", "mask_token")):
            assert torch.equal(after.state_dict()[key], value), key


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"backbone": "deit_tiny_patch16_224", "arguments": PLAIN}, "belong to deit_tiny_patch16_224, but vit_tiny_"),
        (
            {"backbone": "vit_tiny_patch16_224", "arguments": {**PLAIN, "num_heads": 4}},
            "belong to vit_tiny_patch16_224 with 4 heads, but vit_tiny_patch16_224 with 2 heads is to be trained",
        ),
    ],
)
def test_a_run_of_another_model_is_refused_also_where_all_shapes_agree(
    tmp_path: Path, other: dict, message: str
) -> None:
    run = write_run(tmp_path / "run", network("vit_tiny_patch16_224", PLAIN), other)
    with pytest.raises(CheckpointError, match=message) as refusal:
        started(run, "vit_tiny_patch16_224", PLAIN)
    assert f"model.backbone={other['backbone']}, with model.arguments={{embed_dim: 32" in refusal.value.remedy


def test_a_name_of_timm_is_taken_where_it_is_the_same_architecture(tmp_path: Path) -> None:
    torch.manual_seed(3)
    weights = timm.create_model("resnet10t", num_classes=0).state_dict()
    file = written(tmp_path, weights)
    start = read_start("resnet10t", {}, f"timm:resnet10t@{file}")
    assert torch.equal(start.backbone["conv1.0.weight"], weights["conv1.0.weight"])
    with pytest.raises(CheckpointError, match="its weights belong to resnet10t, but resnet18 is to be trained"):
        read_start("resnet18", {}, f"timm:resnet10t@{file}")


@pytest.mark.parametrize(
    ("layout", "settings"),
    [
        (vit_weights(16, width=384, depth=12, grid=14, layer_scale=False, masks=False), "vit_small_patch16_224"),
        (vit_weights(14, width=384, depth=12, grid=37), "vit_small_patch14_dinov2"),
        (vit_weights(14, width=384, depth=12, grid=16, registers=4),
         'vit_small_patch14_reg4_dinov2 "model.arguments={img_size: 224}"'),
        (vit_weights(16, width=192, depth=12, grid=14),
         'vit_tiny_patch16_224 "model.arguments={init_values: 1e-05}"'),
        (dinov3_weights(width=384, heads=6, depth=12, bias=False),
         'vit_small_patch16_dinov3 "model.arguments={global_pool: token}"'),
        (dinov3_weights(width=384, heads=6, depth=12, bias=True, mlp="w1 w2 w3"),
         'vit_small_plus_patch16_dinov3_qkvb "model.arguments={global_pool: token}"'),
    ],
)  # fmt: skip
def test_the_settings_that_fit_are_told_by_names_and_shapes(layout: Weights, settings: str) -> None:
    told = timm_model_of_shapes(layout)
    assert told is not None
    assert told.settings() == f"model.backbone={settings}"

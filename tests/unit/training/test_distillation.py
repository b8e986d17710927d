"""A small ViT learns from a frozen model: which views that sees, what is refused, and what a run keeps of it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from frozen_models import MEAN, STD, write_guide
from runs import keep_only_step, metrics_of, state_in
from safetensors.torch import save_file
from tiny import ALONE, differences, tiny_batches, tiny_config, tiny_learner, tiny_schedules, write_tiles

from dino_path.config import Config
from dino_path.errors import CheckpointError, ConfigError, DinoPathError, TileStoreError
from dino_path.exporting.checkpoint import export_checkpoint
from dino_path.model.backbone import build_backbone
from dino_path.model.checkpoint import read_checkpoint
from dino_path.model.folder import read_model_folder
from dino_path.model.frozen import load_frozen
from dino_path.run import RunFolder
from dino_path.settings import load_config
from dino_path.tiles.source import open_tiles
from dino_path.training import guide_features
from dino_path.training.advice import advice
from dino_path.training.distill_settings import check_distillation
from dino_path.training.guide import LiveGuide, open_guide
from dino_path.training.guide_features import KeptGuide, keep_features
from dino_path.training.learner import Learner
from dino_path.training.loop import pretrain
from dino_path.training.step import train_step

OUT = Path("unused")
ALONE_SETTINGS = ("objective.dino.weight=0", "objective.distill.weight=1", "views.num_local=0")
WHOLE = ("views.global_scale=[1,1]", "views.aspect=[1,1]", "views.dihedral=false", "views.flip_prob=0")
PLAIN = (*WHOLE, "views.stain_prob=0", "views.colour_prob=0", "views.blur_prob=[0,0,0]")


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_guide(tmp_path_factory.mktemp("guides") / "large")


def distil_config(store: Path, out: Path, guide: Path | str, *settings: str) -> Config:
    return tiny_config(store, out, *ALONE_SETTINGS, f"objective.distill.teacher={guide}", *settings)


def opened(config: Config, *, mpp: float | None = None) -> LiveGuide:
    found = open_guide(config, SimpleNamespace(mpp=mpp), ALONE)  # type: ignore[arg-type]
    assert found is not None
    return found


def test_the_frozen_model_sees_the_views_by_its_own_mean_std_and_patch_size(tiles_folder: Path, guide: Path) -> None:
    config = distil_config(tiles_folder, OUT, guide)
    learner, batch = tiny_learner(config), tiny_batches(config).batch(0)
    guidance = learner.consult(learner.global_views(batch), batch)
    assert guidance is not None
    pixels = batch.global_views.permute(0, 3, 1, 2).float() / 255
    pixels = F.interpolate(pixels, (16, 16), mode="bicubic", antialias=True).clamp(0, 1)
    images = (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
    module = load_frozen(str(guide)).module
    torch.testing.assert_close(guidance.cls, module(images), rtol=1e-4, atol=1e-4)
    assert guidance.patches is not None
    torch.testing.assert_close(guidance.patches, module.forward_features(images)[:, 1:], rtol=1e-4, atol=1e-4)  # type: ignore[operator]
    assert learner.study(learner.global_views(batch), batch).match.patches.shape == guidance.patches.shape  # type: ignore[union-attr]


def test_without_patches_it_sees_them_at_its_own_edge(tiles_folder: Path, guide: Path) -> None:
    assert opened(distil_config(tiles_folder, OUT, guide)).facts.input_px == 16
    facts = opened(distil_config(tiles_folder, OUT, guide, "objective.distill.patches=0")).facts
    assert (facts.input_px, facts.num_patches, facts.num_features, facts.name) == (24, None, 48, "large")


def test_a_run_learns_from_it_alone_and_resumes_exactly(
    tiles_folder: Path, tmp_path: Path, guide: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Learner, "teach", None)  # nobody asks the moving average
    config = distil_config(tiles_folder, tmp_path / "run", guide, "optim.base_lr=0.5")
    with caplog.at_level("INFO"):
        pretrain(config, ALONE)
    run = RunFolder(tmp_path / "run")
    assert "learning from large: 0.03 M parameters, 48 features, 16 patches, views of 16 px" in caplog.text
    assert "prototypes are many" not in caplog.text
    records = metrics_of(run)
    assert records[0]["loss"] == 0  # its first step measures mean and std
    early, late = ([record["distill_cosine"] for record in part] for part in (records[1:4], records[-3:]))
    assert min(late) > max(early)
    assert {"distill_patch_cosine", "grad_norm_match_head", "rankme"} <= records[-1].keys()
    assert "kl" not in records[-1]
    whole = state_in(run.checkpoint_file(10))
    assert whole["distill.cls_num_steps"] == 10
    assert not torch.equal(whole["student_backbone.cls_token"], whole["teacher_backbone.cls_token"])
    keep_only_step(run, 5)
    pretrain(config, ALONE)
    assert differences(whole, state_in(run.checkpoint_file(10))) == []


def test_beside_dino_and_ibot_it_is_one_share_of_the_loss(tiles_folder: Path, tmp_path: Path, guide: Path) -> None:
    heads = ("objective.ibot.num_prototypes=32", "objective.ibot.head_hidden=32", "objective.ibot.head_bottleneck=16")
    config = tiny_config(
        tiles_folder, tmp_path / "run", "objective.ibot.weight=1", *heads, "objective.distill.weight=0.5",
        f"objective.distill.teacher={guide}", "training.num_steps=3",
    )  # fmt: skip
    pretrain(config, ALONE)
    last = metrics_of(RunFolder(tmp_path / "run"))[-1]
    shares = [last[f"{name}_loss"] for name in ("dino", "ibot", "distill")]
    assert last["loss"] == pytest.approx(sum(shares), rel=1e-5)
    assert min(shares) > 0


def test_a_skipped_step_moves_no_running_statistics(tiles_folder: Path, guide: Path) -> None:
    config = distil_config(tiles_folder, OUT, guide)
    learner, batches, settings = tiny_learner(config), tiny_batches(config), tiny_schedules(config).at(3)
    train_step(learner, [batches.batch(0)], settings, step=0)
    before = {name: value.clone() for name, value in learner.objective.state()["distill"].items()}
    learner.std = learner.std * torch.nan
    assert train_step(learner, [batches.batch(1)], settings, step=1).is_skipped
    assert differences(before, learner.objective.state()["distill"]) == []


def test_micro_batches_are_one_batch(tiles_folder: Path, guide: Path) -> None:
    weights = []
    for division in ((), ("training.batch_size_per_gpu=1", "training.accumulate_steps=4")):
        config = distil_config(tiles_folder, OUT, guide, "model.drop_path_rate=0", *division)
        learner, batches, settings = tiny_learner(config), tiny_batches(config), tiny_schedules(config).at(3)
        count = learner.training.accumulate_steps
        for step in range(2):
            micro = [batches.batch(step * count + number) for number in range(count)]
            report = train_step(learner, micro, settings, step=step)
        assert report.features.shape == (4, 32)
        weights.append((report.loss, learner.objective.state()["distill"]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("reload_here")
def test_the_export_drops_the_projection_and_says_what_was_distilled(
    tiles_folder: Path, tmp_path: Path, guide: Path
) -> None:
    pretrain(distil_config(tiles_folder, tmp_path / "run", guide, "training.num_steps=2"), ALONE)
    checkpoint = read_checkpoint(RunFolder(tmp_path / "run").checkpoint_file(2))
    assert {*checkpoint.student} == {"backbone", "match_head"}
    result = export_checkpoint(tmp_path / "run", tmp_path / "model")
    assert result.num_features == 32
    config, card = (
        json.loads((tmp_path / "model/config.json").read_text()),
        (tmp_path / "model/README.md").read_text(),
    )
    assert config["dino_path"]["method"] == "distillation of large"
    assert config["dino_path"]["distilled_from"]["features"] == 48
    assert "pretrained with distillation of large by dino_path" in card
    assert "AM-RADIO" in card
    assert "prototypes" not in card
    assert str(guide.parent) not in card + json.dumps(config)
    assert load_frozen(str(guide)).digest.startswith(read_model_folder(tmp_path / "model").distilled_from)


def test_a_cnn_learns_from_a_cnn_of_timms_name_and_its_average_has_batch_norms(
    tiles_folder: Path, tmp_path: Path
) -> None:
    file = tmp_path / "weights.safetensors"
    torch.manual_seed(3)
    save_file(build_backbone("resnet10t", {}).state_dict(), file)
    cnn = ("model.backbone=resnet10t", "model.arguments={}", "model.drop_path_rate=0", "training.num_steps=2")
    spec = f"timm:resnet10t@{file}"
    with pytest.raises(ConfigError, match=r"model.backbone=resnet10t: it has no patch tokens(.|\n)*distill.patches=0"):
        tiny_learner(distil_config(tiles_folder, OUT, write_guide(tmp_path / "vit"), *cnn[:3]))
    with pytest.raises(ConfigError, match=r"teacher=resnet10t \(weights\): a ResNet has no patch tokens"):
        opened(distil_config(tiles_folder, OUT, spec))
    pretrain(distil_config(tiles_folder, tmp_path / "run", spec, *cnn, "objective.distill.patches=0"), ALONE)
    state = state_in(RunFolder(tmp_path / "run").checkpoint_file(2))
    name = "backbone.bn1.running_mean"
    assert state[f"teacher_{name}"].any()
    assert torch.equal(state[f"teacher_{name}"], state[f"student_{name}"])


def test_grids_that_do_not_meet_are_refused(tiles_folder: Path, tmp_path: Path) -> None:
    fixed = {"img_size": 24, "patch_size": 4, "embed_dim": 48, "depth": 1, "num_heads": 2, "dynamic_img_size": False}
    config = distil_config(tiles_folder, OUT, write_guide(tmp_path / "fixed", model_args=fixed))
    with pytest.raises(ConfigError) as refusal:
        opened(config)
    assert (refusal.value.thing, refusal.value.found[:33]) == (
        "objective.distill.teacher=fixed", "it does not take views of 16 px (",
    )  # fmt: skip
    assert "cuts views of 32 px into 16 patches" in refusal.value.needed
    assert "at its 24 px" in refusal.value.remedy


def test_a_model_of_tiles_at_another_scale_is_refused(
    tiles_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = distil_config(tiles_folder, OUT, write_guide(tmp_path / "fine", mpp=0.25))
    assert opened(config, mpp=0.252)
    with pytest.raises(TileStoreError, match=r"at 0.25 um/px.*and the tiles are at 0.5 um/px(.|\n)*tiles.mpp=0.25"):
        opened(config, mpp=0.5)
    assert "not known" not in caplog.text
    opened(config)
    assert "the microns per pixel of the tiles are unknown" in caplog.text


def test_a_model_of_other_colours_is_refused(tiles_folder: Path, tmp_path: Path) -> None:
    folder = write_guide(tmp_path / "macenko", stain_normalisation="macenko")
    with pytest.raises(ConfigError, match=r"with macenko stain normalisation, and views.stain_normalisation is null"):
        opened(distil_config(tiles_folder, OUT, folder))
    assert opened(distil_config(tiles_folder, OUT, folder, "views.stain_normalisation=macenko"))


def test_a_run_goes_on_with_the_model_that_it_began_with_wherever_that_lies(
    tiles_folder: Path, tmp_path: Path, guide: Path
) -> None:
    def config(teacher: Path, *settings: str, out: str = "run") -> Config:
        return distil_config(tiles_folder, tmp_path / out, teacher, *settings)

    pretrain(config(guide, "training.num_steps=5"), ALONE)
    other, moved = write_guide(tmp_path / "other", seed=1), shutil.copytree(guide, tmp_path / "moved")
    with pytest.raises(
        CheckpointError, match=r"other settings: objective.distill.teacher \(model [0-9a-f]{12} -> other"
    ):
        pretrain(config(other, "training.num_steps=5"), ALONE)
    further = (f"training.continue_from={tmp_path / 'run'}", "training.num_steps=6")
    with pytest.raises(CheckpointError, match=r"has other networks: objective.distill.teacher"):
        pretrain(config(other, *further, out="next"), ALONE)
    assert pretrain(config(moved, *further, out="next"), ALONE).name == "step_00000006.pt"


@pytest.mark.parametrize("patches", [0, 1])
def test_kept_features_are_those_that_the_model_gives_in_every_step(
    tiles_folder: Path, tmp_path: Path, guide: Path, patches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*PLAIN, f"objective.distill.patches={patches}", "training.num_steps=4", "model.drop_path_rate=0")
    states, calls = [], []
    plain_call = LiveGuide.__call__
    monkeypatch.setattr(LiveGuide, "__call__", lambda *given: calls.append(len(given[1])) or plain_call(*given))
    for out, cached in (("steps", "false"), ("kept", "true")):
        calls.clear()
        pretrain(
            distil_config(tiles_folder, tmp_path / out, guide, *settings, f"objective.distill.cached={cached}"), ALONE
        )
        states.append(state_in(RunFolder(tmp_path / out).checkpoint_file(4)))
        assert sum(calls) == (12 if cached == "true" else 4 * 8)  # every tile once; two views of four tiles a step
    tolerance = {"rtol": 1e-3, "atol": 2e-4} if patches else {"rtol": 1e-5, "atol": 1e-5}  # patches lie there in fp16
    names = [name for name in states[0] if name.startswith("student_backbone")]
    for name in names:
        torch.testing.assert_close(states[0][name], states[1][name], **tolerance)
    torch.testing.assert_close(states[0]["distill.cls_mean"], states[1]["distill.cls_mean"], rtol=1e-5, atol=1e-6)


def kept(config: Config, learner: Learner) -> KeptGuide:
    assert config.store is not None
    assert config.out is not None
    assert learner.guide is not None
    return keep_features(learner, learner.guide, RunFolder(config.out), config, open_tiles(config.store))


def test_missing_and_damaged_pieces_alone_are_made_again(
    tmp_path: Path, guide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guide_features, "PIECE", 4)
    store = write_tiles(tmp_path / "tiles", count=10)
    config = distil_config(store, tmp_path / "run", guide, *PLAIN, "objective.distill.cached=true")
    learner = tiny_learner(config)
    first = kept(config, learner)
    tiles = torch.tensor([9, 0, 5])
    before = first(torch.empty(0), tiles)
    assert before.cls.shape == (6, 48)
    assert torch.equal(before.cls[:3], before.cls[3:])
    files = sorted((tmp_path / "run/guide_features").glob("*.npy"))
    assert len(files) == 6
    times = {file: file.stat().st_mtime_ns for file in files}
    first.file("cls", 1).write_bytes(b"damaged")
    first.file("patches", 2).unlink()
    again = kept(config, learner)
    after = again(torch.empty(0), tiles)
    torch.testing.assert_close(before.cls, after.cls)
    torch.testing.assert_close(before.patches, after.patches)
    assert [file.stat().st_mtime_ns == times[file] for file in files] == [True, False, False, True, False, False]
    learner.guide = opened(distil_config(store, OUT, write_guide(tmp_path / "other", seed=1)))
    with pytest.raises(CheckpointError, match=r"that were computed from something else \(guide differ\)"):
        kept(config, learner)


def test_processes_share_the_pieces(tmp_path: Path, guide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guide_features, "PIECE", 4)
    store, made = write_tiles(tmp_path / "tiles", count=10), []
    config = distil_config(store, tmp_path / "run", guide, *PLAIN, "objective.distill.cached=true")
    for rank in (1, 0):
        learner = tiny_learner(config)
        share = {"rank": rank, "size": 2, "is_first": rank == 0, "barrier": lambda: None}
        learner.world = SimpleNamespace(**share, device=ALONE.device)  # type: ignore[assignment]
        if rank == 1:  # both look before either writes
            monkeypatch.setattr(KeptGuide, "missing", lambda _: [0, 1, 2])
        kept(config, learner)
        made.append(sorted(file.name for file in (tmp_path / "run/guide_features").glob("cls_*")))
    assert made == [["cls_000001.npy"], [f"cls_{piece:06d}.npy" for piece in range(3)]]


def test_a_tile_without_features_is_named_when_it_can_be_read_again(tmp_path: Path, guide: Path) -> None:
    store = write_tiles(tmp_path / "tiles", count=4)
    good = (store / "002.png").read_bytes()
    (store / "002.png").write_bytes(b"no image")
    config = distil_config(store, tmp_path / "run", guide, *PLAIN, "objective.distill.cached=true")
    found = kept(config, tiny_learner(config))
    assert found(torch.empty(0), torch.tensor([1, 3])).cls.isfinite().all()
    (store / "002.png").write_bytes(good)
    with pytest.raises(TileStoreError, match=r"cls_000000.npy: has no features of tile 2(.|\n)*Delete this file"):
        found(torch.empty(0), torch.tensor([1, 2]))


def test_features_that_are_no_numbers_and_disks_that_are_too_small_are_refused(
    tiles_folder: Path, tmp_path: Path, guide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = distil_config(tiles_folder, tmp_path / "run", guide, *PLAIN, "objective.distill.cached=true")
    learner = tiny_learner(config)
    assert isinstance(learner.guide, LiveGuide)
    monkeypatch.setattr(guide_features.shutil, "disk_usage", lambda _: SimpleNamespace(free=12 * 48 * (4 + 16 * 2) - 1))
    with pytest.raises(CheckpointError, match=r"the features take 0.0 GB, and 0.0 GB are free"):
        kept(config, learner)
    monkeypatch.undo()
    with torch.no_grad():
        learner.guide.module.norm.weight.fill_(1e7)  # type: ignore[union-attr, operator]
    with pytest.raises(CheckpointError, match=r"its features \(patches\) are not finite as float16"):
        kept(config, learner)


@pytest.mark.parametrize(
    ("settings", "found", "remedy"),
    [
        (("views.num_local=2",), "views.num_local=2: no term uses local views", "Set views.num_local=0"),
        (
            ("objective.distill.cached=true", *WHOLE[1:]),
            "cached=true: the views are not whole tiles: views.global_scale=[0.4, 1.0].",
            "Set views.global_scale=[1,1], or",
        ),
        (
            ("objective.distill.cached=true", *WHOLE[:2]),
            "views.dihedral=true, views.flip_prob=0.5",
            "Set views.dihedral=false views.flip_prob=0 (or objective.distill.patches=0,",
        ),
    ],
)
def test_settings_that_contradict_one_another_are_refused(
    tiles_folder: Path, guide: Path, settings: tuple[str, ...], found: str, remedy: str
) -> None:
    config = distil_config(tiles_folder, OUT, guide, *settings)
    with pytest.raises(ConfigError) as refusal:
        check_distillation(config)
    assert found in str(refusal.value)
    assert remedy in refusal.value.remedy


@pytest.mark.parametrize("settings", [("patches=0",), ()])
def test_whole_tiles_may_be_jittered_and_without_patches_turned(
    tiles_folder: Path, guide: Path, settings: tuple[str, ...]
) -> None:
    words = [f"objective.distill.{word}" for word in settings]
    check_distillation(
        distil_config(
            tiles_folder, OUT, guide, "objective.distill.cached=true", *(WHOLE[:2] if settings else WHOLE), *words
        )
    )


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("objective.distill.weight=1",), "distill.teacher is not given"),
        (("objective.dino.weight=0",), "distill.weight are all 0"),
    ],
)
def test_an_objective_without_anything_to_learn_from_is_refused(words: tuple[str, ...], found: str) -> None:
    with pytest.raises(DinoPathError, match=found):
        load_config(None, list(words), settings={})


def test_alone_it_gets_no_advice_on_prototypes(tiles_folder: Path, guide: Path) -> None:
    alone: dict[str, Any] = {}
    for name, settings in (("alone", ALONE_SETTINGS), ("dino", ("training.momentum=0.9",))):
        words = ("objective.dino.num_prototypes=65536", "optim.freeze_last_layer=5 steps", *settings)
        config = tiny_config(tiles_folder, OUT, f"objective.distill.teacher={guide}", *words)
        clock = tiny_schedules(config).clock
        alone[name] = {key for one in advice(config, clock, num_tiles=12) for key in one.settings}
    prototypes = {"objective.dino.num_prototypes", "optim.freeze_last_layer"}
    assert prototypes <= alone["dino"]
    assert not prototypes & alone["alone"]

"""Model folders: what timm loads, what the checks catch, what is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dino_path.cli import main
from dino_path.config import Config
from dino_path.errors import CheckpointError, DataError
from dino_path.exporting import reload
from dino_path.exporting.card import ModelFacts, model_card
from dino_path.exporting.checkpoint import export_checkpoint
from dino_path.exporting.model_folder import ExportSource, export_model, write_card
from dino_path.features.extractor import load_extractor
from dino_path.model.backbone import build_backbone
from dino_path.model.checkpoint import FORMAT, VERSION, Checkpoint, as_record
from dino_path.model.folder import read_model_folder
from dino_path.preprocessing import Preprocessing
from dino_path.records.best import BestRecord, write_best
from dino_path.records.environment import ENVIRONMENT, EnvironmentRecord
from dino_path.records.evaluation import RESULTS, ResultsRecord, write_evaluation
from dino_path.run import RunFolder
from dino_path.settings import as_plain
from dino_path.views.normalisation import normalise_stain

ARCHITECTURE = "vit_tiny_patch16_224"
ARGUMENTS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
MEAN, STD = (0.7, 0.5, 0.6), (0.2, 0.25, 0.3)
PREPROCESSING = Preprocessing(MEAN, STD, input_px=40, mpp=0.5, tile_px=80)


def source(seed: int = 0) -> ExportSource:
    torch.manual_seed(seed)
    return ExportSource(
        backbone=ARCHITECTURE,
        arguments=ARGUMENTS,
        state_dict=build_backbone(ARCHITECTURE, ARGUMENTS).state_dict(),
        preprocessing=PREPROCESSING,
        provenance={"method": "DINO", "steps": 1200, "versions": {"timm": "1"}, "git_commit": None},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "tiny"
    result = export_model(source(), out)
    assert result.reload.relative_difference <= 1e-5
    assert (result.folder, result.num_features) == (out, 24)
    return out


@pytest.mark.slow
def test_the_folder_holds_timms_config_with_mpp_beside_it(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert (config["mpp"], config["tile_px"], config["stain_normalisation"]) == (0.5, 80, None)
    assert "mpp" not in config["pretrained_cfg"], "timm refuses keys there that it does not know"
    assert config["model_args"] == {"dynamic_img_size": True, **ARGUMENTS}
    assert config["pretrained_cfg"]["mean"] == list(MEAN)
    assert config["pretrained_cfg"]["input_size"] == [3, 40, 40]
    assert sorted(file.name for file in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert len({file.stat().st_mode for file in folder.iterdir()}) == 1, "who may read one file may read all"


@pytest.mark.slow
def test_the_exported_features_are_those_of_the_source_at_every_size(folder: Path) -> None:
    extractor = load_extractor(str(folder), device=torch.device("cpu"))
    assert extractor.preprocessing == source().preprocessing
    backbone = build_backbone(ARCHITECTURE, ARGUMENTS).eval()
    backbone.load_state_dict(dict(source().state_dict))
    torch.manual_seed(5)
    for edge_px in (32, 40, 96):
        images = torch.randn(2, 3, edge_px, edge_px)
        with torch.inference_mode():
            torch.testing.assert_close(extractor.module(images), backbone(images), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_the_same_source_gives_the_same_bytes_and_replaces_an_older_model(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    export_model(source(seed=1), out)
    (out / "notes.txt").write_text("mine")
    export_model(source(), out)
    for file in folder.iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()
    assert (out / "notes.txt").read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


@pytest.mark.slow
def test_the_snippet_of_the_card_works(folder: Path, tmp_path: Path) -> None:
    card = (folder / "README.md").read_text()
    new, old = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "tile.png")
    script = (new + "first = features\n" + old + "second = model(transform(tile)[None])\n").replace(
        "FOLDER", str(folder)
    )
    script += "assert features.shape == (1, 24) and torch.allclose(first, second)\nprint('works')\n"
    answer = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert answer.stdout.strip() == "works", answer.stderr


@pytest.mark.slow
def test_the_card_states_what_a_user_must_know(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    _, header, body = card.split("---\n", 2)
    facts = yaml.safe_load(header)
    assert facts["library_name"] == "timm"
    assert facts["pipeline_tag"] == "image-feature-extraction"
    assert facts["license"] == "unknown"
    expected = "It expects tiles of 80 px at 0.5 µm/px, resized to 40 px: the network sees 1 µm/px."
    for text in (
        "**0.5 µm/px**",
        "**1 µm/px**",
        "| edge of the tiles | 80 px |",
        expected,
        "0.7, 0.5, 0.6",
        "not a medical device",
        "| steps | 1,200 |",
        "Unknown: set by you",
    ):
        assert text in body
    assert "git commit" not in body, "what is unknown is left out"


UNKNOWN: dict[str, float | None] = {"value": None}
ENVIRONMENT_RECORD = EnvironmentRecord(
    command=("dino-path",), python="3.12.1", platform="Linux", num_cpus=2, git_commit="abc", versions={"timm": "1.0.31"}
)
RESULTS_RECORD = ResultsRecord.model_validate({
    "data": {"name": "polyps", "classes": ["a", "b"], "num_images": {}, "grouped_by": "patient", "num_groups": None,
             "split_rule": "as given", "content_digest": "c", "split_digest": "s"},
    "config": {}, "models": {}, "environment": ENVIRONMENT_RECORD,
    "has_baseline": True,
    "baseline": "supervised resnet50",
    "rows": [
        {
            "model": "vits|16", "spec": "model", "protocol": "linear", "settings": {},
            "metrics": {
                "balanced_accuracy": {"value": 0.9, "low": 0.85, "high": 0.95},
                "accuracy": {"value": 0.91, "low": None, "high": None},
                "macro_f1": UNKNOWN, "kappa": UNKNOWN, "auroc": UNKNOWN, "recall": {}, "confusion": [],
                "num_test_images": 100, "interval": "over 41 test patients",
            },
            "differences": {"supervised resnet50": {"balanced_accuracy": {"value": 0.08, "low": 0.01, "high": 0.15}}},
        }
    ],
    "notes": ["41 test patients", "2 slides without regions left out: Doe_1, Doe_2"],  # as version 0.1 wrote it
})  # fmt: skip


@pytest.mark.slow
def test_results_are_told_in_the_card_when_there_are_any(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    write_card(copy, [RESULTS.plain(RESULTS_RECORD)])
    card = (copy / "README.md").read_text()
    row = "| vits\\|16 | linear probe | 0.900 (0.850 to 0.950) | 0.910 |  | +0.080 (+0.010 to +0.150) |"
    assert row in card
    assert "### polyps" in card
    assert "- 41 test patients\n- 2 slides without regions left out\n" in card
    assert "Doe" not in card
    write_card(copy, [])
    assert (copy / "README.md").read_bytes() == (folder / "README.md").read_bytes()


def test_a_folder_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(DataError, match="is not a model folder"):
        export_model(source(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_weights_of_another_backbone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="do not fit"):
        export_model(replace(source(), arguments={**ARGUMENTS, "depth": 3}), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = source()
    state.state_dict["norm.bias"][3] = torch.nan
    with pytest.raises(CheckpointError, match=r"norm\.bias"):
        export_model(state, tmp_path / "model")


@pytest.mark.usefixtures("reload_here")
def test_a_reload_that_differs_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    true_features = reload._features
    monkeypatch.setattr(reload, "_features", lambda *arguments: true_features(*arguments) * 1.001)
    with pytest.raises(CheckpointError, match="features that differ"):
        export_model(source(), tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def reload_answer(**changes: object) -> dict[str, object]:
    right = {"features": [[1.0, 2.0]], "input_size": [3, 40, 40], "crop": [40, 40], "mean": MEAN, "std": STD}
    return {**right, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": [[1.0, 2.0001]]}, "features that differ by 5.0e-05"),
        ({"features": [[1.0, float("nan")]]}, "features that differ"),
        ({"features": [[1.0]]}, "shape"),
        ({"mean": (0.485, 0.456, 0.406)}, "mean"),
        ({"std": (0.229, 0.224, 0.225)}, "std"),
        ({"crop": [224, 224]}, "224"),
    ],
)
def test_every_difference_after_the_reload_is_refused(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], message: str
) -> None:
    monkeypatch.setattr(reload, "_features", lambda *arguments: np.asarray([[1.0, 2.0]], np.float32))
    backbone = build_backbone(ARCHITECTURE, ARGUMENTS)
    monkeypatch.setattr(reload, "_reload", lambda *arguments: reload_answer())
    assert reload.check_reload(Path("folder"), backbone, PREPROCESSING, loader="timm").relative_difference == 0
    monkeypatch.setattr(reload, "_reload", lambda *arguments: reload_answer(**changes))
    with pytest.raises(CheckpointError, match=message):
        reload.check_reload(Path("folder"), backbone, PREPROCESSING, loader="timm")


def write_run(run: Path) -> Config:
    tree = {
        "model": {"backbone": ARCHITECTURE, "arguments": ARGUMENTS, "mean": MEAN, "std": STD},
        "views": {"global_px": 40, "local_px": 16},
        "training": {"num_steps": 20, "batch_size_per_gpu": 8},
    }
    config = Config.model_validate(tree)
    for step, seed in ((10, 1), (20, 2)):
        torch.manual_seed(seed)
        teacher, student = ({"backbone": build_backbone(ARCHITECTURE, ARGUMENTS).state_dict()} for _ in range(2))
        checkpoint = Checkpoint(
            step=step, config=as_plain(config), num_tiles=100, num_slides=None, tiles_digest="", contents_digest="",
            tile_mpp=0.25, tile_px=128, world_size=2, global_batch_size=16, num_skipped=0, student=student,
            teacher=teacher, objective={}, optimizer={},
        )  # fmt: skip
        file = run / "checkpoints" / f"step_{step:08d}.pt"
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(as_record(checkpoint), file)
    (run / "eval").mkdir()
    write_evaluation(run / "eval", RESULTS_RECORD)
    ENVIRONMENT.write(run / "environment.json", ENVIRONMENT_RECORD)
    return config


def first_weight(model: Path) -> torch.Tensor:
    return next(load_extractor(str(model), device=torch.device("cpu")).module.parameters())


@pytest.mark.usefixtures("reload_here")
def test_a_run_folder_exports_the_teacher_of_its_newest_checkpoint(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    newest = torch.load(tmp_path / "run/checkpoints/step_00000020.pt", weights_only=True)
    export_checkpoint(tmp_path / "run", tmp_path / "teacher")
    export_checkpoint(tmp_path / "run", tmp_path / "student", network="student", input_px=64)
    asked = json.loads((tmp_path / "student" / "config.json").read_text())
    assert asked["pretrained_cfg"]["input_size"] == [3, 64, 64]
    for network in ("teacher", "student"):
        assert torch.equal(first_weight(tmp_path / network), newest[network]["backbone"]["cls_token"])
    config = json.loads((tmp_path / "teacher" / "config.json").read_text())
    assert (config["mpp"], config["pretrained_cfg"]["input_size"]) == (0.25, [3, 40, 40])
    made = config["dino_path"]
    assert (made["steps"], made["tiles_seen"], made["network"]) == (20, 320, "teacher")
    assert "### polyps" in (tmp_path / "teacher" / "README.md").read_text()
    assert (made["git_commit"], made["versions"]) == ("abc", {"timm": "1.0.31"})


@pytest.mark.usefixtures("reload_here")
def test_an_older_checkpoint_can_be_named(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    older = tmp_path / "run" / "checkpoints" / "step_00000010.pt"
    export_checkpoint(older, tmp_path / "model")
    assert torch.equal(
        first_weight(tmp_path / "model"), torch.load(older, weights_only=True)["teacher"]["backbone"]["cls_token"]
    )


@pytest.mark.usefixtures("reload_here")
def test_the_best_checkpoint_is_exported_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run")
    command = ["dino-path", "export", str(tmp_path / "run"), "--best", "--out", str(tmp_path / "model")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "holds no best.json" in capsys.readouterr().err
    best = BestRecord(measure="knn_accuracy", data="x", step=10, value=0.9, last_step=20, num_without_gain=1)
    write_best(RunFolder(tmp_path / "run"), best)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code in (None, 0)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dino_path"]["steps"] == 10


class Payload:
    """What a hostile pickle would do on loading."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch pwned",))


@pytest.mark.parametrize("kind", ["text", "empty", "other torch file", "other version", "cut short", "hostile pickle"])
def test_files_that_are_no_checkpoint_of_ours_are_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file.pt"
    if kind in ("text", "empty"):
        file.write_text("hello" if kind == "text" else "")
    elif kind == "hostile pickle":
        torch.save({"format": FORMAT, "version": VERSION, "state": Payload()}, file)
    else:
        torch.save({"format": FORMAT if kind != "other torch file" else "x", "version": 99, "step": 0}, file)
        if kind == "cut short":
            file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"file\.pt"):
        export_checkpoint(file, tmp_path / "model")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.pt"]


@pytest.mark.slow
@pytest.mark.usefixtures("reload_here")
def test_stain_normalisation_stands_in_config_and_card_and_the_export_says_who_must_apply_it(tmp_path: Path) -> None:
    state = replace(source(), preprocessing=replace(PREPROCESSING, stain_normalisation="macenko"))
    result = export_model(state, tmp_path / "model")
    assert read_model_folder(tmp_path / "model").preprocessing == state.preprocessing
    assert any("none of them contains the macenko stain normalisation" in note for note in result.notes)
    assert "it expects tiles of 80 px at 0.5 um/px, resized to 40 px" in result.text()
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| stain normalisation | macenko, of each whole tile, before it is resized |" in card
    snippet = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)[0]
    random = np.random.default_rng(0)
    pixels = random.normal((190, 110, 170), 25, (80, 80, 3)).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "tile.png")
    names: dict[str, Any] = {}
    exec(snippet.replace("FOLDER", str(tmp_path / "model")).replace("tile.png", str(tmp_path / "tile.png")), names)
    np.testing.assert_array_equal(np.asarray(names["tile"]), normalise_stain(pixels, "macenko"))


@pytest.mark.parametrize("text", ["mit\nmodel-index: evil", "a: b", "[x", 'yes"no', "cc-by-nc-4.0"])
def test_a_licence_adds_no_key_to_the_card(text: str) -> None:
    facts = ModelFacts(
        "vit", {}, 8, "[CLS]", ["x = model(x)"], 10, Preprocessing((0.5,) * 3, (0.5,) * 3, 64), license=text
    )
    header = model_card(facts, {}, []).split("---\n")[1]
    assert yaml.safe_load(header)["license"] == text
    assert {*yaml.safe_load(header)} == {"license", "library_name", "pipeline_tag", "tags"}

"""Every command with every kind of bad input: exit code 2 and a message of four parts, or 3 and a list."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import typer.main
from slide_files import GLASS, tissue_image, write_slide_file
from tiny import ALONE, TINY, tiny_config, write_tiles

from dino_path import cli
from dino_path.cli.program import EXIT_SOME_FAILED
from dino_path.training.loop import pretrain


@dataclass(frozen=True)
class Answer:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def check_refused(self, *parts: str) -> None:
        """Exit code 2, and a message that says which thing, what we found, what we needed, and what to do."""
        assert self.code == 2, self.out + self.err
        assert "Traceback" not in self.err
        lines = self.err[self.err.rindex("Error: ") :].strip().splitlines()
        assert len(lines) >= 3, self.err
        assert all(line.startswith("  ") for line in lines[1:]), self.err
        assert ": " in lines[0].removeprefix("Error: ")
        for part in parts:
            assert part in self.err, self.err


Run = Callable[..., Answer]


def row_of(answer: Answer, name: str) -> str:
    """The first line of what was printed that has the name in it."""
    return next(line.strip() for line in answer.out.splitlines() if name in line)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Run]:
    """Calls the program in this process, in an empty folder, and puts logging back as it was."""
    logger = logging.getLogger("dino_path")
    before = logger.handlers[:], logger.propagate, logger.level
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["dino-path", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        output = capfd.readouterr()
        return Answer(int(end.value.code or 0), output.out, output.err)

    yield call
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.propagate = before[0], before[1]
    logger.setLevel(before[2])


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_slide_file(tmp_path_factory.mktemp("slides") / "good.tif", [tissue_image()])


@pytest.fixture(scope="module")
def run_folder(tiles_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    pretrain(tiny_config(tiles_folder, folder, "training.num_steps=1"), ALONE)
    return folder


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    write_tiles(folder / "A", 6)
    write_tiles(folder / "B", 6)
    return folder


TILES = ("tiles.mpp=0.5", "tiles.size_px=64", "tiles.mask_mpp=4", "tiles.min_area_um2=500")


# --- tile ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["nowhere.svs", "tiles.mpp=0.5"], ["nowhere.svs: no such file or folder"]),
        (["notes.txt", "tiles.mpp=0.5"], ["notes.txt: .txt is not a slide format"]),
        (["empty", "tiles.mpp=0.5"], ["empty: this folder holds no slides"]),
        (["list.csv", "tiles.mpp=0.5"], ["list.csv"]),
        (["good.tif"], ["missing key 'tiles.mpp'", "no default: it is your choice"]),
        (["good.tif", "tiles.mmp=0.5"], ["unknown key 'tiles.mmp'. Did you mean 'mpp'?"]),
        (["good.tif", "tiles.mpp=fine"], ["'tiles.mpp': Input should be a valid number"]),
        (["good.tif", "--config", "nowhere.yaml"], ["nowhere.yaml: cannot be read"]),
        (["good.tif", "tiles.mpp=0.5", "--shard", "0/3"], ["--shard 0/3: not of the form I/N"]),
        (["good.tif", "tiles.mpp=0.5", "--shard", "4/3"], ["1 <= I <= N"]),
        (["good.tif", "tiles.mpp=0.5", "--shard", "first"], ["not of the form I/N"]),
    ],
)
def test_tile_refuses(run: Run, slide: Path, tmp_path: Path, words: list[str], parts: list[str]) -> None:
    (tmp_path / "notes.txt").write_text("not a slide")
    (tmp_path / "list.csv").write_text("file,label\na.svs,1\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "good.tif").symlink_to(slide)
    run("tile", *words, "--out", "store").check_refused(*parts)
    assert not (tmp_path / "store").exists()


def test_tile_lists_slides_that_failed_and_keeps_the_others(run: Run, slide: Path, tmp_path: Path) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides/good.tif").symlink_to(slide)
    (tmp_path / "slides/broken.svs").write_bytes(b"II*\x00" + bytes(2000))
    (tmp_path / "slides/text.svs").write_text("not a slide\n" * 50)
    write_slide_file(tmp_path / "slides/no_mpp.tif", [tissue_image(512, 512)], mpp=None)
    answer = run("tile", "slides", *TILES, "--out", "store", "--workers", 0)
    assert answer.code == cli.program.EXIT_SOME_FAILED == 3
    assert "Traceback" not in answer.err
    lines = {words[1]: words[0] for words in map(str.split, answer.out.splitlines()) if len(words) > 1}
    assert {lines[name] for name in ("broken", "text", "no_mpp")} == {"failed"}
    assert lines["good"] == "done"
    assert "mpp" in next(line for line in answer.out.splitlines() if "no_mpp" in line)
    assert "1 done, 0 already there, 0 empty, 3 failed" in answer.out


@pytest.mark.parametrize("name", ["broken.svs", "no_mpp.tif"])
def test_tile_refuses_inputs_of_which_no_slide_can_be_tiled(run: Run, tmp_path: Path, name: str) -> None:
    (tmp_path / "broken.svs").write_bytes(b"II*\x00" + bytes(2000))
    write_slide_file(tmp_path / "no_mpp.tif", [tissue_image(512, 512)], mpp=None)
    answer = run("tile", name, *TILES, "--out", "store", "--workers", 0)
    answer.check_refused(f"SlideError: {name}: none of 1 slide(s) could be tiled")
    row = row_of(answer, Path(name).stem)
    assert row.startswith("failed")
    reason = row.split("  ")[-1].strip()
    assert len(reason) > 10
    assert (answer.out + answer.err).count(reason) == 1, "a failure is told once"


def test_tile_refuses_a_store_made_with_other_settings(run: Run, slide: Path) -> None:
    assert run("tile", slide, *TILES, "--out", "store", "--workers", 0).code == 0
    run("tile", slide, *TILES, "tiles.jpeg_quality=70", "--out", "store").check_refused("store")
    assert run("tile", slide, *TILES, "--out", "store", "--workers", 0).code == 0, "the same settings go on"


def test_tile_writes_coordinate_files_on_request_and_keeps_them_in_step(run: Run, slide: Path, tmp_path: Path) -> None:
    answer = run("tile", slide, "--out", "store", *TILES, "--layout", "trident,clam")
    assert (answer.code, "coordinates: store/clam" in answer.out) == (0, True)
    patches = tmp_path / "store/trident/20x_64px_0px_overlap/patches/good_patches.h5"
    before = patches.read_bytes()
    assert (tmp_path / "store/clam/patches/good.h5").is_file()
    answer = run("tile", slide, "--out", "store", *TILES, "tiles.min_sharpness=1e9")
    assert "(1 judged again by new quality limits, without reading them)" in answer.out
    assert patches.read_bytes() != before
    assert not (tmp_path / "store/clam/patches/good.h5").exists()  # no tile is left
    run("tile", slide, "--out", "other", *TILES, "--layout", "qupath").check_refused("qupath is no layout")


def test_tile_takes_masks_from_a_folder(run: Run, slide: Path, tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    run("tile", slide, "--out", "a", *TILES, "slides.masks=nowhere").check_refused("nowhere: no such folder")
    run("tile", slide, "--out", "b", *TILES, "slides.masks=masks").check_refused("none of 1 slide(s) could be tiled")
    mask = np.full((96, 128), 255, np.uint8)
    (tmp_path / "masks/good.png").write_bytes(cv2.imencode(".png", mask)[1].tobytes())
    answer = run("tile", slide, "--out", "b", *TILES, "slides.masks=masks")
    assert "tissue near 100 %" in answer.out


def test_tile_says_of_a_slide_without_tissue_that_it_is_empty(run: Run, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(-2, 3, (300, 300, 1))
    write_slide_file(tmp_path / "glass.tif", [(np.array(GLASS) + noise).astype(np.uint8)])
    answer = run("tile", "glass.tif", *TILES, "--out", "store", "--workers", 0)
    assert answer.code == EXIT_SOME_FAILED
    assert row_of(answer, "glass").startswith("empty")
    last = answer.out.splitlines()[-1]
    assert last.startswith("NO TILES: none of 1 slide(s) has any, 1 because no tile has enough tissue")
    write_slide_file(tmp_path / "good.tif", [tissue_image()])
    answer = run("tile", "glass.tif", "good.tif", *TILES, "--out", "store", "--workers", 0)
    assert (answer.code, "NO TILES" in answer.out) == (0, False)


# --- views --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["nowhere"], ["nowhere: no such folder"]),
        (["empty"], ["empty: holds neither store.json nor images"]),
        (["tiles", "views.num_locals=3"], ["unknown key 'views.num_locals'. Did you mean 'num_local'?"]),
        (["tiles", "--out", "sheet.jpg"], ["--out sheet.jpg: is not a PNG file"]),
        (["tiles", "slides.split=train"], ["Only the slides of a tile store have splits"]),
        (["tiles", "training.num_steps=1", "training.balance=slide"], ["their slides are unknown"]),
        (["tiles", "objective.ibot.weight=1", "model.backbone=resnet18"], ["it has no patch tokens"]),
    ],
)
def test_views_refuses(run: Run, tiles_folder: Path, tmp_path: Path, words: list[str], parts: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "tiles").symlink_to(tiles_folder)
    run("views", *words, *(() if "--out" in words else ("--out", "sheet.png"))).check_refused(*parts)
    assert not [*tmp_path.glob("sheet.*")]


def test_views_draws_a_sheet_of_a_store_and_of_a_folder(run: Run, slide: Path, tiles_folder: Path) -> None:
    assert run("tile", slide, *TILES, "--out", "store", "--workers", 0).code == 0
    answer = run("views", "store", "--out", "new/sheet.png", "--num-tiles", 2, "--seed", 3, "views.hue=0.3")
    assert (answer.code, answer.out) == (0, "contact sheet: new/sheet.png\n")
    assert Path("new/sheet.png").read_bytes().startswith(b"\x89PNG")
    assert run("views", tiles_folder, "--out", "folder.png", "--num-tiles", 1).code == 0
    masked = ("objective.ibot.weight=1", "model.backbone=vit_tiny_patch16_224", "model.arguments={patch_size: 32}")
    assert run("views", tiles_folder, "--out", "masks.png", "--num-tiles", 1, *masked).code == 0
    assert Path("masks.png").read_bytes() != Path("folder.png").read_bytes()


# --- pretrain -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["store="], ["missing key 'store'"]),
        (["store=nowhere"], ["nowhere: no such folder"]),
        (["store=empty"], ["empty: holds neither store.json nor images"]),
        (["optim.wieght_decay=0.1"], ["unknown key 'optim.wieght_decay'. Did you mean 'weight_decay'?"]),
        (["model.backbone=vit_smal_patch16_224"], ["has no such model", "Did you mean vit_small_patch16_224"]),
        (["model.arguments={embed_dimm: 32}"], ["timm cannot build it", "Correct model.arguments"]),
        (["model.arguments={img_size: 32, patch_size: 0}"], ["timm cannot build it"]),
        (["views.local_px=20"], ["it does not take views of 20 px"]),
        (["model.weights=nowhere"], ["nowhere"]),
        (["training.num_epochs=3"], ["give exactly one of num_steps, num_epochs, num_tiles"]),
        (
            ["training.balance=slide"],
            ["training.balance=slide: the tiles are image files", "Leave training.balance out"],
        ),
        (["training.device=tpu"], ["'training.device': Input should be 'auto', 'cpu' or 'cuda'"]),
        (["some_word"], ["'some_word' is not of the form dotted.key=value"]),
        (["--config", "nowhere.yaml"], ["nowhere.yaml: cannot be read"]),
    ],
)
def test_pretrain_refuses(run: Run, tiles_folder: Path, tmp_path: Path, words: list[str], parts: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    run("pretrain", f"store={tiles_folder}", "out=run", *TINY, *words).check_refused(*parts)
    assert not (tmp_path / "run/checkpoints").exists()


def test_pretrain_refuses_a_run_folder_of_other_settings(run: Run, tiles_folder: Path, run_folder: Path) -> None:
    words = ["pretrain", f"store={tiles_folder}", f"out={run_folder}", *TINY, "training.num_steps=1"]
    assert run(*words).code == 0
    run(*words, "training.seed=7").check_refused("training.seed (0 -> 7)", "another 'out'")


def test_pretrain_names_an_unreadable_tile_and_refuses_more_than_it_may_pass_over(run: Run, tmp_path: Path) -> None:
    tiles = write_tiles(tmp_path / "tiles", 4)
    (tiles / "002.png").write_bytes(b"")
    answer = run("pretrain", "store=tiles", "out=run", *TINY)
    assert answer.code == 0, answer.err
    assert "002.png" in (tmp_path / "run/unreadable.jsonl").read_text()
    (tiles / "003.png").write_bytes(b"")
    run("pretrain", "store=tiles", "out=other", *TINY).check_refused("At most 1 unreadable tiles")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_pretrain_refuses_cuda_where_there_is_none(run: Run, tiles_folder: Path) -> None:
    words = ["pretrain", f"store={tiles_folder}", "out=run", *TINY, "training.device=cuda"]
    run(*words).check_refused("training.device=cuda", "sees 0 CUDA devices")


# --- export, embed, evaluate, baseline, report --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("nowhere", ["no such file or folder"]),
        ("empty", ["holds no checkpoints"]),
        ("text.pt", ["cannot be read as a checkpoint"]),
        ("foreign.pt", ["not a checkpoint of dino_path"]),
    ],
)
def test_export_refuses(run: Run, tmp_path: Path, path: str, parts: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("no checkpoint")
    torch.save({"model": torch.zeros(2)}, tmp_path / "foreign.pt")
    run("export", path, "--out", "model").check_refused(path, *parts)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("nowhere.pth", ["cannot be read"]),
        ("text.pth", ["cannot be read"]),
        ("ours.pth", ["holds neither a teacher nor a bare backbone", "'dino-path export'"]),
        ("other.pth", ["its architecture is not recognised", "--arch NAME"]),
    ],
)
def test_import_checkpoint_refuses(run: Run, tmp_path: Path, path: str, parts: list[str]) -> None:
    (tmp_path / "text.pth").write_text("no checkpoint")
    torch.save({"format": "dino_path checkpoint", "teacher_backbone": {}}, tmp_path / "ours.pth")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    run("import-checkpoint", path, "--out", "model").check_refused(path, *parts)
    assert not (tmp_path / "model").exists()


def test_models_refuses_an_unknown_name_and_counts_a_known_one(run: Run) -> None:
    run("models", "resnet_5").check_refused("resnet_5", "has no such model")
    answer = run("models", "Ti/16", "--px", 224)
    assert answer.code == 0
    assert " ".join(row_of(answer, "Ti/16").split()) == "Ti/16 192 12 768 3 5.5 2.5 yes vit_tiny_patch16_224"


BAD_MODELS = [
    ("nowhere", ["nowhere"]),
    ("empty", ["empty"]),
    ("timm:no_such_model", ["timm:no_such_model", "has no such model"]),
    ("RUN", ["dino-path export"]),
    ("CHECKPOINT", ["dino-path export"]),
    ("untrained:empty", ["empty"]),
]


@pytest.fixture
def model_words(tmp_path: Path, run_folder: Path) -> Callable[[str], str]:
    """The paths that stand for RUN and CHECKPOINT, which pytest's parameters cannot know."""
    (tmp_path / "empty").mkdir()
    names = {"RUN": run_folder, "CHECKPOINT": run_folder / "checkpoints/step_00000001.pt"}
    return lambda word: str(names.get(word, word))


@pytest.mark.parametrize(("model", "parts"), BAD_MODELS)
def test_embed_refuses_what_is_no_model(
    run: Run, tiles_folder: Path, model_words: Callable[[str], str], model: str, parts: list[str]
) -> None:
    run("embed", model_words(model), tiles_folder, "--out", "features").check_refused(*parts)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["mean-colour", "nowhere"], ["nowhere: no such folder"]),
        (["mean-colour", "empty"], ["holds neither store.json nor images"]),
    ],
)
def test_embed_refuses_what_is_no_input(run: Run, tmp_path: Path, words: list[str], parts: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    run("embed", *words, "--out", "features").check_refused(*parts)


def test_embed_refuses_an_unknown_layout(run: Run, slide: Path) -> None:
    assert run("tile", slide, *TILES, "--out", "store", "--workers", 0).code == 0
    run("embed", "mean-colour", "store", "--layout", "clamm", "--out", "features").check_refused("clamm", "clam")


def test_embed_refuses_settings_for_what_is_tiled_already(run: Run, tiles_folder: Path) -> None:
    run("embed", "mean-colour", tiles_folder, "tiles.mpp=1", "--out", "x").check_refused("is tiled already")


def test_embed_asks_for_the_mpp_of_slides_where_the_model_does_not_know_it(run: Run, slide: Path) -> None:
    run("embed", "mean-colour", slide, "--out", "x").check_refused("tiles.mpp")


def test_export_refuses_an_unknown_format(run: Run, run_folder: Path) -> None:
    run("export", run_folder, "--out", "model", "--format", "tflite").check_refused("tflite is not a known format")


def test_attention_refuses_a_model_without_a_cls_token(run: Run, tiles_folder: Path) -> None:
    image = next(tiles_folder.iterdir())
    run("attention", "untrained:timm:resnet18", image, "--out", "x").check_refused("is a ResNet", "[CLS]")


@pytest.mark.parametrize(("model", "parts"), BAD_MODELS)
def test_evaluate_refuses_what_is_no_model(
    run: Run, labelled: Path, model_words: Callable[[str], str], model: str, parts: list[str]
) -> None:
    run("evaluate", "knn", model_words(model), "--data", labelled, "--workers", 0).check_refused(*parts)


BAD_DATA = [
    ("nowhere", ["nowhere"]),
    ("empty", ["empty"]),
    ("one_class", ["one_class"]),
    ("no_label.csv", ["no_label.csv", "label"]),
    ("gone.csv", ["gone.csv", "gone.png"]),
    ("nct-crc:nowhere", ["nowhere"]),
    ("pcam:empty", ["pcam:empty", "_x.h5"]),
    ("mhist:empty", ["annotations.csv"]),
    ("breakhis:empty", ["breakhis:empty"]),
    ("bach:empty", ["empty"]),
    ("store:nowhere", ["nowhere"]),
    ("pcamm:x", ["pcamm:x"]),
]


@pytest.fixture
def bad_data(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_tiles(tmp_path / "one_class/A", 4)
    (tmp_path / "no_label.csv").write_text("path,patient\na.png,1\n")
    (tmp_path / "gone.csv").write_text("path,label\ngone.png,A\nalso_gone.png,B\n")


@pytest.mark.usefixtures("bad_data")
@pytest.mark.parametrize(("data", "parts"), BAD_DATA)
@pytest.mark.parametrize("words", [["evaluate", "knn", "mean-colour"], ["baseline"]], ids=["evaluate", "baseline"])
def test_evaluate_and_baseline_refuse_bad_data(run: Run, words: list[str], data: str, parts: list[str]) -> None:
    run(*words, "--data", data, "--out", "results", "--workers", 0).check_refused(*parts)


def test_evaluate_refuses_unknown_settings_and_a_baseline_that_is_none(run: Run, labelled: Path) -> None:
    words = ["evaluate", "knn", "mean-colour", "--data", labelled, "--workers", 0]
    run(*words, "evaluation.knn_kk=3").check_refused("Did you mean 'knn_k'?")
    run(*words, "--baseline", "nowhere").check_refused("nowhere")


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["evaluate", "table", "mean-colour", "--fractions", "1,10"], ["'1,10'", "up to 1"]),
        (["evaluate", "table", "mean-colour", "--fractions", "all"], ["'all'"]),
        (["baseline", "--fraction", "0"], ["fraction", "above 0"]),
        (["evaluate", "fewshot", "mean-colour", "evaluation.num_episodes=3"], ["num_episodes"]),
    ],
)
def test_evaluate_refuses_fractions_and_episodes_that_cannot_be(
    run: Run, labelled: Path, words: list[str], parts: list[str]
) -> None:
    run(*words, "--data", labelled, "--out", "results", "--workers", 0).check_refused(*parts)


def test_a_fraction_of_the_labels_and_few_shots_are_evaluated(run: Run, labelled: Path) -> None:
    words = ["mean-colour", "--data", labelled, "--out", "results", "--workers", 0]
    answer = run("evaluate", "table", *words, "--fractions", "1,0.5", "evaluation.num_bootstrap=100")
    assert row_of(answer, "50 %"), answer.err
    assert "dino-path baseline --fraction 0.5" in answer.out
    answer = run("evaluate", "fewshot", *words, "evaluation.num_episodes=100", "evaluation.shots=[1]")
    assert row_of(answer, "1 per class"), answer.err


@pytest.mark.parametrize("path", ["nowhere", "empty"])
def test_report_refuses_what_is_no_run(run: Run, tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    run("report", path, "--out", "report.html").check_refused(path)
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "out=file/run", *TINY],
        ["embed", "mean-colour", "TILES", "--out", "file"],
        ["evaluate", "knn", "mean-colour", "--data", "LABELLED", "--out", "file"],
        ["baseline", "--data", "LABELLED", "--out", "file"],
        ["report", "RUN", "--out", "file/report.html"],
        ["tile", "SLIDE", *TILES, "--out", "file"],
        ["export", "RUN", "--out", "file"],
    ],
    ids=lambda words: words[0],
)
def test_an_output_folder_that_is_a_file_is_refused_before_the_work(
    run: Run, tmp_path: Path, tiles_folder: Path, labelled: Path, run_folder: Path, slide: Path, words: list[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    places = {"TILES": tiles_folder, "LABELLED": labelled, "RUN": run_folder, "SLIDE": slide}
    words = [str(places.get(word, word)) for word in words]
    if words[0] == "pretrain":
        words.append(f"store={tiles_folder}")
    answer = run(*words)
    answer.check_refused("file")
    assert "images/s" not in answer.err
    assert (tmp_path / "file").read_text() == "in the way"


def test_report_refuses_a_folder_as_its_file(run: Run, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    run("report", run_folder, "--out", "folder").check_refused("folder: nothing can be written here: it is a folder")


# --- the program itself -------------------------------------------------------------------------------------------


def command_names() -> list[str]:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    return sorted(group.commands)


@pytest.mark.parametrize("command", command_names())
def test_every_command_explains_itself(run: Run, command: str) -> None:
    answer = run(command, "--help")
    assert answer.code == 0
    assert f"dino-path {command}" in answer.out
    assert answer.err == ""


@pytest.mark.parametrize(
    "words",
    [
        ["tile"], ["no_such_command"], ["pretrain", "--no-such-option"], ["export"], ["export", "run"],
        ["export", "run", "--out", "model", "--network", "techer"], ["evaluate", "knnn", "model", "--data", "x"],
        ["embed", "mean-colour", "tiles", "--out", "x", "--device", "tpu"],
    ],
)  # fmt: skip
def test_wrong_usage_ends_with_two_and_no_traceback(run: Run, words: list[str]) -> None:
    answer = run(*words)
    assert answer.code == 2
    assert answer.err.startswith("Usage: ")
    assert "Error: " in answer.err
    assert "Traceback" not in answer.err


def test_an_interrupt_ends_with_130_and_says_how_to_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*words: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dino_path.model.sizes.backbone_size", interrupt)
    answer = run("models", "S/16")
    assert answer.code == 130
    assert "the same command continues" in answer.err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['dino-path', '--help']\n"
        "from dino_path.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'numpy', 'cv2', 'timm', 'wandb', 'pydantic', 'pyarrow', 'yaml'} & {*sys.modules}\n"
        "assert not heavy, heavy"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    assert "pretrain" in answer.stdout


def test_segmentation_prints_its_tables_or_json_and_refuses_to_lose_results(run: Run, tmp_path: Path) -> None:
    rng, lines = np.random.default_rng(0), ["path,mask"]
    for number in range(8):
        mask = np.zeros((32, 32), np.uint8)
        mask[:, 16:] = 255
        image = (rng.normal(90, 5, (32, 32, 3)) + mask[..., None] * 0.4).astype(np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
        cv2.imwrite(str(tmp_path / f"{number}_mask.png"), mask)
        lines.append(f"{number}.png,{number}_mask.png")
    (tmp_path / "masks.csv").write_text("\n".join(lines))
    words = ("evaluate", "segmentation", "--data", "masks.csv", "--out", "out", "--workers", 0)
    answer = run(*words, "mean-colour")
    assert answer.code == 0, answer.err
    assert "1.000" in row_of(answer, "mean-colour")
    assert "segmentation.jpg" in answer.out
    again = run(*words, "mean-colour", "--json", "--quiet")
    assert json.loads(again.out)["rows"][0]["overlap"]["mean"]["image"]["dice"]["value"] == 1.0
    run(*words, "colour-statistics").check_refused("the model mean-colour is left out", "Leave --out out")

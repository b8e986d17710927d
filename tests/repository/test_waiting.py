"""Nobody waits for a refusal: what is mistyped is told before torch is imported, which takes seconds or a minute.

Each mistake runs in a process of its own, which ends by saying which of the heavy packages it has imported.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from cohort_files import write_slide, write_table
from slide_files import tissue_image, write_slide_file
from tiny import TINY, write_tiles

HEAVY = ("torch", "torchvision", "timm", "sklearn", "faiss", "matplotlib", "albumentations", "onnx")
PROGRAM = f"""
import sys
from dino_path.cli import main
try:
    main()
finally:
    print("HEAVY", *[name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it had imported."""

    code: int
    out: str
    err: str
    heavy: tuple[str, ...]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with something of every kind: `tiles`, `labelled`, `masks.csv`, `slide.tif`, `bags`, `slides.csv`,
    `empty`, `file`, `model`, `text.pt`.
    """
    folder = tmp_path_factory.mktemp("place")
    write_tiles(folder / "tiles", 4)
    write_tiles(folder / "labelled/A", 6)
    write_tiles(folder / "labelled/B", 6)
    write_tiles(folder / "one_class/A", 4)
    (folder / "masks.csv").write_text("path,mask\ntiles/000.png,tiles/001.png\n")
    write_slide_file(folder / "slide.tif", [tissue_image()])
    write_slide(folder / "bags/one.h5", np.zeros((2, 3)))
    write_slide(folder / "bags/two.h5", np.zeros((2, 3)))
    write_table(folder / "slides.csv", ("slide_id", "label"), [("one", "a"), ("two", "b")])
    (folder / "empty").mkdir()
    (folder / "file").write_text("in the way")
    (folder / "text.pt").write_text("no checkpoint")
    sets = "".join(
        f"  {name}: {{data: {data}, protocols: [knn], primary: {{protocol: knn}}}}\n"
        for name, data in {"one": "one_class", "gone": "nowhere", "good": "labelled"}.items()
    )
    (folder / "suite.yaml").write_text(f"title: Sets\nsets:\n{sets}")
    (folder / "model").mkdir()
    (folder / "model/config.json").write_text(
        '{"architecture": "resnet18", "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0, 0, 0], '
        '"std": [1, 1, 1]}, "mpp": 0.5}'
    )
    return folder


@pytest.fixture
def end(place: Path) -> Callable[..., Ended]:
    def call(*words: str, **environment: str) -> Ended:
        answer = subprocess.run(
            [sys.executable, "-c", PROGRAM, *words], cwd=place, capture_output=True, text=True, check=False,
            env={**os.environ, **environment},
        )  # fmt: skip
        told, _, heavy = answer.stderr.rpartition("HEAVY")
        return Ended(answer.returncode, answer.stdout, told, tuple(heavy.split()))

    return call


EVALUATE = ("evaluate", "knn", "mean-colour", "--data")
SUITE = ("evaluate", "suite", "mean-colour", "--suite")
PRETRAIN = ("pretrain", "store=tiles", "out=run", *TINY)
TILES = ("tiles.mpp=0.5", "tiles.size_px=64", "tiles.mask_mpp=4", "tiles.min_area_um2=500")
MISTAKES = [
    # paths and their kinds
    (("tile", "nowhere.svs", "tiles.mpp=0.5", "--out", "s"), "nowhere.svs"),
    (("tile", "slide.tif", "tiles.mpp=0.5", "--out", "file"), "file"),
    (("views", "nowhere", "--out", "v.png"), "nowhere"),
    (("views", "tiles", "--out", "v.jpg"), "v.jpg"),
    ((*PRETRAIN, "store=nowhere"), "nowhere"),
    ((*PRETRAIN, "store=empty"), "empty"),
    ((*PRETRAIN, "out=file"), "file"),
    ((*PRETRAIN, "model.weights=nowhere"), "nowhere"),
    ((*PRETRAIN, "model.weights=model"), "model.safetensors"),
    ((*PRETRAIN, "monitor.knn_data=nowhere"), "nowhere"),
    ((*PRETRAIN, "monitor.knn_data=one_class"), "one class"),
    ((*PRETRAIN, "--config", "nowhere.yaml"), "nowhere.yaml"),
    (("export", "nowhere", "--out", "m"), "nowhere"),
    (("export", "empty", "--out", "m"), "empty"),
    (("export", "text.pt", "--out", "m"), "text.pt"),
    (("import-checkpoint", "nowhere.pth", "--out", "m"), "nowhere.pth"),
    (("embed", "mean-colour", "nowhere", "--out", "f"), "nowhere"),
    (("embed", "nowhere", "tiles", "--out", "f"), "nowhere"),
    (("embed", "model", "tiles", "--out", "f"), "model.safetensors"),
    (("embed", "mean-colour", "tiles", "--out", "file"), "file"),
    (("attention", "nowhere", "slide.tif", "--out", "a"), "nowhere"),
    (("attention", "mean-colour", "nowhere.png", "--out", "a"), "nowhere.png"),
    (("attention", "mean-colour", "slide.tif", "--out", "a", "--point", "2,0"), "--point 2,0"),
    (("attention", "mean-colour", "slide.tif", "--out", "a", "--region", "1,2"), "--region 1,2"),
    (("attention", "mean-colour", "slide.tif", "--out", "a", "--mass", "0"), "--mass 0"),
    (("view", "nowhere"), "nowhere"),
    (("view", "empty", "--model", "mean-colour"), "empty"),
    (("view", "tiles", "--model", "nowhere"), "nowhere"),
    (("view", "tiles", "--features", "f"), "--features"),
    (("view", "tiles", "--slide", "a"), "--slide"),
    (("view", "tiles", "--export", "file"), "file"),
    ((*EVALUATE, "nowhere"), "nowhere"),
    ((*EVALUATE, "one_class"), "one class"),
    ((*EVALUATE, "labelled", "--out", "file"), "file"),
    ((*EVALUATE, "labelled", "--baseline", "empty"), "result.json"),
    (("evaluate", "retrieval", "mean-colour", "--data", "nowhere"), "nowhere"),
    (("evaluate", "robustness", "mean-colour", "--data", "nowhere"), "nowhere"),
    (("evaluate", "robustness", "mean-color", "--data", "labelled"), "mean-color"),
    (("evaluate", "robustness", "mean-colour", "--data", "labelled", "evaluation.shifts=[blurr]"), "blurr"),
    (("evaluate", "segmentation", "mean-colour", "--data", "masks.csv"), "001.png"),
    (("evaluate", "segmentation", "mean-colour", "--data", "labelled"), "path and mask"),
    ((*SUITE, "nowhere.yaml"), "nowhere.yaml"),
    ((*SUITE, "suite.yaml"), "2 of 3 sets cannot be evaluated"),
    ((*SUITE, "suite.yaml", "sets.one.protocols=[knnn]"), "sets.one.protocols"),
    ((*SUITE, "suite.yaml", "--baselines", "nowhere"), "--baselines nowhere"),
    ((*SUITE, "suite.yaml", "--out", "file"), "file"),
    (("baseline", "--data", "nowhere", "--out", "b"), "nowhere"),
    (("baseline", "--data", "labelled", "--out", "file"), "file"),
    (("report", "nowhere", "--out", "r.html"), "nowhere"),
    (("map", "mean-colour", "--store", "nowhere", "--out", "m.html"), "nowhere"),
    (("map", "nowhere", "--data", "labelled", "--out", "m.html"), "nowhere"),
    (("map", "mean-colour", "--store", "tiles", "--out", "m.pdf"), ".html"),
    (("status", "nowhere"), "nowhere"),
    (("submit", "pretrain", "store=nowhere", "out=run", *TINY), "nowhere"),
    (("demo", "--out", "file"), "file"),
    (("evaluate", "slides", "nowhere", "--labels", "slides.csv", "--out", "e"), "nowhere"),
    (("evaluate", "slides", "empty", "--labels", "slides.csv", "--out", "e"), "no .h5 or .pt"),
    (("evaluate", "slides", "bags", "--labels", "nowhere.csv", "--out", "e"), "nowhere.csv"),
    (("evaluate", "slides", "bags", "--labels", "slides.csv", "--out", "file"), "file"),
    (("evaluate", "slides", "bags", "--labels", "slides.csv", "--out", "e"), "a: 1, b: 1"),
    (("evaluate", "slides", "bags", "--labels", "slides.csv", "--out", "e", "cohort.fold=3"), "cohort.fold"),
    (("plan", *PRETRAIN[1:], "store=nowhere"), "nowhere"),
    (("plan", *PRETRAIN[1:], "out=file"), "file"),
    (("plan", "training.num_steps=1"), "missing key 'store'"),
    # names of configs and models
    (("configs", "vits16_1gp"), "Did you mean vits16_1gpu"),
    ((*PRETRAIN, "--config", "vits16_1gp"), "Did you mean vits16_1gpu"),
    ((*PRETRAIN, "model.backbone=vit_smal_patch16_224"), "Did you mean vit_small_patch16_224"),
    (("embed", "timm:resnet_5", "tiles", "--out", "f"), "timm:resnet_5"),
    (("embed", "untrained:timm:resnet_5", "tiles", "--out", "f"), "resnet_5"),
    (("embed", "timm:resnet50@nowhere.pth", "tiles", "--out", "f"), "nowhere.pth"),
    (("evaluate", "knn", "mean-color", "--data", "labelled"), "mean-color"),
    (("evaluate", "knn", "mean-colour", "mean-colour", "--data", "labelled"), "given twice"),
    (("import-checkpoint", "text.pt", "--out", "m", "--arch", "vit_smal"), "vit_smal"),
    (("models", "resnet_5"), "resnet_5"),
    # settings, formats, layouts, data specs
    (("tile", "slide.tif", "tiles.mmp=0.5", "--out", "s"), "tiles.mmp"),
    (("tile", "slide.tif", "tiles.mpp=0.5", "--out", "s", "--layout", "clamm"), "clamm"),
    (("views", "tiles", "views.num_locals=2", "--out", "v.png"), "num_locals"),
    ((*PRETRAIN, "training.device=tpu"), "training.device"),
    (("embed", "mean-colour", "tiles", "--out", "f", "--layout", "clamm"), "clamm"),
    (("embed", "mean-colour", "slide.tif", "--out", "f"), "tiles.mpp"),
    (("embed", "mean-colour", "tiles", "tiles.mpp=1", "--out", "f"), "is tiled already"),
    (("export", "text.pt", "--out", "m", "--format", "tflite"), "tflite"),
    ((*EVALUATE, "pcamm:labelled"), "pcamm"),
    ((*EVALUATE, "labelled", "evaluation.knn_kk=3"), "knn_kk"),
    ((*EVALUATE, "labelled", "--fractions", "1"), "--fractions"),
    (("baseline", "--data", "labelled", "--out", "b", "--fraction", "2"), "fraction"),
    (("baseline", "--data", "labelled", "--out", "b", "baseline.num_epoch=2"), "num_epoch"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "named"), MISTAKES, ids=lambda words: " ".join(words)[:60])
def test_a_mistake_is_told_before_anything_slow_is_imported(
    end: Callable[..., Ended], words: tuple[str, ...], named: str
) -> None:
    ended = end(*words)
    assert ended.code == 2, ended.err
    assert named in ended.err
    assert ended.heavy == ()


def test_variables_of_a_launcher_that_contradict_themselves_are_told_as_early(end: Callable[..., Ended]) -> None:
    ended = end(*PRETRAIN, RANK="1")
    assert (ended.code, ended.heavy) == (2, ())
    assert "launch environment" in ended.err


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("tile", "slide.tif", *TILES, "--out", "store", "--workers", "0"), 0),
        (("submit", "pretrain", "store=tiles", "out=run", *TINY, "--dry-run"), None),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)
def test_what_needs_no_network_does_its_work_without_torch(
    end: Callable[..., Ended], words: tuple[str, ...], code: int | None
) -> None:
    ended = end(*words)
    assert code is None or ended.code == code, ended.err
    assert "Traceback" not in ended.err
    assert ended.heavy == ()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("models", "Ti/16", "--px", "32", "--local-px", "32"), "loading torch and timm"),
        (("export", "text.pt", "--out", "m"), "reading text.pt"),
        (("evaluate", "knn", "mean-colour", "--data", "nowhere"), "reading nowhere"),
        (("doctor",), "looking at Python"),
    ],
    ids=lambda words: words[0] if isinstance(words, tuple) else "",
)
def test_the_first_line_says_what_begins(place: Path, words: tuple[str, ...], line: str) -> None:
    """It is read while the command runs, and the command is ended then."""
    with subprocess.Popen(
        [sys.executable, "-m", "dino_path", *words], cwd=place, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        text=True,
    ) as process:  # fmt: skip
        assert process.stderr is not None
        first = process.stderr.readline()
        process.kill()
    assert line in first

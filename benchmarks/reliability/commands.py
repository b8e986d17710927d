"""Every command that writes, on inputs so small that a call takes a second, run in forked processes that can be hurt.

The other scripts of this folder share it. The inputs are painted, trained and measured once, below WORK/inputs.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import Value
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np

from dino_path import cli
from dino_path.atomic import TEMPORARY

VIT = "model.arguments={img_size: 32, patch_size: 8, embed_dim: 32, depth: 2, num_heads: 2}"
TINY = (
    "views.global_px=32", "views.local_px=16", "views.num_local=2", "model.backbone=vit_tiny_patch16_224", VIT,
    "objective.dino.num_prototypes=64", "objective.dino.head_hidden=32", "objective.dino.head_bottleneck=16",
    "optim.base_lr=0.003", "optim.lr_warmup=2 steps", "optim.freeze_last_layer=2 steps", "training.num_steps=8",
    "training.batch_size_per_gpu=4", "training.device=cpu", "training.checkpoint_every_steps=2",
    "training.momentum=0.9", "monitor.log_every_steps=1", "wandb.mode=disabled",
)  # fmt: skip
TILES = ("tiles.mpp=0.5", "tiles.size_px=64", "tiles.mask_mpp=4", "tiles.min_area_um2=500")
FEW = ("evaluation.num_bootstrap=100",)
PATIENCE_S = 240.0
WITHOUT_TORCH = {"tile"}
WITHOUT_MODELS = {
    *WITHOUT_TORCH,
    "tile, layouts",
    "tile, 2 workers",
    "pretrain",
    "pretrain, 1 worker",
    "evaluate slides",
}
SPOTS = ("fsync", "replace", "rename", "unlink", "remove", "rmdir", "link")
UNTOLD = {".lock", "log.txt"}  # says who writes; lines with the time of day
# Of a window of batches that a resumed run does not have yet (docs/pretraining.md, `dino_path/training/best.py`). The
# best checkpoint by RankMe differs with it, so it is chosen by k-NN here.
OF_THE_WINDOW = (".feature_std", ".rankme")
OF_THE_CALL = re.compile(r"[. ]seconds$|/embed_\w+\.json: \.(kept|written)\b")  # what it found, and how long it took


@dataclass(frozen=True)
class Command:
    """One command that writes.

    Attributes:
        words: of its command line, for an output and a variant: `a`, or `b`, which asks for something else in the
            same place.
        out: what it writes, below a folder.
        before: the name of a command whose output is there first.
    """

    words: Callable[[Path, str], Sequence[str]]
    out: str = "out"
    before: str | None = None


def commands(inputs: Path) -> dict[str, Command]:
    """All of them, by name."""
    images, store, model = inputs / "images", inputs / "store", inputs / "model"
    other = f"untrained:{model}"
    run = inputs / "run"
    on_cpu = ("--device", "cpu")

    def evaluation(kind: str, *more: str, data: Path = images) -> Command:
        return Command(
            lambda out, which: [
                "evaluate", kind, str(model) if which == "a" else other, "mean-colour", "--data", str(data),
                "--out", str(out), "--workers", "0", *on_cpu, *FEW, *more,
            ]
        )  # fmt: skip

    def tile(*more: str) -> Command:
        return Command(
            lambda out, which: [
                "tile", str(inputs / "slides"), "--out", str(out), *TILES, *more,
                *(["tiles.jpeg_quality=70"] if which == "b" else []),
            ]
        )  # fmt: skip

    def pretrain(*more: str) -> Command:
        return Command(
            lambda out, which: [
                "pretrain", f"store={images}", f"out={out}", *TINY, *more, f"training.seed={int(which == 'b')}",
                f"monitor.knn_data={inputs / 'labelled.csv'}", "monitor.knn_every_steps=2",  # see OF_THE_WINDOW
            ]
        )  # fmt: skip

    def export(*more: str, before: str | None = None) -> Command:
        network = ("teacher", "student") if before is None else ("student", "teacher")
        return Command(
            lambda out, which: [
                "export", str(run), "--out", str(out), "--network", network[which == "b"], *more,
            ],
            before=before,
        )  # fmt: skip

    return {
        "tile": tile("--workers", "0"),
        "tile, layouts": tile("--workers", "0", "--layout", "trident,clam"),
        "tile, 2 workers": tile("--workers", "2"),
        "pretrain": pretrain("training.num_workers=0"),
        "pretrain, 1 worker": pretrain("training.num_workers=1"),
        "export": export(),
        "export over a model": export(before="export"),
        "import-checkpoint": Command(
            lambda out, which: [
                "import-checkpoint", str(inputs / f"published_{which}.pth"), "--out", str(out), "--mpp", "0.5",
                "--arch", "vit_tiny_patch16_224",
            ]
        ),
        "embed": Command(
            lambda out, which: [
                "embed", str(model) if which == "a" else other, str(store), "--out", str(out), "--layout",
                "trident,clam", "--tokens", "--workers", "0", *on_cpu,
            ]
        ),
        "embed, slides": Command(
            lambda out, which: [
                "embed", str(model) if which == "a" else other, str(inputs / "slides"), *TILES, "--allow-other-mpp",
                "--out", str(out), "--workers", "0", *on_cpu,
            ]
        ),
        "embed, images": Command(
            lambda out, which: [
                "embed", str(model) if which == "a" else other, str(images), "--out", str(out), "--workers", "0",
                *on_cpu,
            ]
        ),
        "evaluate table": evaluation("table"),
        "evaluate fewshot": evaluation("fewshot", "evaluation.num_episodes=100", "evaluation.shots=[1]"),
        "evaluate retrieval": evaluation("retrieval"),
        "evaluate robustness": evaluation("robustness", "--shifts"),
        "evaluate segmentation": evaluation("segmentation", data=inputs / "masks.csv"),
        "evaluate slides": Command(
            lambda out, which: [
                "evaluate", "slides", str(inputs / f"cohort_{which}"), "--labels", str(inputs / "labels.csv"),
                "--out", str(out), "cohort.num_bootstrap=100", "cohort.abmil_epochs=2", *on_cpu,
            ]
        ),
        "evaluate suite": Command(
            lambda out, which: [
                "evaluate", "suite", str(model) if which == "a" else other, "mean-colour", "--suite",
                str(inputs / "suite.yaml"), "--root", str(inputs), "--out", str(out), "--workers", "0", *on_cpu,
            ]
        ),
        "baseline": Command(
            lambda out, which: [
                "baseline", "--data", str(images), "--out", str(out), "--workers", "0", *on_cpu,
                "baseline.num_epochs=2", "baseline.input_px=32", "baseline.backbone=resnet10t",
                f"evaluation.seed={int(which == 'b')}", *FEW,
            ]
        ),
        "map": Command(
            lambda out, which: [
                "map", str(model), "--data", str(images), "--out", str(out), "--workers", "0", *on_cpu, "--method",
                "pca", "--seed", str(int(which == "b")),
            ],
            "out/map.html",
        ),
        "report": Command(
            lambda out, which: ["report", str(run if which == "a" else inputs / "run_b"), "--out", str(out)],
            "out/report.html",
        ),
        "figures": Command(
            lambda out, which: [
                "figures", str(run if which == "a" else inputs / "run_b"), "--out", str(out), "--format", "png",
            ]
        ),
        "attention": Command(
            lambda out, which: [
                "attention", str(model) if which == "a" else other, str(images / "A/000.png"),
                str(images / "B/001.png"), "--out", str(out), *on_cpu,
            ]
        ),
        "views": Command(
            lambda out, which: ["views", str(images), "--out", str(out), "--seed", str(int(which == "b"))],
            "out/views.png",
        ),
        "view --export": Command(
            lambda out, which: [
                "view", str(store), "--export", str(out), *(["--model", str(model), *on_cpu] if which == "b" else []),
            ]
        ),
    }  # fmt: skip


# --- inputs -------------------------------------------------------------------------------------------------------


def prepare(work: Path, names: Collection[str] = ()) -> Path:
    """Import what these commands need (none: all), and make WORK/inputs where they are not yet there; returns it."""
    inputs = work / "inputs"
    import dino_path.slides.find
    import dino_path.slides.quality
    import dino_path.tiles.summary
    import dino_path.tiles.tiling  # noqa: F401

    if not names or not {*names} <= WITHOUT_TORCH:
        load()
    if (inputs / "ready").exists():
        return inputs
    if not (inputs / "slides").exists():
        inputs.mkdir(parents=True, exist_ok=True)
        _paint(inputs)
    if names and {*names} <= WITHOUT_MODELS:
        return inputs
    call(_write_published, inputs)
    known = commands(inputs)
    for name, which, out in (
        ("tile", "a", "store"), ("pretrain", "a", "run"), ("pretrain", "b", "run_b"), ("export", "a", "model"),
    ):  # fmt: skip
        ended = play(known[name].words(inputs / out, which), inputs / f"{out}.said")
        if ended != 0:
            raise SystemExit(f"{name}: {(inputs / f'{out}.said').read_text()}")
    (inputs / "ready").touch()
    return inputs


def _paint(inputs: Path) -> None:
    """Two slides, two classes of twelve images each, masks of them, a cohort of slides, a suite."""
    from dino_path.slides.synthetic import SyntheticSlide, make_slides

    rng = np.random.default_rng(0)
    masks = ["path,mask,label,patient_id"]
    rows = ["path,label,patient_id"]
    for label, shade in (("A", 0), ("B", 40)):
        for number in range(12):
            image = np.clip(rng.normal((200, 120 + shade, 180), 20, (48, 48, 3)), 0, 255).astype(np.uint8)
            centre = rng.integers(12, 36, 2).tolist()
            cv2.circle(image, centre, 9, (110, 40 + shade, 120), cv2.FILLED)
            mask = cv2.circle(np.zeros((48, 48), np.uint8), centre, 9, 1, cv2.FILLED)
            for folder, what in (("images", image[..., ::-1]), ("masks", mask)):
                file = inputs / folder / label / f"{number:03d}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(cv2.imencode(".png", what)[1].tobytes())
            rows.append(f"images/{label}/{number:03d}.png,{label},{label}{number}")
            masks.append(f"images/{label}/{number:03d}.png,masks/{label}/{number:03d}.png,{label},{label}{number}")
    (inputs / "labelled.csv").write_text("\n".join(rows) + "\n")
    (inputs / "masks.csv").write_text("\n".join(masks) + "\n")
    (inputs / "suite.yaml").write_text(
        "title: Tiny\nevaluation: {num_bootstrap: 100}\nsets:\n"
        "  one: {data: labelled.csv, protocols: [knn, retrieval], primary: {protocol: knn}}\n"
        "  two: {data: masks.csv, protocols: [segmentation], primary: {protocol: segmentation, metric: dice}}\n"
    )
    labels = ["slide_id,patient_id,label"]
    for patient in range(20):
        labels.append(f"P{patient},P{patient},{['normal', 'tumour'][patient % 2]}")
        for which, gain in (("a", 2.0), ("b", 0.5)):
            tiles = rng.normal(size=(8, 4)).astype(np.float32)
            tiles[:5, 0] += gain * (patient % 2)
            (inputs / f"cohort_{which}").mkdir(exist_ok=True)
            with h5py.File(inputs / f"cohort_{which}" / f"P{patient}.h5", "w") as h5:
                h5["features"] = tiles
                h5["features"].attrs.update(encoder="painted", encoder_digest=which)
                h5["coords"] = np.stack([np.arange(8) * 256, np.zeros(8)], axis=1).astype(np.int64)
                h5["coords"].attrs.update(patch_size=256, patch_size_level0=256)
    (inputs / "labels.csv").write_text("\n".join(labels) + "\n")
    slides = [SyntheticSlide(f"s{one}", "train", one, 1024) for one in range(2)]
    make_slides(inputs / "slides", slides, num_workers=1)
    for file in [*(inputs / "slides").rglob("*")]:
        if file.is_file() and file.suffix != ".tif":
            file.unlink()


def _write_published(inputs: Path) -> None:
    """A ViT under DINOv2's names, with random weights, for `import-checkpoint`."""
    import timm
    import torch

    for which in ("a", "b"):
        torch.manual_seed(ord(which))
        model = timm.create_model("vit_tiny_patch16_224", num_classes=0)
        torch.save(model.state_dict(), inputs / f"published_{which}.pth")


# --- processes ----------------------------------------------------------------------------------------------------


def load() -> None:
    """Import once what the commands need: their processes are forked from this one."""
    import faiss  # noqa: F401
    import sklearn.linear_model  # noqa: F401
    import timm
    import torch
    import wandb  # noqa: F401

    import dino_path.evaluation.baseline.supervised
    import dino_path.evaluation.cohorts.slides
    import dino_path.evaluation.results.segmentation
    import dino_path.evaluation.results.table
    import dino_path.exporting.checkpoint
    import dino_path.exporting.model_folder
    import dino_path.features.embed
    import dino_path.reporting.report
    import dino_path.training.loop  # noqa: F401

    torch.set_num_threads(1)
    timm.list_models("vit_tiny*")


def start(body: Callable[[], int], said: Path) -> int:
    """Run `body` in a forked process with a session of its own; its process id. What it says goes to `said`."""
    said.parent.mkdir(parents=True, exist_ok=True)
    child = os.fork()
    if child:
        return child
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell ignores for what runs in the background
    with said.open("wb") as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(1, "w"), line_buffering=True),
        io.TextIOWrapper(io.FileIO(2, "w")),
    )
    code = 1
    try:
        code = body()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def call(function: Callable[..., object], *arguments: object) -> None:
    """Run a function in a forked process: this one stays without threads, so that it can fork."""
    child = start(lambda: int(function(*arguments) is not None), Path(os.devnull))
    if os.waitpid(child, 0)[1]:
        raise SystemExit(f"{function.__name__} failed")


def program(words: Sequence[str]) -> Callable[[], int]:
    """The command line, as a body for `start`; without fresh Python processes, since an import takes its time.

    Where two workers are asked for, they are those of the command itself.
    """

    def body() -> int:
        from concurrent.futures import ThreadPoolExecutor

        from dino_path.exporting import reload
        from dino_path.tiles import workers

        reload.ask_fresh_process = _ask_forked_process
        if "2" not in words:
            workers._pool = lambda *_: ThreadPoolExecutor(1)
            workers._in_time = lambda function, seconds, item: function(item)  # its alarm is for a main thread
        sys.argv = ["dino-path", *words]
        cli.main()
        return 0

    return body


def _ask_forked_process(script: str, path: Path, *arguments: str) -> Any:
    """As `ask_fresh_process`, which reads a model folder back when it is written."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        sys.stdout, sys.argv = os.fdopen(writing, "w"), ["-c", str(path.resolve()), *arguments]
        exec(script, {"__name__": "__main__"})
        sys.stdout.flush()
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        said = stream.read()
    os.waitpid(child, 0)
    return json.loads(said.strip().splitlines()[-1])


def play(words: Sequence[str], said: Path, prepare: Callable[[], None] = lambda: None) -> int:
    """Run one command to its end; its exit code. `prepare` is called in its process first."""

    def body() -> int:
        prepare()
        return program(words)()

    return wait(start(body, said))


def wait(child: int, patience_s: float = PATIENCE_S) -> int:
    """The exit code of a process (-9: killed); one that takes too long is killed, and counts as that: 124."""
    deadline_s = time.monotonic() + patience_s
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline_s:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return 124
        time.sleep(0.005)


def survivors(session: int, patience_s: float = 5.0) -> list[int]:
    """Processes of a session that are still alive after a moment; they are killed."""
    deadline_s = time.monotonic() + patience_s
    while (alive := [*_members(session)]) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    for process in alive:
        os.kill(process, signal.SIGKILL)
    return alive


def _members(session: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] not in "ZX":
                yield int(entry.name)


class Spots:
    """Counts, over a process and those it forks, the calls that make or remove files; acts before one of them."""

    def __init__(self, at: int | None = None, act: Callable[[str], None] = lambda _: None) -> None:
        self.count, self.at, self.act = Value("i", 0), at, act

    def install(self) -> None:
        """In the process that is to be hurt."""
        for name in SPOTS:
            setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            with self.count.get_lock():
                number = self.count.value
                self.count.value = number + 1
            if number == self.at:
                self.act(name)
            return original(*arguments, **named)

        return wrapped


# --- what lies in a folder ----------------------------------------------------------------------------------------

Contents = Mapping[str, Any]


def contents(folder: Path) -> Contents:
    """Every file below a folder by its name: numbers and words of JSON, arrays of HDF5, tensors, else all bytes.

    The keys of JSON are apart, so that what differs between two undisturbed runs (seconds, times of day) can be left
    out, and all else compared.
    """
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.is_file() and file.name not in UNTOLD:
            found |= {f"{name}: {key}": value for key, value in _of_file(file)}
    return {
        key: value for key, value in found.items() if not key.endswith(OF_THE_WINDOW) and not OF_THE_CALL.search(key)
    }


def _of_file(file: Path) -> Iterator[tuple[str, Any]]:
    if file.suffix == ".json":
        yield from _flat("", json.loads(file.read_text()))
    elif file.suffix == ".jsonl":
        for number, line in enumerate(file.read_text().splitlines()):
            yield from _flat(f"{number}", json.loads(line))
    elif file.suffix == ".csv":
        header, *lines = [line.split(",") for line in file.read_text().splitlines()]
        yield "header", tuple(header)
        for number, line in enumerate(lines):
            yield from ((f"{number} {key}", value) for key, value in zip(header, line, strict=False))
    elif file.suffix == ".h5":
        with h5py.File(file) as h5:
            names: list[str] = []
            h5.visit(names.append)
            for name in names:
                yield from ((f"{name}@{key}", str(value)) for key, value in h5[name].attrs.items())
                if isinstance(h5[name], h5py.Dataset):
                    yield name, hashlib.sha256(np.asarray(h5[name][()]).tobytes()).hexdigest()
    elif file.suffix == ".safetensors":  # its writer puts the metadata in any order
        from safetensors import safe_open

        with safe_open(file, "np") as tensors:
            yield "metadata", str(sorted((tensors.metadata() or {}).items()))
            for name in sorted(tensors.keys()):
                yield name, hashlib.sha256(tensors.get_tensor(name).tobytes()).hexdigest()
    elif file.suffix == ".pt" and file.parent.name == "checkpoints":
        import torch

        yield from _flat("", torch.load(file, weights_only=True))
    else:
        yield "bytes", hashlib.sha256(file.read_bytes()).hexdigest()


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _flat(f"{prefix}.{key}", part)
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _flat(f"{prefix}[{number}]", part)
    elif hasattr(value, "numpy"):
        yield prefix, hashlib.sha256(value.detach().contiguous().view(-1).numpy().tobytes()).hexdigest()
    else:
        yield prefix, value


def differences(one: Contents, other: Contents, volatile: frozenset[str] = frozenset()) -> list[str]:
    """Keys whose values differ, or that one side lacks."""
    names = {*one, *other} - volatile
    return sorted(name for name in names if one.get(name, "-") != other.get(name, "-"))


def leftovers(folder: Path) -> list[str]:
    """Temporary files and folders, and folders set aside, below a folder."""
    return [
        str(file.relative_to(folder))
        for file in sorted(folder.rglob("*"))
        if TEMPORARY.search(file.name) or file.name.endswith(".replaced")
    ]

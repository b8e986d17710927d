"""All steps with slides full of secrets: no file that is meant for sharing contains one."""

import gzip
import platform
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from planted import LABEL_COLOUR, WORD, write_planted_dicom, write_planted_svs
from slide_files import tissue_image
from tiny import TINY, write_tiles

from dino_path.cli import main
from dino_path.exporting.reload import ReloadCheck

NAMED = "ZIRKUSPFERD"  # in the slides' file names alone; WORD is in all else of them, and in their folder
MACHINE = "SCHLAUCHBOOT"  # its host, user, environment and commands
SHARED = ("model", "features", "report.html", "figures", "results", "map.html", "view")


def call(*words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", [f"/opt/{MACHINE}/bin/dino-path", *words])
        try:
            main()
        except SystemExit as end:
            assert end.code in (0, None), f"{words}: {end.code}"  # noqa: PT017


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder on a machine whose host, user and environment are secret."""
    import wandb

    # Loading the model folder back in a fresh process takes ten seconds, and writes nothing.
    monkeypatch.setattr("dino_path.exporting.model_folder.check_reload", lambda *_, **__: ReloadCheck(0.0, "timm"))
    monkeypatch.setattr("socket.gethostname", lambda: MACHINE)
    monkeypatch.setattr("platform.node", lambda: MACHINE)
    for name in ("USER", "LOGNAME", "SLURM_JOB_ACCOUNT", "TOKEN", "WANDB_HOST"):
        monkeypatch.setenv(name, MACHINE)
    for name in ("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb home"))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    yield work
    wandb.teardown()


def walk_the_road(work: Path, slides: Path, *pseudonymise: str) -> None:
    """Every step from slides to shared files, by absolute paths; with pseudonyms only steps that read slides."""
    write_planted_svs(slides / f"{NAMED} a.svs", tissue_image(1536, 1280))
    write_planted_dicom(slides / f"{NAMED} b.dcm", np.ascontiguousarray(tissue_image(1536, 1280)[::-1]))
    store, run, model, cpu = work / "store", work / "run", work / "model", ("--device", "cpu")
    tiles, alone = ("tiles.mpp=0.5", "tiles.size_px=256"), ("--workers", "0")
    call("tile", str(slides), "--out", str(store), "--layout", "trident,clam", *tiles, *alone, *pseudonymise)
    call("pretrain", f"store={store}", f"out={run}", *TINY, "training.num_steps=2", "wandb.mode=offline")
    call("embed", "mean-colour", str(slides), "--out", str(work / "straight"), *tiles, *alone, *cpu, *pseudonymise)
    if not pseudonymise:
        for name in ("a", "b"):
            write_tiles(work / "labelled" / name, 8)
        call("evaluate", "knn", "mean-colour", "--data", str(work / "labelled"), "--out", str(run / "eval/knn"), *cpu,
             "evaluation.num_bootstrap=100")  # fmt: skip
        shutil.copytree(run / "eval/knn", work / "results", ignore=shutil.ignore_patterns("split.csv"))
        call("export", str(run), "--out", str(model))
        call("embed", str(model), str(store), "--out", str(work / "features"), "--layout", "trident,clam", "--tokens",
             *alone, *cpu)  # fmt: skip
        call("figures", str(run), "--out", str(work / "figures"), "--format", "svg")
    of_model = ("--model", str(model)) if model.exists() else ()
    call("report", str(run), "--out", str(work / "report.html"), "--store", str(store), *of_model)
    call("map", "mean-colour", "--store", str(store), "--out", str(work / "map.html"), *cpu)
    call("view", str(store), "--export", str(work / "view"))


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Names and bytes of all files, including the content of archives and compressed streams."""
    for file in [folder, *folder.rglob("*")] if folder.is_dir() else [folder]:
        yield file, str(file.relative_to(folder.parent)).encode()
        if not file.is_file():
            continue
        content = file.read_bytes()
        yield file, content
        if tarfile.is_tarfile(file):
            with tarfile.open(file) as archive:
                for member in archive:
                    yield file, repr(member.get_info()).encode()
        elif zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    yield file, archive.read(name)
        elif content[:2] == b"\x1f\x8b":
            yield file, gzip.decompress(content)
        elif file.suffix == ".parquet":
            import pyarrow.parquet

            yield file, repr(pyarrow.parquet.read_table(file).to_pylist()).encode()


def leaks(places: list[Path], secrets: dict[str, str]) -> list[str]:
    """Which file contains which secret."""
    return sorted({
        f"{file}: {what}"
        for place in places
        for file, content in contents(place)
        for what, secret in secrets.items()
        if secret.encode() in content or secret.lower().encode() in content
    })  # fmt: skip


def pictures(store: Path) -> Iterator[np.ndarray]:
    for file in [*store.rglob("*.jpg")]:
        yield cv2.imread(str(file))[..., ::-1]
    for file in store.glob("tiles/*.tar"):
        with tarfile.open(file) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                assert stream is not None
                yield cv2.imdecode(np.frombuffer(stream.read(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]


@pytest.mark.slow
@pytest.mark.parametrize("is_pseudonymised", [False, True])
def test_nothing_that_is_shared_holds_a_secret_and_with_pseudonyms_nothing_does(
    away: Path, is_pseudonymised: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    private = away.parent / "private"
    mapping = ("--pseudonymise", str(private / "map.csv")) if is_pseudonymised else ()
    slides = away.parent / f"{WORD} folder"
    walk_the_road(away, slides, *mapping)
    wandb_files = [*away.glob("run/wandb/offline-run-*/run-*.wandb"), *away.glob("run/wandb/offline-run-*/files")]
    shared = [*(away / name for name in SHARED if (away / name).exists()), *wandb_files]
    assert is_pseudonymised or len(shared) == len(SHARED) + len(wandb_files)
    assert wandb_files[0].suffix == ".wandb"
    secrets = {
        "the word": WORD,
        "the machine": MACHINE,
        "a folder": str(away.parent),
        "the interpreter": sys.prefix,
        "kernel": platform.release(),
    }
    assert leaks(shared, secrets) == []
    assert leaks([*away.glob("model"), *wandb_files], {"a slide": NAMED}) == []
    if is_pseudonymised:
        assert leaks([away], {"the word": WORD, "a slide": NAMED}) == []
        told = "".join(capfd.readouterr())
        assert NAMED not in told
        assert NAMED in (private / "map.csv").read_text()
    for picture in pictures(away / "store"):
        distance = np.abs(picture.astype(int) - LABEL_COLOUR).max(axis=-1)
        assert distance.min() > 60, "a pixel of the label or macro"

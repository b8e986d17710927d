"""Which file lives where in a run folder, and how files are written: complete, or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import secrets
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

from dino_path.errors import CheckpointError
from dino_path.walk import files_like

LONGEST_NAME_BYTES = 220  # of a file, within the name of its temporary file: file systems take 255
TIME_FORMAT = "%Y-%m-%d %H:%M:%S"  # ISO 8601, local time: in logs and files alike


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file that appears under `path` only when it is complete (temp file, fsync, rename).

    On any exception the temporary file is removed and an older file under `path` stays as it was. While it is written
    it is locked, so that `is_abandoned` can tell it from what a killed process left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Containers and nodes of a cluster share process ids; the token keeps their files apart.
    name = os.fsdecode(os.fsencode(path.name)[:LONGEST_NAME_BYTES])
    temporary = path.with_name(f".{name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as stream:
            with contextlib.suppress(OSError):  # a file system without locks
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
            temporary.replace(path)  # still locked
    finally:
        temporary.unlink(missing_ok=True)


def is_abandoned(temporary: Path) -> bool:
    """Whether nobody is writing this temporary file of `atomic_write` any more; False where locks do not tell."""
    try:
        with temporary.open("r+b") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked, gone, or a file system without locks
        return False
    return True


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`; the lock file is created and removed here.

    A process that dies releases it. A file system without locks, or with locks of one machine only, lets more than one
    process in.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        with contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)  # who waits has it open, and who comes later makes a new one


def write_json(path: Path, record: Any) -> None:
    """Write `record` as indented JSON, atomically."""
    with atomic_write(path) as stream:
        json.dump(record, stream, indent=2, sort_keys=False)
        stream.write("\n")


def environment_record() -> dict[str, Any]:
    """Versions, platform, git commit and command line: what a reader needs to repeat a run."""
    packages = (
        "dino-path", "torch", "torchvision", "timm", "albumentations", "openslide-python", "openslide-bin",
        "faiss-cpu", "wandb", "numpy", "opencv-python-headless",
    )  # fmt: skip
    versions: dict[str, str | None] = {}
    for package in packages:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "num_cpus": os.cpu_count(),
        "git_commit": _git_commit(),
        "versions": versions,
    }


def _git_commit() -> str | None:
    """The commit of the checkout that this package runs from; None for an installed package."""
    package = Path(__file__).parent
    if not (package.parent / ".git").exists():
        return None
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=package, capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return None
    return answer.stdout.strip() or None


@dataclass(frozen=True)
class RunFolder:
    """The files of one pretraining run."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def images_file(self) -> Path:
        """Names and sizes of the images that it began with, where its tiles are a folder of images."""
        return self.path / "images.csv"

    @property
    def unreadable_file(self) -> Path:
        """One line for each tile that a process could not read, and when."""
        return self.path / "unreadable.jsonl"

    @property
    def log_file(self) -> Path:
        return self.path / "log.txt"

    @property
    def environment_file(self) -> Path:
        return self.path / "environment.json"

    @property
    def start_file(self) -> Path:
        """Which state of which run it started from, and that run in its turn; only where it did."""
        return self.path / "start.json"

    @property
    def guide_file(self) -> Path:
        """Which frozen model it learns from; only where it does."""
        return self.path / "guide.json"

    @property
    def guide_features(self) -> Path:
        """That model's features of all tiles, where they are kept (`objective.distill.cached`)."""
        return self.path / "guide_features"

    @property
    def best_file(self) -> Path:
        """Which of its checkpoints is the best so far."""
        return self.path / "best.json"

    @property
    def verdict_file(self) -> Path:
        """What its start answers, and in the end whether it beat that; only where labelled images were given."""
        return self.path / "verdict.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def evaluation(self) -> Path:
        return self.path / "eval"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    @property
    def wandb_id_file(self) -> Path:
        return self.path / "wandb_run_id.txt"

    def checkpoint_file(self, step: int) -> Path:
        """The checkpoint that holds the state after `step` optimizer updates."""
        return self.checkpoints / f"step_{step:08d}.pt"

    def checkpoint_files(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return files_like(self.checkpoints, "step_????????.pt")


def newest_checkpoint(path: Path) -> Path:
    """The checkpoint file that `path` (a run folder or a checkpoint) stands for.

    Raises:
        CheckpointError: no such path, or a folder without checkpoints.
    """
    if path.is_file():
        return path
    if not path.exists():
        raise CheckpointError(
            str(path),
            "no such file or folder.",
            "A run folder or a checkpoint file is needed.",
            "Check the path.",
        )
    files = RunFolder(path).checkpoint_files()
    if not files:
        raise CheckpointError(
            str(path),
            "this folder holds no checkpoints/step_*.pt.",
            "A run folder that `dino-path pretrain` has written is needed.",
            "Check the path, or let the run reach its first checkpoint (training.checkpoint_every_steps).",
        )
    return files[-1]

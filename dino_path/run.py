"""The files of a run folder, and the facts needed to repeat a run."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dino_path.errors import CheckpointError
from dino_path.walk import files_like

TIME_FORMAT = "%Y-%m-%d %H:%M:%S"  # ISO 8601, local time: in logs and files alike


def environment_record() -> dict[str, Any]:
    """Versions, platform, git commit and command line: the facts needed to repeat a run."""
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
        """The run and step from which it started, and so on for that run; only if it continued another run."""
        return self.path / "start.json"

    @property
    def guide_file(self) -> Path:
        """The frozen model that is distilled, if any."""
        return self.path / "guide.json"

    @property
    def guide_features(self) -> Path:
        """That model's features of all tiles, if cached (`objective.distill.cached`)."""
        return self.path / "guide_features"

    @property
    def best_file(self) -> Path:
        """Which of its checkpoints is the best so far."""
        return self.path / "best.json"

    @property
    def verdict_file(self) -> Path:
        """The test of its start, and at the end whether it beat the start; only with labelled images."""
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
    def neighbours_file(self) -> Path:
        """Validation tiles and their neighbours, as the running k-NN last saw them."""
        return self.figures / "neighbours.png"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

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
    """The checkpoint file of `path`, a run folder (its newest checkpoint) or a checkpoint.

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
            "A run folder written by `dino-path pretrain` is needed.",
            "Check the path, or let the run reach its first checkpoint (training.checkpoint_every_steps).",
        )
    return files[-1]

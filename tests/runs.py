"""Pretraining as a command of its own, which can be killed, and what is in the checkpoints that it leaves."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tiny import TINY

from dino_path.model.checkpoint import read_checkpoint
from dino_path.records.metrics import read_metrics
from dino_path.run import RunFolder

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
PATIENCE_S = 240


def state_in(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint by name: both networks, center, optimizer moments."""
    record = read_checkpoint(checkpoint)
    state = objective_state(record.objective)
    for network, parts in (("student", record.student), ("teacher", record.teacher)):
        for part, weights in parts.items():
            state |= {f"{network}_{part}.{name}": value for name, value in weights.items()}
    for number, moments in record.optimizer["state"].items():
        state |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    return state


def metrics_of(run: RunFolder) -> list[dict[str, Any]]:
    """The records of a run's metrics.jsonl, which must all be readable."""
    found = read_metrics(run.metrics_file)
    assert found.unreadable == ()
    return [record.model_dump() for record in found.records]


def objective_state(terms: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """What the terms remember by name; DINO's center is `center`, as before there were other terms."""
    return {
        name if term == "dino" else f"{term}.{name}": value
        for term, of_term in terms.items()
        for name, value in of_term.items()
    }


def keep_only_step(run: RunFolder, step: int) -> None:
    """The folder as a run killed between `step` and the next checkpoint leaves it."""
    for file in run.checkpoint_files():
        if file != run.checkpoint_file(step):
            file.unlink()


class Command:
    """`dino-path pretrain` on tiny tiles, with a process group of its own; one process, or one of two ranks."""

    def __init__(self, store: Path, out: Path, *settings: str, rank: int | None = None, port: str = "") -> None:
        self.run = RunFolder(out)
        ranks = {}
        if rank is not None:
            ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
            ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.process = subprocess.Popen(
            [
                sys.executable, "-c", "from dino_path.cli import main; main()", "pretrain",
                f"store={store}", f"out={out}", *TINY, *settings,
            ],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**ONE_THREAD, **ranks},
        )  # fmt: skip

    def wait_for_checkpoints(self, count: int) -> None:
        """Return as soon as `count` checkpoints are there."""
        deadline_s = time.monotonic() + PATIENCE_S
        while len(self.run.checkpoint_files()) < count:
            assert self.process.poll() is None, f"it ended too early: {self.process.communicate()[1]}"
            assert time.monotonic() < deadline_s, "it wrote no checkpoint"
            time.sleep(0.01)

    def signal_group(self, number: signal.Signals) -> None:
        """To the process and its workers, as SLURM does."""
        os.killpg(self.process.pid, number)

    def end(self) -> tuple[int, str, str]:
        """Its exit code, and what it said on stdout and stderr."""
        answer = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, *answer


def two_ranks(store: Path, out: Path, *settings: str) -> list[Command]:
    """The same command twice, as two ranks that meet."""
    port = free_port()
    return [Command(store, out, *settings, rank=rank, port=port) for rank in range(2)]


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])

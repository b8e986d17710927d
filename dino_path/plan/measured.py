"""A few real steps on this machine: their time, what they wait for, and the memory they take."""

from __future__ import annotations

import math
import os
import re
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path

import cv2
import torch

from dino_path.config import Config
from dino_path.plan.figure import Figure, mean_or_line
from dino_path.tiles.source import TileSource
from dino_path.training.learner import Learner
from dino_path.training.loop import num_view_workers, view_batches
from dino_path.training.monitor import MAX_FEATURE_ROWS, feature_spread, rankme
from dino_path.training.schedules import Schedules
from dino_path.training.step import train_step
from dino_path.views.batches import ViewBatches

FIRST_TILES = 2  # of the first steps on a CPU, whose time says how many tiles a step may have
LEAST_STEPS, MOST_STEPS = 4, 12  # timed, of each size
AHEAD = 2  # batches that each worker makes before they are asked for: these steps do not wait, and are not timed
WRITTEN_BYTES = 32 * 2**20
VIEWS_S, MOST_VIEWS = 2.0, 500


@dataclass(frozen=True)
class TimedStep:
    """One step of `num_tiles`, from the end of the step before: its seconds, and those until its views were there."""

    num_tiles: int
    seconds: float
    wait_s: float


@dataclass(frozen=True)
class Measured:
    """What the steps of one process said.

    Attributes:
        step: seconds of a whole step, waits included.
        wait: share of the time that the largest steps waited for views.
        first_s: until the first step was done, once everything was loaded.
        record_s: of one record of metrics.jsonl: RankMe and the features' spread.
        largest: tiles of the largest micro-batch that was tried.
        device_bytes: on a GPU, the most that tensors took; None on a CPU.
        host_bytes: the most that this process took.
        worker_bytes: of a process that makes views, its own memory; None: there is none, or it is not known.
    """

    step: Figure
    wait: float
    first_s: float
    record_s: float
    largest: int
    device_bytes: int | None
    host_bytes: int
    worker_bytes: int | None


def measure_steps(
    config: Config, tiles: TileSource, learner: Learner, schedules: Schedules, *, budget_s: float
) -> Measured:
    """Train `learner` for a few steps of `config`, at the end of its schedules, where nothing is frozen any more.

    On a CPU, where whole steps would take longer than `budget_s`, steps of two smaller sizes are timed, and the line
    through them is drawn on to the whole step.

    Args:
        learner: is changed, and of no further use.
        budget_s: seconds that the steps may take, more or less.

    Raises:
        TileStoreError: tiles cannot be read.
        torch.OutOfMemoryError: the step does not fit into the GPU.
    """
    assert config.training is not None
    most, whole = (
        config.training.batch_size_per_gpu,
        config.training.batch_size_per_gpu * config.training.accumulate_steps,
    )
    num_untimed = 1 + AHEAD * num_view_workers(config.training)
    is_gpu = learner.world.device.type == "cuda"
    clock = _Clock(config, tiles, learner, schedules)
    first = clock.steps(whole if is_gpu else min(FIRST_TILES, most), num_untimed=0, num_timed=1)[0]
    sizes = [whole]
    if not is_gpu:
        affordable_s = budget_s / (
            1.5 * (num_untimed + LEAST_STEPS)
        )  # of the larger of two sizes, the other half of it
        larger, step_s = _largest(clock, first, most, affordable_s)
        if larger < most or step_s * whole / most > affordable_s:
            sizes = [max(1, larger // 2), larger]
    timed = []
    for size in sizes:
        end_s = time.perf_counter() + budget_s / len(sizes)
        timed += clock.steps(size, num_untimed=num_untimed, num_timed=MOST_STEPS, end_s=end_s)
    value, low, high = mean_or_line([one.num_tiles for one in timed], [one.seconds for one in timed], whole)
    largest = [one for one in timed if one.num_tiles == sizes[-1]]
    if sizes != [whole]:
        # More tiles take no less time, and at most in proportion: what noise says beyond that is wrong.
        mean_s, _, high_s = mean_or_line([1.0] * len(largest), [one.seconds for one in largest], 1.0)
        value, low, high = (min(max(one, mean_s), high_s * whole / sizes[-1]) for one in (value, low, high))
    how = f"measured: {len(timed)} steps of {' and '.join(map(str, sizes))} tiles"
    return Measured(
        step=Figure(value, "s", how + (f", drawn on to {whole}" if sizes != [whole] else ""), max(low, 0.0), high),
        wait=sum(one.wait_s for one in largest) / sum(one.seconds for one in largest),
        first_s=first.seconds,
        record_s=_record_s(learner),
        largest=min(sizes[-1], most),
        device_bytes=torch.cuda.max_memory_allocated(learner.world.device) if is_gpu else None,
        host_bytes=_host_peak_bytes(),
        worker_bytes=clock.worker_bytes,
    )


def _largest(clock: _Clock, first: TimedStep, most: int, affordable_s: float) -> tuple[int, float]:
    """The most tiles of a step that takes so long, by trying twice as many each time; and the seconds of that step."""
    size, step_s = first.num_tiles, 0.0
    while True:
        tried = clock.steps(size, num_untimed=0, num_timed=1)[0]
        step_s = tried.seconds - tried.wait_s
        if size == most or 2 * step_s > affordable_s:
            return size, step_s
        size = min(2 * size, most)


class _Clock:
    """Trains and times steps of any size; afterwards `worker_bytes` is known."""

    def __init__(self, config: Config, tiles: TileSource, learner: Learner, schedules: Schedules) -> None:
        self.config, self.tiles, self.learner = config, tiles, learner
        self.settings = schedules.at(schedules.clock.num_steps - 1)
        self.worker_bytes: int | None = None

    def steps(self, size: int, *, num_untimed: int, num_timed: int, end_s: float = math.inf) -> list[TimedStep]:
        """Steps of `size` tiles: first some that do not count, then at most `num_timed`, fewer after `end_s`."""
        training, device = self.config.training, self.learner.world.device
        assert training is not None
        if size != training.batch_size_per_gpu * training.accumulate_steps:
            training = training.model_copy(update={"batch_size_per_gpu": size, "accumulate_steps": 1})
        self.learner.training = training
        found, num_steps = [], num_untimed + num_timed
        batches = view_batches(self.config, training, self.tiles, self.learner, start=0, num_steps=num_steps)
        began_s = time.perf_counter()
        for step in range(num_steps):
            micro_batches = [next(batches) for _ in range(training.accumulate_steps)]
            arrived_s = time.perf_counter()
            train_step(self.learner, micro_batches, self.settings, step=step)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            ended_s = time.perf_counter()
            if step >= num_untimed:
                found.append(TimedStep(size, ended_s - began_s, arrived_s - began_s))
            began_s = ended_s
            if ended_s > end_s and len(found) >= LEAST_STEPS:
                break
        self.worker_bytes = max(filter(None, (_own_bytes(one.pid) for one in active_children())), default=None)
        return found


def measure_views(config: Config, tiles: TileSource) -> Figure:
    """Tiles a second whose views one core makes here, by making some for two seconds."""
    assert config.training is not None
    batches = ViewBatches(
        tiles, config.views, balance=config.training.balance, seed=config.training.seed, batch_size_per_gpu=1, rank=0,
        world_size=1, accumulate_steps=1,
    )  # fmt: skip
    num_threads = cv2.getNumThreads()
    cv2.setNumThreads(0)  # as a worker has it
    batches.batch(0)
    seconds: list[float] = []
    while sum(seconds) < VIEWS_S and len(seconds) < MOST_VIEWS:
        began_s = time.perf_counter()
        batches.batch(1 + len(seconds))
        seconds.append(time.perf_counter() - began_s)
    cv2.setNumThreads(num_threads)
    value, low, high = mean_or_line([1.0] * len(seconds), seconds, 1.0)
    return Figure(value, "s", f"measured: {len(seconds)} tiles on one core here", max(low, 0.0), high).inverse(
        1.0, "tiles/s"
    )


def disk_bytes_per_s(folder: Path) -> float:
    """How fast a file is written at `folder`, or at the nearest folder above that exists; nothing stays there."""
    place = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    content = os.urandom(WRITTEN_BYTES)
    with tempfile.TemporaryFile(dir=place) as stream:
        began_s = time.perf_counter()
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
        return WRITTEN_BYTES / (time.perf_counter() - began_s)


def _record_s(learner: Learner) -> float:
    """Of what a record computes of the last features; the second time, when everything is loaded."""
    features = torch.randn(MAX_FEATURE_ROWS, int(learner.student.backbone.num_features), device=learner.world.device)  # type: ignore[arg-type]
    for _ in range(2):
        began_s = time.perf_counter()
        feature_spread(features), rankme(features)
        seconds = time.perf_counter() - began_s
    return seconds


def _host_peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _own_bytes(pid: int | None) -> int | None:
    """Memory that a process shares with none; None where /proc does not tell."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    except OSError:
        return None
    return 1024 * sum(int(number) for number in re.findall(r"^Private_\w+: +(\d+) kB", text, re.MULTILINE))

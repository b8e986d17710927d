"""Monitoring of a run: times, averages and collapse, in records, log and progress bar."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from dino_path.config import Config
from dino_path.errors import CollapseDetected, NonFiniteLoss
from dino_path.records.metrics import StepRecord
from dino_path.run import RunFolder
from dino_path.training.learner import Learner
from dino_path.training.monitor import FeatureWindow, feature_spread, find_feature_collapse, rankme
from dino_path.training.objective.term import Collapse
from dino_path.training.records import Records
from dino_path.training.schedules import Schedules, StepSettings
from dino_path.training.step import StepReport
from dino_path.training.unreadable import UnreadableTiles
from dino_path.views.batches import ViewBatch

logger = logging.getLogger(__name__)
step_logger = logging.getLogger("dino_path.steps")  # a terminal shows these facts in its progress bar instead
OF_FEATURES = ("feature_std", "rankme")


class Watch:
    """Times, averages and writes the steps' reports; ends a failing run."""

    def __init__(
        self,
        config: Config,
        learner: Learner,
        schedules: Schedules,
        run: RunFolder,
        unreadable: UnreadableTiles,
        *,
        start: int,
        knn: Callable[[nn.Module], float] | None,
    ) -> None:
        self.config, self.learner, self.schedules, self.knn = config, learner, schedules, knn
        self.unreadable = unreadable
        self.records = Records(run, config, start_step=start) if learner.world.is_first else None
        self.window = FeatureWindow()
        self.known_collapse: str | None = None
        self.reports: list[StepReport] = []
        self.wait_s = 0.0
        self.interval_start_s = time.perf_counter()
        self.note = ""
        self.record: StepRecord | None = None
        """The record of the last step; None if it did not end an interval."""

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        if self.records is not None:
            self.records.__exit__(*error)  # type: ignore[arg-type]

    def waiting(self) -> _Stopwatch:
        """Measures the time that the loop waits for data."""
        return _Stopwatch(self)

    def after_step(
        self, step: int, micro_batches: Sequence[ViewBatch], settings: StepSettings, report: StepReport
    ) -> str:
        """Take in one step's report; at the end of an interval write a record. Returns a note for the progress bar."""
        self.record = None
        self.reports.append(report)
        if report.is_skipped:
            self._report_skipped(step, micro_batches)
        else:
            self.window.add(report.features)
        clock = self.schedules.clock
        if (step + 1) % self.config.monitor.log_every_steps == 0 or step + 1 == clock.num_steps:
            self._close_interval(step, settings)
        return self.note

    def _report_skipped(self, step: int, micro_batches: Sequence[ViewBatch]) -> None:
        training, num_skipped = self.learner.training, self.learner.num_skipped
        tiles = [tile for batch in micro_batches for tile in batch.tiles.tolist()]
        logger.error("step %d: the loss is not finite; nothing was updated. Tiles of this rank: %s", step, tiles)
        if num_skipped > training.max_non_finite_steps:
            raise NonFiniteLoss(
                f"step {step}",
                f"{num_skipped} steps had a loss that is not finite.",
                f"At most {training.max_non_finite_steps} are allowed (training.max_non_finite_steps).",
                "Lower optim.base_lr, set training.precision=fp32, or look at the tiles named in log.txt.",
            )

    def _close_interval(self, step: int, settings: StepSettings) -> None:
        """Average the interval, look for collapse, and write its record."""
        elapsed_s = time.perf_counter() - self.interval_start_s
        num_steps, averages = len(self.reports), self._averages()
        clock, world = self.schedules.clock, self.learner.world
        collapse = self._find_collapse(step, averages)
        record = StepRecord(
            step=step,
            **(averages or self._nothing()),
            **settings.logged(),
            num_steps=clock.num_steps,
            epoch=clock.epoch(step + 1),
            tiles_seen=clock.tiles_seen(step + 1),
            tiles_per_s=num_steps * clock.global_batch_size / elapsed_s,
            data_wait=self.wait_s / elapsed_s,
            eta_s=(clock.num_steps - step - 1) * elapsed_s / num_steps,
            peak_memory_gb=peak_memory_gb(world.device),
            num_skipped=self.learner.num_skipped,
            num_unreadable=self._num_replaced(),
            collapse=collapse.mode if collapse else None,
            knn_accuracy=self._running_knn(step),
        )
        health = health_line(averages, self.learner.objective.notes)
        if self.records is not None:
            self.records.write(record)
            step_logger.info("%s", log_line(record, clock.num_steps, health=health))
        self.note, self.record = health, record
        self.reports.clear()
        self.wait_s, self.interval_start_s = 0.0, time.perf_counter()
        if collapse is not None:
            self._warn_or_stop(step, collapse)
        self.known_collapse = collapse.mode if collapse else None

    def _averages(self) -> dict[str, float]:
        """Means over the interval's updates and over all ranks, so that every rank sees the same; empty without any."""
        updates = [report for report in self.reports if not report.is_skipped]
        if not updates:
            return {}
        world, features = self.learner.world, self.window.features()
        names = [*updates[0].numbers]
        means = [torch.stack([report.numbers[name] for report in updates]).double().mean() for name in names]
        spread, rank = features.new_tensor([feature_spread(features), rankme(features)], dtype=torch.float64)
        values = (world.sum_(torch.stack([*means, spread, rank])) / world.size).tolist()
        averages = dict(zip((*names, *OF_FEATURES), values, strict=True))
        return averages | self.learner.objective.derived(averages)

    def _nothing(self) -> dict[str, None]:
        """The names of the averages, for an interval without an update."""
        names = dict.fromkeys((*self.reports[0].numbers, *OF_FEATURES), 0.0)
        return dict.fromkeys(names | self.learner.objective.derived(names))

    def _num_replaced(self) -> int:
        """How many of the interval's tiles could not be read, on all ranks; others took their places."""
        number, self.unreadable.num_replaced = self.unreadable.num_replaced, 0
        return int(self.learner.world.sum_(torch.tensor(float(number), device=self.learner.world.device)))

    def _running_knn(self, step: int) -> float | None:
        """The k-NN accuracy of the teacher; None if it is not due. It is measured on a copy of the network."""
        is_due = (step + 1) % self.config.monitor.knn_every_steps == 0 or step + 1 == self.schedules.clock.num_steps
        if self.config.monitor.knn_data is None or not is_due:
            return None
        backbone = self.learner.teacher_backbone()
        return self.knn(backbone) if self.knn is not None and backbone is not None else None

    def _find_collapse(self, step: int, averages: Mapping[str, float]) -> Collapse | None:
        """The collapse, once the run is past a tenth."""
        if step < self.schedules.clock.num_steps // 10 or not averages:
            return None
        return self.learner.objective.find_collapse(averages) or find_feature_collapse(averages["feature_std"])

    def _warn_or_stop(self, step: int, collapse: Collapse) -> None:
        if self.config.monitor.on_collapse == "stop":
            raise CollapseDetected(
                f"step {step}",
                f"the teacher has collapsed ({collapse.mode}).",
                "Training is useless if its output does not distinguish tiles.",
                f"Try this: {collapse.remedy}. Or set monitor.on_collapse=warn.",
            )
        if collapse.mode != self.known_collapse:  # once, not at every interval
            logger.warning(
                "step %d: the teacher has collapsed (%s). Try this: %s.", step, collapse.mode, collapse.remedy
            )


class _Stopwatch:
    """Adds the time spent inside to the watch's wait."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __enter__(self) -> None:
        self._start_s = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._watch.wait_s += time.perf_counter() - self._start_s


def peak_memory_gb(device: torch.device) -> float:
    """The most that tensors on a GPU took so far; without one, the most that this process took (no workers)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def health_line(averages: Mapping[str, float], notes: Callable[[Mapping[str, float]], list[str]]) -> str:
    """The few facts that say whether a run is well; `notes`: those of the objective's terms."""
    if not averages:
        return "no finite loss"
    return "  ".join([f"loss {averages['loss']:.3f}", *notes(averages), f"rank {averages['rankme']:.0f}"])


def log_line(record: StepRecord, num_steps: int, *, health: str) -> str:
    """One line of the log: the facts of metrics.jsonl that one looks at."""
    done, eta_s = record.step + 1, int(record.eta_s)
    hours, minutes, seconds = eta_s // 3600, eta_s % 3600 // 60, eta_s % 60
    eta = f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
    knn = f"  k-NN {record.knn_accuracy:.3f}" if record.knn_accuracy is not None else ""
    return (
        f"step {done}/{num_steps}  {done / num_steps:.1%}  {health}{knn}  lr {record.lr:.1e}"
        f"  {record.tiles_per_s:.0f} tiles/s  wait {record.data_wait:.0%}  eta {eta}"
    )

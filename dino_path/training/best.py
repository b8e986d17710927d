"""Which checkpoint is the best so far, and whether the run has stopped getting better."""

from __future__ import annotations

import logging

import torch

from dino_path.config import Config
from dino_path.distributed import World
from dino_path.records.best import NAMES, BestRecord, Measure, is_exhausted, read_best, write_best
from dino_path.records.metrics import StepRecord, read_metrics
from dino_path.run import RunFolder

logger = logging.getLogger(__name__)


class Comparison:
    """Compares each measured checkpoint with the best so far; the first rank keeps the record.

    The measure is the running k-NN where there are labels, else the effective rank of the teacher's features (RankMe).
    It goes on across a resume as if there had been none, but for the window of batches that RankMe is of: `best.json`
    is written after the checkpoint that it speaks of, and what a kill between the two left out is taken from
    metrics.jsonl.
    """

    def __init__(self, run: RunFolder, config: Config, world: World, *, start: int, num_steps: int) -> None:
        assert config.training is not None
        self._monitor, self._world, self._num_steps = config.monitor, world, num_steps
        self._measure: Measure = "knn_accuracy" if config.monitor.knn_data is not None else "rankme"
        self._every = (
            config.monitor.knn_every_steps
            if config.monitor.knn_data is not None
            else config.training.checkpoint_every_steps
        )
        self.record: BestRecord | None = None
        if world.is_first and config.monitor.keep_best:
            self.record = self._taken_up(run, start)

    def is_due(self, num_done: int) -> bool:
        """Whether the state after so many updates is to be compared, and so needs a checkpoint; on all ranks alike."""
        return self._monitor.keep_best and (num_done % self._every == 0 or num_done == self._num_steps)

    def compare(self, num_done: int, measured: StepRecord | None) -> BestRecord | None:
        """The record after this comparison; None if there was no comparison (not due, not measured, or already
        compared).

        Args:
            measured: the record of the step that led to this state, if there is one.
        """
        value = measured.number(self._measure) if measured is not None and self.is_due(num_done) else None
        if not self._world.is_first or value is None or (self.record and num_done <= self.record.last_step):
            return None
        if self.record is None or value > self.record.value:
            data = self._monitor.knn_data if self._measure == "knn_accuracy" else None
            self.record = BestRecord(
                measure=self._measure, data=data, step=num_done, value=value, last_step=num_done, num_without_gain=0
            )
            logger.info("best so far: %s", self.record)
        else:
            worse = {"last_step": num_done, "num_without_gain": self.record.num_without_gain + 1}
            self.record = self.record.model_copy(update=worse)
        return self.record

    def has_ended(self) -> bool:
        """Whether `monitor.stop_after` comparisons brought no gain. Every rank must call it and gets the answer."""
        if self._monitor.stop_after is None:
            return False
        is_over = is_exhausted(self.record, self._monitor.stop_after)
        return bool(self._world.sum_(torch.tensor(float(is_over), device=self._world.device)))

    def _taken_up(self, run: RunFolder, start: int) -> BestRecord | None:
        """The record as it stood after `start` updates."""
        self.record = read_best(run)
        if self.record is not None and (why := self._void(self.record, run, start)) is not None:
            logger.warning("the comparison of checkpoints starts again: %s", why)
            self.record = None
        last = next((one for one in read_metrics(run.metrics_file).records if one.step + 1 == start), None)
        if start > 0 and (left_out := self.compare(start, last)) is not None:
            write_best(run, left_out)
        return self.record

    def _void(self, record: BestRecord, run: RunFolder, start: int) -> str | None:
        """Why a record can be compared with no longer."""
        if record.measure != self._measure:
            return f"by {NAMES[self._measure]}, no longer by {NAMES[record.measure]}"
        if record.measure == "knn_accuracy" and record.data != self._monitor.knn_data:
            return f"monitor.knn_data has changed ({record.data} -> {self._monitor.knn_data})"
        if record.step <= start and not run.checkpoint_file(record.step).is_file():
            return f"{run.checkpoint_file(record.step)}, the best, is missing"
        return None

"""Pretraining, as a table of contents."""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn

from dino_path.config import Config, TrainingConfig
from dino_path.distributed import World, usable_cores
from dino_path.errors import CollapseDetected, NonFiniteLoss, StoppedBySignal
from dino_path.lock import only_writer
from dino_path.model.backbone import build_backbone, check_input_sizes, count_parameters
from dino_path.progress import meter
from dino_path.run import RunFolder, atomic_write, environment_record, write_json
from dino_path.settings import as_yaml
from dino_path.tiles.expected import refuse_unfinished
from dino_path.tiles.source import TileSource, open_tiles
from dino_path.training.acceleration import has_fast_bf16
from dino_path.training.advice import advice
from dino_path.training.checkpoints import restore, save_checkpoint
from dino_path.training.finished import finished_text
from dino_path.training.learner import Learner, StepReport, train_step
from dino_path.training.monitor import Collapse, FeatureWindow, feature_spread, find_collapse, rankme
from dino_path.training.records import Record, Records
from dino_path.training.schedules import Schedules, StepSettings, resolve_clock, resolve_schedules
from dino_path.training.signals import stop_signals
from dino_path.training.unreadable import UnreadableTiles, keep_image_list, tiles_as_begun
from dino_path.views.batches import ViewBatch, ViewBatches, iterate_batches, sent_ahead

logger = logging.getLogger(__name__)
step_logger = logging.getLogger("dino_path.steps")  # a terminal shows these facts in its progress bar instead
AVERAGED = (  # of the step reports
    "loss", "teacher_entropy", "kl", "prototypes_used",
    "grad_norm", "grad_norm_backbone", "grad_norm_head", "grad_norm_prototypes",
)  # fmt: skip


def pretrain(config: Config, world: World, *, knn: Callable[[nn.Module], float] | None = None) -> Path:
    """Pretrain one backbone on the tiles of `config.store` into `config.out`; returns the last checkpoint.

    Called again on the same run folder, it continues where the newest checkpoint stands, and a finished run is left
    as it is.

    Args:
        knn: accuracy of a backbone for `monitor.knn_data`, on rank 0 (evaluation/running.py; this room may not import
            that one). Needed on rank 0, and looked at, where `monitor.knn_data` is set.

    Raises:
        ConfigError, TileStoreError, CheckpointError: refused before the first step.
        FolderInUse: another process pretrains into the same folder.
        NonFiniteLoss, CollapseDetected: the run was ended.
        StoppedBySignal: a process got SIGTERM, SIGUSR1 or SIGINT; all have ended the same step, and it is saved.
    """
    assert config.store is not None
    assert config.out is not None
    assert config.training is not None
    run, training = RunFolder(config.out), config.training
    refuse_unfinished(config.store)
    tiles = open_tiles(config.store, split=config.slides.split, exclude=config.slides.exclude)
    tiles = tiles_as_begun(run, tiles, config.store)
    clock = resolve_clock(training, num_tiles=len(tiles), world_size=world.size)
    schedules = resolve_schedules(config.optim, training, clock)
    check_view_sizes(config)
    learner = Learner(config.model, config.optim, training, world)
    with only_writer(run.path) if world.is_first else nullcontext():
        return _train(config, learner, schedules, run, tiles, knn=knn)


def _train(
    config: Config,
    learner: Learner,
    schedules: Schedules,
    run: RunFolder,
    tiles: TileSource,
    *,
    knn: Callable[[nn.Module], float] | None,
) -> Path:
    """From the newest checkpoint to the last step, or to the one after which the run was told to stop."""
    assert config.store is not None
    training, world, clock = learner.training, learner.world, schedules.clock
    start = restore(run, learner, config, tiles)
    if start >= clock.num_steps:
        logger.info("%s", finished_text(run, run.checkpoint_file(start)))
        return run.checkpoint_file(start)

    if world.is_first:
        describe_run(run, config, learner, schedules, num_tiles=len(tiles))
        keep_image_list(run, tiles, config.store, start=start)
    unreadable = UnreadableTiles(run, tiles, config.store)
    batches = view_batches(config, training, tiles, world, start=start, num_steps=clock.num_steps)
    with (
        stop_signals(is_told=world.is_first) as stop,
        Watch(config, learner, schedules, run, unreadable, start=start, knn=knn) as watch,
        meter("pretraining", clock.num_steps, "steps", lines=False) as counter,
    ):
        counter.advance(start)
        for step in range(start, clock.num_steps):
            with watch.waiting():
                micro_batches = [next(batches) for _ in range(training.accumulate_steps)]
            unreadable.note(step, micro_batches)
            settings = schedules.at(step)
            report = train_step(learner, micro_batches, settings, step=step, wants_stop=stop.is_made)
            note = watch.after_step(step, micro_batches, settings, report)
            counter.advance(1, note)
            is_last = step + 1 == clock.num_steps or report.is_stopping
            if is_last or (step + 1) % training.checkpoint_every_steps == 0:
                save_checkpoint(run, learner, config, tiles, step=step + 1)
            if is_last:
                break
    world.barrier()
    if unreadable.found:
        logger.warning(
            "%d tiles of rank %d could not be read; others took their places: %s",
            len(unreadable.found), world.rank, run.unreadable_file,
        )  # fmt: skip
    checkpoint = run.checkpoint_file(step + 1)
    if step + 1 < clock.num_steps:
        raise StoppedBySignal(
            str(run.path),
            f"stopped by {stop.signal.name if stop.signal else 'another process'} after step {step + 1} of"
            f" {clock.num_steps}.",
            f"Everything is saved in {checkpoint}.",
            "The same command continues.",
        )
    return checkpoint


def view_batches(
    config: Config, training: TrainingConfig, tiles: TileSource, world: World, *, start: int, num_steps: int
) -> Iterator[ViewBatch]:
    """This rank's micro-batches from step `start` on."""
    batches = ViewBatches(
        tiles,
        config.views,
        balance=training.balance,
        seed=training.seed,
        batch_size_per_gpu=training.batch_size_per_gpu,
        rank=world.rank,
        world_size=world.size,
        accumulate_steps=training.accumulate_steps,
    )
    pin_memory = world.device.type == "cuda"
    num_workers = min(usable_cores() - 1, 8) if training.num_workers is None else training.num_workers
    made = iterate_batches(batches, start=start, num_steps=num_steps, num_workers=num_workers, pin_memory=pin_memory)
    return sent_ahead(made, world.device)


def check_view_sizes(config: Config) -> None:
    """Refuse views that the backbone cannot take, before anything is read."""
    sizes = (config.views.global_px, *([config.views.local_px] if config.views.num_local else []))
    backbone = build_backbone(config.model.backbone, config.model.backbone_arguments)
    check_input_sizes(backbone, config.model.backbone, sizes)


def describe_run(run: RunFolder, config: Config, learner: Learner, schedules: Schedules, *, num_tiles: int) -> None:
    """Write the resolved config and environment, and say in the log what will happen."""
    with atomic_write(run.config_file) as stream:
        stream.write(as_yaml(config))
    write_json(run.environment_file, environment_record())
    backbone, head = learner.student.backbone, learner.student.head
    logger.info(
        "%s: %.2f M parameters, head %.2f M, %d prototypes; %s on %s, %d process(es)%s",
        config.model.backbone, count_parameters(backbone) / 1e6, count_parameters(head) / 1e6,
        config.model.num_prototypes, learner.precision, learner.world.device, learner.world.size,
        ", each with its share of the networks (fsdp2)" if learner.training.sharding else "",
    )  # fmt: skip
    balance = config.training.balance if config.training else None
    logger.info("%d tiles in %s%s", num_tiles, config.store, f", as many of every {balance}" if balance else "")
    for line in schedules.lines():
        logger.info("%s", line)
    for one in advice(config, schedules.clock, num_tiles=num_tiles):
        logger.info("advice: %s", one)
    if learner.training.precision == "auto" and learner.world.device.type == "cpu" and has_fast_bf16():
        logger.info(
            "advice: this CPU has bf16 arithmetic, in which a ViT takes two thirds of the time: training.precision=bf16"
        )


class Watch:
    """Times, averages and writes what the steps report; ends a run that has gone wrong."""

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

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None:
        if self.records is not None:
            self.records.__exit__(*error)  # type: ignore[arg-type]

    def waiting(self) -> _Stopwatch:
        """Times what the loop waits for data."""
        return _Stopwatch(self)

    def after_step(
        self, step: int, micro_batches: Sequence[ViewBatch], settings: StepSettings, report: StepReport
    ) -> str:
        """Take in one step's report; at the end of an interval write a record. Returns a note for the progress bar."""
        self.reports.append(report)
        if report.is_skipped:
            self._report_skipped(step, micro_batches)
        else:
            self.window.add(report.teacher_features)
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
        num_steps = len(self.reports)
        clock, world = self.schedules.clock, self.learner.world
        record: Record = {
            "step": step,
            **self._averages(),
            "lr": settings.lr,
            "weight_decay": settings.weight_decay,
            "momentum": settings.momentum,
            "teacher_temp": settings.teacher_temp,
            "epoch": (step + 1) / clock.steps_per_epoch,
            "tiles_seen": (step + 1) * clock.global_batch_size,
            "tiles_per_s": num_steps * clock.global_batch_size / elapsed_s,
            "data_wait": self.wait_s / elapsed_s,
            "eta_s": (clock.num_steps - step - 1) * elapsed_s / num_steps,
            "peak_memory_gb": peak_memory_gb(world.device),
            "num_skipped": self.learner.num_skipped,
            "num_unreadable": self._num_replaced(),
            **self._running_knn(step),
            "collapse": None,
        }
        collapse = self._find_collapse(step, record)
        record["collapse"] = collapse.mode if collapse else None
        if self.records is not None:
            self.records.write(record)
            step_logger.info("%s", log_line(record, clock.num_steps))
        self.note = health_line(record)
        self.reports.clear()
        self.wait_s, self.interval_start_s = 0.0, time.perf_counter()
        if collapse is not None:
            self._warn_or_stop(step, collapse)
        self.known_collapse = collapse.mode if collapse else None

    def _averages(self) -> Record:
        """Means over the interval's updates and over all ranks, so that every rank sees the same; None without any."""
        updates = [report for report in self.reports if not report.is_skipped]
        if not updates:
            return dict.fromkeys(("loss", "loss_minus_ln_k", *AVERAGED[1:], "feature_std", "rankme"))
        world, features = self.learner.world, self.window.features()
        means = [torch.stack([getattr(report, name) for report in updates]).double().mean() for name in AVERAGED]
        spread, rank = features.new_tensor([feature_spread(features), rankme(features)], dtype=torch.float64)
        values = (world.sum_(torch.stack([*means, spread, rank])) / world.size).tolist()
        averages: Record = dict(zip((*AVERAGED, "feature_std", "rankme"), values, strict=True))
        return {"loss": values[0], "loss_minus_ln_k": values[0] - math.log(self.config.model.num_prototypes)} | averages

    def _num_replaced(self) -> int:
        """How many of the interval's tiles could not be read, on all ranks; others took their places."""
        number, self.unreadable.num_replaced = self.unreadable.num_replaced, 0
        return int(self.learner.world.sum_(torch.tensor(float(number), device=self.learner.world.device)))

    def _running_knn(self, step: int) -> Record:
        """The k-NN accuracy of the teacher, where it is due; measured on a copy, it disturbs nothing."""
        is_due = (step + 1) % self.config.monitor.knn_every_steps == 0 or step + 1 == self.schedules.clock.num_steps
        if self.config.monitor.knn_data is None or not is_due:
            return {}
        backbone = self.learner.teacher_backbone()
        return {"knn_accuracy": self.knn(backbone)} if self.knn is not None and backbone is not None else {}

    def _find_collapse(self, step: int, record: Record) -> Collapse | None:
        """The collapse, once the run is past a tenth."""
        if step < self.schedules.clock.num_steps // 10 or record["loss"] is None:
            return None
        return find_collapse(
            teacher_entropy=float(record["teacher_entropy"] or 0),
            kl=float(record["kl"] or 0),
            prototypes_used=float(record["prototypes_used"] or 0),
            spread=float(record["feature_std"] or 0),
            num_prototypes=self.config.model.num_prototypes,
        )

    def _warn_or_stop(self, step: int, collapse: Collapse) -> None:
        if self.config.monitor.on_collapse == "stop":
            raise CollapseDetected(
                f"step {step}",
                f"the teacher has collapsed ({collapse.mode}).",
                "Its output must tell tiles apart for training to go on.",
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


def health_line(record: Record) -> str:
    """The few facts that say whether a run is well."""
    if record["loss"] is None:
        return "no finite loss"
    return f"loss {record['loss']:.3f}  entropy {record['teacher_entropy']:.2f}  rank {record['rankme']:.0f}"


def log_line(record: Record, num_steps: int) -> str:
    """One line of the log: the facts of metrics.jsonl that one looks at."""
    done = int(record["step"] or 0) + 1
    eta_s = int(record["eta_s"] or 0)
    hours, minutes, seconds = eta_s // 3600, eta_s % 3600 // 60, eta_s % 60
    eta = f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s"
    knn = f"  k-NN {record['knn_accuracy']:.3f}" if "knn_accuracy" in record else ""
    return (
        f"step {done}/{num_steps}  {done / num_steps:.1%}  {health_line(record)}{knn}  lr {record['lr']:.1e}"
        f"  {record['tiles_per_s']:.0f} tiles/s  wait {record['data_wait']:.0%}  eta {eta}"
    )

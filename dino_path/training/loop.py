"""Pretraining, as a table of contents."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path

from torch import nn

from dino_path.atomic import atomic_write
from dino_path.config import Config, TrainingConfig
from dino_path.distributed import World, usable_cores
from dino_path.errors import StoppedBySignal
from dino_path.lock import only_writer
from dino_path.model.backbone import build_backbone, check_input_sizes, count_parameters
from dino_path.model.checkpoint import Start, lineage
from dino_path.model.sizes import patch_grid
from dino_path.progress import meter
from dino_path.records.environment import write_environment
from dino_path.records.guide import GUIDE
from dino_path.records.start import write_start
from dino_path.run import RunFolder
from dino_path.settings import as_yaml
from dino_path.tiles.expected import refuse_unfinished
from dino_path.tiles.source import TileSource, open_tiles
from dino_path.training.acceleration import has_fast_bf16
from dino_path.training.advice import advice
from dino_path.training.best import Comparison
from dino_path.training.checkpoints import restore, save_checkpoint
from dino_path.training.continuation import start_from_other_run
from dino_path.training.distill_settings import check_distillation
from dino_path.training.finished import delete_old_checkpoints, finished_text, has_config
from dino_path.training.guide import open_guide
from dino_path.training.guide_features import keep_features
from dino_path.training.learner import Learner
from dino_path.training.other_run import check_start
from dino_path.training.schedules import Schedules, run_schedules
from dino_path.training.signals import stop_signals
from dino_path.training.step import train_step
from dino_path.training.unreadable import UnreadableTiles, keep_image_list, tiles_as_begun
from dino_path.training.watch import Watch
from dino_path.views.batches import ViewBatch, ViewBatches, iterate_batches, sent_ahead
from dino_path.views.masks import MaskDrawer

logger = logging.getLogger(__name__)


def pretrain(
    config: Config,
    world: World,
    *,
    knn: Callable[[nn.Module], float] | None = None,
    note_start: Callable[[nn.Module, int], None] | None = None,
) -> Path:
    """Pretrain one backbone on the tiles of `config.store` into `config.out`; returns the last checkpoint.

    Called again on the same run folder, it continues where the newest checkpoint stands, and a finished run is left
    as it is.

    Args:
        knn: accuracy of a backbone for `monitor.knn_data`, on rank 0 (evaluation/protocols/running.py; this room may
            not import that one). Needed on rank 0, and looked at, where `monitor.knn_data` is set.
        note_start: is given the teacher's backbone, on rank 0, and the updates done by then, before a run makes its
            first step from weights that are not random (evaluation/results/verdict.py); also with `knn_data` alone.

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
    check_start(config)
    check_distillation(config)
    check_view_sizes(config)
    has_state = bool(training.continue_from or run.checkpoint_files())  # its start weights would be written over
    model = config.model.model_copy(update={"weights": None}) if has_state else config.model
    learner = Learner(model, config.objective, config.optim, training, world, open_guide(config, tiles, world))
    with only_writer(run.path) if world.is_first else nullcontext():
        return _train(config, learner, run, tiles, knn=knn, note_start=note_start)


def _train(
    config: Config,
    learner: Learner,
    run: RunFolder,
    tiles: TileSource,
    *,
    knn: Callable[[nn.Module], float] | None,
    note_start: Callable[[nn.Module, int], None] | None,
) -> Path:
    """From the newest checkpoint to the last step, or to the one after which the run was told to stop."""
    assert config.store is not None
    training, world = learner.training, learner.world
    is_new, has_start = not run.checkpoint_files(), bool(config.model.weights or training.continue_from)
    starts_from_other = training.continue_from is not None and is_new
    position = (start_from_other_run if starts_from_other else partial(restore, run))(learner, config, tiles)
    start, starts = position.step, position.starts
    schedules = run_schedules(config, starts, num_tiles=len(tiles), world_size=world.size)
    clock = schedules.clock
    comparison = Comparison(run, config, world, start=start, num_steps=clock.num_steps)
    if start >= clock.num_steps or comparison.has_ended():
        if world.is_first and has_config(run, config):  # a kill just before the last deletion left them
            delete_old_checkpoints(run, run.checkpoint_file(start), keep=training.keep_checkpoints)
        logger.info("%s", finished_text(run, run.checkpoint_file(start)))
        return run.checkpoint_file(start)

    if world.is_first:
        describe_run(run, config, learner, schedules, starts, num_tiles=len(tiles))
        keep_image_list(run, tiles, config.store, start=start)
    if config.objective.distill.cached and learner.guide is not None:
        learner.guide = keep_features(learner, learner.guide, run, config, tiles)
    if is_new and has_start and config.monitor.knn_data is not None:
        backbone = learner.teacher_backbone()
        if note_start is not None and backbone is not None:
            note_start(backbone, start)
    if starts_from_other:  # so that this run goes on without that one, whatever becomes of it
        save_checkpoint(run, learner, config, tiles, step=start, starts=starts)
    unreadable = UnreadableTiles(run, tiles, config.store)
    first, num_steps = start - clock.stream_start, clock.num_steps - clock.stream_start
    batches = view_batches(config, training, tiles, learner, start=first, num_steps=num_steps)
    with (
        stop_signals(is_told=world.is_first) as stop,
        Watch(config, learner, schedules, run, unreadable, start=start, knn=knn) as watch,
        meter("pretraining", clock.num_steps, "steps", lines=False) as counter,
    ):
        counter.advance(start)
        if watch.records is not None:
            watch.records.show_views(config, tiles)
        for step in range(start, clock.num_steps):
            with watch.waiting():
                micro_batches = [next(batches) for _ in range(training.accumulate_steps)]
            unreadable.note(step, micro_batches)
            settings = schedules.at(step)
            report = train_step(learner, micro_batches, settings, step=step, wants_stop=stop.is_made)
            note = watch.after_step(step, micro_batches, settings, report)
            counter.advance(1, note)
            num_done, has_ended = step + 1, step + 1 == clock.num_steps
            is_due = num_done % training.checkpoint_every_steps == 0 or comparison.is_due(num_done)
            if has_ended or report.is_stopping or is_due:
                best = comparison.compare(num_done, watch.record)
                save_checkpoint(run, learner, config, tiles, step=num_done, starts=starts, best=best)
                has_ended = has_ended or comparison.has_ended()
            if has_ended or report.is_stopping:
                break
    world.barrier()
    if unreadable.found:
        logger.warning(
            "%d tiles of rank %d could not be read; others replaced them: %s",
            len(unreadable.found), world.rank, run.unreadable_file,
        )  # fmt: skip
    checkpoint = run.checkpoint_file(num_done)
    if not has_ended:
        raise StoppedBySignal(
            str(run.path),
            f"stopped by {stop.signal.name if stop.signal else 'another process'} after step {num_done} of"
            f" {clock.num_steps}.",
            f"Everything is saved in {checkpoint}.",
            "The same command continues.",
        )
    if num_done < clock.num_steps and world.is_first:
        logger.info(
            "ended after step %d of %d: %s comparisons without a gain (monitor.stop_after)",
            num_done, clock.num_steps, config.monitor.stop_after,
        )  # fmt: skip
    return checkpoint


def view_batches(
    config: Config, training: TrainingConfig, tiles: TileSource, learner: Learner, *, start: int, num_steps: int
) -> Iterator[ViewBatch]:
    """This rank's micro-batches from step `start` on; steps count from the start of the stream of tiles."""
    world, masks = learner.world, None
    if learner.objective.needs.masks:
        masks = MaskDrawer(
            config.objective.ibot.masks,
            patch_grid(config.model.backbone, config.model.backbone_arguments, config.views.global_px),
            seed=training.seed,
            global_batch_size=learner.global_batch_size,
        )
    batches = ViewBatches(
        tiles,
        config.views,
        balance=training.balance,
        seed=training.seed,
        batch_size_per_gpu=training.batch_size_per_gpu,
        rank=world.rank,
        world_size=world.size,
        accumulate_steps=training.accumulate_steps,
        masks=masks,
    )
    pin_memory = world.device.type == "cuda"
    num_workers = num_view_workers(training)
    made = iterate_batches(batches, start=start, num_steps=num_steps, num_workers=num_workers, pin_memory=pin_memory)
    return sent_ahead(made, world.device)


def num_view_workers(training: TrainingConfig) -> int:
    """Processes that make views for this one."""
    return min(usable_cores() - 1, 8) if training.num_workers is None else training.num_workers


def check_view_sizes(config: Config) -> None:
    """Refuse views that the backbone cannot take, before anything is read."""
    sizes = (config.views.global_px, *([config.views.local_px] if config.views.num_local else []))
    backbone = build_backbone(config.model.backbone, config.model.backbone_arguments)
    check_input_sizes(backbone, config.model.backbone, sizes)


def describe_run(
    run: RunFolder, config: Config, learner: Learner, schedules: Schedules, starts: Sequence[Start], *, num_tiles: int
) -> None:
    """Write the resolved config, environment and origin, and log the plan of the run."""
    with atomic_write(run.config_file) as stream:
        stream.write(as_yaml(config))
    if starts:
        write_start(run.start_file, lineage(starts), [vars(start) for start in starts])
        logger.info("started from %s", lineage(starts))
    write_environment(run.environment_file)
    if learner.guide is not None:
        GUIDE.write(run.guide_file, learner.guide.facts)
    student = learner.student
    heads = [f"{count_parameters(head) / 1e6:.2f} M with {head.num_prototypes} prototypes" for head in student.heads]
    if student.match_head is not None:
        heads.append(f"{count_parameters(student.match_head) / 1e6:.2f} M to the features of the distilled model")
    logger.info(
        "%s: %.2f M parameters, heads %s; %s on %s, %d process(es)%s",
        config.model.backbone, count_parameters(student.backbone) / 1e6, ", ".join(heads),
        learner.precision, learner.world.device, learner.world.size,
        ", each with its share of the networks (fsdp2)" if learner.training.sharding else "",
    )  # fmt: skip
    if config.model.lora_rank is not None:
        learning = sum(one.numel() for one in student.backbone.parameters() if one.requires_grad)
        logger.info(
            "adapters of rank %d: %.2f M parameters of the backbone are trained; its own weights are frozen",
            config.model.lora_rank, learning / 1e6,
        )  # fmt: skip
    balance = config.training.balance if config.training else None
    logger.info(
        "%d tiles in %s%s", num_tiles, config.store, f", the same number from every {balance}" if balance else ""
    )
    for line in schedules.lines():
        logger.info("%s", line)
    for one in advice(config, schedules.clock, num_tiles=num_tiles):
        logger.info("advice: %s", one)
    if learner.training.precision == "auto" and learner.world.device.type == "cpu" and has_fast_bf16():
        logger.info(
            "advice: this CPU has bf16 arithmetic, with which a ViT takes two thirds of the time:"
            " training.precision=bf16"
        )

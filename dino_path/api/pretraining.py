"""`dino_path.pretrain`: tile store -> run."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import pyarrow as pa

from dino_path.api.inputs import check_pretraining
from dino_path.api.settings import ConfigLike, PathLike, Settings, settled
from dino_path.api.tables import Listed, text_table
from dino_path.config import Config
from dino_path.disk import refuse_unwritable
from dino_path.journal import journal
from dino_path.launch import is_first, world_shape
from dino_path.lock import only_writer
from dino_path.records.best import BestRecord, read_best
from dino_path.records.metrics import read_metrics
from dino_path.records.verdict import TITLES, VerdictRecord, interval, read_verdict, signed
from dino_path.run import RunFolder

if TYPE_CHECKING:
    from dino_path.evaluation.protocols.running import RunningTest

logger = logging.getLogger(__name__)

TextTable = tuple[list[str], list[list[str]]]


@dataclass(frozen=True, repr=False)
class Pretraining(Listed):
    """A run that has ended.

    Attributes:
        run: the run folder, which `export` takes.
        checkpoint: the last one.
        best: which checkpoint is the best, and by what; None where none were compared (`monitor.keep_best`).
        verdict: whether the run beat the weights that it started from; None where that is not known.
        notes: notes on the run, as sentences.
        was_finished: nothing was done, for the run was finished before.
    """

    run: Path
    checkpoint: Path
    best: BestRecord | None = None
    verdict: VerdictRecord | None = None
    notes: tuple[str, ...] = ()
    was_finished: bool = False

    def to_arrow(self) -> pa.Table:
        """The measurements: one row per line of `metrics.jsonl`, one column per number (step, loss, lr, ...)."""
        records = [dict(record) for record in read_metrics(RunFolder(self.run).metrics_file).records]
        names = dict.fromkeys(name for record in records for name in record)
        return pa.table({name: [record.get(name) for record in records] for name in names})

    def __str__(self) -> str:
        return "\n".join(part if isinstance(part, str) else text_table(*part) for part in result_parts(self))


def result_parts(result: Pretraining) -> Iterator[str | TextTable]:
    """For people: sentences, and the verdict as header and rows of a table."""
    if result.was_finished:
        from dino_path.training.finished import finished_text

        yield finished_text(RunFolder(result.run), result.checkpoint)
        return
    yield f"checkpoint: {result.checkpoint}"
    if result.best is not None:
        yield f"best: {result.best}; `dino-path export --best` takes it"
    yield from result.notes
    if result.verdict is not None:
        yield from _verdict_parts(result.verdict)


def _verdict_parts(verdict: VerdictRecord) -> Iterator[str | TextTable]:
    header = ["", "step", *(f"{title} accuracy" for title in TITLES.values())]
    rows = [[row.name, f"{row.step}", *(interval(row.accuracy[one]) for one in TITLES)] for row in verdict.rows]
    rows += [
        [f"{row.name} - start", "", *(signed(row.minus_start[one]) for one in TITLES)]
        for row in verdict.rows
        if row.minus_start
    ]
    yield header, rows
    yield (
        f"{verdict.data}: {verdict.num_images} validation images, {verdict.num_neighbours} to learn from;"
        f" {verdict.interval}"
    )
    if len(verdict.rows) > 2:
        yield "the best checkpoint was chosen by k-NN on these images, which favours it: test it on others"
    yield verdict.sentence


def pretrain(
    store: PathLike | None = None,
    out: PathLike | None = None,
    *,
    config: ConfigLike = None,
    apply_advice: bool = False,
    **settings: Unpack[Settings],
) -> Pretraining:
    """Pretrain a backbone with DINO on tiles. Called again on the same run folder, it continues.

    The length of the run is required, such as `training={"num_steps": 100_000}`. Ctrl-C and SIGTERM end the step, save
    it, and raise StoppedBySignal. Under torchrun or srun, all processes make the same call.

    Args:
        store: tile store or folder of images; None: the one of `config`.
        out: run folder; None: the one of `config`.
        config: YAML file, such as those in `configs/`.
        apply_advice: apply the settings that the run advises at its start.

    Raises:
        ConfigError, TileStoreError, CheckpointError, DataError: refused before the first step.
        FolderInUse: another process pretrains into the same folder.
        NonFiniteLoss, CollapseDetected: the run was ended.
        StoppedBySignal: it was told to stop, and its state is saved.
    """
    places = {name: Path(value) for name, value in (("store", store), ("out", out)) if value is not None}
    resolved = settled(config, {**places, **settings}, needs=("store", "out", "training"))
    assert resolved.out is not None
    assert resolved.training is not None
    refuse_unwritable(resolved.out)
    logger.info("reading %s", resolved.store)
    run = RunFolder(resolved.out)
    check_pretraining(resolved)
    if apply_advice:
        resolved = _with_advice(resolved)
    from dino_path.training.finished import (
        delete_old_checkpoints,
        finished_checkpoint,
        old_checkpoints,
        unlearned_text,
    )

    if (finished := finished_checkpoint(resolved)) is not None:
        assert resolved.training is not None
        keep = resolved.training.keep_checkpoints
        if is_first() and old_checkpoints(run, finished, keep=keep):  # a kill just before the last deletion left them
            with only_writer(run.path):
                delete_old_checkpoints(run, finished, keep=keep)
        verdict = read_verdict(run)
        known = verdict if verdict is not None and verdict.rows else None
        return Pretraining(run.path, finished, read_best(run), known, was_finished=True)
    logger.info("loading torch and timm")
    with ExitStack() as stack:
        checkpoint, test = _train(resolved, run, stack)
        if not is_first():
            return Pretraining(run.path, checkpoint)
        notes = [text] if (text := unlearned_text(run, resolved)) is not None else []
        verdict, unknown = _verdict(run, resolved, test, checkpoint)
        return Pretraining(run.path, checkpoint, read_best(run), verdict, (*notes, *unknown))


def _train(config: Config, run: RunFolder, stack: ExitStack) -> tuple[Path, RunningTest | None]:
    """The last checkpoint, and the test that ran beside the training; the run's log is kept while `stack` is open."""
    from dino_path.distributed import open_world
    from dino_path.training.global_batch import keep_global_batch
    from dino_path.training.loop import pretrain as run_pretraining

    assert config.training is not None
    with open_world(config.training.device, timeout_s=config.training.timeout_s) as world:
        if world.is_first:
            stack.enter_context(journal(run.log_file))
        config = keep_global_batch(config, world.size)
        if config.monitor.knn_data is None or not world.is_first:
            return run_pretraining(config, world), None
        from dino_path.evaluation.protocols.running import running_test
        from dino_path.evaluation.results.running_sheet import knn_with_sheet
        from dino_path.evaluation.results.verdict import note_start

        test = running_test(config, device=world.device)
        is_shown = config.wandb.log_images and config.wandb.mode != "disabled"
        knn = partial(knn_with_sheet, run, test) if is_shown else test.knn
        return run_pretraining(config, world, knn=knn, note_start=partial(note_start, run, test)), test


def _verdict(
    run: RunFolder, config: Config, test: RunningTest | None, end: Path
) -> tuple[VerdictRecord | None, list[str]]:
    """Measure whether the run beat its start; without labels, say how to find out."""
    assert config.training is not None
    if config.model.weights is None and config.training.continue_from is None:
        return None, []
    if test is None:
        return None, ["not known whether the run beats its start: set monitor.knn_data=SPEC to test the next run"]
    logger.info("testing the start against the end")
    from dino_path.evaluation.results.verdict import judge

    verdict = judge(run, test, end)
    if verdict is None:
        return None, [
            f"not known whether the run beats its start: {run.verdict_file} has no predictions of the start for"
            f" these images; they are made before the first step"
        ]
    return verdict, []


def _with_advice(config: Config) -> Config:
    """The config with the advised settings; for a run that has begun, with its initial settings."""
    from dino_path.settings import with_settings
    from dino_path.tiles.source import open_tiles
    from dino_path.training.advice import advised, settings_begun_with

    assert config.out is not None
    assert config.store is not None
    changed: dict[str, Any] | None = settings_begun_with(RunFolder(config.out), config)
    if changed is None:
        tiles = open_tiles(config.store, split=config.slides.split, exclude=config.slides.exclude)
        changed = advised(config, num_tiles=len(tiles), world_size=world_shape(os.environ)[1])
    for key, value in changed.items():
        logger.info("--apply-advice: %s=%s", key, f"'{value}'" if " " in value else value)
    if not changed:
        logger.info("--apply-advice: there is no advice for these settings")
    return with_settings(config, changed)

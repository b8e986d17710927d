"""The end of a run, and a run that had already ended, without torch: what stays of it, and the messages."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from dino_path.config import Config
from dino_path.records.best import is_exhausted, read_best
from dino_path.records.metrics import read_metrics
from dino_path.records.verdict import read_verdict
from dino_path.run import RunFolder
from dino_path.settings import load_config

UNLEARNED_SHARE = 0.01  # of ln K, what guessing gives: a loss so near to it says that the student has learned nothing


def finished_checkpoint(config: Config) -> Path | None:
    """The last checkpoint of the run in `config.out`, if it has exactly this config and has made all its steps.

    None also where only the steps of an epoch, or a closer look at the settings, can tell: `loop.pretrain` looks then.
    """
    assert config.out is not None
    assert config.training is not None
    run = RunFolder(config.out)
    best = read_best(run) if config.monitor.keep_best else None
    last = best.last_step if best and is_exhausted(best, config.monitor.stop_after) else config.training.num_steps
    if last is None or not run.checkpoint_file(last).is_file():
        return None
    if best is not None and best.last_step < last:  # a comparison that a kill left out is still to be made
        return None
    if config.monitor.knn_data is not None and (verdict := read_verdict(run)) is not None and not verdict.rows:
        return None  # and so is the verdict
    return run.checkpoint_file(last) if has_config(run, config) else None


def has_config(run: RunFolder, config: Config) -> bool:
    """Whether the run was begun, or last continued, with exactly this config."""
    return run.config_file.is_file() and load_config(run.config_file) == config


def old_checkpoints(run: RunFolder, newest: Path, *, keep: int) -> list[Path]:
    """The checkpoints that a run deletes when it has written `newest`: all but the last `keep` up to it, and the best.

    A later file is a damaged one that was passed over: it does not count as one of the last, and stays.
    """
    best = read_best(run)
    kept = run.checkpoint_file(best.step) if best is not None else None
    return [old for old in [file for file in run.checkpoint_files() if file <= newest][:-keep] if old != kept]


def delete_old_checkpoints(run: RunFolder, newest: Path, *, keep: int) -> None:
    """Delete those. The caller is the folder's only writer."""
    for old in old_checkpoints(run, newest, keep=keep):
        old.unlink()


def finished_text(run: RunFolder, checkpoint: Path) -> str:
    """Message that nothing was done, with possible next commands."""
    path, best = shlex.quote(str(run.path)), read_best(run)
    return (
        f"{run.path} is already finished: {checkpoint} is its last checkpoint.\n"
        + (f"Its best checkpoint: {best}; export it with --best\n" if best and best.step < best.last_step else "")
        + f"To export a model: dino-path export {path} --out {path}/model\n"
        f"For a longer run: the same command with training.continue_from={path}, another out= and training.num_steps"
    )


def unlearned_text(run: RunFolder, config: Config) -> str | None:
    """Message that the run has learned nothing, if DINO's last loss is that of guessing."""
    num_prototypes, records = config.objective.dino.num_prototypes, read_metrics(run.metrics_file).records
    guessing = math.log(num_prototypes)
    gap = records[-1].number("loss_minus_ln_k") if records else None  # of DINO's term, unweighted
    if gap is None or abs(gap) > UNLEARNED_SHARE * guessing:  # Sinkhorn-Knopp's loss may be far above it, and fall
        return None
    return (
        f"NOT LEARNED: after {records[-1].step + 1} steps DINO's loss is {guessing + gap:.3f}, the loss of guessing"
        f" is ln {num_prototypes} = {guessing:.3f}. Train longer, or start another run with --apply-advice"
    )

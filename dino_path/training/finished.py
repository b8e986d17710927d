"""What is said at the end of a run, and of one that had ended before. Known without torch."""

from __future__ import annotations

import math
import shlex
from pathlib import Path

from dino_path.config import Config
from dino_path.records.metrics import read_metrics
from dino_path.run import RunFolder
from dino_path.settings import load_config

UNLEARNED_SHARE = 0.01  # of ln K, what guessing gives: a loss so near to it says that the student has learned nothing


def finished_checkpoint(config: Config) -> Path | None:
    """The last checkpoint of the run in `config.out`, when it has the very same config and has made all its steps.

    None also where only the steps of an epoch, or a closer look at the settings, can tell: `loop.pretrain` looks then.
    """
    assert config.out is not None
    assert config.training is not None
    run, num_steps = RunFolder(config.out), config.training.num_steps
    if num_steps is None or not run.config_file.is_file() or not run.checkpoint_file(num_steps).is_file():
        return None
    return run.checkpoint_file(num_steps) if load_config(run.config_file) == config else None


def finished_text(run: RunFolder, checkpoint: Path) -> str:
    """That nothing was done, and what can be."""
    path = shlex.quote(str(run.path))
    return (
        f"{run.path} is finished, and nothing was done: {checkpoint} is its last checkpoint.\n"
        f"A model of it: dino-path export {path} --out {path}/model\n"
        f"A longer run: the same command with training.continue_from={path}, another out= and training.num_steps"
    )


def unlearned_text(run: RunFolder, config: Config) -> str | None:
    """That the run has learned nothing, where DINO's last loss is what guessing makes it."""
    num_prototypes, records = config.objective.dino.num_prototypes, read_metrics(run.metrics_file).records
    guessing = math.log(num_prototypes)
    gap = records[-1].number("loss_minus_ln_k") if records else None  # of DINO's term, unweighted
    if gap is None or abs(gap) > UNLEARNED_SHARE * guessing:  # Sinkhorn-Knopp's loss may be far above it, and fall
        return None
    return (
        f"NOT LEARNED: after {records[-1].step + 1} steps DINO's loss is {guessing + gap:.3f}, and guessing gives"
        f" ln {num_prototypes} = {guessing:.3f}. Train longer, or start another run with --apply-advice"
    )

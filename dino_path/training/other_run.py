"""Check of the run to continue, from its files alone, without torch."""

from __future__ import annotations

from dino_path.config import Config
from dino_path.errors import ConfigError
from dino_path.run import RunFolder, newest_checkpoint


def check_start(config: Config) -> None:
    """Refuse a start that is not there, before anything is built. A run that has checkpoints no longer needs it.

    Raises:
        ConfigError: it is the run's own folder, or there is none for adapters. CheckpointError: no checkpoint there.
    """
    assert config.out is not None
    assert config.training is not None
    start, run = config.training.continue_from, RunFolder(config.out)
    if config.model.lora_rank is not None and start is None and config.model.weights is None:
        raise ConfigError(
            f"model.lora_rank={config.model.lora_rank}",
            "there would be adapters on random weights that are never trained.",
            "Pretrained weights are needed.",
            "Give model.weights, or leave model.lora_rank out.",
        )
    if start is None:
        return
    if run.path.resolve() in (start.resolve(), *start.resolve().parents):
        raise ConfigError(
            f"training.continue_from={start}",
            f"lies in the run's own folder, out={run.path}.",
            "A run that continues another needs its own folder.",
            "Give another `out`; to resume a stopped run, leave training.continue_from out.",
        )
    if not run.checkpoint_files():
        newest_checkpoint(start)

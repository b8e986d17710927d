"""Whether a checkpoint belongs to the settings and tiles of a run, and how they differ."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dino_path.config import Config, HeadConfig
from dino_path.errors import CheckpointError
from dino_path.model.checkpoint import Checkpoint
from dino_path.settings import as_plain
from dino_path.tiles.source import TileSource
from dino_path.training.guide import Guide

# Settings that may change between two starts of one run: they do not change what is computed, but for rounding. How
# the global batch is divided may change too; its size may not.
_FREE_SECTIONS = ("monitor", "evaluation", "baseline", "cohort", "wandb", "cluster", "tiles")
# Of `slides.exclude` and `objective.distill.teacher` what they name is compared: the tiles, and the model.
_FREE_SETTINGS = {"slides.exclude", "slides.max_seconds", "slides.max_memory_gb", "objective.distill.teacher"} | {
    f"training.{name}" for name in (
        "num_workers", "checkpoint_every_steps", "keep_checkpoints", "max_non_finite_steps", "device",
        "batch_size_per_gpu", "accumulate_steps", "activation_checkpointing", "compile",
        "fused_loss", "sharding", "timeout_s",
    )
}  # fmt: skip
_MAPS = {"model.arguments"}  # one setting each, whatever is in it
_LENGTHS = {"training.num_steps", "training.num_epochs", "training.num_tiles"}
_OF_BACKBONE = {
    f"model.{name}"
    for name in (
        "backbone",
        "arguments",
        "shifted_patch_tokenization",
        "locality_self_attention",
        "lora_rank",
        "lora_alpha",
    )
}


def settings_of(path: Path, checkpoint: Checkpoint) -> Config:
    """The settings in a checkpoint; one that is younger than the checkpoint has its default there.

    Raises:
        CheckpointError: they are not those of this version.
    """
    try:
        return Config.model_validate(checkpoint.config)
    except ValidationError as error:
        raise CheckpointError(
            str(path),
            f"was made by another version of dino_path ({' '.join(str(error).split())[:200]}).",
            "A run must end with the version with which it started.",
            "Install that version (environment.json names it), or use another `out`.",
        ) from None


def changed_settings(before: Config, now: Config) -> dict[str, str]:
    """Changed dotted settings that affect the computation: `before -> now`."""
    then, here = _decisive(as_plain(before)), _decisive(as_plain(now))
    keys = sorted(key for key in {*then, *here} if then.get(key) != here.get(key))
    return {key: f"{then.get(key)} -> {here.get(key)}" for key in keys}


def refuse_other_run(
    path: Path,
    checkpoint: Checkpoint,
    config: Config,
    tiles: TileSource,
    *,
    global_batch_size: int,
    guide: Guide | None,
) -> None:
    """Refuse a checkpoint in this run's folder that belongs to another run.

    Args:
        guide: the present one; None: there is none, or it is not looked at.

    Raises:
        CheckpointError: naming all that differs.
    """
    before = settings_of(path, checkpoint)
    changed = changed_settings(before, config)
    differing = [f"{key} ({change})" for key, change in changed.items()]
    if checkpoint.tiles_digest != tiles.digest:
        differing.append(f"the tiles ({checkpoint.num_tiles} -> {len(tiles)}, or other tiles of the same number)")
    if checkpoint.global_batch_size != global_batch_size:
        differing.append(f"global batch size ({checkpoint.global_batch_size} -> {global_batch_size})")
    differing += other_guide(checkpoint, guide)
    if not differing:
        return
    remedy = "Use the same settings, or another `out`."
    if not changed.keys() & {"training.continue_from", "training.schedules"} and not network_settings(before, config):
        assert config.out is not None
        is_longer = changed.keys() <= _LENGTHS and len(differing) == len(changed)
        what = "continue to the new length" if is_longer else "continue from its weights, heads and moments"
        words = shlex.join([f"out={_unused_beside(config.out)}", f"training.continue_from={config.out}"])
        remedy += f" To {what}, append these to the same command: {words}"
    raise CheckpointError(
        str(path),
        f"was made with other settings: {'; '.join(differing)}.",
        "A run folder holds one run, so that its numbers are comparable.",
        remedy,
    )


def other_guide(checkpoint: Checkpoint, guide: Guide | None) -> list[str]:
    """Differences between a checkpoint's distilled model and the present one, if both have one."""
    then = checkpoint.objective.get("distill", {}).get("guide")
    if then is None or guide is None or bytes(then.tolist()).hex() == guide.facts.digest:
        return []
    digest = bytes(then.tolist()).hex()
    return [f"objective.distill.teacher (model {digest[:12]} -> {guide.facts.name}, {guide.facts.digest[:12]})"]


def network_settings(before: Config, now: Config) -> list[str]:
    """Changed settings that affect which tensors the networks have, and how they are used."""
    then, here = _of_networks(before), _of_networks(now)
    return sorted(key for key in {*then, *here} if then.get(key) != here.get(key))


def _of_networks(config: Config) -> dict[str, Any]:
    """Dotted settings of the backbone, and of the heads that the terms with a weight have."""
    found = {key: value for key, value in _decisive(as_plain(config)).items() if key in _OF_BACKBONE}
    dino, ibot = config.objective.dino, config.objective.ibot
    head = ibot.head if ibot.weight > 0 else None
    distill = config.objective.distill
    found |= {"objective.dino.weight": dino.weight > 0, "objective.ibot.weight": ibot.weight > 0}
    found |= {"objective.distill.weight": distill.weight > 0}
    found |= {"objective.distill.patches": distill.weight > 0 and distill.patches > 0}
    heads = {"dino": dino if dino.weight > 0 or head == "shared" else None, "ibot": ibot if head == "own" else None}
    for term, settings in heads.items():
        if settings is not None:
            names = [name for name in HeadConfig.model_fields if name != "norm_last_layer"]
            found |= {f"objective.{term}.{name}": getattr(settings, name) for name in names}
    return found | {"objective.ibot.head": head}


def _unused_beside(folder: Path) -> Path:
    """A path for a further run, next to this one."""
    number = 2
    while (found := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    return found


def _decisive(config: dict[str, Any]) -> dict[str, Any]:
    """Dotted settings that affect the computation."""
    sections = {key: values for key, values in config.items() if key not in _FREE_SECTIONS and isinstance(values, dict)}
    return {key: value for key, value in _dotted(sections) if key not in _FREE_SETTINGS}


def _dotted(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and prefix + key not in _MAPS:
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value

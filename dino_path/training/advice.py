"""Advice on settings that suit large data and long runs, but not this run. Nothing is changed automatically.

The published values stay the defaults, whatever the store: a config means the same everywhere, `config.yaml` names the
numbers that were used, and a run that is continued with one more slide keeps its prototypes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dino_path.config import Clock, Config
from dino_path.run import RunFolder
from dino_path.settings import as_plain, load_config, setting_text, with_settings
from dino_path.training.schedules import resolve_clock

# Tiles up to -> prototypes, as lightly-train documents its automatic choice (reference/ssl_training.md, 5). Maintainers
# of DINO advise fewer on small data as well (facebookresearch/dino issues 43 and 246).
PROTOTYPES_FOR_TILES = ((20_000, 1024), (50_000, 2048), (100_000, 4096), (200_000, 16384), (500_000, 32768))
# The teacher averages over 1 / (1 - momentum) steps. In a demo of 320 steps a third of the run (0.99) collapsed to
# uniform, a sixth (0.98) later or not at all; the paper's is 250 of 125,000.
MAX_AVERAGED_SHARE, ADVISED_SHARE = 1 / 5, 1 / 8
MAX_WARMUP_SHARE, ADVISED_WARMUP = 0.3, "10 %"  # the paper: 10 of 100 epochs
MAX_FREEZE_SHARE, ADVISED_FREEZE = 0.1, "1 %"  # the paper: 1 of 100 epochs
SAFE_TEACHER_TEMP = 0.04  # the paper: above it only after a warm-up
LEAST_MOMENTUM = 0.5  # a teacher that is the student has nothing to teach: shorter runs are too short for any
MAX_ROUNDS = 4
ADVISED_KEYS = (
    "objective.dino.num_prototypes", "training.momentum", "optim.lr_warmup", "optim.freeze_last_layer",
    "objective.dino.warmup_teacher_temp", "objective.dino.teacher_temp_warmup", "training.accumulate_steps",
)  # fmt: skip
MIN_GLOBAL_BATCH = 32  # the paper, table 9: 128 costs little; 8 gave 35.2 % k-NN after 50 epochs


@dataclass(frozen=True)
class Advice:
    """Why a setting does not suit the run, and better values: text by dotted key, as on the command line."""

    reason: str
    settings: dict[str, str]

    def __str__(self) -> str:
        return f"{self.reason}: " + " ".join(
            f"{key}='{value}'" if " " in value else f"{key}={value}" for key, value in self.settings.items()
        )


def advice(config: Config, clock: Clock, *, num_tiles: int) -> list[Advice]:
    """One for each setting that is unusual for so many tiles, or for so short a run."""
    return [
        *_advice_on_model(config, num_tiles),
        *_advice_on_schedules(config, clock),
        *_advice_on_batch(config, clock),
    ]


def advised(config: Config, *, num_tiles: int, world_size: int) -> dict[str, str]:
    """The settings, as text by dotted key, with which the config gets no advice any more."""
    changed: dict[str, str] = {}
    for _ in range(MAX_ROUNDS):  # more tiles a step make fewer steps of an epoch, for which other settings are advised
        assert config.training is not None
        clock = resolve_clock(config.training, num_tiles=num_tiles, world_size=world_size)
        found = {key: text for one in advice(config, clock, num_tiles=num_tiles) for key, text in one.settings.items()}
        if not found:
            break
        changed |= found
        config = with_settings(config, found)
    return changed


def settings_begun_with(run: RunFolder, config: Config) -> dict[str, str] | None:
    """For a run that has begun: its values of the advised settings that differ from the config.

    Its store may have grown since, and with it the advice; a run keeps what it began with. None: no run has begun.
    """
    if not run.config_file.is_file() or not run.checkpoint_files():
        return None
    begun, given = as_plain(load_config(run.config_file)), as_plain(config)
    then, now = ({key: _value_of(tree, key) for key in ADVISED_KEYS} for tree in (begun, given))
    return {key: setting_text(then[key]) for key in ADVISED_KEYS if then[key] != now[key]}


def _value_of(tree: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        tree = tree[name]
    return tree


def _advice_on_model(config: Config, num_tiles: int) -> list[Advice]:
    prototypes = next((count for limit, count in PROTOTYPES_FOR_TILES if num_tiles <= limit), None)
    if not config.objective.has_prototypes or prototypes is None or config.objective.dino.num_prototypes <= prototypes:
        return []
    reason = f"{config.objective.dino.num_prototypes} prototypes are many for {num_tiles} tiles"
    return [Advice(reason, {"objective.dino.num_prototypes": str(prototypes)})]


def _advice_on_schedules(config: Config, clock: Clock) -> list[Advice]:
    training, optim, dino, num_steps = config.training, config.optim, config.objective.dino, clock.num_steps
    assert training is not None
    found = []
    averaged = 1 / (1 - training.momentum) if training.momentum < 1 else float("inf")
    momentum = max(LEAST_MOMENTUM, 1 - 1 / (ADVISED_SHARE * num_steps))
    if averaged > MAX_AVERAGED_SHARE * num_steps and training.momentum > momentum:
        reason = f"the teacher averages over {averaged:.0f} steps and the run has {num_steps}"
        found.append(Advice(reason, {"training.momentum": f"{momentum:.6g}"}))
    if optim.lr_warmup.steps(clock) > MAX_WARMUP_SHARE * num_steps:
        reason = f"the learning rate rises for {optim.lr_warmup.steps(clock)} of {num_steps} steps"
        found.append(Advice(reason, {"optim.lr_warmup": ADVISED_WARMUP}))
    if not config.objective.has_prototypes:
        return found
    if optim.freeze_last_layer.steps(clock) > MAX_FREEZE_SHARE * num_steps:
        reason = f"the prototypes are frozen for {optim.freeze_last_layer.steps(clock)} of {num_steps} steps"
        found.append(Advice(reason, {"optim.freeze_last_layer": ADVISED_FREEZE}))
    if dino.teacher_temp > SAFE_TEACHER_TEMP:
        warmup_steps = dino.teacher_temp_warmup.steps(clock)
        warmup = {"objective.dino.teacher_temp_warmup": ADVISED_WARMUP}
        if dino.warmup_teacher_temp > SAFE_TEACHER_TEMP or warmup_steps == 0:
            reason = f"a teacher temperature of {dino.teacher_temp:g} from the start may collapse"
            found.append(Advice(reason, {"objective.dino.warmup_teacher_temp": f"{SAFE_TEACHER_TEMP}", **warmup}))
        elif warmup_steps >= num_steps:
            reason = f"the teacher temperature rises for {warmup_steps} steps, and the run has {num_steps}"
            found.append(Advice(reason, warmup))
    return found


def _advice_on_batch(config: Config, clock: Clock) -> list[Advice]:
    assert config.training is not None
    if clock.global_batch_size >= MIN_GLOBAL_BATCH:
        return []
    count = -(-4 * MIN_GLOBAL_BATCH // clock.global_batch_size) * config.training.accumulate_steps
    reason = f"{clock.global_batch_size} tiles per step are few"
    return [Advice(reason, {"training.accumulate_steps": str(count)})]

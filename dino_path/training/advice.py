"""Advice on settings that suit much data and long runs, but not this run. Nothing is changed in silence.

The published values stay the defaults, whatever the store: a config means the same everywhere, `config.yaml` names the
numbers that were used, and a run that is continued with one more slide keeps its prototypes.
"""

from __future__ import annotations

from dino_path.config import Clock, Config

# Tiles up to -> prototypes, as lightly-train documents its automatic choice (reference/ssl_training.md, 5). Maintainers
# of DINO advise fewer on small data as well (facebookresearch/dino issues 43 and 246).
PROTOTYPES_FOR_TILES = ((20_000, 1024), (50_000, 2048), (100_000, 4096), (200_000, 16384), (500_000, 32768))
# The teacher averages over 1 / (1 - momentum) steps. In a demo of 320 steps a third of the run (0.99) collapsed to
# uniform, a sixth (0.98) later or not at all; the paper's is 250 of 125,000.
MAX_AVERAGED_SHARE, ADVISED_SHARE = 1 / 5, 1 / 8
MAX_WARMUP_SHARE, ADVISED_WARMUP = 0.3, "10 %"  # the paper: 10 of 100 epochs
MAX_FREEZE_SHARE, ADVISED_FREEZE = 0.1, "1 %"  # the paper: 1 of 100 epochs
SAFE_TEACHER_TEMP = 0.04  # the paper: above it only after a warm-up
MIN_GLOBAL_BATCH = 32  # the paper, table 9: 128 costs little; 8 gave 35.2 % k-NN after 50 epochs


def advice(config: Config, clock: Clock, *, num_tiles: int) -> list[str]:
    """One sentence for each setting that is unusual for so many tiles, or for so short a run."""
    training, optim, dino, num_steps = config.training, config.optim, config.objective.dino, clock.num_steps
    assert training is not None
    found = []
    prototypes = next((count for limit, count in PROTOTYPES_FOR_TILES if num_tiles <= limit), None)
    if prototypes is not None and dino.num_prototypes > prototypes:
        found.append(
            f"{dino.num_prototypes} prototypes are many for {num_tiles} tiles:"
            f" objective.dino.num_prototypes={prototypes}"
        )
    averaged = 1 / (1 - training.momentum) if training.momentum < 1 else float("inf")
    if averaged > MAX_AVERAGED_SHARE * num_steps:
        advised = max(0.0, 1 - 1 / (ADVISED_SHARE * num_steps))
        found.append(
            f"the teacher averages over {averaged:.0f} steps and the run has {num_steps}:"
            f" training.momentum={advised:.6g}"
        )
    if optim.lr_warmup.steps(clock) > MAX_WARMUP_SHARE * num_steps:
        found.append(
            f"the learning rate rises for {optim.lr_warmup.steps(clock)} of {num_steps} steps:"
            f" optim.lr_warmup='{ADVISED_WARMUP}'"
        )
    if optim.freeze_last_layer.steps(clock) > MAX_FREEZE_SHARE * num_steps:
        found.append(
            f"the prototypes are frozen for {optim.freeze_last_layer.steps(clock)} of {num_steps} steps:"
            f" optim.freeze_last_layer='{ADVISED_FREEZE}'"
        )
    if dino.teacher_temp > SAFE_TEACHER_TEMP:
        warmup_steps = dino.teacher_temp_warmup.steps(clock)
        if dino.warmup_teacher_temp > SAFE_TEACHER_TEMP or warmup_steps == 0:
            found.append(
                f"a teacher temperature of {dino.teacher_temp:g} from the start may collapse:"
                f" objective.dino.warmup_teacher_temp={SAFE_TEACHER_TEMP}"
                f" objective.dino.teacher_temp_warmup='{ADVISED_WARMUP}'"
            )
        elif warmup_steps >= num_steps:
            found.append(
                f"the teacher temperature rises for {warmup_steps} steps, and the run has {num_steps}:"
                f" objective.dino.teacher_temp_warmup='{ADVISED_WARMUP}'"
            )
    if clock.global_batch_size < MIN_GLOBAL_BATCH:
        count = -(-4 * MIN_GLOBAL_BATCH // clock.global_batch_size) * training.accumulate_steps
        found.append(f"{clock.global_batch_size} tiles per step are few: training.accumulate_steps={count}")
    return found

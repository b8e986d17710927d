"""docs/configs.md, made from the headers of configs/ and from counted steps. After a change there:

python -m dino_path.shipped_docs docs/configs.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from dino_path.atomic import atomic_write
from dino_path.plan.counted import count_step
from dino_path.settings import load_config
from dino_path.shipped import ShippedConfig, shipped_configs
from dino_path.training.networks import resolve_precision
from dino_path.training.schedules import resolve_clock, resolve_schedules

MILLION = 1_000_000
INTRODUCTION = """\
# The shipped configs, and what to expect of them

Made from the headers of `configs/` by `python -m dino_path.shipped_docs docs/configs.md`; do not edit.

    dino-path configs                                  # the list
    dino-path configs vits16_1gpu > mine.yaml          # a copy to change
    dino-path pretrain --config vits16_1gpu store=STORE out=RUN
    dino-path plan --config vits16_1gpu store=STORE    # time, memory and disk on your tiles and your machine
    dino-path init --for laptop|gpu|cluster            # a config of your own, with the reasons of its settings

`--config` takes a name of this page, or a file; a file of that name goes first. In a checkout they lie in `configs/`.

**Counted** is a training step on tensors without values (`dino_path/plan/counted.py`): the peak memory of one process,
without the GPU's context (about 0.5 GB) and the allocator's cache (about a tenth); the operations for one tile; and the
size of a checkpoint, of which the newest `training.keep_checkpoints` and the best stay. Nothing was measured on a GPU.
"""


def render(counted: Callable[[ShippedConfig], str]) -> str:
    """The whole page; `counted` gives the words on what is counted of a config (`counted_text`: it takes seconds)."""
    return "\n".join([INTRODUCTION, *(section(one, counted(one)) for one in shipped_configs())])


def section(one: ShippedConfig, counted: str) -> str:
    """One config: its commands, its fields, and what is counted of it."""
    rows = [("for", one.fields["For"]), ("hardware", one.fields["Hardware"]), ("hours", one.fields["Hours"])]
    rows += [("counted", counted)]
    rows += [("expect", one.fields["Number to expect"]), ("change first", one.fields["Change first"])]
    rows += [("source", one.fields["Source"])] if "Source" in one.fields else []
    table = [f"| {name} | {linked(text)} |" for name, text in rows]
    commands = [f"    {command}" for command in one.commands]
    return "\n".join([f"## {one.name}", "", one.title, "", *commands, "", "| | |", "|---|---|", *table, ""])


def counted_text(one: ShippedConfig) -> str:
    """What one process of the config does and holds; of a distillation nothing: the large model is the user's."""
    config, is_gpu = load_config(one.file), one.num_gpus > 0
    training, distill = config.training, config.objective.distill
    assert training is not None
    if distill.weight > 0:
        return "depends on the model to learn from: `dino-path plan` with objective.distill.teacher counts it."
    clock = resolve_clock(training, num_tiles=MILLION, world_size=1)
    settings = resolve_schedules(config.optim, config.objective, training, clock).at(clock.num_steps - 1)
    precision = resolve_precision(training, torch.device("cuda" if is_gpu else "cpu"))
    count = count_step(config, settings, precision=precision, is_gpu=is_gpu)
    size = training.batch_size_per_gpu
    memory = f"{count.peak_bytes / 1e9:.2g} GB for a micro-batch of {size} tiles, {count.tile_bytes / 1e6:.0f} MB"
    return (
        f"{count.num_parameters / 1e6:.1f} M parameters; {memory} more for each further tile;"
        f" {count.flops / size / 1e9:,.1f} GFLOPs a tile; a checkpoint has {count.checkpoint_bytes / 1e9:.2g} GB."
    )


def linked(text: str) -> str:
    """Pages of this repository as links from docs/, and what Markdown would take for a table's border."""
    text = text.replace("|", r"\|")
    text = re.sub(r"\bdocs/([a-z-]+\.md)\b", r"[\1](\1)", text)
    return re.sub(r"\b(benchmarks/[\w/]+\.md)\b", r"[\1](../\1)", text)


if __name__ == "__main__":
    with atomic_write(Path(sys.argv[1])) as stream:
        stream.write(render(counted_text))

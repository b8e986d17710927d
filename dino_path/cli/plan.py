"""Before a run: `plan`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_path.cli.help import Command
from dino_path.cli.program import (
    AsJson,
    ConfigFile,
    Overrides,
    Quiet,
    announce,
    app,
    loading,
    log_to,
    overrides_only,
    resolve_config,
)
from dino_path.cli.terminal import say, say_json, say_table
from dino_path.disk import refuse_unwritable
from dino_path.errors import DinoPathError
from dino_path.run import RunFolder

if TYPE_CHECKING:
    from dino_path.config import Config
    from dino_path.plan.figure import Figure
    from dino_path.plan.forecast import Plan

TITLES = {
    "time": "time", "step": "one step", "tiles_per_s": "tiles", "views_per_s": "views",
    "views_of_one_core": "views of one CPU core", "operations": "operations", "gpu_memory": "GPU memory, each",
    "host_memory": "memory of the process", "node_memory": "memory of a node", "shared_memory": "shared memory",
    "disk": "disk",
}  # fmt: skip


@app.command(
    cls=Command,
    epilog="""
    dino-path plan --config vits16_1gpu store=tiles
    dino-path plan --config vits16_8gpu store=tiles out=runs/vits16 --estimate
    dino-path plan --config mine.yaml store=tiles out=runs/mine --json
    """,
)
def plan(
    settings: Overrides = None,
    config: ConfigFile = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="train no steps here, even if this machine could")
    ] = False,
    seconds: Annotated[float, typer.Option(min=1, help="time limit for the measured steps")] = 20.0,
    processes: Annotated[
        int | None, typer.Option(min=1, help="training processes; default: as many as 'submit pretrain' starts")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Forecast the time, memory and disk of a run.

    It also lists the files that the run writes and what to request from SLURM. Each number says whether it was
    measured, counted or estimated. Settings that 'pretrain' refuses are refused here too. Nothing is written.
    """
    began_s = time.perf_counter()
    log_to(None, is_quiet=quiet)
    resolved = resolve_config(config, overrides_only(settings), needs=("store", "training"))
    if resolved.out is not None:
        refuse_unwritable(resolved.out)
    announce(f"reading {resolved.store}")
    from dino_path.api.inputs import check_pretraining

    check_pretraining(resolved)
    if resolved.out is not None:
        from dino_path.training.finished import finished_checkpoint

        if (finished := finished_checkpoint(resolved)) is not None:
            _tell_finished(resolved.out, finished, as_json=as_json)
            return
    loading()
    from dino_path.plan.forecast import make_plan

    made = make_plan(resolved, num_processes=processes, budget_s=None if estimate else seconds, began_s=began_s)
    if resolved.out is not None and made.steps_done >= made.num_steps:  # known only now where tiles give the length
        last = RunFolder(resolved.out).checkpoint_file(made.num_steps)
        if last.is_file():
            _tell_finished(resolved.out, last, as_json=as_json)
            return
    refusal, verdict = _asked_of_slurm(resolved, made)
    if as_json:
        say_json({**asdict(made), "slurm": verdict, "slurm_refusal": str(refusal) if refusal else None})
        return
    _tell(made, resolved)
    if verdict is not None:
        say(verdict)
    if refusal is not None:
        say(f"! SLURM: {refusal.found}")


def _tell_finished(out: Path, checkpoint: Path, *, as_json: bool) -> None:
    from dino_path.training.finished import finished_text

    text = finished_text(RunFolder(out), checkpoint)
    if as_json:
        say_json({"finished": checkpoint, "text": text})
    else:
        say(text)


def _asked_of_slurm(config: Config, made: Plan) -> tuple[DinoPathError | None, str | None]:
    """SLURM's refusal of these resources, or its forecast; None, None where there is no SLURM."""
    from dino_path.cluster.submission import submit
    from dino_path.settings import with_settings

    asked = with_settings(config, {line.key: line.value for line in made.cluster})
    submission = submit("pretrain", asked, [], out=config.out or Path("RUN"), dry_run=True)
    return submission.refusal, submission.verdict


def _tell(made: Plan, config: Config) -> None:
    of_slides = f" of {made.num_slides:,} slide(s)" if made.num_slides is not None else ""
    on = f"{made.num_processes} process(es) on {'GPUs' if made.device == 'cuda' else 'the CPU'}"
    say(f"{made.num_tiles:,} tiles{of_slides} in {made.store}")
    say(f"{config.model.backbone}: {made.num_parameters / 1e6:.1f} M parameters; {on}")
    for text in made.schedules:
        say(text)
    say(f"each tile is seen {made.times_each_tile:,.3g} times")
    if made.steps_done:
        say(f"{made.steps_done:,} of {made.num_steps:,} steps are done; time and files are for the remaining ones")
    say_table(
        ["", "", "range", "how"],
        [
            [TITLES[name], value_text(one), range_text(one), one.how]
            for name, one in made.figures.items()
            if one.value > 0  # without workers nothing is shared
        ],
    )
    say(f"written into {config.out or 'RUN (out= is not given)'}:")
    say_table(
        ["", "at the end", "at most", ""],
        [[one.path, size_text(one.num_bytes), size_text(one.most_bytes), one.note] for one in made.files],
    )
    say("for SLURM, to paste into the config:")
    say("cluster:")
    for line in made.cluster:
        setting = f"  {line.key.removeprefix('cluster.')}: {line.value}"
        say(f"{setting:32}# {line.why}")
    for text in made.warnings:
        say(f"! {text}")
    for text in made.notes:
        say(f"- {text}")


def value_text(figure: Figure) -> str:
    """A figure for the terminal: times in a suitable unit."""
    return duration_text(figure.value) if figure.unit == "s" else f"{number_text(figure.value)} {figure.unit}"


def range_text(figure: Figure) -> str:
    """`12 to 15 min`, or nothing."""
    if figure.low is None or figure.high is None or figure.low == figure.high:
        return ""
    if figure.unit == "s":
        return f"{duration_text(figure.low)} to {duration_text(figure.high)}"
    return f"{number_text(figure.low)} to {number_text(figure.high)}"


def number_text(value: float) -> str:
    """Three digits, and no exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def size_text(num_bytes: int) -> str:
    """`0.2 MB`, `704 MB` or `5.23 GB`."""
    return f"{num_bytes / 1e9:.3g} GB" if num_bytes >= 1e9 else f"{max(num_bytes / 1e6, 0.1):.3g} MB"


def duration_text(seconds: float) -> str:
    """`0.45 s`, `95 s`, `34 min`, `5.2 h` or `3.1 days`."""
    for limit, unit_s, unit in ((120, 1, "s"), (7200, 60, "min"), (172800, 3600, "h")):
        if seconds < limit:
            return f"{number_text(seconds / unit_s)} {unit}"
    return f"{number_text(seconds / 86400)} days"

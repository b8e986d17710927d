"""`evaluate robustness`: features at other centres, on other scanners, and under simulated shifts."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from dino_path.api.inputs import check_models
from dino_path.cli.evaluate import Models, ResultsFolder, evaluate
from dino_path.cli.help import Command
from dino_path.cli.program import (
    AsJson,
    ConfigFile,
    DataSpec,
    Device,
    Quiet,
    Workers,
    announce,
    loading,
    log_to,
    resolve_config,
    split_arguments,
)
from dino_path.cli.terminal import say, say_json, say_markdown
from dino_path.disk import refuse_unwritable
from dino_path.launch import is_first

EXAMPLES = """
dino-path evaluate robustness model untrained:model colour-statistics --data camelyon17-wilds:camelyon17_v1.0
dino-path evaluate robustness model untrained:model colour-statistics --data labelled.csv evaluation.shift_images=500
"""


@evaluate.command(name="robustness", cls=Command, epilog=EXAMPLES)
def robustness(
    models: Models,
    data: DataSpec,
    out: ResultsFolder = None,
    config: ConfigFile = None,
    shifts: Annotated[
        bool, typer.Option("--shifts", help="also test shifts of stain and image if the data name centres or scanners")
    ] = False,
    device: Device = "auto",
    workers: Workers = 2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """How well features work at other centres and scanners.

    Centres and scanners are columns of the data (centre, scanner). Without them, or with --shifts, the test images
    are also tested under stain, gamma, blur, JPEG and resolution shifts. Add untrained:MODEL and colour-statistics
    to your models as controls: docs/robustness.md says how to read the figures.
    """
    log_to(None, is_first=is_first(), is_quiet=quiet)
    specs, overrides = split_arguments(models)
    resolved = resolve_config(config, overrides)
    check_models(specs)
    if out is not None:
        refuse_unwritable(out)
    announce(f"reading {data}")
    from dino_path.evaluation.labelled.datasets import load_labelled
    from dino_path.evaluation.labelled.division import divide
    from dino_path.evaluation.results.earlier import Evaluation, only_evaluation, refuse_to_lose, results_folder

    labelled = load_labelled(data, resolved.evaluation)
    divide(labelled, resolved.evaluation)
    out = out or results_folder(specs, labelled, "robustness")
    refuse_unwritable(out)
    with_shifts = shifts or not labelled.has_makers
    planned = Evaluation("robustness", specs, (), (), has_baseline=False, has_shifts=with_shifts)
    refuse_to_lose(out, planned, labelled, resolved.evaluation)
    loading()
    from dino_path.api.evaluation import EXTRACTION_TIMEOUT_S
    from dino_path.distributed import open_world
    from dino_path.evaluation.results.robustness import evaluate_robustness, extract_robustness_together
    from dino_path.records.robustness import ROBUSTNESS
    from dino_path.reporting.robustness_chart import draw_shifts

    with open_world(device, timeout_s=EXTRACTION_TIMEOUT_S) as world:
        if world.size > 1:
            extract_robustness_together(
                specs, labelled, resolved.evaluation, with_shifts=with_shifts, world=world, out=out, num_workers=workers
            )
    if not world.is_first:
        return
    file = out / "robustness.json"
    with only_evaluation(out, planned, labelled, resolved.evaluation):
        outcome = evaluate_robustness(
            specs, labelled, resolved.evaluation, with_shifts=with_shifts, device=world.device, out=out,
            num_workers=workers,
        )  # fmt: skip
        if with_shifts:
            draw_shifts(ROBUSTNESS.read(file), out / "robustness.png")
    if as_json:
        say_json(json.loads(file.read_text(encoding="utf-8")))
        return
    say_markdown(outcome.text)
    say(f"results: {file}" + (f"; curves: {out / 'robustness.png'}" if with_shifts else ""))

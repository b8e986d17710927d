"""`evaluate retrieval`: classes of the most similar images of other patients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dino_path.api.inputs import check_models
from dino_path.cli.evaluate import Models, evaluate
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


@evaluate.command(
    cls=Command,
    epilog="""
    dino-path evaluate retrieval model untrained:model colour-statistics --data labelled/ --out retrieval
    dino-path evaluate retrieval model --data tiles.csv evaluation.cross_validation=5 evaluation.knn_index=hnsw
    """,
)
def retrieval(
    models: Models,
    data: DataSpec,
    out: Annotated[
        Path | None, typer.Option(help="folder for the results; default: eval/<data>-retrieval of the model's run")
    ] = None,
    config: ConfigFile = None,
    device: Device = "auto",
    workers: Workers = 2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Majority votes and mAP among other patients' images.

    Each test image searches among all images of other patients (of other slides, if patients are unknown).
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
    from dino_path.evaluation.labelled.queries import queries_of
    from dino_path.evaluation.results.earlier import Evaluation, only_evaluation, refuse_to_lose, results_folder

    labelled = load_labelled(data, resolved.evaluation)
    queries_of(divide(labelled, resolved.evaluation))
    out = out or results_folder(specs, labelled, "retrieval")
    refuse_unwritable(out)
    planned = Evaluation("retrieval", specs, (), (), has_baseline=False)
    refuse_to_lose(out, planned, labelled, resolved.evaluation)
    loading()
    from dino_path.api.evaluation import EXTRACTION_TIMEOUT_S
    from dino_path.distributed import open_world
    from dino_path.evaluation.results.retrieval import SHEET, evaluate_retrieval
    from dino_path.evaluation.results.table import extract_together

    with open_world(device, timeout_s=EXTRACTION_TIMEOUT_S) as world:
        if world.size > 1:
            extract_together(
                specs, labelled, resolved.evaluation, world=world, out=out, protocols=(), num_workers=workers
            )
    if not world.is_first:
        return
    with only_evaluation(out, planned, labelled, resolved.evaluation):
        outcome = evaluate_retrieval(
            specs, labelled, resolved.evaluation, device=world.device, out=out, num_workers=workers
        )
    if as_json:
        say_json(json.loads((out / "retrieval.json").read_text(encoding="utf-8")))
        return
    say_markdown(outcome.text)
    say(f"results: {out / 'retrieval.json'}, picture: {out / SHEET}")

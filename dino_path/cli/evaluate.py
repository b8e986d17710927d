"""Commands that judge frozen features on labelled images: `evaluate table`, and each protocol alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dino_path.cli.help import Command
from dino_path.cli.inputs import check_baseline, check_models, parse_fractions
from dino_path.cli.program import (
    AsJson,
    ConfigFile,
    DataSpec,
    Device,
    Quiet,
    Workers,
    announce,
    app,
    check_output_folder,
    loading,
    log_to,
    resolve_config,
    split_arguments,
)
from dino_path.cli.terminal import say, say_json, say_markdown
from dino_path.launch import is_first

if TYPE_CHECKING:
    from dino_path.config import Config
    from dino_path.evaluation.labelled.datasets import LabelledSet
    from dino_path.evaluation.results.earlier import Evaluation, TableStem

EXTRACTION_TIMEOUT_S = 24 * 3600.0  # a process whose share was small waits for the others
PROTOCOLS = {  # and what `evaluate --help` says of them
    "table": "All of evaluation.protocols side by side, and --baseline.",
    "knn": "k nearest neighbours by cosine, as DINO has it.",
    "knn-uni": "k nearest neighbours as UNI has it.",
    "linear": "Logistic regression whose strength validation images choose.",
    "logistic": "Logistic regression of a fixed strength.",
    "linear-uni": "Logistic regression as UNI has it.",
    "linear-dino": "Linear layer trained by SGD on crops, as DINO has it.",
    "fewshot": "Episodes of few labelled images per class (SimpleShot).",
}
EXAMPLES = {
    "table": """
    dino-path evaluate table runs/vits16/model timm:resnet50.a1_in1k mean-colour --data labelled/ --baseline baseline
    dino-path evaluate table model --data nct-crc:NCT --fractions 1,0.1,0.01
    """,
    "knn": """
    dino-path evaluate knn model --data store:tiles evaluation.regions=regions/ evaluation.cross_validation=5
    """,
}

evaluate = typer.Typer(
    help="Judge frozen features on labelled images.\n\nSmall cohorts: evaluation.cross_validation=5 tests every patient"
    " once. Started by torchrun or srun, all processes extract features and the first evaluates. Called again,"
    " extraction goes on where it was.",
    epilog="'dino-path evaluate PROTOCOL --help' shows the options of a protocol.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(evaluate, name="evaluate")

Models = Annotated[list[str], typer.Argument(metavar="MODEL... [KEY=VALUE]...", help="as for 'dino-path embed'")]
ResultsFolder = Annotated[
    Path | None, typer.Option(help="folder for the results; default: eval/<data>-<protocol> of the model's run")
]
Baseline = Annotated[Path | None, typer.Option(help="folder of 'dino-path baseline'")]


def _add(protocol: str) -> None:
    """One command for the protocol; `table` takes label fractions too."""
    examples = EXAMPLES.get(protocol, f"dino-path evaluate {protocol} model --data labelled/")
    add = evaluate.command(name=protocol, cls=Command, help=PROTOCOLS[protocol], epilog=examples)

    if protocol == "table":

        @add
        def _(
            models: Models,
            data: DataSpec,
            out: ResultsFolder = None,
            config: ConfigFile = None,
            baseline: Baseline = None,
            fractions: Annotated[
                str | None, typer.Option(help="table at these fractions of the labels instead, such as 1,0.1,0.01")
            ] = None,
            device: Device = "auto",
            workers: Workers = 2,
            as_json: AsJson = False,
            quiet: Quiet = False,
        ) -> None:
            _judge(protocol, models, data, out, config, baseline, fractions, device, workers, as_json, quiet)

    else:

        @add
        def _(
            models: Models,
            data: DataSpec,
            out: ResultsFolder = None,
            config: ConfigFile = None,
            baseline: Baseline = None,
            device: Device = "auto",
            workers: Workers = 2,
            as_json: AsJson = False,
            quiet: Quiet = False,
        ) -> None:
            _judge(protocol, models, data, out, config, baseline, None, device, workers, as_json, quiet)


for _protocol in PROTOCOLS:
    _add(_protocol)


def _judge(
    protocol: str,
    models: list[str],
    data: str,
    out: Path | None,
    config: Path | None,
    baseline: Path | None,
    fractions: str | None,
    device: Device,
    workers: int,
    as_json: bool,
    quiet: bool,
) -> None:
    is_speaker = is_first()
    log_to(None, is_first=is_speaker, is_quiet=quiet)
    specs, overrides = split_arguments(models)
    resolved = resolve_config(config, overrides)
    shares = parse_fractions(fractions) if fractions is not None else []
    labelled, out, planned = _check_evaluation(protocol, specs, data, out, resolved, baseline, shares)
    loading()
    from dino_path.distributed import open_world
    from dino_path.evaluation.results.earlier import only_evaluation
    from dino_path.evaluation.results.table import extract_together

    with open_world(device, timeout_s=EXTRACTION_TIMEOUT_S) as world:
        if world.size > 1:
            needed = () if shares else _wanted(protocol, resolved)
            extract_together(
                specs, labelled, resolved.evaluation, world=world, out=out, protocols=needed, num_workers=workers
            )
    if not world.is_first:
        return
    stem = _stem(protocol, shares)
    common: dict[str, Any] = {"device": world.device, "out": out, "baseline": baseline, "num_workers": workers}
    with only_evaluation(out, planned, labelled, resolved.evaluation):
        text = _evaluate(stem, specs, labelled, resolved, _wanted(protocol, resolved), shares, common)
    if as_json:
        say_json(json.loads((out / f"{stem}.json").read_text(encoding="utf-8")))
        return
    say_markdown(text)
    say(f"results: {out / f'{stem}.json'}")


def _wanted(protocol: str, config: Config) -> tuple[Any, ...]:
    """The protocols of a table; of few shots none, which say it themselves."""
    if protocol == "fewshot":
        return ()
    return tuple(config.evaluation.protocols) if protocol == "table" else (protocol,)


def _stem(protocol: str, shares: Sequence[float]) -> TableStem:
    """Of the files of results."""
    return "fractions" if shares else "fewshot" if protocol == "fewshot" else "results"


def _check_evaluation(
    protocol: str,
    specs: list[str],
    data: str,
    out: Path | None,
    config: Config,
    baseline: Path | None,
    shares: list[float],
) -> tuple[LabelledSet, Path, Evaluation]:
    """The data, the folder for the results, and what they will be.

    All that can be refused is refused here, before torch is imported.
    """
    check_models(specs)
    if out is not None:
        check_output_folder(out)
    announce(f"reading {data}")
    from dino_path.evaluation.labelled.datasets import load_labelled
    from dino_path.evaluation.results.earlier import Evaluation, refuse_to_lose, results_folder

    labelled = load_labelled(data, config.evaluation)
    out = out or results_folder(specs, labelled, "fractions" if shares else protocol)
    check_output_folder(out)
    if baseline is not None:
        check_baseline(baseline, labelled, config)
    planned = Evaluation(
        _stem(protocol, shares), specs, _wanted(protocol, config), shares, has_baseline=baseline is not None
    )
    refuse_to_lose(out, planned, labelled, config.evaluation)
    return labelled, out, planned


def _evaluate(
    stem: TableStem,
    specs: list[str],
    labelled: LabelledSet,
    config: Config,
    wanted: tuple[Any, ...],
    shares: list[float],
    common: dict[str, Any],
) -> str:
    """The results as a page of Markdown; they are in their files as well."""
    from dino_path.evaluation.results.fewshot import evaluate_fewshot
    from dino_path.evaluation.results.fractions import evaluate_fractions
    from dino_path.evaluation.results.table import evaluate_table

    match stem:
        case "fractions":
            return evaluate_fractions(specs, labelled, config.evaluation, shares, **common)
        case "fewshot":
            return evaluate_fewshot(specs, labelled, config.evaluation, **common)
        case "results":
            return evaluate_table(specs, labelled, config.evaluation, protocols=wanted, **common).markdown()

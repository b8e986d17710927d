"""Commands that evaluate frozen features on labelled images: `evaluate table`, and each protocol by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_path.cli.help import Command
from dino_path.cli.program import (
    AsJson,
    ConfigFile,
    DataSpec,
    Device,
    Quiet,
    Workers,
    app,
    log_to,
    resolve_config,
    split_arguments,
)
from dino_path.cli.terminal import say, say_json, say_markdown
from dino_path.launch import is_first

if TYPE_CHECKING:
    from dino_path.api.evaluation import Protocol

PROTOCOLS: dict[Protocol, str] = {  # with their descriptions in `evaluate --help`
    "table": "All of evaluation.protocols side by side, with --baseline.",
    "knn": "k nearest neighbours by cosine, as in DINO.",
    "knn-uni": "k nearest neighbours, as in UNI.",
    "linear": "Logistic regression, strength chosen by validation.",
    "logistic": "Logistic regression of fixed strength.",
    "linear-uni": "Logistic regression, as in UNI.",
    "linear-dino": "Linear layer trained by SGD on crops, as in DINO.",
    "fewshot": "Episodes with few labelled images per class (SimpleShot).",
}
EXAMPLES: dict[Protocol, str] = {
    "table": """
    dino-path evaluate table runs/vits16/model timm:resnet50.a1_in1k mean-colour --data labelled/ --baseline baseline
    dino-path evaluate table model --data nct-crc:NCT --fractions 1,0.1,0.01
    """,
    "knn": """
    dino-path evaluate knn model --data store:tiles evaluation.regions=regions/ evaluation.cross_validation=5
    """,
}

evaluate = typer.Typer(
    help="Evaluate frozen features on labelled images.\n\nFor small cohorts, evaluation.cross_validation=5 tests"
    " every patient once. Under torchrun or srun, all processes extract features and the first evaluates. Called"
    " again, extraction resumes.",
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


def _add(protocol: Protocol) -> None:
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
                str | None,
                typer.Option(help="make a table for these fractions of the labels instead, such as 1,0.1,0.01"),
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
    protocol: Protocol,
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
    log_to(None, is_first=is_first(), is_quiet=quiet)
    specs, overrides = split_arguments(models)
    resolved = resolve_config(config, overrides)
    from dino_path.api.evaluation import evaluate_together

    found = evaluate_together(
        protocol, specs, data, out=out, config=resolved, baseline=baseline, fractions=fractions, device=device,
        workers=workers,
    )  # fmt: skip
    if found is None:
        return
    if as_json:
        say_json(json.loads(found.file.read_text(encoding="utf-8")))
        return
    say_markdown(found.text)
    say(f"results: {found.file}")

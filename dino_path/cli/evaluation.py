"""Commands that judge: baseline, evaluate, report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dino_path.cli.help import Command
from dino_path.cli.inputs import check_baseline, check_models
from dino_path.cli.program import (
    AsJson,
    ConfigFile,
    DataSpec,
    Device,
    Overrides,
    Quiet,
    Workers,
    announce,
    app,
    check_output_folder,
    loading,
    log_to,
    overrides_only,
    resolve_config,
    split_arguments,
)
from dino_path.cli.terminal import say, say_json, say_markdown
from dino_path.errors import ConfigError
from dino_path.launch import is_first

if TYPE_CHECKING:
    from dino_path.config import Config
    from dino_path.evaluation.labelled.datasets import LabelledSet
    from dino_path.evaluation.measures.metrics import Metrics
    from dino_path.evaluation.results.earlier import Stem

EXTRACTION_TIMEOUT_S = 24 * 3600.0  # a process whose share was small waits for the others


@app.command(
    cls=Command,
    epilog="""
    dino-path baseline --data labelled/ --out baseline
    dino-path baseline --data tiles.csv --out baseline --fraction 0.1 baseline.num_epochs=30
    """,
)
def baseline(
    data: DataSpec,
    out: Annotated[Path, typer.Option(help="folder for the baseline")],
    settings: Overrides = None,
    config: ConfigFile = None,
    fraction: Annotated[float, typer.Option(help="of the training labels: once for each draw of them")] = 1.0,
    device: Device = "auto",
    workers: Workers = 2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a supervised ResNet-50, to compare with.

    End to end, from the train part of the data; it is tested once, on the test part.
    """
    from dino_path.lock import only_writer

    log_to(None, is_quiet=quiet)
    check_output_folder(out)
    resolved = resolve_config(config, overrides_only(settings))
    share = _fractions(str(fraction))[0]
    with only_writer(out):
        results = _train_baselines(data, out, resolved, share, device, workers)
    if as_json:
        say_json([record for record, _ in results])
        return
    for _, line in results:
        say(line)


def _train_baselines(
    data: str, out: Path, resolved: Config, fraction: float, device: Device, workers: int
) -> list[tuple[dict[str, Any], str]]:
    """One baseline, or one for each draw of the labels or each fold: what became of each, and a line that says it."""
    announce(f"reading {data}")
    from dino_path.evaluation.labelled.datasets import load_labelled
    from dino_path.evaluation.labelled.division import divide

    division = divide(load_labelled(data, resolved.evaluation), resolved.evaluation)
    loading()
    from dino_path.distributed import choose_device
    from dino_path.evaluation.baseline.supervised import train_supervised, write_pooled

    results = train_supervised(
        division, resolved, fraction=fraction, out=out, device=choose_device(device, 0), num_workers=workers
    )
    told = [
        (
            {**_scores(result.metrics), "best_epoch": result.best_epoch, "folder": result.out},
            f"{_scores_line(result.metrics)}; best epoch {result.best_epoch}; {result.out}",
        )
        for result in results
    ]
    if division.num_folds is not None and fraction == 1:
        pooled = write_pooled(division, resolved, out)
        told.append(({**_scores(pooled), "folder": out}, f"all folds: {_scores_line(pooled)}; {out}"))
    return told


def _scores(metrics: Metrics) -> dict[str, Any]:
    return {name: asdict(getattr(metrics, name)) for name in ("balanced_accuracy", "accuracy")} | {
        "interval": metrics.interval
    }


def _scores_line(metrics: Metrics) -> str:
    return f"test balanced accuracy {metrics.balanced_accuracy}, accuracy {metrics.accuracy} [{metrics.interval}]"


@app.command(
    cls=Command,
    epilog="""
    dino-path evaluate table runs/vits16/model timm:resnet50.a1_in1k mean-colour --data labelled/ --baseline baseline
    dino-path evaluate knn model --data store:tiles evaluation.regions=regions/ evaluation.cross_validation=5
    dino-path evaluate table model --data nct-crc:NCT --fractions 1,0.1,0.01
    """,
)
def evaluate(
    protocol: Annotated[
        Literal["knn", "knn-uni", "linear", "logistic", "linear-uni", "linear-dino", "fewshot", "table"],
        typer.Argument(metavar="PROTOCOL", help="one of those above, such as knn or table"),
    ],
    models: Annotated[list[str], typer.Argument(metavar="MODEL... [KEY=VALUE]...", help="as for 'dino-path embed'")],
    data: DataSpec,
    out: Annotated[
        Path | None, typer.Option(help="folder for the results; default: eval/<data>-<protocol> of the model's run")
    ] = None,
    config: ConfigFile = None,
    baseline: Annotated[Path | None, typer.Option(help="folder of 'dino-path baseline'")] = None,
    fractions: Annotated[
        str | None, typer.Option(help="table at these fractions of the labels instead, such as 1,0.1,0.01")
    ] = None,
    device: Device = "auto",
    workers: Workers = 2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Judge frozen features on labelled images.

    Small cohorts: evaluation.cross_validation=5 tests every patient once. Started by torchrun or srun, all processes
    extract features and the first evaluates. Called again, extraction goes on where it was.

    \b
    Protocols:
      knn          k nearest neighbours by cosine, k = 20, T = 0.07 (Caron et al. 2021)
      knn-uni      k nearest neighbours as in Chen et al. 2024
      linear       logistic regression on standardised features, its strength
                   chosen on a validation part of the training data
      logistic     the same with a fixed strength
      linear-uni   linear probe as in Chen et al. 2024
      linear-dino  linear layer trained by SGD on random crops (Caron et al. 2021)
      fewshot      episodes of few labelled images per class (SimpleShot)
      table        all of evaluation.protocols side by side, and --baseline
    """
    if fractions is not None and protocol != "table":
        raise ConfigError(
            "--fractions", f"was given to evaluate {protocol}.", "It belongs to evaluate table.", "Leave it out."
        )
    is_speaker = is_first()
    log_to(None, is_first=is_speaker, is_quiet=quiet)
    specs, overrides = split_arguments(models)
    resolved = resolve_config(config, overrides)
    shares = _fractions(fractions) if fractions is not None else []
    labelled, out = _check_evaluation(protocol, specs, data, out, resolved, baseline, shares)
    loading()
    from dino_path.distributed import open_world
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


def _stem(protocol: str, shares: Sequence[float]) -> Stem:
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
) -> tuple[LabelledSet, Path]:
    """The data, and the folder for the results: all that can be refused is refused here, before torch is imported."""
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
    return labelled, out


def _evaluate(
    stem: Stem,
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


def _fractions(text: str) -> list[float]:
    """`1,0.1` -> [1.0, 0.1]."""
    try:
        fractions = [float(word) for word in text.split(",")]
    except ValueError:
        fractions = []
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions) or len({*fractions}) < len(fractions):
        raise ConfigError(
            f"fraction {text!r}",
            "not a list of different fractions.",
            "Numbers above 0 and up to 1 are needed, with commas between, such as 1,0.1,0.01.",
            "Correct --fractions or --fraction.",
        )
    return fractions


@app.command(
    cls=Command,
    epilog="""
    dino-path report runs/vits16 --out report.html --store tiles --model runs/vits16/model
    dino-path report runs/a runs/b --out comparison.html
    """,
)
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders")],
    out: Annotated[Path, typer.Option(help="HTML file")] = Path("report.html"),
    store: Annotated[Path | None, typer.Option(help="tile store, for the section on slides")] = None,
    model: Annotated[list[Path] | None, typer.Option(help="exported model folder; may be given again")] = None,
    evaluation: Annotated[list[Path] | None, typer.Option(help="further folders with a results.json")] = None,
    quiet: Quiet = False,
) -> None:
    """Write one page with everything that runs hold."""
    log_to(None, is_quiet=quiet)
    announce(f"reading {', '.join(map(str, runs))}")
    from dino_path.reporting.report import write_report

    check_output_folder(out.parent)
    if out.is_dir():
        raise ConfigError(f"--out {out}", "is a folder.", "The name of an HTML file is needed.", "Correct --out.")
    write_report(runs, out, store=store, models=model or (), evaluations=evaluation or ())
    say(f"report: {out}")

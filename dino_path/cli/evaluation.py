"""Commands that judge: baseline, evaluate, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dino_path.cli.program import (
    ConfigFile,
    DataSpec,
    Device,
    Overrides,
    Workers,
    app,
    check_output_folder,
    log_to,
    overrides_only,
    resolve_config,
    split_arguments,
)
from dino_path.errors import ConfigError

if TYPE_CHECKING:
    from dino_path.config import Config
    from dino_path.evaluation.metrics import Metrics

EXTRACTION_TIMEOUT_S = 24 * 3600.0  # a process whose share was small waits for the others


@app.command()
def baseline(
    data: DataSpec,
    out: Annotated[Path, typer.Option(help="folder for the baseline")],
    settings: Overrides = None,
    config: ConfigFile = None,
    fraction: Annotated[float, typer.Option(help="of the training labels: once for each draw of them")] = 1.0,
    device: Device = "auto",
    workers: Workers = 2,
) -> None:
    """Train the supervised ResNet-50 end to end on the train part of the data and test it once."""
    from dino_path.lock import only_writer

    log_to(None)
    check_output_folder(out)
    resolved = resolve_config(config, overrides_only(settings))
    with only_writer(out):
        _train_baselines(data, out, resolved, fraction, device, workers)


def _train_baselines(data: str, out: Path, resolved: Config, fraction: float, device: Device, workers: int) -> None:
    """One baseline, or one for each draw of the labels."""
    from dino_path.distributed import choose_device
    from dino_path.evaluation.datasets import load_labelled
    from dino_path.evaluation.division import divide
    from dino_path.evaluation.supervised import train_supervised, write_pooled

    division = divide(load_labelled(data, resolved.evaluation), resolved.evaluation)
    results = train_supervised(
        division, resolved, fraction=_fractions(str(fraction))[0], out=out, device=choose_device(device, 0),
        num_workers=workers,
    )  # fmt: skip
    for result in results:
        typer.echo(f"{_scores_line(result.metrics)}; best epoch {result.best_epoch}; {result.out}")
    if division.num_folds is not None and fraction == 1:
        typer.echo(f"all folds: {_scores_line(write_pooled(division, resolved, out))}; {out}")


def _scores_line(metrics: Metrics) -> str:
    return f"test balanced accuracy {metrics.balanced_accuracy}, accuracy {metrics.accuracy} [{metrics.interval}]"


@app.command()
def evaluate(
    protocol: Annotated[
        Literal["knn", "knn-uni", "linear", "logistic", "linear-uni", "linear-dino", "fewshot", "table"],
        typer.Argument(help="table is all of evaluation.protocols, side by side"),
    ],
    models: Annotated[list[str], typer.Argument(metavar="MODEL... [KEY=VALUE]...", help="as for `dino-path embed`")],
    data: DataSpec,
    out: Annotated[
        Path | None, typer.Option(help="folder for the results; default: eval/<data>-<protocol> of the model's run")
    ] = None,
    config: ConfigFile = None,
    baseline: Annotated[Path | None, typer.Option(help="folder of `dino-path baseline`")] = None,
    fractions: Annotated[
        str | None, typer.Option(help="table at these fractions of the labels instead, such as 1,0.1,0.01")
    ] = None,
    device: Device = "auto",
    workers: Workers = 2,
) -> None:
    """Frozen features on labelled images: k-NN, linear probe, or both, beside the supervised ResNet-50.

    knn: cosine, k = 20, T = 0.07 (Caron et al. 2021). linear: logistic regression on standardised features, its
    strength chosen on a validation part of the training data; logistic: the same with a fixed strength. knn-uni,
    linear-uni: as in Chen et al. 2024. linear-dino: SGD on random crops, as in Caron et al. 2021. fewshot: episodes of
    few labelled images per class (SimpleShot). Small cohorts: evaluation.cross_validation=5 tests every patient once.
    Started by torchrun or srun, all processes extract features and the first evaluates; called again, extraction goes
    on where it was.
    """
    from dino_path.distributed import open_world
    from dino_path.evaluation.datasets import load_labelled
    from dino_path.evaluation.earlier_results import Evaluation, Stem, refuse_to_lose, results_folder
    from dino_path.evaluation.fewshot import evaluate_fewshot
    from dino_path.evaluation.fractions import evaluate_fractions
    from dino_path.evaluation.table import evaluate_table, extract_together

    if fractions is not None and protocol != "table":
        raise ConfigError(
            "--fractions", f"was given to evaluate {protocol}.", "It belongs to evaluate table.", "Leave it out."
        )
    specs, overrides = split_arguments(models)
    resolved = resolve_config(config, overrides)
    wanted = () if protocol == "fewshot" else resolved.evaluation.protocols if protocol == "table" else (protocol,)
    stem: Stem = "fractions" if fractions is not None else "fewshot" if protocol == "fewshot" else "results"
    shares = _fractions(fractions) if fractions is not None else []
    with open_world(device, timeout_s=EXTRACTION_TIMEOUT_S) as world:
        log_to(None, is_first=world.is_first)
        if out is not None:
            check_output_folder(out)
        labelled = load_labelled(data, resolved.evaluation)
        out = out or results_folder(specs, labelled, "fractions" if shares else protocol)
        check_output_folder(out)
        planned = Evaluation(stem, specs, wanted, shares, has_baseline=baseline is not None)
        refuse_to_lose(out, planned, labelled, resolved.evaluation)
        if world.size > 1:
            needed = wanted if fractions is None else ()
            extract_together(
                specs, labelled, resolved.evaluation, world=world, out=out, protocols=needed, num_workers=workers
            )
    if not world.is_first:
        return
    common: dict[str, Any] = {"device": world.device, "out": out, "baseline": baseline, "num_workers": workers}
    match stem:
        case "fractions":
            text = evaluate_fractions(specs, labelled, resolved.evaluation, shares, **common)
        case "fewshot":
            text = evaluate_fewshot(specs, labelled, resolved.evaluation, **common)
        case "results":
            text = evaluate_table(specs, labelled, resolved.evaluation, protocols=wanted, **common).markdown()
    typer.echo(text)
    typer.echo(f"results: {out / f'{stem}.json'}")


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


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders")],
    out: Annotated[Path, typer.Option(help="HTML file")] = Path("report.html"),
    store: Annotated[Path | None, typer.Option(help="tile store, for the section on slides")] = None,
    model: Annotated[list[Path] | None, typer.Option(help="exported model folder; may be given again")] = None,
    evaluation: Annotated[list[Path] | None, typer.Option(help="further folders with a results.json")] = None,
) -> None:
    """Everything that run folders hold, as one self-contained page."""
    from dino_path.reporting.report import write_report

    log_to(None)
    check_output_folder(out.parent)
    if out.is_dir():
        raise ConfigError(f"--out {out}", "is a folder.", "The name of an HTML file is needed.", "Correct --out.")
    write_report(runs, out, store=store, models=model or (), evaluations=evaluation or ())
    typer.echo(f"report: {out}")

"""The supervised network for comparison with frozen features."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dino_path.api.inputs import parse_fractions
from dino_path.cli.help import Command
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
    loading,
    log_to,
    overrides_only,
    resolve_config,
)
from dino_path.cli.terminal import say, say_json
from dino_path.disk import refuse_unwritable

if TYPE_CHECKING:
    from dino_path.config import Config
    from dino_path.evaluation.measures.metrics import Metrics


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
    fraction: Annotated[float, typer.Option(help="share of the training labels; trains one network per draw")] = 1.0,
    device: Device = "auto",
    workers: Workers = 2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a supervised ResNet-50 for comparison.

    Trained end to end on the train part of the data, and tested once, on the test part.
    """
    from dino_path.lock import only_writer

    log_to(None, is_quiet=quiet)
    refuse_unwritable(out)
    resolved = resolve_config(config, overrides_only(settings))
    share = parse_fractions(str(fraction))[0]
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
    """One baseline, or one for each draw of the labels or each fold: its result as a record and as a line of text."""
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

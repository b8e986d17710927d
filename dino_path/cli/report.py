"""The page with everything that runs hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dino_path.cli.help import Command
from dino_path.cli.program import Quiet, announce, app, check_output_folder, log_to
from dino_path.cli.terminal import say
from dino_path.errors import ConfigError


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

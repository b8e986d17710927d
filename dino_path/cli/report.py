"""The report: one page about runs, and its charts as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dino_path.cli.help import Command
from dino_path.cli.program import AsJson, Quiet, announce, app, log_to
from dino_path.cli.terminal import say, say_json
from dino_path.disk import refuse_unwritable, refuse_unwritable_file
from dino_path.errors import ConfigError


@app.command(
    cls=Command,
    epilog="""
    dino-path report runs/vits16 --out report.html --store tiles --model runs/vits16/model
    dino-path report runs/vits16 --out report.html --map runs/vits16/eval/map.html
    dino-path report runs/a runs/b --out comparison.html
    dino-path report runs/vits16 --out report.html --watch
    """,
)
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders")],
    out: Annotated[Path, typer.Option(help="HTML file")] = Path("report.html"),
    store: Annotated[Path | None, typer.Option(help="tile store, for the section on slides")] = None,
    model: Annotated[list[Path] | None, typer.Option(help="exported model folder; may be repeated")] = None,
    evaluation: Annotated[list[Path] | None, typer.Option(help="further folders with a results.json")] = None,
    feature_map: Annotated[
        list[Path] | None, typer.Option("--map", help="page of 'dino-path map' to add as a section; may be repeated")
    ] = None,
    machine: Annotated[
        bool, typer.Option("--machine", help="also commands, operating system and folders, which are not for sharing")
    ] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="update the page until the runs end; it reloads itself")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write one page with all results of the runs."""
    log_to(None, is_quiet=quiet)
    announce(f"reading {', '.join(map(str, runs))}")
    from dino_path.reporting.report import write_report

    refuse_unwritable_file(out)
    if out.is_dir():
        raise ConfigError(f"--out {out}", "is a folder.", "The name of an HTML file is needed.", "Correct --out.")

    def write(refresh_s: int | None) -> None:
        write_report(
            runs, out, store=store, models=model or (), evaluations=evaluation or (), maps=feature_map or (),
            refresh_s=refresh_s, shows_machine=machine,
        )  # fmt: skip

    if watch:
        from dino_path.reporting.live import watch_runs

        say(f"report: {out}")
        watch_runs(runs, write, say)
        return
    write(None)
    say(f"report: {out}")


@app.command(
    cls=Command,
    epilog="""
    dino-path figures runs/vits16 --out figures
    dino-path figures runs/a runs/b --out figures --format pdf,png
    """,
)
def figures(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders")],
    out: Annotated[Path, typer.Option(help="folder for the files")],
    evaluation: Annotated[list[Path] | None, typer.Option(help="further folders with a results.json")] = None,
    formats: Annotated[str, typer.Option("--format", help="pdf, svg and png, separated by commas")] = "pdf",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Write the report's charts as files for a paper."""
    log_to(None, is_quiet=quiet)
    from dino_path.reporting.figures import FIGURE_KINDS, write_figures

    wanted = tuple(dict.fromkeys(part.strip() for part in formats.split(",")))
    kinds = [kind for kind in FIGURE_KINDS if kind in wanted]
    if len(kinds) < len(wanted):
        unknown = next(part for part in wanted if part not in FIGURE_KINDS)
        raise ConfigError(
            f"--format {formats}",
            f"{unknown or 'an empty name'} is not known.",
            f"One or more of {', '.join(FIGURE_KINDS)} are needed.",
            "Correct --format.",
        )
    refuse_unwritable(out)
    announce(f"reading {', '.join(map(str, runs))}")
    files = write_figures(runs, out, evaluations=evaluation or (), kinds=kinds)
    if as_json:
        say_json({"figures": [str(file) for file in files]})
        return
    say(f"{len(files)} figures: {out}")

"""Check that files are as they were written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dino_path.cli.help import Command
from dino_path.cli.program import EXIT_SOME_FAILED, AsJson, Quiet, app, loading, log_to
from dino_path.cli.terminal import say, say_json
from dino_path.errors import ConfigError


@app.command(
    cls=Command,
    epilog="""
    dino-path verify tiles
    dino-path verify runs/vits16 runs/vits16/model features --json
    """,
)
def verify(
    folders: Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="stores, runs, models, features, results")],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Read every checksum and record of a folder.

    Exit code 3: some files are not as they were written; each is named.
    """
    log_to(None, is_quiet=quiet)
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(
                str(folder), "no such folder.", "A folder written by dino-path is needed.", "Check the path."
            )
    loading()
    from dino_path.verify import verify as verify_folder

    found = {str(folder): [*verify_folder(folder)] for folder in folders}
    if as_json:
        say_json({folder: [asdict(one) for one in of_folder] for folder, of_folder in found.items()})
    else:
        for name, of_folder in found.items():
            for one in of_folder:
                say(f"{name}: {one.line()}")
                for fault in one.damaged:
                    say(f"  damaged: {fault}")
    if any(one.damaged for of_folder in found.values() for one in of_folder):
        raise typer.Exit(EXIT_SOME_FAILED)

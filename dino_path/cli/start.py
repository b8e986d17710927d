"""`configs` lists the shipped configs and what each is for."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from dino_path.cli.help import Command
from dino_path.cli.program import AsJson, app
from dino_path.cli.terminal import say, say_json, say_table


@app.command(
    cls=Command,
    epilog="""
    dino-path configs
    dino-path configs vits16_1gpu > mine.yaml
    """,
)
def configs(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="print this one")] = None,
    as_json: AsJson = False,
) -> None:
    """List the shipped configs, or print one.

    Every --config accepts a NAME of this list instead of a file.
    """
    from dino_path.settings import named_config
    from dino_path.shipped import shipped_configs

    file = named_config(name, given=name) if name is not None else None
    found = [one for one in shipped_configs() if file is None or one.file == file]
    if as_json:
        say_json([asdict(one) for one in found])
    elif file is not None:
        typer.echo(file.read_text(encoding="utf-8"), nl=False)
    else:
        say_table(
            ["name", "model", "hardware", "hours", "for"],
            [[one.name, one.backbone, one.short("Hardware"), one.short("Hours"), one.short("For")] for one in found],
        )
        say("the whole file: dino-path configs NAME; to use it: --config NAME")

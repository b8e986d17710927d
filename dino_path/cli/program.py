"""Shared by all commands: the program itself, argument types, settings, logging, exit codes."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dino_path import __version__
from dino_path.cli.terminal import say
from dino_path.disk import disk_error
from dino_path.errors import DinoPathError, StoppedBySignal
from dino_path.journal import PlainFormatter, file_handler
from dino_path.run import TIME_FORMAT

if TYPE_CHECKING:
    from dino_path.config import Config

logger = logging.getLogger(__name__)

app = typer.Typer(
    name="dino-path",
    help="Self-supervised DINO pretraining for histology: slides in, frozen feature extractor and report out.",
    epilog="'dino-path COMMAND --help' shows the options of a command, and examples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE|NAME", help="YAML file, or a name from 'dino-path configs'"),
]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings: dotted.key=value")]
DataSpec = Annotated[
    str,
    typer.Option(
        "--data",
        help="class folders, manifest CSV, store:STORE, or nct-crc: pcam: mhist: breakhis: bach: camelyon17-wilds:"
        " + FOLDER",
    ),
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto is CUDA if there is a GPU")]
Workers = Annotated[int, typer.Option(help="processes (or threads) that read and decode", min=0)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="only warnings and results, no progress and no notes")]
AsJson = Annotated[bool, typer.Option("--json", help="the result as JSON on stdout, for programs")]

SETTING = re.compile(r"[a-z_0-9]+(\.[A-Za-z_0-9-]+)*=.*", re.DOTALL)
# 1 is reserved for unexpected failures: Python's code for an exception, and srun's for a step that it cannot start. So
# a job that # ends with 1 has failed. The files of slurm/ accept only EXIT_SOME_FAILED; slurm/pretrain.sbatch handles
# 85.
EXIT_REFUSED, EXIT_SOME_FAILED, EXIT_STOPPED, EXIT_INTERRUPTED = 2, 3, 85, 130


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"dino-path {__version__}")
        raise typer.Exit


@app.callback()
def program(
    version: Annotated[
        bool, typer.Option("--version", help="show the version and exit", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of the program itself; typer calls this before each command."""


def main() -> None:
    """Run the command line; refusals end with their message and exit code 2."""
    # Idle OpenMP threads sleep instead of spinning: on a shared 2-core machine a ResNet-50 step took 7 to 13 s with
    # spinning threads and 1.2 to 1.5 s without. It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except StoppedBySignal as stopped:
        say(str(stopped), err=True)
        sys.exit(EXIT_STOPPED)
    except DinoPathError as error:
        say(f"{type(error).__name__}: {error}", err=True)
        sys.exit(EXIT_REFUSED)
    except OSError as error:
        refusal = disk_error(error)
        if refusal is None:
            raise
        say(f"{type(refusal).__name__}: {refusal}", err=True)
        sys.exit(EXIT_REFUSED)
    except SystemExit as end:  # typer has turned Ctrl-C's KeyboardInterrupt into it, without a word
        if end.code == EXIT_INTERRUPTED:
            typer.echo("interrupted: finished work is kept, and the same command continues", err=True)
        raise


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Positional arguments and `dotted.key=value` settings; an existing path is never a setting."""
    positionals: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        is_setting = SETTING.fullmatch(argument) and not Path(argument).exists()
        (overrides if is_setting else positionals).append(argument)
    return positionals, overrides


def overrides_only(arguments: Sequence[str] | None) -> list[str]:
    """Settings of a command that takes no other positional argument; `load_config` refuses the rest by name."""
    return list(arguments or ())


def resolve_config(file: Path | None, overrides: Sequence[str], *, needs: Sequence[str] = ()) -> Config:
    from dino_path.settings import load_config

    return load_config(file, overrides, needs=needs)


def check_command(words: Sequence[str]) -> dict[str, Any]:
    """The parameters of a command line, by name, without running the command.

    A wrong option is refused at submission, not when the job starts.
    """
    command, context, name, rest = typer.main.get_command(app), None, "dino-path", list(words)
    while isinstance(command, typer.core.TyperGroup):
        context = typer.Context(command, info_name=name, parent=context)
        known, found, rest = command.resolve_command(context, rest)
        assert known is not None
        assert found is not None
        command, name = found, known
    return command.make_context(name, rest, parent=context).params


def announce(text: str) -> None:
    """Say on stderr what starts now, so that nobody waits at an empty screen."""
    logger.info("%s", text)


def loading(what: str = "torch and timm") -> None:
    """Announce imports that take seconds. All cheap checks are done before this."""
    announce(f"loading {what}")


def log_to(file: Path | None, *, is_first: bool = True, is_quiet: bool = False) -> None:
    """Configure logging again: the console, and `file`. Ranks other than the first log only errors."""
    root = logging.getLogger("dino_path")
    root.setLevel((logging.WARNING if is_quiet else logging.INFO) if is_first else logging.ERROR)
    root.propagate = False
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        from dino_path.progress import console

        screen: logging.Handler = RichHandler(
            console=console, show_path=False, show_level=False, markup=False, log_time_format=TIME_FORMAT
        )
        screen.setFormatter(PlainFormatter("%(message)s"))
        screen.addFilter(lambda record: record.name != "dino_path.steps")
    else:
        screen = logging.StreamHandler(sys.stderr)
        screen.setFormatter(PlainFormatter("%(asctime)s %(message)s", TIME_FORMAT))
    root.addHandler(screen)
    if file is not None:
        root.addHandler(file_handler(file))

"""What a command prints on stdout: sentences, tables, or JSON. A file or pipe gets lines as wide as they are."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from dino_path.journal import plain

WIDE = 10_000  # columns of what is no terminal: nothing is wrapped there
NUMBER = re.compile(r"[-+0-9.,%*()x \[\]]*|-|missing")


def say(text: str, *, err: bool = False) -> None:
    """Print sentences; a terminal gets them wrapped between words, continued where the line began.

    Args:
        err: to stderr.
    """
    lines = plain(text).split("\n")
    if (sys.stderr if err else sys.stdout).isatty():
        columns = shutil.get_terminal_size().columns
        lines = [part for line in lines for part in _wrapped(line, columns)]
    typer.echo("\n".join(lines), err=err)


def _wrapped(line: str, columns: int) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()) + 2 * line.startswith("- "))
    return textwrap.wrap(
        line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False,
        drop_whitespace=True, replace_whitespace=False,
    ) or [""]  # fmt: skip


def say_json(record: Any) -> None:
    """Print what a program reads. What is no number (NaN) is null: JSON has no word for it."""
    typer.echo(json.dumps(_without_nan(record), indent=2, ensure_ascii=False, default=str, allow_nan=False))


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def say_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; columns of numbers stand to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, name in enumerate(header):
        is_numbers = all(NUMBER.fullmatch(row[number]) for row in rows)
        table.add_column(Text(plain(name)), justify="right" if is_numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDE)
    with console.capture() as capture:
        console.print(table)
    typer.echo("\n".join(filter(None, (line.rstrip() for line in capture.get().splitlines()))))


def say_markdown(page: str) -> None:
    """Print a page of ours (evaluation/results/writing.py): headings, tables and a list of notes."""
    lines = page.splitlines()
    while lines:
        line = lines.pop(0)
        if not line.startswith("|"):
            say(line.lstrip("#").strip() if line.startswith("#") else line)
            continue
        table = [line]
        while lines and lines[0].startswith("|"):
            table.append(lines.pop(0))
        header, _, *rows = ([cell.strip().replace(r"\|", "|") for cell in row.strip("|").split(" | ")] for row in table)
        say_table(header, rows)

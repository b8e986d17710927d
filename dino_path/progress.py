"""Progress of long work: a live bar in a terminal, one line per interval in a file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

logger = logging.getLogger(__name__)
T = TypeVar("T")

console = Console(stderr=True)
LINE_EVERY_S = 10.0


class Meter:
    """Counts finished items of one piece of work; made by `meter`."""

    def __init__(self, what: str, total: int, unit: str, bar: Progress | None, *, lines: bool) -> None:
        self.what, self.total, self.unit, self.done = what, total, unit, 0
        self._bar, self._lines = bar, lines
        self._task = bar.add_task(what, total=total, note="") if bar else None
        self._start_s = self._last_line_s = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count `count` more items as done; `note` stands beside the bar."""
        self.done += count
        elapsed_s = time.monotonic() - self._start_s
        rate = self.done / elapsed_s if elapsed_s > 0 else 0.0
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=count, note=f"{rate_text(rate, self.unit)}  {note}")
        elif self._lines and (self.done >= self.total or time.monotonic() - self._last_line_s >= LINE_EVERY_S):
            self._last_line_s = time.monotonic()
            left_s = (self.total - self.done) / rate if rate else 0.0
            logger.info(
                "%s %d/%d %s  %s  %.0f s, %.0f s left  %s",
                self.what, self.done, self.total, self.unit, rate_text(rate, self.unit), elapsed_s, left_s, note,
            )  # fmt: skip


def rate_text(rate: float, unit: str) -> str:
    """`rate` items per second as text that tells slow work from none: "12 tiles/s", "1.4 steps/s", "8.3 s/slide"."""
    if rate <= 0:
        return ""
    if rate < 1:
        return f"{1 / rate:,.1f} s/{unit.removesuffix('s')}"
    return f"{rate:,.0f} {unit}/s" if rate >= 10 else f"{rate:.1f} {unit}/s"


@contextmanager
def meter(what: str, total: int, unit: str, *, lines: bool = True) -> Iterator[Meter]:
    """Show the progress of `what`: `total` items called `unit`.

    Args:
        lines: write lines where there is no terminal; False for work that writes its own.
    """
    if not sys.stderr.isatty() or not logger.isEnabledFor(logging.INFO):
        yield Meter(what, total, unit, None, lines=lines)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield Meter(what, total, unit, bar, lines=lines)


def progress(items: Iterable[T], what: str, *, total: int, unit: str) -> Iterator[T]:
    """Iterate over `items`, showing how many are done."""
    with meter(what, total, unit) as counter:
        for item in items:
            yield item
            counter.advance()

"""The log of a piece of work, kept in a file beside its results."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dino_path.run import TIME_FORMAT

CODE = re.compile(r"`([^`\n]+)`")


def plain(text: str) -> str:
    """Markdown's marks of code as quotation marks: `dino-path tile` -> 'dino-path tile'."""
    return CODE.sub(r"'\1'", text)


class PlainFormatter(logging.Formatter):
    """Text without Markdown's marks."""

    def format(self, record: logging.LogRecord) -> str:
        return plain(super().format(record))


def file_handler(file: Path) -> logging.FileHandler:
    """Appends lines with time and level to `file`; its folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(PlainFormatter("%(asctime)s %(levelname)s %(message)s", TIME_FORMAT))
    return handler


@contextmanager
def journal(file: Path) -> Iterator[None]:
    """Inside, what dino_path logs is appended to `file` too, from INFO on unless the logger has a level of its own."""
    logger, handler = logging.getLogger("dino_path"), file_handler(file)
    level = logger.level
    if level == logging.NOTSET:
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
        logger.setLevel(level)

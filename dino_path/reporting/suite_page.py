"""The folder of a suite -> one HTML page that loads nothing from elsewhere."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dino_path.atomic import atomic_write
from dino_path.config import PROTOCOL_TITLES
from dino_path.records.labelled import ScoreRecord
from dino_path.records.suite import SuiteRecord, lacking, num_open, read_suite, verdict

CODE = re.compile(r"`([^`]+)`")
HERE = Path(__file__).parent


def write_suite_page(folder: Path) -> Path:
    """Write what `folder`/suite.json holds as `folder`/suite.html, and return that.

    Raises:
        DataError: no suite is in the folder. NewerFormat: a later dino_path wrote it.
    """
    record = read_suite(folder)
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(title=_title, code=_code, verdict=verdict, ends=_ends, lacking=lacking)
    page = environment.get_template("suite.html.j2").render(
        record=record,
        num_open=num_open,
        rows=_rows(record),
        has_supervised=any(model.role == "supervised" for model in record.models.values()),
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
    )  # fmt: skip
    out = folder / "suite.html"
    with atomic_write(out) as stream:
        stream.write(page)
    return out


def _rows(record: SuiteRecord) -> list[dict[str, Any]]:
    """One row per set: its best model is marked."""
    rows = []
    for one in record.sets:
        values = {name: score.value for name, score in one.scores.items() if score.value is not None}
        best = max(values.values(), default=None)
        rows.append({"set": one, "best": {name for name, value in values.items() if value == best}})
    return rows


def _title(protocol: str) -> str:
    return PROTOCOL_TITLES.get(protocol, protocol)


def _ends(score: ScoreRecord, is_signed: bool = False, digits: int = 3) -> str:
    """The interval alone: `0.790–0.860`."""
    if score.low is None or score.high is None:
        return "no interval"
    low, high = (f"{end:{'+' if is_signed else ''}.{digits}f}" for end in (score.low, score.high))
    return f"{low} to {high}" if is_signed else f"{low}–{high}"


def _code(text: str) -> Markup:
    """The sentence with the text between backticks as code."""
    return Markup(CODE.sub(r"<code>\1</code>", html.escape(text)))

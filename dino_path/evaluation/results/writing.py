"""The files of every evaluation: JSON to repeat it, CSV to compute with, Markdown to read, and the split."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dino_path.atomic import atomic_write
from dino_path.config import EvaluationConfig
from dino_path.evaluation.labelled.division import Division
from dino_path.evaluation.measures.sample import Sample
from dino_path.evaluation.results.earlier import FORMATS, Stem
from dino_path.features.extractor import Extractor
from dino_path.records.environment import shared_environment
from dino_path.settings import as_plain
from dino_path.sharing import shared_name
from dino_path.table_file import plain_cells

SUPERVISED = "supervised ResNet-50"  # by default; what it is called where there is none


@dataclass(frozen=True)
class Outcome:
    """The return value of an evaluation, in addition to its files.

    Attributes:
        text: the page of Markdown.
        samples: by metric and model, what can lead a set of a suite: larger is better, 0 the lowest; the models of a
            metric share groups and resamples.
        unit: what intervals are over: "patients", "slides" or "images".
    """

    text: str
    samples: Mapping[str, Mapping[str, Sample]] = field(repr=False, compare=False)
    unit: str


def baseline_missing(fraction: float = 1.0) -> str:
    """The text in place of a missing supervised network."""
    option = "" if fraction == 1 else f" --fraction {fraction:g}"
    return f"missing, run `dino-path baseline{option}`"


def write_results(
    out: Path,
    stem: Stem,
    division: Division,
    config: EvaluationConfig,
    models: Mapping[str, tuple[str, Extractor]],
    *,
    record: Mapping[str, Any],
    csv_rows: Iterable[Sequence[object]],
    text: str,
) -> None:
    """Write `stem`.json, .csv and .md, and split.csv (folds.csv of a cross-validation).

    Args:
        models: spec and extractor by the name that the texts show.
        record: what was found; the data, settings, models and versions are added.
        csv_rows: the first is the header.
        text: Markdown.
    """
    described = {
        name: {
            "spec": shared_name(spec, num_parts=2),
            "digest": extractor.digest,
            "num_features": extractor.num_features,
            "features": extractor.kind,
            "input_px": config.input_px or extractor.preprocessing.input_px,
            "mpp": extractor.preprocessing.mpp,
        }
        for name, (spec, extractor) in models.items()
    }
    common = {"data": division.record(), "config": as_plain(config), "models": described}
    division.write(out)
    whole = {**common, **record, "environment": shared_environment()}
    FORMATS[stem].write(out / f"{stem}.json", FORMATS[stem].schema.model_validate(whole))
    with atomic_write(out / f"{stem}.csv") as stream:
        csv.writer(stream, lineterminator="\n").writerows(map(plain_cells, csv_rows))
    with atomic_write(out / f"{stem}.md") as stream:
        stream.write(text)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a table."""
    return [f"| {' | '.join(map(_cell, cells))} |" for cells in (header, ["---"] * len(header), *rows)]


def _cell(text: str) -> str:
    """Text that cannot end its cell or row: names of classes and models come from folders and may contain anything."""
    return " ".join(text.replace("|", r"\|").splitlines())


def markdown_page(title: str, lines: Iterable[str], notes: Iterable[str]) -> str:
    """Title, results, and notes for reading them."""
    return "\n".join([f"# {title}", "", *lines, "", *(f"- {note}" for note in notes), ""])

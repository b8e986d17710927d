"""Run folders -> one HTML page that holds everything it shows: its scripts, numbers and pictures too.

The page's policy lets exactly the scripts run that are written here (by their hashes), and nothing be loaded. Plotly is
packed: a page is 2 MB instead of 5.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from dino_path.atomic import atomic_write
from dino_path.errors import CheckpointError
from dino_path.records.best import is_exhausted
from dino_path.records.feature_map import read_feature_map
from dino_path.records.metrics import StepRecord
from dino_path.records.verdict import interval, signed
from dino_path.reporting.charts import Line, Spec, data_for_page, line_chart
from dino_path.reporting.citations import citations
from dino_path.reporting.evaluation_sections import (
    axis_of,
    evaluation_section,
    format_score,
    protocol_title,
    score_chart,
)
from dino_path.reporting.evaluations import AnyEvaluation, Evaluation, Plain, read_evaluations
from dino_path.reporting.examples import examples_section
from dino_path.reporting.feature_map import map_sections
from dino_path.reporting.learning import as_untrained, ln_of, no_learning
from dino_path.reporting.same_data import sections_of
from dino_path.reporting.sources import Run, read_model, read_run, read_store, run_names
from dino_path.reporting.troubles import troubles_of
from dino_path.reporting.worth import NOT_EVALUATED, main_rows, summary_of, worth_of
from dino_path.sharing import without_folders

logger = logging.getLogger(__name__)

MAX_SLIDE_ROWS = 20_000  # 5 MB of table: what a browser still opens at once
LARGE_BYTES = 15_000_000  # what mail still takes
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Curve:
    """One chart of the training section: which field of metrics.jsonl, and what to look for."""

    field: str
    title: str
    hint: str
    has_ln_k: bool = False


CURVES: dict[str, tuple[Curve, ...]] = {
    "Learning": (
        Curve("knn_accuracy", "k-NN of the teacher", "Accuracy on the validation part of monitor.knn_data."),
        Curve("loss", "Loss", "The weighted sum of all terms, which is optimised."),
        Curve("dino_loss", "DINO", "Student against teacher. Flat at ln K: the teacher says nothing.", has_ln_k=True),
        Curve(
            "teacher_entropy", "Teacher entropy", "At ln K: uniform. At 0: one prototype for all tiles.", has_ln_k=True
        ),
        Curve("kl", "KL, teacher to student", "What is left to learn. At 0, nothing is learned."),
        Curve("rankme", "Effective rank of the features", "RankMe. Near 1, the features have collapsed."),
        Curve(
            "feature_std",
            "Spread of the features",
            "Standard deviation of normalised features over tiles. At 0, all tiles are equal.",
        ),
        Curve("prototypes_used", "Prototypes in use", "How many the teacher chooses among."),
        Curve("ibot_loss", "iBOT", "Student against teacher, on patches that are hidden from the student."),
        Curve("ibot_entropy", "Teacher entropy on patches", "At 0: one prototype for all patches."),
        Curve("ibot_kl", "KL on patches", "What is left to learn about hidden patches."),
        Curve("ibot_prototypes_used", "Prototypes in use for patches", "How many the teacher chooses among."),
        Curve("koleo", "KoLeo, unweighted", "Rises as features collapse."),
        Curve("kde", "KDE, unweighted", "Sum over both views. Rises as features collapse; at 2 kappa all are equal."),
    ),
    "Schedules": (
        Curve("lr", "Learning rate", ""),
        Curve("weight_decay", "Weight decay", ""),
        Curve("momentum", "Teacher momentum", ""),
        Curve("teacher_temp", "Teacher temperature", ""),
        Curve("kde_ramp", "Share of KDE's weight", ""),
    ),
    "Steps": (
        Curve("grad_norm", "Gradient norm", "Before clipping."),
        Curve("tiles_per_s", "Tiles per second", "All processes together."),
        Curve("data_wait", "Waiting for data", "Share of the time. Above 0.1, the loader slows training down."),
        Curve("peak_memory_gb", "Peak memory, GB", "Of the GPU, or of the process if there is none."),
    ),
}

# The loss of runs with DINO's term alone.
ALONE = Curve("loss", "Loss", "Student against teacher. Flat at ln K: the teacher says nothing.", has_ln_k=True)

# Other fields of a record that are no curve of their own.
NO_CURVE = {
    "step", "epoch", "num_steps", "tiles_seen", "eta_s", "num_skipped", "num_unreadable", "loss_minus_ln_k",
    "ibot_masked_views", "koleo_loss", "kde_loss",
}  # fmt: skip

STARTED_FROM = "model.weights"
SETTINGS = (
    ("Backbone", "model.backbone"),
    ("Its arguments", "model.arguments"),
    ("Started from", STARTED_FROM),
    ("Prototypes K", "objective.dino.num_prototypes"),
    ("Targets", "objective.targets.method"),
    ("Weight of DINO", "objective.dino.weight"),
    ("Weight of iBOT", "objective.ibot.weight"),
    ("Weight of KoLeo", "objective.koleo.weight"),
    ("Weight of KDE", "objective.kde.weight"),
    ("Recipe of views", "views.recipe"),
    ("Global views, px", "views.global_px"),
    ("Local views", "views.num_local"),
    ("Local views, px", "views.local_px"),
    ("Tiles per GPU and step", "training.batch_size_per_gpu"),
    ("Optimizer", "optim.optimizer"),
    ("Learning rate, before scaling", "optim.base_lr"),
    ("Its scaling with the batch", "optim.lr_scaling"),
    ("Layer decay", "optim.layer_decay"),
    ("Weight decay, first", "optim.weight_decay"),
    ("Weight decay, last", "optim.final_weight_decay"),
    ("Teacher momentum, first", "training.momentum"),
    ("Teacher temperature", "objective.dino.teacher_temp"),
    ("Precision", "training.precision"),
    ("Seed", "training.seed"),
)


def write_report(
    runs: Sequence[Path],
    out: Path,
    *,
    title: str | None = None,
    store: Path | None = None,
    models: Sequence[Path] = (),
    evaluations: Sequence[Path] = (),
    maps: Sequence[Path] = (),
    refresh_s: int | None = None,
    shows_machine: bool = False,
) -> Path:
    """Write the contents of the run folders as one self-contained HTML file, and return its path.

    Args:
        runs: run folders; several are drawn in the same charts.
        store: the tile store that they were trained on, for the section on slides and the tiles of skipped steps.
        models: exported model folders.
        evaluations: further files that `dino-path evaluate` wrote as JSON, or folders with them, besides those in the
            runs' `eval/`.
        maps: pages that `dino-path map` wrote; each becomes a section.
        refresh_s: the page loads itself again after so many seconds; None: it stays as it is.
        shows_machine: see `read_run`.

    Raises:
        CheckpointError: a run or model folder that is none. TileStoreError, DataError: the same of the others.
        NewerFormat: a later dino_path wrote a file.
    """
    if not runs:
        raise CheckpointError("report", "no run folder was given.", "At least one is needed.", "Name a run folder.")
    read = [
        read_run(path, name=name, shows_machine=shows_machine) for path, name in zip(runs, run_names(runs), strict=True)
    ]
    found = [evaluation for run in read for evaluation in run.evaluations]
    found += [evaluation for path in evaluations for evaluation in read_evaluations(path)]
    found = sections_of(found)
    sections = map_sections([read_feature_map(page) for page in maps])
    of_store = None if store is None else read_store(store)
    charts = Charts()
    script = (HERE / "report.js").read_text(encoding="utf-8")
    page = _environment(charts).get_template("report.html.j2").render(
        title=title or ", ".join(run.name for run in read),
        runs=read,
        facts=[run_facts(run) for run in read],
        worth=worth_of(found),
        summary=summary_of(worth_of(found)),
        not_evaluated=NOT_EVALUATED,
        first_chart=_first_chart(found),
        warnings=nothing_learned(read, found),
        findings=verdicts(read),
        troubles=troubles_of(read, of_store, store),
        evaluations=[evaluation_section(evaluation) for evaluation in found],
        examples=[examples_section(one) for one in found if isinstance(one, Evaluation)],
        maps=sections,
        map_script_hash=_sha256(sections.script),
        curves=training_section(read),
        tiles_per_step=[_tiles_per_step(run) for run in read],
        settings=settings_table(read),
        store=of_store,
        max_slide_rows=MAX_SLIDE_ROWS,
        models=[read_model(path) for path in models],
        citations=citations([run.config for run in read]),
        style=Markup((HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        plotly=plotly(),
        script_hash=_sha256(script),
        refresh_s=refresh_s,
    )  # fmt: skip
    with atomic_write(out) as stream:
        stream.write(page)
    if len(page) > LARGE_BYTES:
        of_maps = sum(map(len, sections.html))
        largest = "the maps are" if 2 * of_maps > len(page) else "the pictures in the runs' figures/ are"
        logger.warning("%s has %s: %s most of it", out, _size(len(page)), largest)
    return out


class Charts:
    """The charts of a page: each is a place in it, and numbers that its script draws there."""

    def __init__(self) -> None:
        self._specs: list[Spec] = []

    def place(self, spec: Spec) -> Markup:
        """The element that the script draws in. Without scripts, and for a screen reader, it says the numbers."""
        number = len(self._specs)
        self._specs.append(spec)
        return Markup(
            '<div class="plot {kind}" id="chart-{number}" tabindex="0" role="group" aria-label="Chart: {title}. Arrow'
            ' keys read its values." aria-describedby="says-{number}"></div><p class="says" id="says-{number}">'
            "{summary}</p>"
        ).format(kind=spec["kind"], number=number, title=spec["title"], summary=spec["summary"])

    def data(self) -> Markup:
        """All of them, as JSON for the page's end."""
        return data_for_page(self._specs)


@dataclass(frozen=True)
class Packed:
    """A script as gzip in base64, and the hash by which the page's policy knows it once it is unpacked."""

    text: str
    hash: str


@cache
def plotly() -> Packed:
    """Plotly's script, as its Python package brings it (MIT)."""
    from plotly.offline import get_plotlyjs

    source: str = get_plotlyjs()
    return Packed(base64.b64encode(gzip.compress(source.encode(), 9, mtime=0)).decode(), _sha256(source))


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _first_chart(found: Sequence[AnyEvaluation]) -> Plain | None:
    """The subject of the sentence on the first labelled set."""
    for evaluation in found:
        if isinstance(evaluation, Evaluation) and (rows := main_rows(evaluation)):
            name = protocol_title(next(row.protocol for row in rows))
            title = f"Balanced accuracy on {evaluation.name}, {name}"
            return {"title": title, "chart": score_chart(evaluation, rows, axis_of(evaluation), title=title)}
    return None


def nothing_learned(runs: Sequence[Run], evaluations: Sequence[AnyEvaluation]) -> list[str]:
    """The report's first sentences, where training came to nothing by its loss or by a test of its features."""
    of_runs = (no_learning(run, ln_of(_setting(run.config, "objective.dino.num_prototypes"))) for run in runs)
    of_features = (sentence for evaluation in evaluations for sentence in as_untrained(evaluation))
    return [sentence for sentence in (*of_runs, *of_features) if sentence]


def verdicts(runs: Sequence[Run]) -> list[str]:
    """The result of each run's comparison with its start."""
    return [f"{run.name}: {run.verdict.sentence}" for run in runs if run.verdict is not None and run.verdict.rows]


def run_facts(run: Run) -> Plain:
    """The few things one asks first: how far, on what, how well, how healthy."""
    last = run.metrics[-1] if run.metrics else None
    training = run.config.get("training") or {}
    return {
        "name": run.name,
        "backbone": (run.config.get("model") or {}).get("backbone"),
        "steps": last.step + 1 if last else 0,
        "num_steps": _planned_steps(training, last),
        "tiles_seen": last and last.tiles_seen,
        "loss": last and last.loss,
        "rankme": last and last.rankme,
        "tiles_per_s": _median([record.tiles_per_s for record in run.metrics]),
        "eta_s": last and last.eta_s,
        "best": run.best,
        "hours": _hours(run),
        "started": run.log.started,
        "ended": run.log.ended,
        "device": run.log.device,
        "peak_memory_gb": max((record.peak_memory_gb for record in run.metrics), default=None),
        "num_cpus": run.environment.get("num_cpus"),
        "platform": run.environment.get("platform"),
        "disk_bytes": run.disk_bytes,
        "has_ended_early": is_exhausted(run.best, _setting(run.config, "monitor.stop_after")),
    }


def _curves(runs: Sequence[Run]) -> dict[str, list[Curve]]:
    """The charts by group: those with a description, and under Learning every other number that a run has logged.

    A new term of the objective thus brings its curves with it.
    """
    known = {curve.field for curves in CURVES.values() for curve in curves} | NO_CURVE
    numbers = {
        field: None
        for run in runs
        for record in run.metrics
        for field in record.numbers()
        if field not in known and not field.startswith("grad_norm_")
    }
    further = [Curve(field, field.replace("_", " ").capitalize(), "") for field in numbers]
    groups = {group: [*curves, *(further if group == "Learning" else [])] for group, curves in CURVES.items()}
    if all(record.number("dino_loss") is None for run in runs for record in run.metrics):
        groups["Learning"] = [ALONE if curve.field == "loss" else curve for curve in groups["Learning"]]
    return groups


def training_section(runs: Sequence[Run]) -> dict[str, list[Plain]]:
    """The charts of all runs together, by group; fields that no run has are left out."""
    groups: dict[str, list[Plain]] = {}
    for group, curves in _curves(runs).items():
        charts = []
        for curve in curves:
            lines = [_line(run, curve.field) for run in runs]
            reference = _ln_k(runs) if curve.has_ln_k else None
            chart = line_chart(lines, title=curve.title, reference=reference)
            if chart is not None:
                charts.append({"title": curve.title, "hint": curve.hint, "chart": chart})
        if charts:
            groups[group] = charts
    return groups


def settings_table(runs: Sequence[Run]) -> list[Plain]:
    """One row per setting that a reader looks for; `differs` where the runs do not agree."""
    rows = []
    for label, key in SETTINGS:
        values = [_started_from(run) if key == STARTED_FROM else _setting(run.config, key) for run in runs]
        if any(value is not None and value != {} for value in values):
            rows.append({"label": label, "key": key, "values": values, "differs": any(v != values[0] for v in values)})
    return rows


def _environment(charts: Charts) -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(score=format_score, interval=interval, signed=signed, thousands=_thousands, plain=_plain)
    environment.filters["marked"] = _marked
    environment.filters["shared"] = without_folders
    environment.filters.update(size=_size, duration=_duration)
    environment.globals.update(plot=charts.place, chart_data=charts.data)
    return environment


def _thousands(value: Any) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _plain(value: Any) -> str:
    """A setting as people write it."""
    if value is None:
        return "–"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(entry)}" for key, entry in value.items()) or "–"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def _size(num_bytes: float) -> str:
    """1.2 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def _marked(text: str) -> Markup:
    """A sentence with the text between backquotes as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _duration(hours: float) -> str:
    """4 min, 3.2 h."""
    return f"{60 * hours:.0f} min" if hours < 1.5 else f"{hours:.1f} h"


def _planned_steps(training: Plain, last: StepRecord | None) -> int | None:
    """Length of the run: as its last record says; in an older one as configured, or from how far it says it is."""
    if last is not None and last.num_steps is not None:
        return last.num_steps
    if training.get("num_steps"):
        return int(training["num_steps"])
    if last is not None:
        done = last.step + 1
        for amount, reached in (("num_epochs", last.epoch), ("num_tiles", last.tiles_seen)):
            if training.get(amount) and reached:
                return max(done, round(done * float(training[amount]) / reached))
    return None


def _hours(run: Run) -> float | None:
    """Hours spent in steps, from the tiles and the rate of each record; None if there is no record."""
    seconds, before = 0.0, 0
    for record in run.metrics:
        if record.tiles_per_s > 0:
            seconds += max(0, record.tiles_seen - before) / record.tiles_per_s
        before = record.tiles_seen
    return seconds / 3600 if run.metrics else None


def _tiles_per_step(run: Run) -> float | None:
    last = run.metrics[-1] if run.metrics else None
    return None if last is None else last.tiles_seen / (last.step + 1)


def _median(values: Sequence[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def _line(run: Run, field: str) -> Line:
    """One field over the number of updates done."""
    points = [(each.step + 1, value) for each in run.metrics if (value := each.number(field)) is not None]
    return Line(run.name, [float(step) for step, _ in points], [value for _, value in points])


def _ln_k(runs: Sequence[Run]) -> tuple[str, float] | None:
    """ln K, where all runs have the same K, and DINO's loss."""
    has_dino = all(_setting(run.config, "objective.dino.weight") != 0 for run in runs)
    counts = {_setting(run.config, "objective.dino.num_prototypes") if has_dino else None for run in runs}
    only = ln_of(counts.pop()) if len(counts) == 1 else None
    return None if only is None else ("ln K", only)


def _started_from(run: Run) -> Any:
    """The runs before, or the start weights."""
    return run.started_from or _setting(run.config, STARTED_FROM)


def _setting(config: Plain, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value

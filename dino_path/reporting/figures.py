"""The report's charts as files for papers: PDF, SVG or PNG, drawn by matplotlib from the same numbers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from dino_path.atomic import atomic_write
from dino_path.reporting.charts import Spec
from dino_path.reporting.evaluation_sections import evaluation_section
from dino_path.reporting.evaluations import read_evaluations
from dino_path.reporting.report import training_section
from dino_path.reporting.same_data import sections_of
from dino_path.reporting.sources import read_run, run_names

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FigureKind = Literal["pdf", "svg", "png"]
FIGURE_KINDS: tuple[FigureKind, ...] = get_args(FigureKind)
COLUMN_IN = 3.4  # width of a journal's column, inches
PNG_DPI = 300
COLOURS = ("#5b459b", "#b03a6d", "#2f7f86", "#8a5f12", "#3d69b1", "#3f6d2e")  # those of the page
KIND_COLOURS = {"own": COLOURS[0], "baseline": COLOURS[1], "other": "#625d6d"}
STYLE = {
    "font.family": "sans-serif", "font.size": 8, "axes.spines.top": False, "axes.spines.right": False,
    "axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6, "legend.frameon": False,
    "pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "dino_path",  # text stays text; the same file each time
}  # fmt: skip


def write_figures(
    runs: Sequence[Path], out: Path, *, evaluations: Sequence[Path] = (), kinds: Sequence[FigureKind] = ("pdf",)
) -> list[Path]:
    """One file for each chart of the runs' report, named by what it shows, and their paths.

    Args:
        evaluations: as of `write_report`.
        kinds: of files; each chart is written in all of them.

    Raises:
        CheckpointError: a run folder that is none. DataError: an evaluation that is none.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib.figure import Figure

    written = []
    with mpl.rc_context(STYLE):
        for name, spec in _charts(runs, evaluations):
            figure = Figure(figsize=(COLUMN_IN, _height_in(spec)), layout="constrained")
            _draw(figure.subplots(), spec)
            for kind in kinds:
                file = out / f"{name}.{kind}"
                no_date: dict[str, Any] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind, {})
                with atomic_write(file, "wb") as stream:
                    figure.savefig(stream, format=kind, dpi=PNG_DPI, metadata=no_date)
                written.append(file)
    return written


def _charts(runs: Sequence[Path], evaluations: Sequence[Path]) -> Iterator[tuple[str, Spec]]:
    """File name without ending, and chart."""
    read = [read_run(path, name=name) for path, name in zip(runs, run_names(runs), strict=True)]
    found = [evaluation for run in read for evaluation in run.evaluations]
    found += [evaluation for path in evaluations for evaluation in read_evaluations(path)]
    for evaluation in sections_of(found):
        section = evaluation_section(evaluation)
        for panel in section.get("panels", ()):
            if panel["chart"] is not None:
                yield _file_name(section["kind"], evaluation.name, panel["title"]), panel["chart"]
            if panel.get("reliability") is not None:
                yield _file_name("reliability", evaluation.name, panel["title"]), panel["reliability"]
    for charts in training_section(read).values():
        for entry in charts:
            yield _file_name("curve", entry["title"]), entry["chart"]


def _file_name(*words: str) -> str:
    return "_".join(re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-") for word in words)


def _height_in(spec: Spec) -> float:
    return 0.5 + 0.26 * len(spec["rows"]) if spec["kind"] == "intervals" else 2.2


def _draw(axes: Axes, spec: Spec) -> None:
    match spec["kind"]:
        case "lines":
            _draw_lines(axes, spec)
        case "intervals":
            _draw_intervals(axes, spec)
        case "fractions":
            _draw_fractions(axes, spec)


def _draw_lines(axes: Axes, spec: Spec) -> None:
    lines = [(number, line) for number, line in enumerate(spec["lines"]) if line["x"]]
    for number, line in lines:
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(line["x"], line["y"], color=colour, linewidth=1, label=line["label"])
        if "low" in line:
            axes.fill_between(line["x"], line["low"], line["high"], color=colour, alpha=0.18, linewidth=0)
    if spec["reference"] is not None:
        axes.axhline(spec["reference"]["value"], color="0.4", linewidth=0.7, linestyle="--")
        axes.annotate(
            spec["reference"]["label"], (1, spec["reference"]["value"]), xycoords=("axes fraction", "data"),
            ha="right", va="bottom", fontsize=7, color="0.3",
        )  # fmt: skip
    axes.set(xlabel="step", ylabel=spec["title"])
    if len(lines) > 1:
        axes.legend(fontsize=7)


def _draw_intervals(axes: Axes, spec: Spec) -> None:
    for place, row in enumerate(spec["rows"]):
        colour = KIND_COLOURS[row["kind"]]
        if row["low"] is not None and row["high"] is not None:
            axes.plot([row["low"], row["high"]], [-place, -place], color=colour, linewidth=1.4)
        axes.plot(row["value"], -place, "o", color=colour, markersize=4)
    if spec["chance"] is not None:
        axes.axvline(spec["chance"], color="0.4", linewidth=0.7, linestyle="--")
    axes.set_yticks([-place for place in range(len(spec["rows"]))], [row["label"] for row in spec["rows"]])
    axes.set(xlim=spec["axis"], ylim=(-len(spec["rows"]) + 0.4, 0.6), xlabel="balanced accuracy")
    axes.tick_params(axis="y", length=0)


def _draw_fractions(axes: Axes, spec: Spec) -> None:
    for number, one in enumerate(spec["series"]):
        shift = 0.5 * ((number + 0.5) / len(spec["series"]) - 0.5)
        known = [(place + shift, *point) for place, point in enumerate(one["points"]) if point is not None]
        colour = COLOURS[number % len(COLOURS)]
        axes.plot([x for x, *_ in known], [y for _, y, *_ in known], "o-", color=colour, markersize=3.5, linewidth=0.8,
                  label=one["label"])  # fmt: skip
        for x, _, low, high in known:
            if low is not None and high is not None:
                axes.plot([x, x], [low, high], color=colour, linewidth=1.2)
    if spec["chance"] is not None:
        axes.axhline(spec["chance"], color="0.4", linewidth=0.7, linestyle="--")
    axes.set_xticks(range(len(spec["categories"])), spec["categories"])
    axes.set(xlabel="share of labels", ylabel="balanced accuracy")
    axes.legend(fontsize=7)

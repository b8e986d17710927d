"""Problems in runs and stores, each with the curves or tiles that show it, and with a remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_path.errors import DinoPathError
from dino_path.reporting.charts import Line, Spec, line_chart
from dino_path.reporting.evaluations import Plain
from dino_path.reporting.images import Picture, picture_of
from dino_path.reporting.sources import Run, Store
from dino_path.tiles.source import TileSource, open_tiles

CURVES_OF_COLLAPSE = ("loss", "teacher_entropy", "kl", "feature_std", "rankme")
MOST_WAITING = 0.2  # of the time: from 0.1 on the loader is the brake, and at 0.2 it costs a day of a week
MAX_THUMBNAILS, THUMBNAIL_PX = 24, 96
MAX_FAILED = 20  # slides named here; all are in the table of slides


@dataclass(frozen=True)
class Trouble:
    """One problem.

    Attributes:
        title: what, and of which run.
        sentences: what was found and what to do.
        charts: that show it. pictures: thumbnails of tiles. rows: (slide, reason).
    """

    title: str
    sentences: Sequence[str]
    charts: Sequence[Spec] = ()
    pictures: Sequence[Picture] = ()
    rows: Sequence[tuple[str, str]] = ()


def troubles_of(runs: Sequence[Run], store: Store | None, store_path: Path | None) -> list[Trouble]:
    """Collapses, skipped steps, tiles that could not be read, waits for data, and slides that failed."""
    found = []
    for run in runs:
        found += _collapses(run)
        found += _skipped(run, store_path)
        found += _unreadable(run)
        found += _waiting(run)
    return [*found, *([] if store is None else _failed(store))]


def collapse_spans(run: Run) -> dict[str, tuple[int, int]]:
    """Mode of each collapse that the monitor named -> the first and the last step that it named it at."""
    spans: dict[str, tuple[int, int]] = {}
    for record in run.metrics:
        if record.collapse:
            spans[record.collapse] = (spans.get(record.collapse, (record.step,))[0], record.step)
    return spans


def _collapses(run: Run) -> list[Trouble]:
    lines = [(field, _line(run, field)) for field in CURVES_OF_COLLAPSE]
    charts = [
        chart for field, line in lines if (chart := line_chart([line], title=field.replace("_", " "))) is not None
    ]
    return [
        Trouble(
            f"{run.name}: the teacher collapsed ({mode})",
            [
                f"The monitor named it first at step {first:,}, last at step {last:,}"
                + (", the current step." if last == run.metrics[-1].step else "; it ended later."),
                f"Try this: {run.log.remedies[mode]}."
                if mode in run.log.remedies
                else "The remedy is in log.txt, which is missing from the run folder.",
            ],
            charts,
        )
        for mode, (first, last) in collapse_spans(run).items()
    ]


def _skipped(run: Run, store_path: Path | None) -> list[Trouble]:
    if not run.metrics or not run.metrics[-1].num_skipped:
        return []
    sentences = [
        f"{run.metrics[-1].num_skipped:,} step(s) had a non-finite loss and changed nothing.",
        "If it continues: lower optim.base_lr, or set training.precision=fp32.",
    ]
    tiles = list(dict.fromkeys(tile for step in run.log.skipped.values() for tile in step))
    if not tiles:
        return [Trouble(f"{run.name}: skipped steps", [*sentences, "log.txt, which names their tiles, is missing."])]
    steps = ", ".join(f"{step:,}" for step in list(run.log.skipped)[:10])
    sentences.append(f"Steps {steps}; their {len(tiles):,} tiles are numbers {_numbers(tiles)} of the store.")
    pictures: list[Picture] = []
    if store_path is None:
        sentences.append("`--store STORE` shows the tiles.")
    else:
        try:
            pictures = _thumbnails(_tiles_of(run, store_path), tiles[:MAX_THUMBNAILS])
        except DinoPathError as error:
            sentences.append(f"The tiles cannot be shown: {error.thing}: {error.found}")
        if len(tiles) > len(pictures) > 0:
            sentences.append(f"The first {len(pictures)} of them:")
    return [Trouble(f"{run.name}: skipped steps", sentences, pictures=pictures)]


def _tiles_of(run: Run, store_path: Path) -> TileSource:
    """The store's tiles in the order in which the run numbered them."""
    slides = run.config.get("slides") or {}
    return open_tiles(store_path, split=slides.get("split"), exclude=slides.get("exclude") or ())


def _thumbnails(source: TileSource, numbers: Sequence[int]) -> list[Picture]:
    return [
        picture_of(
            source.read_image(number), caption=f"{number}: {Path(source.name(number)).name}", max_edge_px=THUMBNAIL_PX
        )
        for number in numbers
        if number < len(source)
    ]


def _unreadable(run: Run) -> list[Trouble]:
    number = sum(record.num_unreadable or 0 for record in run.metrics)
    if not number:
        return []
    return [
        Trouble(
            f"{run.name}: tiles that could not be read",
            [f"{number:,} times another tile replaced one that could not be read. log.txt names them."],
        )
    ]


def _waiting(run: Run) -> list[Trouble]:
    waits = sorted(record.data_wait for record in run.metrics)
    if not waits or (median := waits[len(waits) // 2]) <= MOST_WAITING:
        return []
    chart = line_chart([_line(run, "data_wait")], title="Share of the time spent waiting for tiles")
    return [
        Trouble(
            f"{run.name}: waiting for data",
            [
                f"Half of the records waited for tiles for {median:.0%} of the time or more.",
                "Raise training.num_workers up to the cores that the job has, or put the store on a faster disk.",
            ],
            [] if chart is None else [chart],
        )
    ]


def _failed(store: Store) -> list[Trouble]:
    failed = [slide for slide in store.slides if slide.status == "failed"]
    if not failed:
        return []
    more = f" The first {MAX_FAILED} are shown; the table of slides has all." if len(failed) > MAX_FAILED else ""
    return [
        Trouble(
            f"{store.name}: slides that failed",
            [f"{len(failed):,} of {len(store.slides):,} slides gave no tiles.{more}"],
            rows=[(slide.slide_id, slide.reason) for slide in failed[:MAX_FAILED]],
        )
    ]


def _numbers(tiles: Sequence[int]) -> str:
    return ", ".join(map(str, tiles[:12])) + (", …" if len(tiles) > 12 else "")


def _line(run: Run, field: str) -> Line:
    points = [(each.step + 1, value) for each in run.metrics if (value := each.number(field)) is not None]
    return Line(run.name, [float(step) for step, _ in points], [value for _, value in points])


def plain(troubles: Sequence[Trouble]) -> list[Plain]:
    """For the template."""
    return [vars(trouble) for trouble in troubles]

"""The report of runs that go on: written again when they have new records, until all of them have ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dino_path.records.best import is_exhausted, read_best
from dino_path.records.metrics import StepRecord, read_metrics
from dino_path.run import RunFolder
from dino_path.settings import load_config

LOOK_EVERY_S = 5.0
REFRESH_S = 30  # how often the page loads itself again, and how often it is written at most
SILENT_AFTER_S = 600.0  # without a record; then it is said, as a run may have died


def watch_runs(
    runs: Sequence[Path],
    write: Callable[[int | None], object],
    say: Callable[[str], None],
    *,
    now_s: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Write the page at once, then whenever there are new records, and a last time when all runs have ended.

    Args:
        write: writes the page, which loads itself again after so many seconds; None: it is the last one.
        say: is told each run's newest record, and when one has been silent for long.
    """
    folders = [RunFolder(path) for path in runs]
    seen: list[StepRecord | None] = [None] * len(folders)
    written_s, heard_s, has_warned, has_new = float("-inf"), now_s(), False, True
    while True:
        for number, folder in enumerate(folders):
            newest = next(reversed(read_metrics(folder.metrics_file).records), None)
            if newest is not None and newest != seen[number]:
                seen[number], heard_s, has_warned, has_new = newest, now_s(), False, True
                say(f"{folder.path}: {progress_line(newest)}")
        if all(_has_ended(folder, newest) for folder, newest in zip(folders, seen, strict=True)):
            break
        if has_new and now_s() - written_s >= REFRESH_S:
            write(REFRESH_S)
            written_s, has_new = now_s(), False
        if not has_warned and now_s() - heard_s > SILENT_AFTER_S:
            say(f"no new record for {SILENT_AFTER_S / 60:.0f} minutes: check log.txt and `dino-path status RUN`")
            has_warned = True
        sleep(LOOK_EVERY_S)
    write(None)
    say("all runs have ended")


def _has_ended(folder: RunFolder, newest: StepRecord | None) -> bool:
    """Whether no further record will come: all steps are done, or the run stopped early without gains."""
    if newest is None:
        return False
    stop_after = load_config(folder.config_file).monitor.stop_after
    return newest.step + 1 == newest.num_steps or is_exhausted(read_best(folder), stop_after)


def progress_line(record: StepRecord) -> str:
    """How far a run is, in one line."""
    done, eta_s = record.step + 1, int(record.eta_s)
    part = f"/{record.num_steps}  {done / record.num_steps:.1%}" if record.num_steps else ""
    loss = "no finite loss" if record.loss is None else f"loss {record.loss:.3f}"
    rank = "" if record.rankme is None else f"  rank {record.rankme:.0f}"
    knn = "" if record.knn_accuracy is None else f"  k-NN {record.knn_accuracy:.3f}"
    collapse = "" if record.collapse is None else f"  COLLAPSE ({record.collapse})"
    return (
        f"step {done}{part}  {loss}{rank}{knn}  {record.tiles_per_s:.0f} tiles/s  wait {record.data_wait:.0%}"
        f"  eta {eta_s // 3600}h{eta_s % 3600 // 60:02d}m{collapse}"
    )

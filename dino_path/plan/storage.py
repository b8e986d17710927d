"""What a run writes: its files, their bytes at the end and the most on the way."""

from __future__ import annotations

from dataclasses import dataclass

from dino_path.config import Config
from dino_path.plan.counted import StepCount
from dino_path.plan.figure import GB
from dino_path.tiles.images import ImageFiles
from dino_path.tiles.source import TileSource
from dino_path.training.guide import LiveGuide

RECORD_BYTES, LOG_LINE_BYTES, OFFLINE_BYTES = 900, 160, 1_500  # of one record: metrics.jsonl, log.txt, W&B offline
IMAGE_LINE_BYTES = 60  # of images.csv, which lists a folder of images
SMALL_FILES_BYTES = 100_000  # config.yaml, environment.json, log.txt's first lines, W&B's own files


@dataclass(frozen=True)
class PlannedFile:
    """What the run writes: bytes at its end, and the most on the way."""

    path: str
    num_bytes: int
    most_bytes: int
    note: str


def num_saves(config: Config, done: int, num_steps: int) -> int:
    """Checkpoints that are still to be written."""
    assert config.training is not None
    every = {config.training.checkpoint_every_steps}
    if config.monitor.keep_best and config.monitor.knn_data is not None:
        every.add(config.monitor.knn_every_steps)
    steps = {step for period in every for step in range(done - done % period + period, num_steps + 1, period)}
    return len(steps | ({num_steps} if num_steps > done else set()))


def planned_files(
    config: Config, tiles: TileSource, count: StepCount, saves: int, num_records: int, guide: LiveGuide | None
) -> tuple[PlannedFile, ...]:
    """All that the run writes with so many checkpoints and records; `guide`: the teacher that it distils, or None."""
    assert config.training is not None
    keep, size = config.training.keep_checkpoints, count.checkpoint_bytes
    best = 1 if config.monitor.keep_best and saves > keep else 0
    at_end, most = min(saves, keep) + best, min(saves, keep + 1) + best
    note = f"{saves} are written; the newest {min(saves, keep)} stay{', and the best' if best else ''}"
    numbers = num_records * (RECORD_BYTES + LOG_LINE_BYTES) + SMALL_FILES_BYTES
    found = [
        PlannedFile("checkpoints/", at_end * size, most * size, f"{note}; {size / GB:.3g} GB each (counted)"),
        PlannedFile("metrics.jsonl, log.txt, config.yaml, ...", numbers, numbers, f"{num_records} records (estimate)"),
    ]
    if isinstance(tiles, ImageFiles):
        listed = IMAGE_LINE_BYTES * len(tiles)
        found.append(PlannedFile("images.csv", listed, listed, f"{len(tiles):,} images (estimate)"))
    if config.wandb.mode != "disabled":
        offline = num_records * OFFLINE_BYTES + SMALL_FILES_BYTES
        found.append(PlannedFile("wandb/", offline, offline, f"wandb.mode={config.wandb.mode} (estimate)"))
    if config.objective.distill.cached and guide is not None:
        facts = guide.facts
        of_tile = 4 * facts.num_features + 2 * facts.num_features * (facts.num_patches or 0)
        of_all = len(tiles) * of_tile
        found.append(PlannedFile("guide_features/", of_all, of_all, f"of {len(tiles):,} tiles (counted)"))
    return tuple(found)

"""The whole road on synthetic slides: tile, pretrain, export, baseline, evaluate, embed, report."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table as ScreenTable

from dino_path.config import Config
from dino_path.distributed import open_world, usable_cores
from dino_path.evaluation.baseline.training import train_baseline
from dino_path.evaluation.labelled.datasets import load_labelled
from dino_path.evaluation.results.table import Table, evaluate_table
from dino_path.exporting.checkpoint import export_checkpoint
from dino_path.exporting.model_folder import write_card
from dino_path.features.embed import embed_store
from dino_path.features.extractor import load_extractor
from dino_path.records.evaluation import RESULTS
from dino_path.reporting.report import write_report
from dino_path.settings import load_config, shipped_config
from dino_path.slides.find import find_slides
from dino_path.slides.synthetic import SyntheticSlide, make_slides
from dino_path.tiles.store import TileStore
from dino_path.tiles.tiling import tile_slides
from dino_path.training.loop import pretrain

logger = logging.getLogger(__name__)

NUM_TRAIN_SLIDES, NUM_TEST_SLIDES = 12, 8
PIPED_WIDTH = 150  # characters, where no terminal says how many there are
EDGE_PX = 2560  # of a slide, at 0.5 um per pixel
INPUT_PX = 96  # of export, evaluation and embedding; chosen by validation slides: benchmarks/demo/README.md
# Two free cores: benchmarks/demo/README.md. Beside other work the same two cores took several times as long.
HOW_LONG = (
    "5 to 6 minutes on two free cores, several times that on a busy machine; you can stop it at any time: the same"
    " command continues"
)
# The minute's version walks the same road on fewer slides and a few steps; its numbers mean nothing.
FAST_OVERRIDES = (
    "training.num_steps=6", "training.batch_size_per_gpu=16", "monitor.log_every_steps=2", "baseline.num_epochs=1",
    "evaluation.num_bootstrap=100",
)  # fmt: skip


@dataclass(frozen=True)
class DemoFolder:
    """The files of the demo."""

    path: Path

    @property
    def slides(self) -> Path:
        return self.path / "slides"

    @property
    def store(self) -> Path:
        return self.path / "store"

    @property
    def run(self) -> Path:
        return self.path / "run"

    @property
    def model(self) -> Path:
        return self.path / "dino"

    @property
    def baseline(self) -> Path:
        return self.path / "baseline"

    @property
    def features(self) -> Path:
        return self.path / "features"

    @property
    def report(self) -> Path:
        return self.path / "report.html"


def run_demo(out: Path, *, is_fast: bool) -> None:
    """Run the whole workflow in `out`; called again, it continues. Prints the table and the path of the report."""
    folder = DemoFolder(out)
    config = demo_config(folder, is_fast=is_fast)
    num_workers = min(usable_cores(), 8)
    start_s = time.monotonic()
    logger.info("the demo takes %s", "a minute or two" if is_fast else HOW_LONG)

    with stage("1/7", "slides", "synthetic H&E; every slide has a different stain, a pen mark and a blurred area"):
        table = make_slides(folder.slides, demo_slides(is_fast=is_fast), num_workers=num_workers)
    with stage("2/7", "tile", f"{folder.slides} -> {folder.store}"):
        assert config.tiles is not None
        summary = tile_slides(find_slides([table]), config.tiles, folder.store, num_workers=num_workers)
        logger.info("%d tiles from %d slides", summary.num_tiles, len(summary.records))
    with open_world("cpu") as world, stage("3/7", "pretrain", f"DINO on the training tiles -> {folder.run}"):
        pretrain(config, world)
    with stage("4/7", "export", f"teacher -> {folder.model}, reloaded by timm"):
        result = export_checkpoint(folder.run, folder.model, input_px=INPUT_PX)
        logger.info("largest relative difference of a feature: %.1e", result.reload.relative_difference)
    with stage("5/7", "baseline", "supervised ResNet-50 from scratch on the same training slides, with labels"):
        labelled = load_labelled(f"store:{folder.store}", config.evaluation)
        with open_world("cpu") as world:
            train_baseline(
                labelled,
                config.baseline,
                num_bootstrap=config.evaluation.num_bootstrap,
                seed=config.evaluation.seed,
                out=folder.baseline,
                device=world.device,
                num_workers=num_workers,
            )
    with stage("6/7", "evaluate", "k-NN and linear probe on slides not used for training"), open_world("cpu") as world:
        results = evaluate_table(
            ["mean-colour", "colour-statistics", f"untrained:{folder.model}", str(folder.model)],
            labelled,
            config.evaluation,
            device=world.device,
            out=folder.run / "eval",
            protocols=("knn", "linear"),
            baseline=folder.baseline,
            num_workers=num_workers,
        )
        extractor = load_extractor(str(folder.model), device=world.device)
        embed_store(extractor, TileStore.open(folder.store), folder.features, batch_size=128, world=world)
    with stage("7/7", "report", str(folder.report)):
        write_card(folder.model, [RESULTS.plain(RESULTS.read(folder.run / "eval" / "results.json"))])
        write_report([folder.run], folder.report, title="dino_path demo", store=folder.store, models=[folder.model])
    show_table(results, minutes=(time.monotonic() - start_s) / 60, folder=folder, is_fast=is_fast)


def demo_config(folder: DemoFolder, *, is_fast: bool) -> Config:
    """configs/demo.yaml with the demo's folders."""
    settings = {"store": folder.store, "out": folder.run, "evaluation.regions": folder.slides / "regions"}
    return load_config(
        shipped_config("demo.yaml"),
        FAST_OVERRIDES if is_fast else (),
        needs=("store", "out", "tiles", "training"),
        settings=settings,
    )


def demo_slides(*, is_fast: bool) -> list[SyntheticSlide]:
    """The demo's slides: training and test slides, one patient each."""
    num_train, num_test = (4, 3) if is_fast else (NUM_TRAIN_SLIDES, NUM_TEST_SLIDES)
    train = [SyntheticSlide(f"train_{i:02d}", "train", 100 + i, EDGE_PX) for i in range(num_train)]
    return train + [SyntheticSlide(f"test_{i:02d}", "test", 200 + i, EDGE_PX) for i in range(num_test)]


@contextmanager
def stage(number: str, name: str, what: str) -> Iterator[None]:
    """Print what starts, and how long it took."""
    logger.info("[%s] %s: %s", number, name, what)
    start_s = time.monotonic()
    yield
    logger.info("[%s] %s: done in %.0f s", number, name, time.monotonic() - start_s)


def show_table(results: Table, *, minutes: float, folder: DemoFolder, is_fast: bool) -> None:
    """Print the accuracies with their intervals, and where everything is."""
    screen = Console(width=None if sys.stdout.isatty() else PIPED_WIDTH)
    table = ScreenTable(title=f"balanced accuracy on held-out slides [{results.rows[0].metrics.interval}]")
    protocols = ("knn", "linear", "end-to-end")
    for title in ("model", "k-NN", "linear probe", "end to end"):
        table.add_column(title)
    for model in dict.fromkeys(row.model for row in results.rows):
        scores = {str(row.protocol): str(row.metrics.balanced_accuracy) for row in results.rows if row.model == model}
        table.add_row(model, *(scores.get(protocol, "") for protocol in protocols))
    screen.print(table)
    if is_fast:
        screen.print("This was --fast: training was too short for these numbers to mean anything.")
    screen.print(f"{minutes:.1f} min. Report: {folder.report}   model: {folder.model}   features: {folder.features}")

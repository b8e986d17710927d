"""The demo's choices by validation slides that are no part of it: input size of the features, recipe of the baseline.

    dino-path demo --out demo
    python benchmarks/demo/choose.py demo --out choose [--input-px 64 96] [--baseline 48x8 64x6]
    python benchmarks/demo/choose.py demo --out fresh --slides fresh --input-px 96 --baseline

The ten validation slides have seeds 940 to 949, the sixteen fresh ones, on which nothing was chosen, 960 to 975. They
take the test slides' place beside the demo's training slides.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path

from dino_path.config import Config
from dino_path.demo import EDGE_PX, NUM_TRAIN_SLIDES, DemoFolder, demo_config, demo_slides
from dino_path.distributed import open_world
from dino_path.evaluation.baseline.training import train_baseline
from dino_path.evaluation.labelled.datasets import LabelledSet, load_labelled
from dino_path.evaluation.results.table import evaluate_table
from dino_path.slides.find import find_slides
from dino_path.slides.synthetic import SyntheticSlide, make_slides
from dino_path.tiles.tiling import tile_slides

SEEDS = {"validation": range(940, 950), "fresh": range(960, 976)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, help="folder of a demo: its model is evaluated")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--slides", choices=SEEDS, default="validation")
    parser.add_argument("--input-px", type=int, nargs="*", default=[64, 96])
    parser.add_argument("--baseline", nargs="*", default=["48x8", "64x6"], help="edge in px x epochs")
    given = parser.parse_args()
    folder = DemoFolder(given.out)
    config = demo_config(folder, is_fast=False)
    labelled = other_slides(folder, config, SEEDS[given.slides])
    with open_world("cpu") as world:
        for input_px in given.input_px:
            evaluation = config.evaluation.model_copy(update={"input_px": input_px})
            model = DemoFolder(given.demo).model
            table = evaluate_table(
                [str(model), f"untrained:{model}", "colour-statistics"], labelled, evaluation, device=world.device,
                out=given.out / f"features_{input_px}px", protocols=("knn", "linear"), baseline=None, num_workers=0,
            )  # fmt: skip
            for row in table.rows:
                print(f"{input_px} px  {row.model}  {row.protocol}  {row.metrics.balanced_accuracy}", flush=True)
                for other, differences in row.differences.items():
                    print(f"    minus {other}: {differences['balanced_accuracy']}", flush=True)
        for input_px, num_epochs in read_recipes(given.baseline):
            recipe = config.baseline.model_copy(update={"input_px": input_px, "num_epochs": num_epochs})
            start_s, cpu_s = time.monotonic(), time.process_time()
            result = train_baseline(
                labelled, recipe, num_bootstrap=config.evaluation.num_bootstrap, seed=config.evaluation.seed,
                out=given.out / f"baseline_{input_px}px_{num_epochs}", device=world.device, num_workers=1,
            )  # fmt: skip
            print(
                f"ResNet-50, {input_px} px, {num_epochs} epochs  {result.metrics.balanced_accuracy}"
                f"  {time.monotonic() - start_s:.0f} s, {time.process_time() - cpu_s:.0f} s of CPU",
                flush=True,
            )


def other_slides(folder: DemoFolder, config: Config, seeds: Iterable[int]) -> LabelledSet:
    """The demo's training slides with slides of these seeds as test part."""
    assert config.tiles is not None
    slides = demo_slides(is_fast=False)[:NUM_TRAIN_SLIDES]
    slides += [SyntheticSlide(f"other_{seed}", "test", seed, EDGE_PX) for seed in seeds]
    table = make_slides(folder.slides, slides, num_workers=2)
    tile_slides(find_slides([table]), config.tiles, folder.store, num_workers=2)
    return load_labelled(f"store:{folder.store}", config.evaluation)


def read_recipes(texts: Iterable[str]) -> list[tuple[int, int]]:
    """(edge in px, epochs) of each `48x8`."""
    return [(int(edge), int(epochs)) for edge, _, epochs in (text.partition("x") for text in texts)]


if __name__ == "__main__":
    main()

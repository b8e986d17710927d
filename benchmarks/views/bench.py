"""Making 2 x 224 + 8 x 96 px views from a 256 px JPEG tile.

    uv run python benchmarks/views/bench.py [--peer CHECKOUT_OF_facebookresearch/dino] [--quick]

Prints, in one run:
- tiles/s/core of both recipes, of what workers do when colour moves to the device, and of the published PIL pipeline
  (DataAugmentationDINO of main_dino.py, decoding included) where its checkout is given;
- the time of each stage;
- the second half on the device (CUDA where there is one);
- the loader by number of workers, and the share of a training's time that it waits for data on a CPU.

The first three are CPU time (CUDA: time between synchronisations), in interleaved rounds, so that a change of the
machine's speed hits all alike; the median is what to quote. The last is wall time, and wants an idle machine.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from dino_path.config import MasksConfig, ViewsConfig
from dino_path.distributed import World
from dino_path.records.metrics import read_metrics
from dino_path.settings import load_config
from dino_path.slides.synthetic import stain_image
from dino_path.slides.textures import PAINTERS
from dino_path.tiles.images import decode_tile
from dino_path.tiles.source import open_tiles
from dino_path.training.loop import pretrain
from dino_path.views.batches import ViewBatches, iterate_batches
from dino_path.views.device import finish_views, pack
from dino_path.views.masks import MaskDrawer
from dino_path.views.normalisation import normalise_macenko, normalise_reinhard
from dino_path.views.parameters import ViewParameters, draw_views
from dino_path.views.rendering import blur, crop_and_resize, jitter_colour, render_view, turn_and_flip
from dino_path.views.stain import jitter_stain

TILE_PX, NUM_TILES, NUM_FILES = 256, 28, 512
HISTOLOGY, DINO = ViewsConfig(), ViewsConfig.model_validate({"recipe": "dino"})
RECIPES = {"dino": DINO, "histology": HISTOLOGY}
SMALL_MODEL = (
    "model.backbone=vit_tiny_patch16_224", "objective.dino.num_prototypes=4096", "training.batch_size_per_gpu=4",
    "training.device=cpu", "training.num_steps=5", "monitor.log_every_steps=1", "wandb.mode=disabled",
    "optim.lr_warmup=2 steps", "optim.freeze_last_layer=0 steps",
)  # fmt: skip


def example_tiles() -> list[bytes]:
    """JPEG tiles of synthetic tissue, all classes."""
    tiles = []
    painters = list(PAINTERS.values())
    for number in range(NUM_TILES):
        rng = np.random.default_rng(number)
        haematoxylin, eosin = painters[number % len(painters)](TILE_PX, TILE_PX, rng)
        image = stain_image(haematoxylin, eosin, rng)
        encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 90])[1]
        tiles.append(encoded.tobytes())
    return tiles


def draw(config: ViewsConfig, epoch: int, tile: int) -> list[ViewParameters]:
    return draw_views(config, tile_width=TILE_PX, tile_height=TILE_PX, seed=0, epoch=epoch, tile=tile)


def our_views(config: ViewsConfig, epoch: int, tiles: list[bytes]) -> None:
    for number, encoded in enumerate(tiles):
        image = decode_tile(encoded, "tile")
        for view in draw(config, epoch, number):
            render_view(image, view)


def first_half(config: ViewsConfig, epoch: int, tiles: list[bytes]) -> None:
    """The work of a worker with views.colour_on_device."""
    for number, encoded in enumerate(tiles):
        image = decode_tile(encoded, "tile")
        for view in draw(config, epoch, number):
            crop_and_resize(image, view)
            pack(view)


def our_masks(epoch: int, num_tiles: int) -> None:
    """Blocks on half of the global views."""
    masks = MaskDrawer(MasksConfig(), (14, 14), seed=0, global_batch_size=num_tiles)
    masks.draw(epoch, 0, np.full(num_tiles, epoch), np.arange(num_tiles))


def decode_alone(tiles: list[bytes]) -> None:
    for encoded in tiles:
        decode_tile(encoded, "tile")


def peer_views(checkout: Path) -> Callable[[list[bytes]], None]:
    """facebookresearch/dino's own pipeline, imported from a checkout of it."""
    sys.path.insert(0, str(checkout))
    from main_dino import DataAugmentationDINO  # type: ignore[import-not-found]

    augmentation = DataAugmentationDINO((0.4, 1.0), (0.05, 0.4), 8)

    def run(tiles: list[bytes]) -> None:
        for encoded in tiles:
            with Image.open(io.BytesIO(encoded)) as image:
                augmentation(image.convert("RGB"))

    return run


def compare(tiles: list[bytes], peer: Path | None, num_rounds: int) -> None:
    contenders: dict[str, Callable[[int], None]] = {
        "decode alone (limit)": lambda _: decode_alone(tiles),
        "colour on device: workers' part": lambda epoch: first_half(HISTOLOGY, epoch, tiles),
        "recipe dino": lambda epoch: our_views(DINO, epoch, tiles),
        "recipe histology": lambda epoch: our_views(HISTOLOGY, epoch, tiles),
        "masks alone (14 x 14 patches)": lambda epoch: our_masks(epoch, len(tiles)),
        "Reinhard alone": lambda _: [normalise_reinhard(decode_tile(tile, "tile")) for tile in tiles] and None,
        "Macenko alone": lambda _: [normalise_macenko(decode_tile(tile, "tile")) for tile in tiles] and None,
    }
    if peer:
        run_peer = peer_views(peer)
        contenders["facebookresearch/dino (PIL)"] = lambda _: run_peer(tiles)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for epoch in range(num_rounds + 1):
        for name, run in contenders.items():
            start_s = time.process_time()
            run(epoch)
            if epoch > 0:  # the first round warms up
                seconds[name].append((time.process_time() - start_s) / len(tiles))
    last_s = statistics.median([*seconds.values()][-1])
    print(f"{'':34s} tiles/s/core   ms/tile (min - max)   x the last line")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"{name:34s} {1 / median:12.0f}   {median * 1e3:7.2f} "
              f"({min(values) * 1e3:.2f} - {max(values) * 1e3:.2f}) {last_s / median:8.1f}")  # fmt: skip


def stages(tiles: list[bytes], num_rounds: int) -> None:
    """CPU time of each stage; global and local views separately."""
    print(f"\n{'CPU ms/tile by stage':28s}" + "".join(f"{name:>12s}" for name in RECIPES))
    table: dict[str, dict[str, float]] = {name: {} for name in RECIPES}
    for recipe, config in RECIPES.items():
        spent: dict[str, list[float]] = {}
        for epoch in range(num_rounds):
            of_round: dict[str, float] = {}
            for number, encoded in enumerate(tiles):
                clock = Clock(of_round)
                image = decode_tile(encoded, "tile")
                clock.lap("decode")
                views = draw(config, epoch, number)
                clock.lap("draw")
                for view in views:
                    stages_of_view(image, view, clock)
            for stage, seconds in of_round.items():
                spent.setdefault(stage, []).append(seconds)
        table[recipe] = {stage: statistics.median(values) / len(tiles) * 1e3 for stage, values in spent.items()}
    for stage in sorted({*table["dino"], *table["histology"]}):
        print(f"{stage:28s}" + "".join(f"{table[name].get(stage, 0):12.3f}" for name in RECIPES))


class Clock:
    """Adds up CPU seconds by stage."""

    def __init__(self, spent: dict[str, float]) -> None:
        self.spent, self.last_s = spent, time.process_time()

    def skip(self) -> None:
        self.last_s = time.process_time()

    def lap(self, stage: str) -> None:
        now_s = time.process_time()
        self.spent[stage] = self.spent.get(stage, 0.0) + now_s - self.last_s
        self.skip()


def stages_of_view(tile: NDArray[np.uint8], view: ViewParameters, clock: Clock) -> None:
    """`render_view`, stage by stage (grey and solarisation, seldom, left out)."""
    place = "global" if view.size_px == HISTOLOGY.global_px else "local"
    shrinks = view.width > view.size_px or view.height > view.size_px
    image = crop_and_resize(tile, view)
    clock.lap(f"{place}: {'shrink' if shrinks else 'grow'}")
    image = turn_and_flip(image, view.dihedral)
    clock.lap(f"{place}: turn")
    if view.stain_scale is not None and view.stain_bias is not None:
        image = jitter_stain(image, view.stain_scale, view.stain_bias)
        clock.lap(f"{place}: stain")
    for operation in view.colour_order or ():
        alone = replace(view, colour_order=(operation,))
        clock.skip()
        image = jitter_colour(image, alone)
        clock.lap(f"{place}: {'hue' if operation == 3 else 'other colour'}")
    if view.blur_sigma_px is not None:
        blur(image, view.blur_sigma_px)
        clock.lap(f"{place}: blur")


def on_device(tiles: list[bytes], num_rounds: int) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(f"\nsecond half on {device.type}, {NUM_TILES} tiles at once")
    for recipe, config in RECIPES.items():
        images = [decode_tile(encoded, "tile") for encoded in tiles]
        views = [[(image, view) for view in draw(config, 0, number)] for number, image in enumerate(images)]
        batches = []
        for chosen in (slice(0, 2), slice(2, None)):
            some = [pair for of_tile in views for pair in of_tile[chosen]]
            pixels = torch.from_numpy(np.stack([crop_and_resize(image, view) for image, view in some]))
            batches.append((pixels, torch.tensor([pack(view) for _, view in some])))
        seconds = []
        for _ in range(num_rounds + 1):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start_s = time.perf_counter() if device.type == "cuda" else time.process_time()
            for pixels, parameters in batches:
                finish_views(pixels, parameters, device)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append((time.perf_counter() if device.type == "cuda" else time.process_time()) - start_s)
        print(f"{recipe:28s} {statistics.median(seconds[1:]) / NUM_TILES * 1e3:8.2f} ms/tile")


def write_files(folder: Path, tiles: list[bytes]) -> None:
    for number in range(NUM_FILES):
        (folder / f"{number:04d}.jpg").write_bytes(tiles[number % len(tiles)])


def loader(folder: Path) -> None:
    print("\nloader, wall time, tiles/s by number of workers (16 tiles a batch)")
    for name, settings in (("colour in workers", {}), ("colour on device", {"colour_on_device": True})):
        rates = []
        for num_workers in (0, 1, 2):
            batches = ViewBatches(
                open_tiles(folder), ViewsConfig.model_validate(settings), balance=None, seed=0, batch_size_per_gpu=16,
                rank=0, world_size=1, accumulate_steps=1,
            )  # fmt: skip
            stream = iterate_batches(batches, start=0, num_steps=40, num_workers=num_workers, pin_memory=False)
            for _ in range(8):  # workers start, and fill their queues
                next(stream)
            start_s = time.perf_counter()
            num_batches = sum(1 for _ in stream)
            rates.append(num_batches * 16 / (time.perf_counter() - start_s))
        print(f"{name:28s}" + "".join(f"{number:>4d}: {rate:6.0f}" for number, rate in enumerate(rates)))


def waiting(folder: Path, out: Path) -> None:
    print("\ntraining a ViT-Ti/16 on the CPU, histology: share of the time that it waits for data, tiles/s")
    device = torch.device("cpu")
    for on_device_too in (False, True):
        for num_workers in (0, 1):
            run = out / f"{on_device_too}-{num_workers}"
            settings = (f"training.num_workers={num_workers}", f"views.colour_on_device={str(on_device_too).lower()}")
            config = load_config(None, [*SMALL_MODEL, *settings], settings={"store": folder, "out": run})
            pretrain(config, World(rank=0, size=1, local_rank=0, device=device))
            records = read_metrics(run / "metrics.jsonl").records[2:]  # the first two fill the queue
            wait = statistics.median(record.data_wait for record in records)
            rate = statistics.median(record.tiles_per_s for record in records)
            place = "colour on device" if on_device_too else "colour in workers"
            print(f"{place}, {num_workers} workers{'':4s} {wait:6.1%} {rate:8.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="checkout of facebookresearch/dino")
    parser.add_argument("--quick", action="store_true", help="rates and stages only")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    tiles = example_tiles()
    compare(tiles, arguments.peer, num_rounds=9)
    stages(tiles, num_rounds=7)
    if not arguments.quick:
        on_device(tiles, num_rounds=3)
        with tempfile.TemporaryDirectory() as folder:
            store = Path(folder) / "tiles"
            store.mkdir()
            write_files(store, tiles)
            loader(store)
            waiting(store, Path(folder))


if __name__ == "__main__":
    main()

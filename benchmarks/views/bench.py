"""Views per core: 2 x 224 + 8 x 96 px views from a 256 px JPEG tile, one thread.

    uv run python benchmarks/views/bench.py [--peer CHECKOUT_OF_facebookresearch/dino]

Prints tiles/s/core for both of our recipes, the time of each stage, and in the same run the published PIL pipeline
(DataAugmentationDINO of main_dino.py, decoding included) where its checkout is given. The rounds are interleaved, so
that a change of the machine's speed hits all of them alike; the median is what to quote.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from dino_path.config import ViewsConfig
from dino_path.slides.synthetic import stain_image
from dino_path.slides.textures import PAINTERS
from dino_path.tiles.images import decode_tile
from dino_path.views.parameters import draw_views
from dino_path.views.rendering import crop_and_resize, render_view

TILE_PX, NUM_TILES, ROUNDS = 256, 28, 7


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


def our_views(config: ViewsConfig, epoch: int, tiles: list[bytes]) -> None:
    for number, encoded in enumerate(tiles):
        image = decode_tile(encoded, "tile")
        for view in draw_views(config, tile_width=TILE_PX, tile_height=TILE_PX, seed=0, epoch=epoch, tile=number):
            render_view(image, view)


def crops_alone(config: ViewsConfig, epoch: int, tiles: list[bytes]) -> None:
    for number, encoded in enumerate(tiles):
        image = decode_tile(encoded, "tile")
        for view in draw_views(config, tile_width=TILE_PX, tile_height=TILE_PX, seed=0, epoch=epoch, tile=number):
            crop_and_resize(image, view)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, help="checkout of facebookresearch/dino")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    tiles = example_tiles()
    histology, dino = ViewsConfig(), ViewsConfig.model_validate({"recipe": "dino"})
    contenders: dict[str, Callable[[int], None]] = {
        "decode alone (limit)": lambda _: decode_alone(tiles),
        "decode, crop, resize": lambda epoch: crops_alone(dino, epoch, tiles),
        "dino_path, recipe dino": lambda epoch: our_views(dino, epoch, tiles),
        "dino_path, recipe histology": lambda epoch: our_views(histology, epoch, tiles),
    }
    if arguments.peer:
        peer = peer_views(arguments.peer)
        contenders["facebookresearch/dino (PIL)"] = lambda _: peer(tiles)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for epoch in range(ROUNDS + 1):
        for name, run in contenders.items():
            start_s = time.perf_counter()
            run(epoch)
            if epoch > 0:  # the first round warms up
                seconds[name].append(time.perf_counter() - start_s)
    print(f"{'':32s} tiles/s/core   ms/tile (min - max)")
    for name, values in seconds.items():
        median = statistics.median(values) / NUM_TILES
        print(f"{name:32s} {1 / median:12.0f}   {median * 1e3:7.2f} "
              f"({min(values) / NUM_TILES * 1e3:.2f} - {max(values) / NUM_TILES * 1e3:.2f})")  # fmt: skip


if __name__ == "__main__":
    main()

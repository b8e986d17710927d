"""Embedding a slide: dino_path against OpenSlide + a torch DataLoader, the way TRIDENT's WSIPatcher and dataset work.

    uv run python benchmarks/embed/bench.py [--slide SLIDE] [--mpp 0.5] [--rounds 5] [--networks none,NAME]

The peer is written here from reading TRIDENT a91fa84: `read_region` of each tile at the level that is nearest from
below, `.convert("RGB")`, Pillow's resize to the tile's size where the level is finer, then torchvision's Resize
(bicubic) to the model's 224 px, ToTensor and Normalize, in a DataLoader. Both read the same corners. Everything runs in
one process and one thread (`num_workers=0`), so that CPU seconds are all there are; interleaved rounds, medians. `none`
puts a mean over pixels in the network's place: what is left is the input side. Limits of the same run: our reader alone
(input), and the network's FLOPs at the rate of a large matrix product (network).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openslide
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from dino_path.config import TilesConfig
from dino_path.features.extractor import Extractor, Forward, batches_of, load_extractor
from dino_path.features.images import read_batches
from dino_path.model.sizes import backbone_size
from dino_path.preprocessing import Preprocessing
from dino_path.slides.find import find_slides
from dino_path.slides.synthetic import SyntheticSlide, make_slides
from dino_path.tiles.store import TileStore
from dino_path.tiles.tiling import tile_slides

BATCH_SIZE, INPUT_PX, TILE_PX = 32, 224, 256
CPU = torch.device("cpu")


class Mean(nn.Module):
    """In the network's place."""

    num_features = 3

    def forward(self, images_BCHW: Tensor) -> Tensor:
        return images_BCHW.mean(dim=(2, 3))


class PeerTiles(Dataset):
    """One tile per item, as TRIDENT reads it."""

    def __init__(self, store: TileStore, numbers: np.ndarray, extractor: Extractor) -> None:
        record = store.slides[0]
        assert record.tile_mpp is not None
        assert record.mpp is not None
        self.slide = openslide.OpenSlide(record.path)
        self.level = self.slide.get_best_level_for_downsample(record.tile_mpp / record.mpp * 1.01)
        self.corners = [(int(store.x_level0[i]), int(store.y_level0[i])) for i in numbers]
        edge = round(int(store.size_level0[0]) / self.slide.level_downsamples[self.level])
        self.size = (edge, edge)
        self.transform = transforms.Compose(
            [
                transforms.Resize(INPUT_PX, interpolation=transforms.InterpolationMode.BICUBIC),
                transforms.CenterCrop(INPUT_PX),
                transforms.ToTensor(),
                transforms.Normalize(extractor.preprocessing.mean, extractor.preprocessing.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.corners)

    def __getitem__(self, number: int) -> Tensor:
        tile = self.slide.read_region(self.corners[number], self.level, self.size).convert("RGB")
        if tile.size != (TILE_PX, TILE_PX):
            tile = tile.resize((TILE_PX, TILE_PX))
        return self.transform(tile)


def ours(store: TileStore, numbers: np.ndarray, extractor: Extractor) -> np.ndarray:
    forward = Forward(extractor, CPU)
    batches = batches_of(numbers, BATCH_SIZE)
    return np.concatenate([forward(batch) for batch in read_batches(store, batches, INPUT_PX, num_workers=0)])


@torch.inference_mode()
def peers(store: TileStore, numbers: np.ndarray, extractor: Extractor) -> np.ndarray:
    loader = DataLoader(PeerTiles(store, numbers, extractor), batch_size=BATCH_SIZE, num_workers=0)
    return np.concatenate([extractor.module(batch).numpy() for batch in loader])


def extractor_for(network: str) -> Extractor:
    if network == "none":
        return Extractor("none", Mean(), Preprocessing((0.7, 0.5, 0.6), (0.2, 0.2, 0.2), INPUT_PX), "", num_features=3)
    return load_extractor(f"untrained:timm:{network}", device=CPU)


def cpu_seconds(work: Callable[[], object]) -> float:
    start_s = time.process_time()
    work()
    return time.process_time() - start_s


def decoding_rate(store: TileStore, numbers: np.ndarray) -> float:
    """Tiles/s at which the same tiles are read from the slide, nothing else: the limit of the input side."""
    return len(numbers) / cpu_seconds(lambda: [store.read_image(int(i)) for i in numbers])


def matmul_gflops() -> float:
    """GFLOP/s of a large fp32 matrix product in one thread."""
    matrix = torch.randn(1024, 1024)
    times = [cpu_seconds(lambda: matrix @ matrix) for _ in range(5)]
    return 2 * 1024**3 / statistics.median(times) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slide", type=Path, help="default: a synthetic one, 4096 px, 0.5 um/px")
    parser.add_argument("--mpp", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiles", type=int, default=192, help="for each round of the input side")
    parser.add_argument("--networks", default="none,vit_tiny_patch16_224,vit_small_patch16_224")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if arguments.slide is None:
            make_slides(work / "slides", [SyntheticSlide("slide", "train", 1, 4096)], num_workers=0)
        rows = find_slides([arguments.slide or work / "slides" / "slide.tif"])
        config = TilesConfig(mpp=arguments.mpp, size_px=TILE_PX, coordinates_only=True)
        tiling_s = cpu_seconds(lambda: tile_slides(rows, config, work / "store", num_workers=0))
        store = TileStore.open(work / "store")
        print(f"{rows[0].path.name} at {arguments.mpp:g} um/px: {len(store)} tiles; reader {store.slides[0].reader}")
        print(f"finding them (mask, quality, pictures; once per slide): {len(store) / tiling_s:,.0f} tiles/s")
        print("| network | dino_path, tiles/s (ms, min - max) | OpenSlide + DataLoader | ratio | limit, tiles/s |")
        print("|---|---|---|---|---|")
        for network in arguments.networks.split(","):
            print(one_row(network, store, arguments.tiles, arguments.rounds), flush=True)


def one_row(network: str, store: TileStore, num_tiles: int, num_rounds: int) -> str:
    extractor = extractor_for(network)
    numbers = np.arange(min(len(store), num_tiles if network == "none" else BATCH_SIZE), dtype=np.int64)
    work = {"ours": ours, "peer": peers}
    first = {name: function(store, numbers, extractor) for name, function in work.items()}  # warm the page cache, too
    scale = np.abs(first["peer"]).max()
    assert np.abs(first["ours"] - first["peer"]).mean() < 0.1 * scale, "they do not embed the same tiles"
    ms: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(num_rounds):
        for name, function in work.items():
            ms[name].append(1000 * cpu_seconds(lambda f=function: f(store, numbers, extractor)) / len(numbers))
    median = {name: statistics.median(values) for name, values in ms.items()}
    if network == "none":
        limit = f"{decoding_rate(store, numbers):,.0f} (reading alone)"
    else:
        gflops = backbone_size(network, (INPUT_PX,), 96).gflops[INPUT_PX] or float("nan")
        limit = f"{matmul_gflops() / gflops:,.1f} ({gflops:.1f} GFLOPs/tile)"
    cells = [f"{1000 / median[name]:,.1f} ({min(ms[name]):.2f} - {max(ms[name]):.2f})" for name in work]
    return f"| {network} | {cells[0]} | {cells[1]} | {median['peer'] / median['ours']:.2f} x | {limit} |"


if __name__ == "__main__":
    main()

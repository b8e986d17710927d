"""A tiny model folder, written by hand, and a tiny tile store."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors.torch import save_file

from dino_path.config import TilesConfig
from dino_path.model.backbone import build_backbone
from dino_path.records.slide import SlideRecord
from dino_path.tiles.layout import StoreFolder, write_record
from dino_path.tiles.store import TileStore
from dino_path.tiles.tile_table import TileRow, TileTable, limits_of, write_tile_table
from dino_path.tiles.writing import TileWriter

ARCHITECTURE = "vit_tiny_patch16_224"
ARGUMENTS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
TILE_PX = 40
CPU = torch.device("cpu")


def write_model_folder(folder: Path, *, seed: int = 7, mpp: float | None = 0.5) -> Path:
    torch.manual_seed(seed)
    backbone = build_backbone(ARCHITECTURE, ARGUMENTS)
    folder.mkdir(parents=True)
    preprocessing = {"input_size": [3, 32, 32], "mean": [0.7, 0.5, 0.6], "std": [0.2, 0.25, 0.3], "num_classes": 0}
    config = {"architecture": ARCHITECTURE, "model_args": ARGUMENTS, "pretrained_cfg": preprocessing, "mpp": mpp}
    (folder / "config.json").write_text(json.dumps(config))
    save_file({key: tensor.contiguous() for key, tensor in backbone.state_dict().items()}, folder / "model.safetensors")
    return folder


def write_store(path: Path, slides: dict[str, int], *, mpp: float = 0.5) -> TileStore:
    """A store whose slides have so many tiles of 40 px noise at `mpp`, from slides at 0.265 um/px; 0 tiles: empty."""
    folder, random = StoreFolder(path), np.random.default_rng(0)
    config = TilesConfig(mpp=mpp, size_px=TILE_PX)
    folder.prepare(config)
    size_level0 = round(TILE_PX * mpp / 0.265)
    for slide_id, num_tiles in slides.items():
        status = "done" if num_tiles else "empty"
        if num_tiles:
            (path / "tiles").mkdir(exist_ok=True)
            with folder.tar_file(slide_id).open("wb") as stream:
                writer, rows = TileWriter(stream, slide_id, jpeg_quality=95, subsampling="420"), []
                for x in range(0, 100 * num_tiles, 100):
                    tile = random.integers(0, 256, (TILE_PX, TILE_PX, 3), dtype=np.uint8)
                    place = writer.add(tile, (x, 3), None)
                    rows.append(TileRow(x, 3, size_level0, 1.0, 9.0, 0.0, 0.0, 0.0, *place))
                writer.close()
            write_tile_table(folder.table_file(slide_id), TileTable.from_rows(rows))
        record = SlideRecord(
            slide_id, f"{slide_id}.svs", status, reason="" if num_tiles else "no tissue", mpp=0.265, tile_mpp=mpp,
            mpp_source="openslide.mpp-x", width_level0=4000, height_level0=3000, num_tiles=num_tiles,
            limits=limits_of(config),
        )  # fmt: skip
        write_record(folder, record)
    return TileStore.open(path)


@dataclass
class Images:
    """A tile source in memory, of PNG images."""

    images: list[np.ndarray]
    mpp: float | None = None
    digest: str = "images"
    reads: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def read_image(self, index: int) -> np.ndarray:
        self.reads.append(index)
        return self.images[index]

    def read_bytes(self, index: int) -> bytes:
        return cv2.imencode(".png", self.images[index][..., ::-1])[1].tobytes()

    def name(self, index: int) -> str:
        return f"image {index}"

"""Batches are functions of (seed, step, rank): no worker, rank, resume or global random state changes a view."""

import os
import random
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import tiny_batches, tiny_config, write_tiles

from dino_path.config import Config, ViewsConfig
from dino_path.errors import ConfigError, TileStoreError
from dino_path.tiles import store
from dino_path.tiles.images import ImageFiles, image_files
from dino_path.tiles.source import Subset, TileSource, open_tiles
from dino_path.views.batches import ViewBatch, ViewBatches, iterate_batches
from dino_path.views.sampling import tile_order

OUT = Path("unused")


@pytest.fixture
def batches(tiles_folder: Path) -> ViewBatches:
    return tiny_batches(tiny_config(tiles_folder, OUT))


def stream(batches: ViewBatches, *, start: int = 0, num_steps: int = 5, num_workers: int = 0) -> list[ViewBatch]:
    return list(iterate_batches(batches, start=start, num_steps=num_steps, num_workers=num_workers, pin_memory=False))


def is_same(one: ViewBatch, other: ViewBatch) -> bool:
    assert not one.unreadable
    assert not other.unreadable
    assert one.masks is None is other.masks  # see test_masks.py
    names = [name for name in vars(one) if name not in {"unreadable", "masks"}]
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def test_a_batch_lies_view_by_view_and_tile_by_tile(batches: ViewBatches) -> None:
    batch = batches.batch(4)  # positions 16 to 19 of 12 tiles: epoch 1
    assert batch.global_views.shape == (2 * 4, 32, 32, 3)
    assert batch.local_views.shape == (2 * 4, 16, 16, 3)
    for place, tile in enumerate(batch.tiles.tolist()):
        views = batches.tile_views(1, tile)
        for number in range(2):
            assert np.array_equal(batch.global_views[number * 4 + place].numpy(), views[number])
            assert np.array_equal(batch.local_views[number * 4 + place].numpy(), views[2 + number])


def test_three_batches_of_four_are_one_epoch_of_twelve_tiles(batches: ViewBatches) -> None:
    tiles = [tile for batch in stream(batches, num_steps=6) for tile in batch.tiles.tolist()]
    assert sorted(tiles[:12]) == sorted(tiles[12:]) == [*range(12)]
    assert tiles[:12] != tiles[12:]


def test_the_same_tile_has_other_views_in_the_next_epoch(batches: ViewBatches) -> None:
    assert not np.array_equal(batches.tile_views(0, 3)[0], batches.tile_views(1, 3)[0])


@pytest.mark.parametrize("setting", ["views.colour_on_device=false", "views.colour_on_device=true"])
@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")  # on machines of two cores
@pytest.mark.parametrize("num_workers", [1, 4])
def test_workers_change_no_view(tiles_folder: Path, num_workers: int, setting: str) -> None:
    batches = tiny_batches(tiny_config(tiles_folder, OUT, setting))
    alone, made_by_workers = stream(batches), stream(batches, num_workers=num_workers)
    assert len(alone) == len(made_by_workers) == 5
    assert all(is_same(one, other) for one, other in zip(alone, made_by_workers, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resume_in_the_middle_goes_on_with_the_same_views(batches: ViewBatches, num_workers: int) -> None:
    resumed = stream(batches, start=3, num_workers=num_workers)
    assert len(resumed) == 2
    assert all(is_same(one, other) for one, other in zip(stream(batches)[3:], resumed, strict=True))


def test_two_ranks_together_see_what_one_sees(tiles_folder: Path) -> None:
    whole = tiny_batches(tiny_config(tiles_folder, OUT))
    config = tiny_config(tiles_folder, OUT, "training.batch_size_per_gpu=2")
    ranks = [tiny_batches(config, rank=rank, world_size=2) for rank in range(2)]
    for step in range(6):
        expected, parts = whole.batch(step), [rank.batch(step) for rank in ranks]
        assert torch.equal(torch.cat([part.tiles for part in parts]), expected.tiles)
        for name in ("global_views", "local_views"):
            pieces = [getattr(part, name).unflatten(0, (2, 2)) for part in parts]  # views, tiles of this rank
            assert torch.equal(torch.cat(pieces, dim=1).flatten(0, 1), getattr(expected, name))


def test_ranks_read_disjoint_tiles_within_an_epoch(tiles_folder: Path) -> None:
    config = tiny_config(tiles_folder, OUT, "training.batch_size_per_gpu=2")
    seen = [
        {tile for step in range(3) for tile in tiny_batches(config, rank=rank, world_size=2).batch(step).tiles.tolist()}
        for rank in range(2)
    ]
    assert seen[0].isdisjoint(seen[1])
    assert seen[0] | seen[1] == {*range(12)}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_making_views_touches_no_global_random_state(batches: ViewBatches, num_workers: int) -> None:
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    first = stream(batches, num_steps=2, num_workers=num_workers)
    assert random.getstate() == before[0]
    assert all(np.array_equal(one, other) for one, other in zip(np.random.get_state(), before[1], strict=True))
    assert torch.equal(torch.get_rng_state(), before[2])
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    assert all(is_same(one, other) for one, other in zip(first, stream(batches, num_steps=2), strict=True))


class ThreadCount:
    """A source whose pixels say how many threads OpenCV and torch have in the process that reads them."""

    mpp, digest = None, "threads"

    def __len__(self) -> int:
        return 4

    def read_image(self, index: int) -> NDArray[np.uint8]:
        threads = (cv2.getNumThreads(), torch.get_num_threads(), index)
        return np.broadcast_to(np.array(threads, np.uint8), (32, 32, 3)).copy()

    def read_bytes(self, index: int) -> bytes:
        return bytes(index)

    def name(self, index: int) -> str:
        return str(index)


def test_a_worker_has_one_thread() -> None:
    plain = {"stain_prob": 0, "colour_prob": 0, "blur_prob": (0, 0, 0), "num_local": 0, "global_px": 32}
    for batch in stream(batches_of(ThreadCount(), ViewsConfig.model_validate(plain)), num_steps=2, num_workers=1):
        assert {*batch.global_views[..., :2].flatten().tolist()} == {1}


def batches_of(source: TileSource, config: ViewsConfig) -> ViewBatches:
    return ViewBatches(
        source, config, balance=None, seed=0, batch_size_per_gpu=4, rank=0, world_size=1, accumulate_steps=1
    )


def test_sizes_in_microns_need_tiles_whose_mpp_is_known(tiles_folder: Path) -> None:
    config = ViewsConfig(local_um=(4, 8), global_px=32, local_px=16)
    with pytest.raises(ConfigError, match=r"views.local_um: gives sizes in microns.*unknown"):
        batches_of(ImageFiles(image_files(tiles_folder)), config)
    known = batches_of(ImageFiles(image_files(tiles_folder), mpp=0.5), config)
    assert len(known.batch(0).local_views) == 4 * 8
    views = known.tile_parameters(0, 3, known.tile_image(3))
    assert all(3.5 <= 0.5 * np.sqrt(view.width * view.height) <= 8.5 for view in views[2:])


def test_tiles_smaller_than_a_view_in_microns_are_refused(tiles_folder: Path) -> None:
    config = ViewsConfig(global_um=(10, 50), num_local=0, global_px=32)
    small = batches_of(ImageFiles(image_files(tiles_folder), mpp=0.5), config)
    with pytest.raises(TileStoreError, match=r"is 24 x 24 um, but views.global_um goes up to 50 um") as refusal:
        small.batch(0)
    assert "tiles.size_px" in refusal.value.remedy


def test_without_local_views_a_batch_has_none(tiles_folder: Path) -> None:
    batch = tiny_batches(tiny_config(tiles_folder, OUT, "views.num_local=0")).batch(0)
    assert batch.local_views.shape == (0, 16, 16, 3)
    assert batch.global_views.shape == (8, 32, 32, 3)


def test_a_batch_larger_than_the_store_goes_on_with_the_next_epoch(tmp_path: Path) -> None:
    config = tiny_config(write_tiles(tmp_path, 3), OUT, "training.batch_size_per_gpu=7")
    batch = tiny_batches(config).batch(0)
    assert sorted(batch.tiles[:3].tolist()) == sorted(batch.tiles[3:6].tolist()) == [0, 1, 2]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_another_tile_takes_the_place_of_an_unreadable_one_and_its_number_alone_decides_which(
    tmp_path: Path, num_workers: int
) -> None:
    folder = write_tiles(tmp_path, 6)
    whole = tiny_batches(tiny_config(folder, OUT, "training.batch_size_per_gpu=6")).batch(0)
    (folder / "004.png").write_bytes(b"no image")
    config = tiny_config(folder, OUT, "training.batch_size_per_gpu=6")
    batch = stream(tiny_batches(config), num_workers=num_workers)[0]
    ((tile, error),) = batch.unreadable
    assert (tile, Path(error.thing).name) == (4, "004.png")
    place = whole.tiles.tolist().index(4)
    substitute = int(batch.tiles[place])
    assert substitute != 4
    others = [at for at in range(6) if at != place]
    assert torch.equal(batch.tiles[others], whole.tiles[others])
    assert torch.equal(batch.global_views[others], whole.global_views[others])
    own = batch.tiles.tolist().index(substitute)  # the same pixels twice, and never the same views
    assert own != place
    assert not torch.equal(batch.global_views[place], batch.global_views[own])
    alone = tiny_batches(tiny_config(folder, OUT, "training.batch_size_per_gpu=1"))
    again = [alone.batch(number) for number in range(6)][place]
    assert again.tiles.tolist() == [substitute]
    assert torch.equal(again.global_views[0], batch.global_views[place])


@pytest.mark.parametrize("num_workers", [0, 1])
def test_tiles_without_a_readable_substitute_end_the_stream_with_a_name(tmp_path: Path, num_workers: int) -> None:
    folder = write_tiles(tmp_path, 6)
    for file in folder.glob("*.png"):
        file.write_bytes(b"no image")
    config = tiny_config(folder, OUT, "training.batch_size_per_gpu=6")
    with pytest.raises(TileStoreError, match=r"00\d\.png: cannot be read") as refusal:
        stream(tiny_batches(config), num_workers=num_workers)
    assert refusal.value.remedy


def test_each_tile_of_a_batch_is_read_and_decoded_once(store_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = tiny_batches(tiny_config(store_path, OUT))
    calls: list[str] = []
    pread, decode = os.pread, store.decode_image
    monkeypatch.setattr(os, "pread", lambda *arguments: calls.append("read") or pread(*arguments))
    monkeypatch.setattr(store, "decode_image", lambda *arguments: calls.append("decode") or decode(*arguments))
    batches.batch(0)
    assert calls == ["read", "decode"] * 4


# --- balanced by slide --------------------------------------------------------------------------------------------


@pytest.fixture
def balanced(store_path: Path) -> Config:
    return tiny_config(store_path, OUT, "training.balance=slide")


def test_balanced_batches_hold_as_many_tiles_of_a_small_slide_as_of_a_large_one(balanced: Config) -> None:
    batches = tiny_batches(balanced)
    for batch in stream(batches, num_steps=30):
        assert sorted(batches.source.name(tile).split()[0] for tile in batch.tiles.tolist()) == [
            "large", "large", "small", "small",
        ]  # fmt: skip


def test_workers_ranks_and_resumes_change_no_balanced_batch(store_path: Path, balanced: Config) -> None:
    alone = stream(tiny_batches(balanced))
    for others in (
        stream(tiny_batches(balanced), num_workers=2),
        alone[:3] + stream(tiny_batches(balanced), start=3),
    ):
        assert all(is_same(one, other) for one, other in zip(alone, others, strict=True))
    halves = tiny_config(store_path, OUT, "training.balance=slide", "training.batch_size_per_gpu=2")
    for step, batch in enumerate(alone):
        ranks = [tiny_batches(halves, rank=rank, world_size=2).batch(step) for rank in range(2)]
        assert torch.equal(torch.cat([rank.tiles for rank in ranks]), batch.tiles)


def test_by_patient_needs_a_patient_of_every_slide(store_path: Path, tmp_path: Path) -> None:
    names = tiny_batches(tiny_config(store_path, OUT, "training.balance=patient"))
    assert {names.source.name(tile).split()[0] for tile in names.batch(0).tiles.tolist()} == {"large", "small"}
    path = shutil.copytree(store_path, tmp_path / "store")
    record = path / "slides/small.json"
    record.write_text(record.read_text().replace('"patient_id": "P2"', '"patient_id": null'))
    with pytest.raises(ConfigError, match="slide small has no patient_id"):
        tiny_batches(tiny_config(path, OUT, "training.balance=patient"))


def test_tiles_of_unknown_slides_cannot_be_balanced(tiles_folder: Path, store_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.balance=slide: .*their slides are unknown"):
        tiny_batches(tiny_config(tiles_folder, OUT, "training.balance=slide"))
    part = Subset(open_tiles(store_path), np.arange(5))
    with pytest.raises(ConfigError, match="A complete tile store is needed"):
        tile_order(part, balance="slide", seed=0)


@pytest.mark.parametrize("world_size", [2, 4])
def test_an_epoch_that_no_step_divides_is_read_once_by_all_ranks_together(tmp_path: Path, world_size: int) -> None:
    config = tiny_config(write_tiles(tmp_path / "tiles", 5), tmp_path, "training.batch_size_per_gpu=1")
    ranks = [tiny_batches(config, rank=rank, world_size=world_size) for rank in range(world_size)]
    stream = [int(batches.batch(step).tiles) for step in range(20 // world_size) for batches in ranks]
    epochs = [stream[start : start + 5] for start in range(0, 20, 5)]
    assert [sorted(epoch) for epoch in epochs] == [[*range(5)]] * 4
    assert len({tuple(epoch) for epoch in epochs}) > 1

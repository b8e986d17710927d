"""Masks: how many views and patches are hidden, in which shapes, and that nothing but seed and tiles decides."""

import math
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny import tiny_batches, tiny_config, training_of, write_tiles

from dino_path.config import MasksConfig
from dino_path.views.batches import ViewBatch, ViewBatches, iterate_batches
from dino_path.views.masks import MaskDrawer, ViewMasks

OUT = Path("unused")


def drawer(
    grid: tuple[int, int] = (14, 14), *, seed: int = 0, global_batch_size: int = 32, **settings: object
) -> MaskDrawer:
    config = MasksConfig.model_validate(settings)
    return MaskDrawer(config, grid, seed=seed, global_batch_size=global_batch_size)


# --- how many -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("global_batch_size", [1, 3, 8, 257])
@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_exactly_the_configured_share_of_the_global_batchs_views_is_masked(
    global_batch_size: int, fraction: float
) -> None:
    masks = drawer(global_batch_size=global_batch_size, view_fraction=fraction)
    for step in range(5):
        counts = masks.counts(step)
        assert counts.shape == (2, global_batch_size)
        assert (counts > 0).sum() == int(2 * global_batch_size * fraction)


@pytest.mark.parametrize("ratio", [(0.1, 0.5), (0.3, 0.3), (0.05, 1.0)])
def test_each_masked_view_has_a_ratio_of_its_own_part_of_the_range(ratio: tuple[float, float]) -> None:
    masks = drawer((28, 28), view_fraction=0.5, ratio=ratio)
    parts = np.linspace(*ratio, 33)
    within = []
    for step in range(40):
        counts = masks.counts(step)
        rising = np.sort(counts[counts > 0])
        assert (rising >= np.floor(784 * parts[:-1] - 1e-9)).all()
        assert (rising <= 784 * parts[1:]).all()
        within.append((rising + 0.5) / 784 - parts[:-1])
    if ratio[1] > ratio[0]:  # anywhere in its part
        assert np.mean(within) / (parts[1] - parts[0]) == pytest.approx(0.5, abs=0.03)


def test_every_place_of_the_batch_is_masked_as_often_and_with_ratios_as_high() -> None:
    masks = drawer(global_batch_size=8)
    counts = np.stack([masks.counts(step) for step in range(2000)]).reshape(2000, -1)
    error = math.sqrt(0.25 / 2000)
    assert np.abs((counts > 0).mean(axis=0) - 0.5).max() < 4 * error
    of_masked = [column[column > 0] / 196 for column in counts.T]
    assert all(abs(values.mean() - 0.3) < 4 * 0.4 / math.sqrt(12 * len(values)) + 0.003 for values in of_masked)
    assert len(np.unique(counts > 0, axis=0)) > 1500, "another choice in every step"


GRIDS = [(edge // patch, edge // patch) for patch in (8, 14, 16) for edge in (4 * patch, 64, 224, 512)]


@pytest.mark.parametrize("grid", [*dict.fromkeys(GRIDS), (3, 7), (2, 2), (1, 9), (1, 1)])
@pytest.mark.parametrize("shape", ["blocks", "patches"])
def test_no_view_has_more_patches_hidden_than_drawn_on_any_grid(grid: tuple[int, int], shape: str) -> None:
    masks, num_patches = drawer(grid, shape=shape, ratio=(0.1, 0.9)), math.prod(grid)
    for number, count in enumerate(np.unique(np.linspace(1, num_patches, 9).astype(int)).tolist()):
        hidden = masks.pattern(count, epoch=0, tile=number, view=0)
        assert (hidden.shape, hidden.dtype) == ((num_patches,), np.bool_)
        if shape == "patches":
            assert hidden.sum() == count
        else:
            assert hidden.sum() <= (count if 1 not in grid else 0), "no block reaches across the grid"
            assert hidden.any() or min(grid) < 4 or count < 4


def test_single_patches_are_hidden_anywhere_as_often() -> None:
    masks = drawer((6, 6), shape="patches")
    often = np.mean([masks.pattern(9, epoch=0, tile=tile, view=0) for tile in range(3000)], axis=0)
    assert np.abs(often - 0.25).max() < 4.5 * math.sqrt(0.25 * 0.75 / 3000)


# --- blocks -------------------------------------------------------------------------------------------------------


def hidden_by(masks: MaskDrawer, count: int, *numbers: float) -> list[tuple[int, int]]:
    """(row, column) of the patches that the first numbers of a stream hide; further ones are a mistake."""
    try:
        bits = masks._blocks(count, iter(numbers).__next__)
    except StopIteration:
        raise AssertionError("not done") from None
    columns = masks.grid[1]
    return [divmod(place, columns) for place in range(math.prod(masks.grid)) if bits >> place & 1]


def test_a_block_has_four_patches_at_least_or_what_is_left_and_half_the_grid_at_most() -> None:
    masks = drawer((8, 10))
    least, most, square, start, end = 0.0, 1 - 1e-9, 0.5, 0.0, 1 - 1e-9
    assert hidden_by(masks, 4, least, square, start, start) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert hidden_by(masks, 4, least, square, end, end) == [(6, 8), (6, 9), (7, 8), (7, 9)]
    assert hidden_by(masks, 1, most, square, end, start) == [(7, 0)]
    # Four would be one too many of three: the next try hides what is left of them.
    assert hidden_by(masks, 3, least, square, start, start, most, 0.9, start, start) == [(0, 0), (1, 0), (2, 0)]
    # Half the grid is the most of one block: of 144 patches 72, so 8 x 8.
    numbers = most, square, start, start, most, square, end, end, most, square, start, end
    blocks = [(8, 0, 0), (4, 8, 8), (1, 0, 11)]
    expected = [(top + row, left + column) for edge, top, left in blocks for row, column in np.ndindex(edge, edge)]
    assert hidden_by(drawer((12, 12)), 81, *numbers) == sorted(expected)
    # Aspects go from 0.3 to 1 / 0.3: here 3 x 9 and 9 x 3 patches, and 9 rows do not fit.
    flat = [(row, column) for row in range(3) for column in range(9)]
    assert hidden_by(drawer((8, 14)), 27, most, 0.0, start, start) == flat
    assert hidden_by(drawer((8, 14)), 27, most, 1.0, most, 0.0, start, start) == flat


def naive_pattern(grid: tuple[int, int], count: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Blocks as DINOv2's masking.py describes them, patch by patch: a slow reference with another generator."""
    rows, columns = grid
    hidden = np.zeros(grid, bool)
    is_stuck = False
    while hidden.sum() < count and not is_stuck:
        allowed = min(count - hidden.sum(), 0.5 * rows * columns)
        is_stuck = True
        for _ in range(10):
            area = rng.uniform(*sorted((4, allowed)))
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (height < rows and width < columns):
                continue
            top, left = int(rng.integers(0, rows - height + 1)), int(rng.integers(0, columns - width + 1))
            added = sum(
                not hidden[row, column] for row in range(top, top + height) for column in range(left, left + width)
            )
            if 0 < added <= allowed:
                hidden[top : top + height, left : left + width] = True
                is_stuck = False
                break
    return hidden


def measured(patterns: Iterable[NDArray[np.bool_]], count: int) -> dict[str, NDArray[np.float64]]:
    """Statistics of the patterns (rows, columns), one by one."""
    seen: dict[str, list[float]] = {}
    for hidden in patterns:
        rows, columns = np.flatnonzero(hidden.any(axis=1)), np.flatnonzero(hidden.any(axis=0))
        around = np.pad(hidden, 1)
        neighbours = around[:-2, 1:-1].astype(int) + around[2:, 1:-1] + around[1:-1, :-2] + around[1:-1, 2:]
        values = {
            "hidden": hidden.sum(),
            "not reached": hidden.sum() < count,
            "height": np.ptp(rows),
            "width": np.ptp(columns),
            "height less width": np.ptp(rows) - np.ptp(columns),
            "neighbours": neighbours[hidden].mean(),
            "single": (neighbours[hidden] == 0).sum(),
            "inner": (neighbours[hidden] == 4).sum(),
            "at the rim": hidden[0].sum() + hidden[:, -1].sum(),
            "in the middle": hidden[len(hidden) // 2].sum(),
            "longest row": hidden.sum(axis=1).max(),
            "longest column": hidden.sum(axis=0).max(),
        }
        for name, value in values.items():
            seen.setdefault(name, []).append(float(value))
    return {name: np.asarray(values) for name, values in seen.items()}


@pytest.mark.parametrize(
    ("grid", "count"), [((14, 14), 20), ((14, 14), 97), ((16, 16), 150), ((4, 4), 7), ((6, 12), 30), ((37, 37), 400)]
)
def test_blocks_have_the_distribution_of_the_published_ones(grid: tuple[int, int], count: int) -> None:
    size, masks, rng = 800, drawer(grid), np.random.default_rng(1)
    ours = measured((masks.pattern(count, epoch=0, tile=tile, view=0).reshape(grid) for tile in range(size)), count)
    theirs = measured((naive_pattern(grid, count, rng) for _ in range(size)), count)
    for name, values in ours.items():
        others = theirs[name]
        error = math.sqrt((values.var() + others.var()) / size) + 1 / size
        assert abs(values.mean() - others.mean()) < 4 * error, name
        both = np.sort(np.concatenate([values, others]))  # Kolmogorov and Smirnov's distance
        shares = [np.searchsorted(np.sort(one), both, side="right") / size for one in (values, others)]
        assert np.abs(shares[0] - shares[1]).max() < 2.3 * math.sqrt(2 / size), name


# --- of what they are a function ----------------------------------------------------------------------------------


def test_a_pattern_depends_on_seed_epoch_tile_and_view_and_on_nothing_else() -> None:
    for shape in ("blocks", "patches"):
        first, key = drawer(shape=shape), {"epoch": 0, "tile": 5, "view": 0}
        once = first.pattern(60, **key)
        first.counts(3)
        first.pattern(60, epoch=0, tile=6, view=0)
        assert np.array_equal(first.pattern(60, **key), once)
        assert np.array_equal(drawer(shape=shape, global_batch_size=7).pattern(60, **key), once)
        others = [drawer(shape=shape, seed=1).pattern(60, **key)]
        others += [first.pattern(60, **{**key, name: key[name] + 1}) for name in key]
        assert not any(np.array_equal(other, once) for other in others)


def test_counts_depend_on_seed_and_step_and_on_nothing_else() -> None:
    once = drawer().counts(7)
    assert np.array_equal(drawer().counts(7), once)
    assert not np.array_equal(drawer().counts(8), once)
    assert not np.array_equal(drawer(seed=1).counts(7), once)


def masked_batches(
    store: Path, batch_size: int, *settings: str, rank: int = 0, world_size: int = 1, passes: int = 1
) -> ViewBatches:
    """Views of 32 px, of 4 x 4 patches, with masks."""
    config = tiny_config(
        store, OUT, f"training.batch_size_per_gpu={batch_size}", f"training.accumulate_steps={passes}",
        "objective.ibot.weight=1", *settings,
    )  # fmt: skip
    batches = tiny_batches(config, rank=rank, world_size=world_size)
    batches.masks = MaskDrawer(
        config.objective.ibot.masks, (4, 4), seed=training_of(config).seed,
        global_batch_size=batch_size * passes * world_size,
    )  # fmt: skip
    return batches


def masks_of(batch: ViewBatch) -> ViewMasks:
    assert batch.masks is not None
    return batch.masks


def hidden_of(batches: list[ViewBatch]) -> torch.Tensor:
    """(steps, 2, B, N)"""
    return torch.stack([masks_of(batch).hidden.unflatten(0, (2, -1)) for batch in batches])


def made(batches: ViewBatches, *, start: int = 0, num_steps: int = 4, num_workers: int = 0) -> list[ViewBatch]:
    return list(iterate_batches(batches, start=start, num_steps=num_steps, num_workers=num_workers, pin_memory=False))


@pytest.mark.parametrize("shape", ["blocks", "patches"])
@pytest.mark.parametrize(
    ("world_size", "passes", "num_workers"), [(1, 1, 2), (2, 1, 0), (1, 4, 0), (4, 2, 0), (2, 2, 1)]
)
def test_ranks_workers_and_accumulation_change_no_mask(
    tiles_folder: Path, shape: str, world_size: int, passes: int, num_workers: int
) -> None:
    setting = f"objective.ibot.masks.shape={shape}"
    whole = hidden_of(made(masked_batches(tiles_folder, 8, setting)))
    assert whole.any(dim=3).sum(dim=(1, 2)).tolist() == [8] * 4
    size = 8 // world_size // passes
    parts = [
        hidden_of(
            made(
                masked_batches(tiles_folder, size, setting, rank=rank, world_size=world_size, passes=passes),
                num_workers=num_workers,
            )
        )
        for rank in range(world_size)
    ]
    # (ranks, steps, passes, 2, B, N): a rank's tiles lie beside each other, pass by pass.
    shared = torch.stack([part.unflatten(0, (4, passes)) for part in parts]).permute(1, 3, 0, 2, 4, 5)
    assert torch.equal(shared.flatten(2, 4), whole)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resume_goes_on_with_the_same_masks(tiles_folder: Path, num_workers: int) -> None:
    batches = masked_batches(tiles_folder, 4)
    assert torch.equal(hidden_of(made(batches, start=2, num_workers=num_workers)), hidden_of(made(batches))[2:])


def test_views_have_the_same_bits_with_and_without_masks(tiles_folder: Path) -> None:
    batches = masked_batches(tiles_folder, 4)
    masked = made(batches)
    batches.masks = None
    for one, other in zip(masked, made(batches), strict=True):
        assert other.masks is None
        for name in ("global_views", "local_views", "global_parameters", "local_parameters", "tiles"):
            assert torch.equal(getattr(one, name), getattr(other, name))


def test_the_substitute_of_an_unreadable_tile_has_the_tiles_masks(tmp_path: Path) -> None:
    folder = write_tiles(tmp_path, 6)
    settings = "objective.ibot.masks.view_fraction=1"
    whole = masked_batches(folder, 6, settings).batch(0)
    (folder / "004.png").write_bytes(b"no image")
    substituted = masked_batches(folder, 6, settings).batch(0)
    assert len(substituted.unreadable) == 1
    assert torch.equal(masks_of(substituted).hidden, masks_of(whole).hidden)


def test_a_step_of_another_size_than_the_masks_were_told_is_our_mistake(tiles_folder: Path) -> None:
    batches = tiny_batches(tiny_config(tiles_folder, OUT))
    with pytest.raises(AssertionError):
        ViewBatches(
            batches.source, batches.config, balance=None, seed=0, batch_size_per_gpu=4, rank=0, world_size=1,
            accumulate_steps=1, masks=drawer((4, 4), global_batch_size=8),
        )  # fmt: skip


# --- what the loss gets -------------------------------------------------------------------------------------------


def test_indices_and_weights_are_those_of_the_hidden_patches_view_by_view() -> None:
    hidden = torch.zeros(4, 6, dtype=torch.bool)
    hidden[0, [1, 5]] = True
    hidden[2, 0] = True
    masks = ViewMasks.of(hidden)
    assert masks.indices.tolist() == [1, 5, 12]
    assert masks.weights.tolist() == [0.5, 0.5, 1.0]
    assert (masks.indices.dtype, masks.weights.dtype) == (torch.int64, torch.float32)
    there = masks.sent_to(torch.device("cpu"))
    assert all(torch.equal(getattr(there, field.name), getattr(masks, field.name)) for field in fields(masks))


def test_a_batch_may_have_nothing_hidden() -> None:
    masks = ViewMasks.of(torch.zeros(4, 6, dtype=torch.bool))
    assert masks.indices.shape == masks.weights.shape == (0,)

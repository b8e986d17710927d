"""The endless stream of tiles: every epoch an exact shuffle, at any position at once."""

import itertools

import numpy as np
import pytest

from dino_path.views.sampling import ShuffledTiles


@pytest.mark.parametrize("num_tiles", [1, 2, 3, 4, 5, 7, 64, 65, 1000, 4097])
def test_every_epoch_holds_every_tile_once(num_tiles: int) -> None:
    epochs, tiles = ShuffledTiles(num_tiles, seed=3)(np.arange(3 * num_tiles))
    assert epochs.tolist() == np.repeat([0, 1, 2], num_tiles).tolist()
    assert tiles.dtype == np.int64
    for epoch in range(3):
        assert sorted(tiles[epochs == epoch].tolist()) == [*range(num_tiles)]


def test_order_differs_by_epoch_and_by_seed_and_repeats_for_both() -> None:
    positions = np.arange(2000)
    _, tiles = ShuffledTiles(1000, seed=0)(positions)
    _, again = ShuffledTiles(1000, seed=0)(positions)
    _, other = ShuffledTiles(1000, seed=1)(positions)
    assert np.array_equal(tiles, again)
    for one, two in ((tiles[:1000], tiles[1000:]), (tiles[:1000], other[:1000]), (tiles[:1000], np.arange(1000))):
        assert np.mean(one == two) < 0.01, "two random orders agree in one place on average"


def test_positions_can_be_asked_for_in_any_order_and_alone() -> None:
    order = ShuffledTiles(97, seed=5)
    epochs, tiles = order(np.arange(500))
    shuffled = np.random.default_rng(0).permutation(500)
    assert np.array_equal(order(shuffled)[1], tiles[shuffled])
    assert np.array_equal(order(shuffled)[0], epochs[shuffled])
    assert [int(order(np.array([place]))[1][0]) for place in (0, 96, 97, 499)] == tiles[[0, 96, 97, 499]].tolist()


def test_a_hundred_million_tiles_cost_no_memory() -> None:
    order = ShuffledTiles(100_000_000, seed=0)
    epochs, tiles = order(np.array([0, 99_999_999, 100_000_000, 12_345_678_901]))
    assert epochs.tolist() == [0, 0, 1, 123]
    assert len({*tiles.tolist()}) == 4
    assert 0 <= tiles.min() <= tiles.max() < 100_000_000


@pytest.mark.parametrize("num_tiles", [7, 50])
def test_each_place_sees_each_tile_equally_often_over_the_epochs(num_tiles: int) -> None:
    num_epochs = 4000
    _, tiles = ShuffledTiles(num_tiles, seed=11)(np.arange(num_epochs * num_tiles))
    expected = num_epochs / num_tiles
    for place in (0, 1, num_tiles - 1):
        counts = np.bincount(tiles.reshape(num_epochs, num_tiles)[:, place], minlength=num_tiles)
        chi_square = float(((counts - expected) ** 2 / expected).sum())
        assert chi_square < num_tiles - 1 + 5 * np.sqrt(2 * (num_tiles - 1))


def test_all_orders_of_three_tiles_come_equally_often() -> None:
    _, tiles = ShuffledTiles(3, seed=2)(np.arange(3 * 6000))
    orders, counts = np.unique(tiles.reshape(6000, 3), axis=0, return_counts=True)
    assert [tuple(order) for order in orders.tolist()] == [*itertools.permutations(range(3))]
    assert counts.min() > 850
    assert counts.max() < 1150


def test_neighbours_in_the_store_are_not_neighbours_in_the_stream() -> None:
    _, tiles = ShuffledTiles(4097, seed=0)(np.arange(4097))
    assert abs(np.corrcoef(tiles[:-1], tiles[1:])[0, 1]) < 0.06
    assert abs(np.corrcoef(tiles, np.arange(4097))[0, 1]) < 0.06
    assert np.mean(np.abs(np.diff(tiles)) == 1) < 0.003

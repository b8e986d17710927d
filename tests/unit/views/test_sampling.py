"""The endless stream of tiles: every epoch an exact shuffle, at any position at once; or as many of every slide."""

import itertools
import tracemalloc

import numpy as np
import pytest

from dino_path.views.sampling import BalancedTiles, ShuffledTiles, TileOrder

SLIDES = [1, 7, 30, 2, 64]  # tiles of each
PATIENTS = [0, 1, 0, 2, 1]
FIRST_TILE = np.cumsum([0, *SLIDES])


@pytest.mark.parametrize("num_tiles", [1, 2, 3, 4, 5, 7, 64, 65, 1000, 4097])
def test_every_epoch_holds_every_tile_once(num_tiles: int) -> None:
    epochs, tiles = ShuffledTiles(num_tiles, seed=3)(np.arange(3 * num_tiles))
    assert epochs.tolist() == np.repeat([0, 1, 2], num_tiles).tolist()
    assert tiles.dtype == np.int64
    for epoch in range(3):
        assert sorted(tiles[epochs == epoch].tolist()) == [*range(num_tiles)]


def test_orders_of_every_size_are_permutations() -> None:
    sizes = [*range(1, 300), *(2**power + step for power in (10, 15, 16, 17) for step in (-1, 0, 1)), 1_000_000]
    for num_tiles in sizes:
        _, tiles = ShuffledTiles(num_tiles, seed=1)(np.arange(num_tiles))
        assert (np.bincount(tiles, minlength=num_tiles) == 1).all(), num_tiles


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


def peak_bytes(num_tiles: int) -> int:
    """Most memory that numpy and Python hold while an order is made and asked for a batch."""
    tracemalloc.start()
    ShuffledTiles(num_tiles, seed=0)(np.arange(64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def test_a_hundred_million_tiles_cost_no_memory() -> None:
    peak_bytes(1000)  # whatever is made once
    assert peak_bytes(10**12) < 1.5 * peak_bytes(1000) < 100_000
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


# --- balanced -----------------------------------------------------------------------------------------------------


def by_slide(seed: int = 0) -> BalancedTiles:
    return BalancedTiles(SLIDES, [0, 1, 2, 3, 4], seed)


def by_patient(seed: int = 0) -> BalancedTiles:
    return BalancedTiles(SLIDES, PATIENTS, seed)


def slides_of(tiles: np.ndarray) -> np.ndarray:
    return np.searchsorted(FIRST_TILE, tiles, side="right") - 1


def test_from_the_start_to_anywhere_every_slide_has_come_equally_often_within_one() -> None:
    slides = slides_of(by_slide()(np.arange(1003))[1])
    counts = np.cumsum(slides[:, None] == np.arange(5), axis=0)
    assert (counts.max(axis=1) - counts.min(axis=1) <= 1).all()


def test_from_the_start_to_anywhere_every_patient_has_come_equally_often_within_one() -> None:
    patients = np.asarray(PATIENTS)[slides_of(by_patient()(np.arange(1003))[1])]
    counts = np.cumsum(patients[:, None] == np.arange(3), axis=0)
    assert (counts.max(axis=1) - counts.min(axis=1) <= 1).all()


@pytest.mark.parametrize(("order", "groups"), [(by_slide(), [0, 1, 2, 3, 4]), (by_patient(), PATIENTS)])
def test_no_tile_of_a_group_repeats_before_all_of_them_came(order: BalancedTiles, groups: list[int]) -> None:
    epochs, tiles = order(np.arange(3000))
    group_of_tile = np.repeat(groups, SLIDES)
    for group in set(groups):
        members = np.flatnonzero(group_of_tile == group).tolist()
        chosen = group_of_tile[tiles] == group
        own, own_epochs = tiles[chosen].tolist(), epochs[chosen].tolist()
        for epoch, start in enumerate(range(0, len(own) - len(members) + 1, len(members))):
            assert sorted(own[start : start + len(members)]) == members
            assert set(own_epochs[start : start + len(members)]) == {epoch}, "how often the tile came before"


def test_no_tile_has_the_same_views_twice() -> None:
    epochs, tiles = by_slide()(np.arange(3000))
    assert len({*zip(epochs.tolist(), tiles.tolist(), strict=True)}) == 3000


@pytest.mark.parametrize("order", [by_slide(), by_patient(), ShuffledTiles(104, seed=0)])
def test_a_balanced_stream_goes_on_from_any_position(order: TileOrder) -> None:
    epochs, tiles = order(np.arange(700))
    places = np.random.default_rng(0).permutation(700)
    assert np.array_equal(order(places)[1], tiles[places])
    assert np.array_equal(order(places)[0], epochs[places])
    assert [int(order(np.array([place]))[1][0]) for place in (0, 104, 699)] == tiles[[0, 104, 699]].tolist()


def test_the_order_of_the_slides_and_of_their_tiles_differs_by_round_epoch_slide_and_seed() -> None:
    order = BalancedTiles([50] * 40, range(40), seed=0)
    tiles = order(np.arange(40 * 100))[1].reshape(100, 40)
    slides = tiles // 50
    assert np.mean(slides[0] == slides[1]) < 0.2
    own = np.stack([tiles[slides == slide] % 50 for slide in range(40)])  # (slide, draw)
    assert np.mean(own[:, :50] == own[:, 50:]) < 0.06, "other epochs"
    assert np.mean(own[0] == own[1]) < 0.2, "other slides"
    other = BalancedTiles([50] * 40, range(40), seed=1)(np.arange(40 * 100))[1].reshape(100, 40)
    assert np.mean(tiles == other) < 0.01, "another seed"


def test_every_slide_comes_at_every_place_of_a_round_equally_often() -> None:
    num_rounds = 6000
    slides = slides_of(by_slide()(np.arange(5 * num_rounds))[1]).reshape(num_rounds, 5)
    for place in range(5):
        counts = np.bincount(slides[:, place], minlength=5)
        assert abs(counts - num_rounds / 5).max() < 5 * np.sqrt(num_rounds * 0.16)


def test_the_tiles_of_three_come_in_all_orders_equally_often() -> None:
    tiles = BalancedTiles([3], [0], seed=4)(np.arange(3 * 6000))[1]
    orders, counts = np.unique(tiles.reshape(6000, 3), axis=0, return_counts=True)
    assert len(orders) == 6
    assert counts.min() > 850
    assert counts.max() < 1150

"""Which tile comes when: an endless stream, shuffled exactly, addressed by position.

Keyed permutations (Feistel networks with cycle walking, Black & Rogaway 2002) replace shuffled arrays: 100 M tiles cost
no memory, and any position is computed directly, so a resume need not replay the stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from dino_path.errors import ConfigError
from dino_path.tiles.source import TileSource
from dino_path.tiles.store import TileStore

# Four Feistel rounds make a strong pseudorandom permutation (Luby & Rackoff 1988) of large blocks. Ours are small (a
# group may hold a handful of tiles, so halves of one or two bits); two more rounds mix them well enough.
_ROUNDS = 6
_U64 = np.uint64
_GOLDEN = _U64(0x9E3779B97F4A7C15)  # SplitMix64's step


class TileOrder(Protocol):
    """An endless stream of tiles."""

    def __call__(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Look up (P,) positions 0, 1, 2, ... of the stream.

        Returns:
            (P,) how often each tile came before, and (P,) the tiles. The first is the epoch from which views are drawn,
            so no tile gets the same views twice.
        """


def tile_order(source: TileSource, *, balance: Literal["slide", "patient"] | None, seed: int) -> TileOrder:
    """The order in which training sees the tiles of `source`.

    Raises:
        ConfigError: `balance` is set, but there are no slides, or a slide has no patient.
    """
    if balance is None:
        return ShuffledTiles(len(source), seed)
    if not isinstance(source, TileStore):
        raise ConfigError(
            f"training.balance={balance}",
            "the tiles are image files, or part of a store; their slides are unknown.",
            "A complete tile store is needed.",
            "Leave training.balance out, or give a store made by `dino-path tile`.",
        )
    names = [slide.slide_id if balance == "slide" else slide.patient_id for slide in source.slides]
    if None in names:
        raise ConfigError(
            "training.balance=patient",
            f"slide {source.slides[names.index(None)].slide_id} has no patient_id.",
            "Every slide needs one.",
            "Give `dino-path tile` a CSV with the column patient_id, or set training.balance=slide.",
        )
    _, groups = np.unique(np.asarray(names), return_inverse=True)
    return BalancedTiles(np.diff(source.starts), groups.tolist(), seed)


class ShuffledTiles:
    """Every epoch holds every tile once, in an order keyed by (seed, epoch)."""

    def __init__(self, num_tiles: int, seed: int) -> None:
        self.num_tiles = num_tiles
        self.seed = seed

    def __call__(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As in `TileOrder`."""
        epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), self.num_tiles)
        tiles = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            # numpy guarantees a bit generator's raw stream across versions, but not its shuffle: an old run must
            # resume.
            keys = np.random.SFC64([self.seed, int(epoch), self.num_tiles]).random_raw(_ROUNDS).astype(_U64)
            tiles[chosen] = _permute(places[chosen], np.asarray(self.num_tiles), keys[:, None])
        return epochs, tiles


class BalancedTiles:
    """Every group of slides comes equally often; within a group, every tile comes once before any is repeated.

    The stream consists of rounds with one tile from each of the G groups, in an order keyed by (seed, round). So up to
    any position, the groups' numbers of tiles differ by at most one. A group has its own epochs over the tiles of all
    its slides, each in an order keyed by (seed, group, epoch).
    """

    def __init__(self, num_tiles: Sequence[int] | NDArray[np.int64], groups: Sequence[int], seed: int) -> None:
        """`num_tiles` and `groups` (0 to G - 1) of each slide, in the order of the source."""
        counts, group_of_slide = np.asarray(num_tiles, np.int64), np.asarray(groups)
        first_tile = np.cumsum(counts) - counts
        # Slides sorted by group make the tiles of a group contiguous, so one permutation of a range shuffles a group
        # that spans many slides. A tile's place in this order is its rank; `searchsorted` maps it back to a slide.
        by_group = np.argsort(group_of_slide, kind="stable")
        self._first_tile = first_tile[by_group]
        self._first_rank = np.cumsum(counts[by_group]) - counts[by_group]
        self._sizes = np.bincount(group_of_slide, weights=counts).astype(np.int64)
        self._group_first_rank = np.cumsum(self._sizes) - self._sizes
        self._round_key, self._group_key = np.random.SFC64([seed, len(self._sizes)]).random_raw(2).astype(_U64)

    def __call__(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """As in `TileOrder`."""
        rounds, places = np.divmod(np.asarray(positions, dtype=np.int64), len(self._sizes))
        groups = _permute(places, np.asarray(len(self._sizes)), _round_keys(self._round_key, rounds))
        epochs, places = np.divmod(rounds, self._sizes[groups])
        places = _permute(places, self._sizes[groups], _round_keys(self._group_key, groups, epochs))
        ranks = self._group_first_rank[groups] + places
        slides = np.searchsorted(self._first_rank, ranks, side="right") - 1
        return epochs, self._first_tile[slides] + ranks - self._first_rank[slides]


def _permute(places: NDArray[np.int64], sizes: NDArray[np.int64], keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where each of `places` (P,) goes in a permutation of 0 to size - 1.

    Args:
        sizes: (P,) or one for all.
        keys: (ROUNDS, P) or (ROUNDS, 1); places with the same size and keys share a permutation.
    """
    # A Feistel network permutes 2 ** (2 * half_bits) values, at most about four times the size; values outside the
    # range are permuted again until they fall inside (cycle walking), four passes on average at worst.
    num_bits = np.frexp(np.maximum(sizes - 1, 1).astype(np.float64))[1]  # bit lengths, exact below 2 ** 53
    half_bits = np.broadcast_to(np.maximum((num_bits + 1) // 2, 1).astype(_U64), places.shape)
    sizes, keys = np.broadcast_to(sizes.astype(_U64), places.shape), np.broadcast_to(keys, (_ROUNDS, *places.shape))
    values = _feistel(places.astype(_U64), half_bits, keys)
    outside = np.flatnonzero(values >= sizes)
    while len(outside):  # a cycle that starts inside the range must return to it, so every walk ends
        values[outside] = _feistel(values[outside], half_bits[outside], keys[:, outside])
        outside = outside[values[outside] >= sizes[outside]]
    return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], half_bits: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = (_U64(1) << half_bits) - _U64(1)
    left, right = values >> half_bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half_bits) | right


def _round_keys(key: np.uint64, *numbers: NDArray[np.int64]) -> NDArray[np.uint64]:
    """(ROUNDS, P) keys of a permutation that belongs to `key` and these numbers (P,)."""
    state = np.full(numbers[0].shape, key)
    for number in numbers:
        state = _mix(state ^ _mix(number.astype(_U64) + _GOLDEN))
    return _mix(state + _GOLDEN * np.arange(1, _ROUNDS + 1, dtype=_U64)[:, None])


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele et al. 2014): every output bit depends on every input bit."""
    values = (values ^ (values >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> _U64(27))) * _U64(0x94D049BB133111EB)
    return values ^ (values >> _U64(31))

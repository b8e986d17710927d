"""Which tile comes when: an endless stream of epochs, each an exact shuffle, addressed by position."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_U64 = np.uint64


class ShuffledTiles:
    """Position in the stream -> (epoch, tile). Every epoch holds every tile once, in an order keyed by (seed, epoch).

    A keyed permutation (Feistel network with cycle walking, Black & Rogaway 2002) stands in for a shuffled array,
    so that 100 M tiles cost no memory and any position can be asked for at once: a resume jumps right to it.
    """

    def __init__(self, num_tiles: int, seed: int) -> None:
        self.num_tiles = num_tiles
        self.seed = seed
        self._half_bits = max(1, (max(num_tiles - 1, 1).bit_length() + 1) // 2)

    def __call__(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Epochs and tiles at `positions` (0, 1, 2, ... in the endless stream), both int64 of the same shape."""
        epochs, places = np.divmod(np.asarray(positions, dtype=np.int64), self.num_tiles)
        tiles = np.empty_like(places)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            tiles[chosen] = self._permute(places[chosen].astype(_U64), int(epoch)).astype(np.int64)
        return epochs, tiles

    def _permute(self, values: NDArray[np.uint64], epoch: int) -> NDArray[np.uint64]:
        keys = np.random.SFC64([self.seed, epoch, self.num_tiles]).random_raw(_ROUNDS).astype(_U64)
        values = self._feistel(values, keys)
        outside = values >= _U64(self.num_tiles)
        while outside.any():  # each walk stays on its cycle and so ends below num_tiles
            values[outside] = self._feistel(values[outside], keys)
            outside = values >= _U64(self.num_tiles)
        return values

    def _feistel(self, values: NDArray[np.uint64], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
        bits, mask = _U64(self._half_bits), _U64((1 << self._half_bits) - 1)
        left, right = values >> bits, values & mask
        for key in keys:
            left, right = right, left ^ (_mix(right ^ key) & mask)
        return (left << bits) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele et al. 2014): every output bit depends on every input bit."""
    values = (values ^ (values >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> _U64(27))) * _U64(0x94D049BB133111EB)
    return values ^ (values >> _U64(31))

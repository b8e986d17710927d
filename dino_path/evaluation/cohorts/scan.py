"""One pass over all tiles of an extractor: sums for mean pooling, and a sample of every bag in bounded memory.

Shape suffixes: N cases, D features, T sampled tiles of a case.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dino_path.evaluation.cohorts.cohort import Source
from dino_path.evaluation.measures.confusion import Floats, Ints
from dino_path.features.bags import Features
from dino_path.progress import meter

GB = 1e9


@dataclass(frozen=True)
class Scan:
    """The results of one pass.

    Attributes:
        means, squares: (N, D) mean over the tiles of a case of each feature, and of its square.
        samples: (T, D) of each case, all tiles where they fit; empty where none were asked for.
    """

    means: Floats
    squares: Floats
    samples: tuple[Features, ...]

    def standard(self, cases: Ints) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and standard deviation (D,) of tiles of these cases, every case weighing the same."""
        mean_D = self.means[cases].mean(axis=0)
        variance_D = self.squares[cases].mean(axis=0) - mean_D**2
        is_constant = variance_D <= 1e-12 * np.maximum(self.squares[cases].mean(axis=0), 1e-12)
        std_D = np.sqrt(np.where(is_constant, 1.0, variance_D))
        return mean_D.astype(np.float32), std_D.astype(np.float32)


def scan(source: Source, *, memory_gb: float | None, seed: int) -> Scan:
    """Read all tiles of an extractor once.

    Args:
        memory_gb: for the samples of all cases; None: keep none. A case of more tiles than its share gives a random
            sample of them, so that memory is bounded whatever slides there are.

    Raises:
        DataError: a feature file cannot be read, or holds numbers that are not finite.
    """
    num_cases, width = len(source.bags), source.num_features
    most = 0 if memory_gb is None else tiles_that_fit(source.num_tiles, width, memory_gb)
    means_ND, squares_ND = np.zeros((num_cases, width)), np.zeros((num_cases, width))
    samples: list[Features] = []
    with meter(f"reading {source.name}", num_cases, "cases") as counter:
        for case, num_tiles in enumerate(source.num_tiles.tolist()):
            chosen = _choose(num_tiles, most, np.random.default_rng([seed, case]))
            kept, start = [], 0
            for piece_ND in source.pieces(case):
                means_ND[case] += piece_ND.sum(axis=0, dtype=np.float64)
                squares_ND[case] += np.square(piece_ND, dtype=np.float64).sum(axis=0)
                first, last = np.searchsorted(chosen, (start, start + len(piece_ND)))
                kept.append(piece_ND[chosen[first:last] - start])
                start += len(piece_ND)
            means_ND[case] /= num_tiles
            squares_ND[case] /= num_tiles
            if memory_gb is not None:
                samples.append(np.concatenate(kept))
            counter.advance()
    return Scan(means_ND, squares_ND, tuple(samples))


def tiles_that_fit(num_tiles_N: Ints, width: int, memory_gb: float) -> int:
    """The largest number of tiles that each case may keep, so that those of all cases fit.

    Small cases leave their share to the larger ones; at least one tile of each is kept.
    """
    room = memory_gb * GB / (width * np.dtype(np.float32).itemsize)
    ascending_N = np.sort(num_tiles_N)
    for done, num_tiles in enumerate(ascending_N):
        share = (room - ascending_N[:done].sum()) / (len(ascending_N) - done)
        if num_tiles > share:
            return max(1, int(share))
    return int(ascending_N[-1])


def _choose(num_tiles: int, most: int, rng: np.random.Generator) -> Ints:
    """Numbers, ascending, of `most` of the tiles at random; of all where there are not more."""
    if num_tiles <= most:
        return np.arange(num_tiles)
    return np.sort(rng.choice(num_tiles, most, replace=False))

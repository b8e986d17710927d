"""Pairs of tested cases that a score should order: areas under ROC curves and concordance indices, fold by fold.

Scores of two folds are of two models, whose scales differ, so that only cases of one test part are compared. (Pooled
over folds, a model that knows nothing has an area below 0.5: what a fold tests is what its training part lacks.)

Shape suffixes: N cases of the cohort, M cases of one test part, G units, B rows of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dino_path.evaluation.measures.confusion import Floats, Ints
from dino_path.evaluation.measures.intervals import LeftOut
from dino_path.evaluation.measures.sample import Sample, Units, resamples


@dataclass(frozen=True)
class PairBlock:
    """The pairs of one test part.

    Attributes:
        members: (M,) numbers of its cases in the cohort.
        wins: (M, M), 1 where the first of a pair is rightly above the second, 0.5 where they are level.
        pairs: (M, M), whether the two are compared; each pair once, its upper case first.
    """

    members: Ints
    wins: Floats
    pairs: NDArray[np.bool_]

    def lost_with(self, unit_N: Ints, num_units: int) -> tuple[Floats, Floats]:
        """Wins and pairs (G,) that each unit takes with it when it is left out."""
        unit_M = unit_N[self.members]
        is_within = unit_M[:, None] == unit_M
        wins, pairs = (
            np.bincount(unit_M, each.sum(axis=0) + each.sum(axis=1) - (each * is_within).sum(axis=1), num_units).astype(
                np.float64
            )
            for each in (self.wins, self.pairs.astype(np.float64))
        )
        return wins, pairs

    def weighted(self, weights_BN: Floats) -> tuple[Floats, Floats]:
        """Wins and pairs (B,) when each case counts as often as its weight says."""
        weights_BM = weights_BN[:, self.members]
        wins, pairs = (
            ((weights_BM @ each) * weights_BM).sum(axis=1) for each in (self.wins, self.pairs.astype(np.float64))
        )
        return wins, pairs


def class_pairs(members: Ints, is_positive_M: NDArray[np.bool_], score_M: Floats) -> PairBlock:
    """Every case of a class against every other case: their share of wins is the area under the ROC curve."""
    return _block(members, is_positive_M[:, None] & ~is_positive_M, score_M)


def survival_pairs(members: Ints, time_M: Floats, is_event_M: NDArray[np.bool_], risk_M: Floats) -> PairBlock:
    """Every event against every case known to live longer: their share of wins is Harrell's concordance index.

    Harrell et al. 1982; a case censored at the time of an event counts as living longer (as lifelines has it).
    """
    is_later = (time_M[:, None] < time_M) | ((time_M[:, None] == time_M) & ~is_event_M)
    return _block(members, is_event_M[:, None] & is_later, risk_M)


def _block(members: Ints, pairs_MM: NDArray[np.bool_], score_M: Floats) -> PairBlock:
    difference_MM = score_M[:, None] - score_M
    wins_MM = np.where(pairs_MM, (difference_MM > 0) + 0.5 * (difference_MM == 0), 0.0)
    return PairBlock(members, wins_MM, pairs_MM)


def pair_sample(blocks: Sequence[PairBlock], units: Units, freedom: float, *, num_bootstrap: int, seed: int) -> Sample:
    """The share of correctly ordered pairs, over all blocks, with its variation with the tested units.

    NaN where there is no pair.
    """
    wins, pairs = (np.array([getattr(block, name).sum() for block in blocks]).sum() for name in ("wins", "pairs"))
    value = _share(wins, pairs)
    deviations = []
    for of_image, count in ((units.index, units.count), (np.arange(len(units.index)), len(units.index))):
        lost_wins, lost_pairs = np.zeros(count), np.zeros(count)
        for block in blocks:
            lost = block.lost_with(of_image, count)
            lost_wins, lost_pairs = lost_wins + lost[0], lost_pairs + lost[1]
        deviations.append(_share(wins - lost_wins, pairs - lost_pairs) - value)
    draws = []
    for weights_BG in resamples(units, num_bootstrap, seed):
        weights_BN = weights_BG[:, units.index].astype(np.float64)
        drawn = np.array([block.weighted(weights_BN) for block in blocks]).sum(axis=0)
        draws.append(_share(*drawn))
    return Sample(float(value), np.concatenate(draws), LeftOut(deviations[0], deviations[1], freedom))


def _share(part: Floats, whole: Floats) -> Floats:
    with np.errstate(invalid="ignore", divide="ignore"):
        share: Floats = np.where(np.asarray(whole) > 0, part / whole, np.nan)
    return share

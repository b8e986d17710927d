"""95 % intervals over few patients: leave one patient out, and Student's t.

Resampling three or four patients draws the same few again and again, and its percentiles say nothing of the patients
that were not met. What holds its promise there (`benchmarks/evaluation/coverage.py`) is older: the metric without each
unit in turn gives its variance (the delete-a-group jackknife; Quenouille 1956, Tukey 1958), the units that really count
give the degrees of freedom (Satterthwaite 1946; Bell and McCaffrey 2002), and scores that end at 0 and 1 are taken on
the logit scale, on which an interval cannot leave them.

Shape suffixes: N test images, G units (patients, slides or images), C classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from scipy.sparse import csr_array  # which takes a second to import

Floats = NDArray[np.float64]
UPPER = 0.975
# Two units have one: Student's t is 12.7 there, and its interval says nothing.
LEAST_FREEDOM = 1.2


@dataclass(frozen=True)
class Score:
    """A number and its 95 % confidence interval; low and high are NaN where too few units were tested for one."""

    value: float
    low: float
    high: float

    def record(self) -> dict[str, float | None]:
        """For JSON: NaN becomes null."""
        return {name: None if math.isnan(v := getattr(self, name)) else v for name in ("value", "low", "high")}

    def decimals(self) -> tuple[str, str, str]:
        """For CSV: value, low, high."""
        return f"{self.value:.6f}", f"{self.low:.6f}", f"{self.high:.6f}"

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3f} (no interval)"
        between = "-" if self.low >= 0 else " to "
        return f"{self.value:.3f} ({self.low:.3f}{between}{self.high:.3f})"


class Spread(Protocol):
    """The variation of a metric with the tested units: a standard error and its degrees of freedom."""

    @property
    def freedom(self) -> float: ...

    def standard_error(self) -> float: ...


@dataclass(frozen=True)
class LeftOut:
    """The jackknife values of a metric: without each unit in turn, minus the metric of all.

    Attributes:
        units: (G,) deviations when a unit is left out.
        images: (N,) deviations when an image is left out.
        freedom: degrees of freedom of the variance over units; 0: one unit, or a class that stands in one only.
    """

    units: Floats
    images: Floats
    freedom: float

    def __sub__(self, other: LeftOut) -> LeftOut:
        """Of a difference between two models on the same images."""
        return LeftOut(self.units - other.units, self.images - other.images, self.freedom)

    def standard_error(self) -> float:
        """Over units, and no less than over images: patients that agree by accident prove no certainty."""
        return math.sqrt(max(_variance(self.units), _variance(self.images)))


def _variance(deviations: Floats) -> float:
    known = deviations[~np.isnan(deviations)]
    return float((len(known) - 1) / len(known) * (known**2).sum()) if len(known) else 0.0


def degrees_of_freedom(counts_GC: NDArray[np.number] | csr_array) -> float:
    """Of the variance over units of a mean over classes of each class's mean over images; 0 where a class has one unit.

    Units of equal size that hold every class have G - 1; units that each hold one class, G - C; where a few are large,
    it is less, since a few decide. Satterthwaite's approximation for units that differ alike.

    Args:
        counts_GC: images of each class in each unit; one column for a mean over all images. Of many classes sparse:
            most units hold few of them.
    """
    counts_GC = counts_GC[:, counts_GC.sum(axis=0) > 0].astype(np.float64)
    if 0 in counts_GC.shape or ((counts_GC > 0).sum(axis=0) < 2).any():
        return 0.0
    # Residuals r = Q e of the units have covariance Q Q' = diag(v) + U M U', U = [s, s^2]; df = tr(QQ')^2 / |QQ'|^2.
    share_GC = counts_GC * (1 / counts_GC.sum(axis=0))[None]
    squares_GC = share_GC * share_GC
    v_G, of_class_C = squares_GC.sum(axis=1), squares_GC.sum(axis=0)
    diagonal_G = squares_GC @ of_class_C - 2 * (squares_GC * share_GC).sum(axis=1)
    of_shares, mixed, of_squares = share_GC.T @ share_GC, share_GC.T @ squares_GC, squares_GC.T @ squares_GC
    # The blocks of M U'U, M = [[diag(of_class), -1], [-1, 0]].
    first = of_shares * of_class_C[:, None] - mixed.T
    second = mixed * of_class_C[:, None] - of_squares
    squared = (first * first.T).sum() - 2 * (second * of_shares.T).sum() + (mixed * mixed.T).sum()
    trace = (v_G + diagonal_G).sum()
    squares = (v_G**2).sum() + 2 * (v_G * diagonal_G).sum() + squared
    return float(trace**2 / squares)


def score_interval(value: float, left_out: Spread, *, lowest: float = 0.0, highest: float = 1.0) -> Score:
    """Of a score between `lowest` and `highest`, by Student's t on the logit scale.

    All right (or all wrong) has no spread to see: there the exact binomial bound of as many units stands, each right or
    wrong as a whole. Three patients without an error do not prove 1.0.
    """
    if left_out.freedom < LEAST_FREEDOM or math.isnan(value):
        return Score(value, math.nan, math.nan)
    span = highest - lowest
    share = (value - lowest) / span
    error = left_out.standard_error() / span
    if share >= 1 or share <= 0:
        bound = (1 - UPPER) ** (1 / (left_out.freedom + 1))
        low, high = (bound, 1.0) if share >= 1 else (0.0, 1 - bound)
    else:
        from scipy.special import expit, logit, stdtrit  # here, since scipy takes a second to import

        arm = float(stdtrit(left_out.freedom, UPPER)) * error / (share * (1 - share))
        low, high = float(expit(logit(share) - arm)), float(expit(logit(share) + arm))
    return Score(value, lowest + span * low, lowest + span * high)


def difference_interval(value: float, left_out: Spread, *, widest: float = 1.0) -> Score:
    """Of a difference of two scores, which lies between -`widest` and `widest`, by Student's t.

    Where no unit shows any difference, the exact binomial bound of as many units stands, as for `score_interval`: two
    models that answer three patients alike are not proven equal.
    """
    if left_out.freedom < LEAST_FREEDOM or math.isnan(value):
        return Score(value, math.nan, math.nan)
    error = left_out.standard_error()
    if error == 0:
        arm = widest * (1 - (1 - UPPER) ** (1 / (left_out.freedom + 1)))
    else:
        from scipy.special import stdtrit

        arm = float(stdtrit(left_out.freedom, UPPER)) * error
    return Score(value, max(value - arm, -widest), min(value + arm, widest))

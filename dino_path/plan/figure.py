"""A number of a plan: with its unit, its range, and how it was got."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

CONFIDENCE = 0.95
GB = 1e9


@dataclass(frozen=True)
class Figure:
    """One number.

    Attributes:
        low, high: its range; None: it has none, as what is counted.
        how: `counted`, `measured: ...`, `estimate: ...` and so on, in words.
    """

    value: float
    unit: str
    how: str
    low: float | None = None
    high: float | None = None

    def scaled(self, factor: float, unit: str, *, offset: float = 0.0) -> Figure:
        """`offset` and `factor` times this, in another unit."""
        low, high = (None if one is None else offset + factor * one for one in (self.low, self.high))
        return Figure(offset + factor * self.value, unit, self.how, low, high)

    def inverse(self, factor: float, unit: str) -> Figure:
        """`factor` divided by this: tiles a step by seconds a step are tiles a second."""
        low, high = (None if one is None or one <= 0 else factor / one for one in (self.high, self.low))
        return Figure(factor / self.value, unit, self.how, low, high)

    def most(self) -> float:
        """The upper end of the range, or the number itself."""
        return self.value if self.high is None else self.high


def mean_or_line(sizes: Sequence[float], values: Sequence[float], at: float) -> tuple[float, float, float]:
    """(value, low, high) at `at`: the mean, where all sizes are `at`; else of the line through (size, value).

    The range is the 95 % confidence interval of the mean, or of the line at `at` (Student's t): of the noise from one
    value to the next. A single value, or two on a line, has an infinite one.

    Source: Draper and Smith, Applied Regression Analysis, 3rd edition, 1998, section 3.1.
    """
    x, y = np.asarray(sizes, float), np.asarray(values, float)
    spread = float(((x - x.mean()) ** 2).sum())
    slope = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread > 0 else 0.0
    value = float(y.mean()) + slope * (at - float(x.mean()))
    freedom = len(x) - (2 if spread > 0 else 1)
    if freedom < 1:
        return value, -math.inf, math.inf
    residuals = y - y.mean() - slope * (x - x.mean())
    variance = float((residuals**2).sum()) / freedom
    leverage = 1 / len(x) + ((at - float(x.mean())) ** 2 / spread if spread > 0 else 0.0)
    half = float(student_t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance * leverage)
    return value, value - half, value + half

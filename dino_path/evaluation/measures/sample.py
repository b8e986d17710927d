"""A number of the tested images, and how it varies with the patients, slides or images that were tested.

Over many units intervals are percentile bootstraps; over fewer, where those are too narrow, one unit is left out and
Student's t used (`intervals`).

Shape suffixes: N test images, G units, B bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dino_path.evaluation.measures.confusion import Floats, Ints
from dino_path.evaluation.measures.intervals import (
    LEAST_FREEDOM,
    LeftOut,
    Score,
    difference_interval,
    score_interval,
)

# From here on percentiles of the bootstrap hold what they promise; at 50 patients not yet, where patients differ much
# (benchmarks/evaluation/coverage.py).
BOOTSTRAP_FREEDOM = 100
LOWER, UPPER = 2.5, 97.5
MAX_WEIGHTS_PER_CHUNK = 2**23


@dataclass(frozen=True)
class Units:
    """The units of intervals: `name` ("patients", "slides", "images"); `index` (N,) gives each test image's unit."""

    name: str
    index: Ints

    @property
    def count(self) -> int:
        return int(self.index.max()) + 1

    @classmethod
    def of(cls, groups_N: NDArray[np.str_] | None, group_kind: str | None, num_images: int) -> Units:
        """Units of test images with the groups `groups_N`; each image is a unit if groups are unknown."""
        if groups_N is None:
            return cls("images", np.arange(num_images))
        return cls(f"{group_kind}s", np.unique(groups_N, return_inverse=True)[1].astype(np.int64))


@dataclass(frozen=True)
class Sample:
    """One number of the tested images, and its variation with the tested units.

    Attributes:
        draws: (B,) over the resamples of units.
    """

    value: float
    draws: Floats
    left_out: LeftOut

    def __sub__(self, other: Sample) -> Sample:
        """The difference of two models on the same images, with the same resamples."""
        return Sample(self.value - other.value, self.draws - other.draws, self.left_out - other.left_out)

    def score(self, *, lowest: float = 0.0, highest: float = 1.0) -> Score:
        """With its interval, as a score between `lowest` and `highest`."""
        if self.left_out.freedom < BOOTSTRAP_FREEDOM:
            return score_interval(self.value, self.left_out, lowest=lowest, highest=highest)
        score = _percentiles(self.value, self.draws)
        # Where all are right (or all wrong) resampling sees no spread: `score_interval`'s bound stands in.
        bound = 0.025 ** (1 / (self.left_out.freedom + 1))
        if self.value >= highest:
            return Score(self.value, min(score.low, highest * bound), score.high)
        if self.value <= 0.0:
            return Score(self.value, score.low, max(score.high, highest * (1 - bound)))
        return score

    def difference(self, *, lowest: float = 0.0, highest: float = 1.0) -> Score:
        """With its interval, as a difference of scores between `lowest` and `highest`."""
        if self.left_out.freedom < BOOTSTRAP_FREEDOM:
            return difference_interval(self.value, self.left_out, widest=highest - lowest)
        return _percentiles(self.value, self.draws)


def mean_sample(samples: Sequence[Sample]) -> Sample:
    """The mean of one metric over several predictions of the same images."""
    return Sample(
        float(np.mean([one.value for one in samples])),
        np.mean([one.draws for one in samples], axis=0),
        LeftOut(
            np.mean([one.left_out.units for one in samples], axis=0),
            np.mean([one.left_out.images for one in samples], axis=0),
            samples[0].left_out.freedom,
        ),
    )


def interval_in_words(freedom: float, num_units: int, unit: str) -> str:
    """Description of an interval over `num_units` of `unit` ("patients", "slides" or "images")."""
    over = f"{num_units} test {unit}"
    if freedom < LEAST_FREEDOM:
        return f"no interval: too few {unit}, {over}; each class needs two, and all together three"
    if freedom < BOOTSTRAP_FREEDOM:
        return f"95 % interval over {over} (Student's t, {freedom:.1f} degrees of freedom)"
    return f"95 % interval over {over} (bootstrap)"


def resamples(units: Units, num_bootstrap: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often (B, G) each unit was drawn, with replacement, in chunks of bounded size; the same for equal seeds."""
    rng = np.random.default_rng(seed)
    num_units = units.count
    chunk = max(1, MAX_WEIGHTS_PER_CHUNK // len(units.index))
    for start in range(0, num_bootstrap, chunk):
        num_rows = min(chunk, num_bootstrap - start)
        drawn = rng.integers(num_units, size=(num_rows, num_units))
        drawn += np.arange(num_rows)[:, None] * num_units
        yield np.bincount(drawn.ravel(), minlength=num_rows * num_units).reshape(num_rows, num_units)


def _percentiles(value: float, draws_B: Floats) -> Score:
    known_B = draws_B[~np.isnan(draws_B)]
    if len(known_B) == 0:
        return Score(value, math.nan, math.nan)
    low, high = np.percentile(known_B, [LOWER, UPPER])
    return Score(value, float(low), float(high))

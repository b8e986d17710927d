"""Ranges of what was measured, against scipy's intervals and by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from dino_path.plan.figure import Figure, mean_or_line


def test_steps_of_one_size_give_their_mean_and_students_interval() -> None:
    seconds = [1.0, 1.2, 0.9, 1.1, 1.05]
    value, low, high = mean_or_line([32.0] * 5, seconds, 32.0)
    expected = stats.t.interval(0.95, 4, np.mean(seconds), stats.sem(seconds))
    assert (value, low, high) == pytest.approx((np.mean(seconds), *expected))


def test_steps_of_two_sizes_give_the_line_through_them() -> None:
    sizes, seconds = [8.0, 8.0, 16.0, 16.0, 16.0], [0.5, 0.54, 0.9, 0.95, 0.88]
    value, low, high = mean_or_line(sizes, seconds, 64.0)
    line = stats.linregress(sizes, seconds)
    assert value == pytest.approx(line.intercept + 64 * line.slope)
    # The same interval by the matrix formula: s^2 x' (X'X)^-1 x.
    design = np.column_stack([np.ones(5), sizes])
    at = np.array([1.0, 64.0])
    residuals = np.array(seconds) - design @ np.array([line.intercept, line.slope])
    variance = residuals @ residuals / 3 * (at @ np.linalg.inv(design.T @ design) @ at)
    half = stats.t.ppf(0.975, 3) * math.sqrt(variance)
    assert (low, high) == pytest.approx((value - half, value + half))


def test_the_interval_holds_the_truth_in_95_of_100_cases() -> None:
    rng, sizes = np.random.default_rng(0), np.repeat([8.0, 16.0], 6)
    hits = 0
    for _ in range(1000):
        _, low, high = mean_or_line(sizes.tolist(), (0.2 + 0.05 * sizes + rng.normal(0, 0.1, 12)).tolist(), 64.0)
        hits += low <= 0.2 + 0.05 * 64 <= high
    assert 930 <= hits <= 970


def test_one_step_alone_says_nothing_of_its_range() -> None:
    assert mean_or_line([4.0], [1.5], 4.0) == (1.5, -math.inf, math.inf)


def test_a_rate_has_the_ends_of_its_range_turned_round() -> None:
    rate = Figure(2.0, "s", "measured", 1.0, 4.0).inverse(8.0, "tiles/s")
    assert (rate.value, rate.low, rate.high) == (4.0, 2.0, 8.0)
    total = Figure(2.0, "s", "measured", 1.0, 4.0).scaled(10, "s", offset=5.0)
    assert (total.low, total.value, total.high) == (15.0, 25.0, 45.0)
    assert Figure(3.0, "GB", "counted").most() == 3.0

"""Means, mean ranks and differences over sets, against closed forms."""

import math

import numpy as np
import pytest
from scipy.stats import binom, norm, t

from dino_path.evaluation.measures.across_sets import mean_difference, mean_over_sets, mean_ranks
from dino_path.evaluation.measures.intervals import LeftOut
from dino_path.evaluation.measures.sample import Sample

MANY = 1000.0


def sample(value, *, error=0.1, freedom=MANY, draws=None, num_draws=1000):
    """A metric whose jackknife variance over two units is error squared."""
    units = np.array([error, -error])
    return Sample(value, np.full(num_draws, value) if draws is None else draws, LeftOut(units, np.zeros(2), freedom))


def normal(value, error, *, seed, num_draws=20_000):
    draws = np.random.default_rng(seed).normal(value, error, num_draws)
    return sample(value, error=error, draws=draws)


def flips(probability, *, value=0.8, other=0.7, num_draws=20_000):
    """Two models of one set: the second is ahead in this share of the resamples."""
    num_flipped = round(probability * num_draws)
    draws = np.where(np.arange(num_draws) < num_flipped, other - 0.1, value)
    return sample(value, draws=draws), sample(other, num_draws=num_draws)


def test_few_groups_have_students_t_with_satterthwaites_degrees_of_freedom():
    errors, freedoms = (0.02, 0.05, 0.03), (4.0, 7.0, 12.0)
    samples = [sample(v, error=e, freedom=f) for v, e, f in zip((0.8, 0.6, 0.7), errors, freedoms, strict=True)]
    score = mean_over_sets(samples)
    variances = np.square(errors)
    freedom = variances.sum() ** 2 / (variances**2 / freedoms).sum()
    arm = t.ppf(0.975, freedom) * math.sqrt(variances.sum()) / 3
    assert score.value == pytest.approx(0.7)
    logits = [math.log(0.7 / 0.3) + sign * arm / (0.7 * 0.3) for sign in (-1, 1)]
    assert (score.low, score.high) == pytest.approx(tuple(1 / (1 + math.exp(-x)) for x in logits))


def test_many_groups_have_the_percentiles_of_the_mean_of_independent_resamples():
    """Sets of as many groups have drawn the same numbers; their means vary as those of independent sets."""
    score = mean_over_sets([normal(0.7, 0.03, seed=0)] * 4)
    assert (score.low, score.high) == pytest.approx((0.7 - 1.96 * 0.015, 0.7 + 1.96 * 0.015), abs=1e-3)


def test_a_difference_is_paired_within_each_set():
    rng = np.random.default_rng(1)
    mine, others = [], []
    for number in range(3):
        common = rng.normal(0, 0.1, 20_000)  # hard groups are hard for both
        mine.append(sample(0.75, draws=0.75 + common + rng.normal(0, 0.01, 20_000)))
        others.append(sample(0.70 + 0.01 * number, draws=0.70 + 0.01 * number + common))
    score = mean_difference(mine, others)
    assert score.value == pytest.approx(0.04)
    arm = norm.ppf(0.975) * 0.01 / math.sqrt(3)
    assert (score.low, score.high) == pytest.approx((0.04 - arm, 0.04 + arm), abs=1e-3)


def test_two_answers_alike_on_all_sets_are_not_proven_equal():
    same = [sample(0.8, error=0.0, freedom=9.0), sample(0.6, error=0.0, freedom=20.0)]
    score = mean_difference(same, same)
    bound = 1 - 0.025 ** (1 / 10)
    assert (score.value, score.low, score.high) == pytest.approx((0.0, -bound, bound))


def test_mean_ranks_of_two_models_follow_the_binomial():
    """With flips of probability p on each of S sets, S x (mean rank - 1) is binomial."""
    num_sets, probability = 8, 0.2
    pairs = [flips(probability) for _ in range(num_sets)]
    ranks = mean_ranks({"first": [one for one, _ in pairs], "second": [other for _, other in pairs]})
    last = binom.ppf(0.975, num_sets, probability) / num_sets
    assert (ranks["first"].value, ranks["second"].value) == (1.0, 2.0)
    assert (ranks["first"].low, ranks["first"].high) == pytest.approx((1.0, 1 + last))
    assert (ranks["second"].low, ranks["second"].high) == pytest.approx((2 - last, 2.0))


def test_percentiles_are_reflected_about_the_observed_rank():
    """Observed in the middle, drawn to one side: the interval reaches as far to the other side."""
    ahead, behind = flips(0.45), flips(0.45)
    first = [ahead[0], behind[1], *[ahead[0]] * 6]
    second = [ahead[1], behind[0], *[ahead[1]] * 6]
    score = mean_ranks({"first": first, "second": second})["first"]
    assert score.value == pytest.approx(1 + 1 / 8)
    # The second set answers the other way round: seven flips of 0.45, one of 0.55.
    counts = np.convolve(binom.pmf(range(8), 7, 0.45), [0.45, 0.55])
    high = np.searchsorted(np.cumsum(counts), 0.975) / 8
    assert score.high == pytest.approx(1 + high)
    assert score.low == 1.0


def test_equal_models_share_the_mean_of_their_ranks_and_a_certain_order_has_no_width():
    sets = [sample(0.9), sample(0.8), sample(0.8), sample(0.5)]
    ranks = mean_ranks({name: [one] * 3 for name, one in zip("abcd", sets, strict=True)})
    assert {name: (score.low, score.value, score.high) for name, score in ranks.items()} == {
        "a": (1, 1, 1), "b": (2.5, 2.5, 2.5), "c": (2.5, 2.5, 2.5), "d": (4, 4, 4),
    }  # fmt: skip


def test_few_groups_widen_ranks_by_students_t_and_too_few_leave_no_interval():
    def ranks_at(freedom):
        rng = np.random.default_rng(2)
        draws = [value + rng.normal(0, 0.05, 20_000) for value in (0.8, 0.7)]
        models = [sample(value, draws=one, freedom=freedom) for value, one in zip((0.8, 0.7), draws, strict=True)]
        return mean_ranks({"a": [models[0]] * 20, "b": [models[1]] * 20})["a"]

    for freedom, widened in ((MANY, 1.0), (4.0, t.ppf(0.975, 4) / norm.ppf(0.975))):
        flipped = norm.cdf(-0.1 / (0.05 * math.sqrt(2) * widened))
        assert ranks_at(freedom).high == pytest.approx(1 + binom.ppf(0.975, 20, flipped) / 20, abs=0.051)
    assert math.isnan(ranks_at(1.0).low)
    assert math.isnan(mean_over_sets([sample(0.8, freedom=1.0), sample(0.7)]).low)


def test_the_interval_holds_the_expected_rank_where_percentiles_alone_do_not():
    """Six models in small steps on twelve sets; the whole comparison is benchmarks/evaluation/ranks.py."""
    rng = np.random.default_rng(3)
    true_M, num_sets, num_experiments = 0.5 * np.arange(6), 12, 100
    drawn = true_M + rng.normal(size=(20_000, 6))
    expected = 1 + np.mean((drawn[:, None, :] > drawn[:, :, None]).sum(axis=2), axis=0)
    held = np.zeros(6)
    for _ in range(num_experiments):
        values_SM = true_M + rng.normal(size=(num_sets, 6))
        again_SBM = values_SM[:, None] + rng.normal(size=(num_sets, 200, 6))
        models = {
            str(m): [sample(values_SM[s, m], draws=again_SBM[s, :, m]) for s in range(num_sets)] for m in range(6)
        }
        held += [
            score.low <= rank <= score.high for score, rank in zip(mean_ranks(models).values(), expected, strict=True)
        ]
    assert held.min() >= 90

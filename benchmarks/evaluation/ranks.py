"""How often the interval of a mean rank over several labelled sets contains the true rank.

    uv run python benchmarks/evaluation/ranks.py [--experiments 400]

Each experiment draws the scores of several models on several sets, normal about their true scores, and resamples that
are normal about what was drawn. The target is the mean rank to expect of as many other groups (*expected*); beside it
the mean rank of the true scores (*true*). Printed is the share of experiments, in per cent, whose interval holds it,
for the model where it does so least often, and in brackets the mean width: percentiles of the resamples alone, and the
interval of `mean_ranks`.
"""

from __future__ import annotations

import argparse

import numpy as np

from dino_path.evaluation.measures.across_sets import _ranks, mean_ranks
from dino_path.evaluation.measures.intervals import LeftOut
from dino_path.evaluation.measures.sample import Sample

NUM_RESAMPLES = 400
SCENARIOS = {  # true scores, in standard errors of one score
    "2 equal": np.zeros(2),
    "2, one better by 1": np.array([1.0, 0.0]),
    "6 equal": np.zeros(6),
    "6, steps of 0.5": 0.5 * np.arange(6),
    "6, steps of 1": 1.0 * np.arange(6),
    "6, one better by 1.5": np.array([1.5, 0, 0, 0, 0, 0]),
}
NUM_SETS = (2, 4, 12, 30)


def sample(value: float, draws_B: np.ndarray) -> Sample:
    return Sample(value, draws_B, LeftOut(np.zeros(2), np.zeros(2), freedom=1000.0))


def coverage(true_M: np.ndarray, num_sets: int, num_experiments: int, rng: np.random.Generator) -> dict[str, float]:
    num_models = len(true_M)
    shape = (num_sets, num_models)
    expected_M = _ranks(true_M + rng.normal(size=(4000, *shape))).mean(axis=(0, 1))
    targets = {"expected": expected_M, "true": _ranks(true_M)}
    held = {(way, name): np.zeros(num_models) for way in ("percentiles", "mean_ranks") for name in targets}
    width = {"percentiles": 0.0, "mean_ranks": 0.0}
    for _ in range(num_experiments):
        drawn = true_M + rng.normal(size=shape)
        again = drawn + rng.normal(size=(NUM_RESAMPLES, *shape))
        ends = {"percentiles": np.percentile(_ranks(again).mean(axis=1), [2.5, 97.5], axis=0)}
        scores = mean_ranks(
            {str(m): [sample(drawn[s, m], again[:, s, m]) for s in range(num_sets)] for m in range(num_models)}
        )
        ends["mean_ranks"] = np.array([(score.low, score.high) for score in scores.values()]).T
        for way, (low_M, high_M) in ends.items():
            width[way] += float((high_M - low_M).mean()) / num_experiments
            for name, target_M in targets.items():
                held[way, name] += (low_M - 1e-9 <= target_M) & (target_M <= high_M + 1e-9)
    return {f"{way} {name}": 100 * one.min() / num_experiments for (way, name), one in held.items()} | width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=400)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    print(f"{'models':24s} sets   percentiles: expected  true (width)   mean_ranks: expected  true (width)")
    for name, true_M in SCENARIOS.items():
        for num_sets in NUM_SETS:
            one = coverage(true_M, num_sets, arguments.experiments, rng)
            cells = [
                f"{one[f'{way} expected']:22.0f} {one[f'{way} true']:5.0f} ({one[way]:.2f})"
                for way in ("percentiles", "mean_ranks")
            ]
            print(f"{name:24s} {num_sets:4d} {'     '.join(cells)}")


if __name__ == "__main__":
    main()

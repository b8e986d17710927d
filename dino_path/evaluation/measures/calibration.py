"""Calibration of probabilities: expected calibration error, Brier score and reliability curve.

- ECE: images are sorted into 15 bins of equal width by the probability of their predicted class; the error is the mean
  over images of |share of right answers - mean probability| of their bin (Guo et al. 2017, equation 3).
- Brier score: mean over images of the sum over all classes of (probability - 1 if it is the true class else 0) squared,
  0 to 2 (Brier 1950). For two classes this is twice the one-sided score that some libraries give.

Shape suffixes: N test images, C classes, G units, M bins, S sums (of the M bins, then of the Brier score).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_path.evaluation.measures.confusion import Floats, Ints

NUM_BINS = 15
CALIBRATED_DRAWS = 200
MAX_SCORES_AT_ONCE = 2**22


@dataclass(frozen=True)
class Bin:
    """Images whose predicted class has a probability above `low` and up to `high`.

    Attributes:
        confidence, accuracy: mean probability of the predicted class, and share of right answers; None: no image.
    """

    low: float
    high: float
    num_images: int
    confidence: float | None
    accuracy: float | None

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return dict(vars(self))


def reliability(labels_N: Ints, predicted_N: Ints, scores_NC: Floats) -> tuple[Bin, ...]:
    """The points of the reliability curve, one for each bin, from probability 0 to 1.

    Args:
        scores_NC: class probabilities; rows sum to 1.
    """
    confidence_N = scores_NC.max(axis=1)
    bin_N = _bins(confidence_N)
    count_M = np.bincount(bin_N, minlength=NUM_BINS)
    confidence_M = np.bincount(bin_N, confidence_N, NUM_BINS) / np.maximum(count_M, 1)
    accuracy_M = np.bincount(bin_N, predicted_N == labels_N, NUM_BINS) / np.maximum(count_M, 1)
    return tuple(
        Bin(
            number / NUM_BINS,
            (number + 1) / NUM_BINS,
            int(count),
            float(confidence_M[number]) if count else None,
            float(accuracy_M[number]) if count else None,
        )
        for number, count in enumerate(count_M)
    )


def calibration_sums(labels_N: Ints, predicted_N: Ints, scores_NC: Floats, unit_N: Ints, num_units: int) -> Floats:
    """For each unit (G, S): by bin the sum of probability less rightness, and last the sum of the Brier scores."""
    confidence_N = scores_NC.max(axis=1)
    cells = unit_N * NUM_BINS + _bins(confidence_N)
    gap_GM = np.bincount(cells, confidence_N - (predicted_N == labels_N), num_units * NUM_BINS)
    brier_N = np.concatenate(
        [
            ((scores_NC[some] - np.eye(scores_NC.shape[1])[labels_N[some]]) ** 2).sum(axis=1)
            for some in np.array_split(np.arange(len(labels_N)), 1 + scores_NC.size // MAX_SCORES_AT_ONCE)
        ]
    )
    brier_G = np.bincount(unit_N, brier_N, num_units)
    return np.concatenate([gap_GM.reshape(num_units, NUM_BINS), brier_G[:, None]], axis=1)


def calibration_numbers(sums_S: Floats, num_images: NDArray[Any]) -> dict[str, Floats]:
    """ECE and Brier score (...) of summed `calibration_sums` (..., S) over so many images (...)."""
    with np.errstate(invalid="ignore"):
        return {
            "ece": np.abs(sums_S[..., :NUM_BINS]).sum(axis=-1) / num_images,
            "brier": sums_S[..., NUM_BINS] / num_images,
        }


def ece_if_calibrated(scores_NC: Floats, *, seed: int) -> float:
    """The expected ECE if these probabilities are true and images are independent.

    It is not 0: in a bin of few images the share of right answers differs from its probability by chance. Mean of
    CALIBRATED_DRAWS draws, in which each image is right with the probability of its predicted class.
    """
    confidence_N = scores_NC.max(axis=1)
    bin_N, rng = _bins(confidence_N), np.random.default_rng(seed)
    errors = [
        np.abs(np.bincount(bin_N, confidence_N - (rng.random(len(bin_N)) < confidence_N), NUM_BINS)).sum()
        for _ in range(CALIBRATED_DRAWS)
    ]
    return float(np.mean(errors) / len(bin_N))


def _bins(confidence_N: Floats) -> Ints:
    """Number of the bin, whose upper edge belongs to it."""
    return np.searchsorted(np.linspace(0, 1, NUM_BINS + 1)[1:-1], confidence_N).astype(np.int64)

"""Linear probes: logistic regression on frozen features, in three ways.

`linear_probe` standardises and chooses the L2 strength on validation images. `logistic` standardises and takes the
strength from the number of features, so it needs no validation images. `logistic_uni` follows UNI's rule, which neither
standardises nor chooses: it is meant for about a thousand features of a network, and leaves a few colours no say.

Shape suffixes: N training images, Q queries, D features, C classes.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, log_loss
from threadpoolctl import threadpool_limits

logger = logging.getLogger(__name__)

# Inverse L2 strengths, strong to weak; scikit-learn's C, which multiplies the summed cross-entropy.
C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
# C x D of `logistic`: logits of standardised features get a prior variance of 10, however many features there are.
# Of 1 and 10, tried on two sets at 100, 10 and 1 % of the labels with 4, 7 and 192 features, 10 lost 0.02 at most.
PRIOR_VARIANCE = 10.0
MAX_ITERATIONS = 1000
SMALL_PROBLEM = 5_000_000  # numbers in the feature matrix


@dataclass(frozen=True)
class Trial:
    """One L2 strength, tried on the validation part."""

    c: float
    log_loss: float
    balanced_accuracy: float


@dataclass(frozen=True)
class ProbeResult:
    """Predicted classes of the queries.

    Attributes:
        predicted: (Q,) class numbers.
        scores: (Q, C) class probabilities.
        c: the inverse L2 strength that was chosen.
        trials: what it was chosen from.
        has_converged: False when the last fit stopped at MAX_ITERATIONS.
    """

    predicted: NDArray[np.int64]
    scores: NDArray[np.float64]
    c: float
    trials: tuple[Trial, ...]
    has_converged: bool


def linear_probe(
    fit_ND: NDArray[np.float32],
    fit_labels_N: NDArray[np.int64],
    validation_ND: NDArray[np.float32],
    validation_labels_N: NDArray[np.int64],
    query_QD: NDArray[np.float32],
    *,
    num_classes: int,
    refit_with_validation: bool,
) -> ProbeResult:
    """Fit by L-BFGS with each L2 strength of C_GRID, keep the one of lowest validation log-loss, fit again, predict.

    Every class must occur in the fit part. Features are standardised with the mean and standard deviation of the
    images that the fit sees. Test images play no part in any choice.

    Args:
        refit_with_validation: the last fit takes fit and validation part together (a part that we carved from the
            training images); else the fit part alone (a validation part that came with the data).
    """
    trials = _try_strengths(fit_ND, fit_labels_N, validation_ND, validation_labels_N, num_classes)
    best = min(trials, key=lambda trial: trial.log_loss)
    if refit_with_validation:
        fit_ND = np.concatenate([fit_ND, validation_ND])
        fit_labels_N = np.concatenate([fit_labels_N, validation_labels_N])
    return _fit_standardised(fit_ND, fit_labels_N, query_QD, c=best.c, trials=trials)


def logistic(train_ND: NDArray[np.float32], labels_N: NDArray[np.int64], query_QD: NDArray[np.float32]) -> ProbeResult:
    """Fit once by L-BFGS on standardised features, with C = PRIOR_VARIANCE / D. Every class must occur."""
    return _fit_standardised(train_ND, labels_N, query_QD, c=PRIOR_VARIANCE / train_ND.shape[1], trials=())


def logistic_uni(
    train_ND: NDArray[np.float32],
    labels_N: NDArray[np.int64],
    query_QD: NDArray[np.float32],
) -> ProbeResult:
    """Fit once by L-BFGS on the features as they are, with C = D x classes / 100 and at most 1000 iterations.

    Every class must occur. Source: Chen et al. 2024 (UNI), mahmoodlab/UNI `linear_probe.py` with `use_sklearn`, whose C
    multiplies the summed cross-entropy. That file's default, a torch version, adds the norm of the weights (not its
    square) / 2C to the mean cross-entropy: the same C means another strength there.
    """
    c = train_ND.shape[1] * (int(labels_N.max()) + 1) / 100
    model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS)
    has_converged = _fit(model, train_ND.astype(np.float64), labels_N)
    scores_QC: NDArray[np.float64] = model.predict_proba(query_QD.astype(np.float64))
    return ProbeResult(scores_QC.argmax(axis=1), scores_QC, c, (), has_converged)


def _fit_standardised(
    train_ND: NDArray[np.float32], labels_N: NDArray[np.int64], query_QD: NDArray[np.float32], *, c: float,
    trials: tuple[Trial, ...],
) -> ProbeResult:  # fmt: skip
    """Fit on features standardised by their own mean and standard deviation, and predict."""
    mean_D, std_D = _mean_and_std(train_ND)
    model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS)
    has_converged = _fit(model, (train_ND - mean_D) / std_D, labels_N)
    if not has_converged:
        logger.warning("logistic regression: stopped after %d iterations at C=%g", MAX_ITERATIONS, c)
    scores_QC: NDArray[np.float64] = model.predict_proba((query_QD - mean_D) / std_D)
    return ProbeResult(scores_QC.argmax(axis=1), scores_QC, c, trials, has_converged)


def _try_strengths(
    fit_ND: NDArray[np.float32],
    fit_labels_N: NDArray[np.int64],
    validation_ND: NDArray[np.float32],
    validation_labels_N: NDArray[np.int64],
    num_classes: int,
) -> tuple[Trial, ...]:
    mean_D, std_D = _mean_and_std(fit_ND)
    fit, validation = (fit_ND - mean_D) / std_D, (validation_ND - mean_D) / std_D
    # Each fit starts from the one before: the path from strong to weak is quicker than six fits from zero.
    model = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)
    trials = []
    for c in C_GRID:
        _fit(model.set_params(C=c), fit, fit_labels_N)
        scores = model.predict_proba(validation)
        trials.append(
            Trial(
                c=c,
                log_loss=float(log_loss(validation_labels_N, scores, labels=range(num_classes))),
                balanced_accuracy=float(balanced_accuracy_score(validation_labels_N, scores.argmax(axis=1))),
            )
        )
    return tuple(trials)


def _fit(model: LogisticRegression, features_ND: NDArray[np.float64], labels_N: NDArray[np.int64]) -> bool:
    """Fit in place; False when the iterations ran out."""
    # BLAS threads cost more than they bring on small problems: 450 x 128 took 1.8 s with two and 0.14 s with one.
    threads = 1 if features_ND.size < SMALL_PROBLEM else None
    with warnings.catch_warnings(record=True) as caught, threadpool_limits(threads, user_api="blas"):
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(features_ND, labels_N)
    return not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)


def _mean_and_std(features_ND: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (D,) in fp64; constant features get a standard deviation of 1."""
    mean_D = features_ND.mean(axis=0, dtype=np.float64)
    std_D = features_ND.std(axis=0, dtype=np.float64)
    return mean_D, np.where(std_D > 1e-12, std_D, 1.0)

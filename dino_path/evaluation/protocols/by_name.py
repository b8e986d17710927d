"""The protocols that turn frozen features into class scores of the test images, by name.

Shape suffixes: N images, D features, C classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from dino_path.config import EvaluationConfig, FeatureProtocol
from dino_path.errors import DataError
from dino_path.evaluation.labelled.datasets import VALIDATION_FRACTION, LabelledSet
from dino_path.evaluation.measures.confusion import confusion_matrix, summarise
from dino_path.evaluation.protocols.knn import NeighbourIndex, centred, knn_classify
from dino_path.evaluation.protocols.linear import C_GRID, PRIOR_VARIANCE, linear_probe, logistic, logistic_uni

logger = logging.getLogger(__name__)

TITLES = {
    "knn": "k-NN",
    "knn-uni": "k-NN (UNI)",
    "linear": "linear",
    "logistic": "logistic",
    "linear-uni": "logistic (UNI)",
    "linear-dino": "linear (DINO)",
    "end-to-end": "end to end",
}
UNI_K = 20


def run_protocol(
    protocol: FeatureProtocol, features_ND: NDArray[np.float32], labelled: LabelledSet, config: EvaluationConfig
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Class scores of the test images, and the protocol's settings and choices, as plain values."""
    train, test, labels = labelled.part("train"), labelled.part("test"), labelled.labels
    match protocol:
        case "knn":
            return _knn(
                features_ND[train], features_ND[test], labelled, config, k=config.knn_k,
                temperature=config.knn_temperature, space="cosine",
            )  # fmt: skip
        case "knn-uni":
            train_ND, test_ND = centred(features_ND[train], features_ND[test])
            space = "Euclidean on centred features of length 1"
            return _knn(train_ND, test_ND, labelled, config, k=UNI_K, temperature=None, space=space)
        case "linear":
            return _linear(features_ND, labelled, config)
        case "logistic":
            return _logistic(features_ND, labelled)
        case "linear-uni":
            probe = logistic_uni(features_ND[train], labels[train], features_ND[test])
            return probe.scores, {"c": probe.c, "c_rule": "D x classes / 100", "has_converged": probe.has_converged}
    assert_never(protocol)


def _linear(
    features_ND: NDArray[np.float32], labelled: LabelledSet, config: EvaluationConfig
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """The strength is chosen on validation images; where a class has too few units for them, as `logistic` does."""
    try:
        fit, validation = labelled.fit_and_validation(VALIDATION_FRACTION, seed=config.seed)
    except DataError as error:
        logger.info("%s: no validation images (%s); C is fixed", labelled.name, error.found)
        return _logistic(features_ND, labelled)
    labels = labelled.labels
    is_carved = labelled.part("val").size == 0
    probe = linear_probe(
        features_ND[fit], labels[fit], features_ND[validation], labels[validation], features_ND[labelled.part("test")],
        num_classes=len(labelled.classes), refit_with_validation=is_carved,
    )  # fmt: skip
    return probe.scores, {
        "c": probe.c,
        "c_grid": list(C_GRID),
        "c_chosen_by": "lowest log-loss on validation images: "
        + (f"{VALIDATION_FRACTION:g} of the training {labelled.unit_name}" if is_carved else "the given ones"),
        "last_fit_on": "all training images" if is_carved else "the training images, without validation",
        "trials": [asdict(trial) for trial in probe.trials],
        "has_converged": probe.has_converged,
    }


def _logistic(features_ND: NDArray[np.float32], labelled: LabelledSet) -> tuple[NDArray[np.float64], dict[str, Any]]:
    train = labelled.part("train")
    probe = logistic(features_ND[train], labelled.labels[train], features_ND[labelled.part("test")])
    rule = f"{PRIOR_VARIANCE:g} / D, features standardised"
    return probe.scores, {"c": probe.c, "c_rule": rule, "has_converged": probe.has_converged}


def _knn(
    train_ND: NDArray[np.float32], test_ND: NDArray[np.float32], labelled: LabelledSet, config: EvaluationConfig, *,
    k: int, temperature: float | None, space: str,
) -> tuple[NDArray[np.float64], dict[str, Any]]:  # fmt: skip
    """The scores for `k`; the confusion matrices for `config.knn_ks` too are among what is reported."""
    index = NeighbourIndex(train_ND, config.knn_index)
    by_k = knn_classify(
        train_ND, labelled.labels[labelled.part("train")], test_ND, num_classes=len(labelled.classes),
        ks=sorted({k, *config.knn_ks}), temperature=temperature, index=index,
    )  # fmt: skip
    settings = {"k": by_k[k].k, "temperature": temperature, "similarity": space, "index": config.knn_index}
    if config.knn_index != "flat":
        settings["recall"] = index.recall(test_ND, by_k[k].k)
        logger.info("%s index: recall %.4f of the %d nearest", config.knn_index, settings["recall"], by_k[k].k)
    labels_Q = labelled.labels[labelled.part("test")]
    confusions = {
        str(result.k): confusion_matrix(labels_Q, result.predicted, len(labelled.classes)) for result in by_k.values()
    }
    return by_k[k].scores, {**settings, "by_k": confusions}


def settings_of_splits(of_splits: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The protocol's settings in all splits, as plain values; those that differ between folds are under `folds`.

    The confusion matrices of each k, which the k-NN gives, become accuracies over all folds.
    """
    first = of_splits[0]
    settings = {
        key: value for key, value in first.items() if key != "by_k" and all(s.get(key) == value for s in of_splits)
    }
    if len(of_splits) > 1:
        differing = [{key: v for key, v in s.items() if key not in settings and key != "by_k"} for s in of_splits]
        if any(differing):
            settings["folds"] = differing
        settings |= {
            key: float(np.mean([s[key] for s in of_splits]))
            for key in ("num_updates", "train_loss", "train_accuracy") if key in first
        }  # fmt: skip
        if "has_converged" in first:
            settings["has_converged"] = all(s["has_converged"] for s in of_splits)
    if "by_k" in first:
        by_k = [
            np.sum(confusions, axis=0) for confusions in zip(*(s["by_k"].values() for s in of_splits), strict=False)
        ]
        settings["by_k"] = {
            k: {name: float(summarise(one)[name]) for name in ("accuracy", "balanced_accuracy")}
            for k, one in zip(first["by_k"], by_k, strict=False)
        }
    return settings

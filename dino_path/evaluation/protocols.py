"""The protocols that turn frozen features into class scores of the test images, by name.

Shape suffixes: N images, D features, C classes.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from typing import Any, assert_never

import numpy as np
from numpy.typing import NDArray

from dino_path.config import EvaluationConfig, FeatureProtocol
from dino_path.evaluation.datasets import VALIDATION_FRACTION, LabelledSet
from dino_path.evaluation.knn import KnnResult, NeighbourIndex, centred, knn_classify
from dino_path.evaluation.linear import C_GRID, linear_probe, logistic_uni
from dino_path.evaluation.metrics import confusion_matrix, summarise

logger = logging.getLogger(__name__)

TITLES = {
    "knn": "k-NN",
    "knn-uni": "k-NN (UNI)",
    "linear": "linear",
    "linear-uni": "logistic (UNI)",
    "linear-dino": "linear (DINO)",
    "end-to-end": "end to end",
}
UNI_K = 20


def run_protocol(
    protocol: FeatureProtocol, features_ND: NDArray[np.float32], labelled: LabelledSet, config: EvaluationConfig
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Class scores of the test images, and what the protocol used or chose, as plain values.

    Raises:
        DataError: a class has too few training units for the linear probe's validation part.
    """
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
            fit, validation = labelled.fit_and_validation(VALIDATION_FRACTION, seed=config.seed)
            is_carved = labelled.part("val").size == 0
            probe = linear_probe(
                features_ND[fit], labels[fit], features_ND[validation], labels[validation], features_ND[test],
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
        case "linear-uni":
            probe = logistic_uni(features_ND[train], labels[train], features_ND[test])
            return probe.scores, {"c": probe.c, "c_rule": "D x classes / 100", "has_converged": probe.has_converged}
    assert_never(protocol)


def _knn(
    train_ND: NDArray[np.float32], test_ND: NDArray[np.float32], labelled: LabelledSet, config: EvaluationConfig, *,
    k: int, temperature: float | None, space: str,
) -> tuple[NDArray[np.float64], dict[str, Any]]:  # fmt: skip
    """The scores for `k`; the accuracies for `config.knn_ks` too are among what is reported."""
    index = NeighbourIndex(train_ND, config.knn_index)
    by_k = knn_classify(
        train_ND, labelled.labels[labelled.part("train")], test_ND, num_classes=len(labelled.classes),
        ks=sorted({k, *config.knn_ks}), temperature=temperature, index=index,
    )  # fmt: skip
    settings = {"k": by_k[k].k, "temperature": temperature, "similarity": space, "index": config.knn_index}
    if config.knn_index != "flat":
        settings["recall"] = index.recall(test_ND, by_k[k].k)
        logger.info("%s index: recall %.4f of the %d nearest", config.knn_index, settings["recall"], by_k[k].k)
    accuracies = {str(result.k): _accuracies(result, labelled) for result in by_k.values()}
    return by_k[k].scores, {**settings, "by_k": accuracies}


def _accuracies(result: KnnResult, labelled: LabelledSet) -> dict[str, float]:
    labels_N = labelled.labels[labelled.part("test")]
    values = summarise(confusion_matrix(labels_N, result.predicted, len(labelled.classes)))
    return {name: float(values[name]) for name in ("accuracy", "balanced_accuracy")}

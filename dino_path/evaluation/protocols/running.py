"""k-NN and linear probe of a network that still trains: numbers to watch, on labelled images that no test uses.

Shape suffixes: N images to learn from, Q validation images, D features.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from dino_path.config import Config
from dino_path.distributed import usable_cores
from dino_path.evaluation.labelled.datasets import VALIDATION_FRACTION, LabelledSet, load_labelled
from dino_path.evaluation.measures.confusion import Ints
from dino_path.evaluation.measures.sample import Units
from dino_path.evaluation.protocols.knn import knn_classify
from dino_path.evaluation.protocols.linear import logistic
from dino_path.features.extractor import Extractor, iterate_features
from dino_path.preprocessing import training_preprocessing
from dino_path.records.verdict import Protocol
from dino_path.tiles.source import Subset

logger = logging.getLogger(__name__)
MAX_WORKERS = 8


@dataclass(frozen=True)
class RunningTest:
    """Validation images that a network in training is tested on again and again.

    Attributes:
        fit, validation: numbers, in the labelled set, of the images to learn from and of those to classify.
    """

    config: Config
    labelled: LabelledSet
    fit: Ints
    validation: Ints
    device: torch.device

    @property
    def labels(self) -> Ints:
        """Classes (Q,) of the validation images."""
        return self.labelled.labels[self.validation]

    @property
    def units(self) -> Units:
        """The units of intervals over the validation images."""
        groups = self.labelled.groups
        return Units.of(
            None if groups is None else groups[self.validation], self.labelled.group_kind, len(self.validation)
        )

    @property
    def digest(self) -> str:
        """Of the images, their labels and how they are asked: answers of equal digests may be compared."""
        images = np.concatenate([self.fit, self.validation])
        evaluation = self.config.evaluation
        asked = (len(self.fit), evaluation.knn_k, evaluation.knn_temperature, evaluation.input_px)
        whole = self.labelled.content[images].tobytes() + self.labelled.labels[images].tobytes() + repr(asked).encode()
        return hashlib.sha256(whole).hexdigest()

    def knn(self, backbone: nn.Module) -> float:
        """Accuracy of the k-NN on the features of a backbone in eval mode."""
        return self.accuracy(*self.features(backbone))

    def accuracy(self, train_ND: NDArray[np.float32], query_QD: NDArray[np.float32]) -> float:
        """Accuracy of the k-NN on what `features` gave."""
        return float((self._knn(train_ND, query_QD) == self.labels).mean())

    def answers(self, backbone: nn.Module) -> dict[Protocol, Ints]:
        """Classes (Q,) that k-NN and `logistic`, a linear probe that chooses nothing, give the validation images."""
        train_ND, query_QD = self.features(backbone)
        # A part drawn at random may lack a class, and a probe knows only those that it has met.
        met, label_N = np.unique(self.labelled.labels[self.fit], return_inverse=True)
        probe = logistic(train_ND, label_N.astype(np.int64), query_QD)
        return {"knn": self._knn(train_ND, query_QD), "linear": met[probe.predicted]}

    def _knn(self, train_ND: NDArray[np.float32], query_QD: NDArray[np.float32]) -> Ints:
        evaluation = self.config.evaluation
        result = knn_classify(
            train_ND,
            self.labelled.labels[self.fit],
            query_QD,
            num_classes=len(self.labelled.classes),
            ks=[evaluation.knn_k],
            temperature=evaluation.knn_temperature,
        )
        return result[evaluation.knn_k].predicted

    def features(self, backbone: nn.Module) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Of the images to learn from (N, D), and of the validation images (Q, D)."""
        source, evaluation = self.labelled.source, self.config.evaluation
        extractor = Extractor(
            name="teacher",
            module=backbone,
            preprocessing=training_preprocessing(self.config, tile_px=None, mpp=source.mpp),
            digest="",  # its features are not kept
            num_features=int(backbone.num_features),  # type: ignore[arg-type]
        )
        batches = iterate_features(
            extractor,
            Subset(source, np.concatenate([self.fit, self.validation])),
            batch_size=evaluation.batch_size,
            input_px=evaluation.input_px,
            device=self.device,
            num_workers=min(usable_cores(), MAX_WORKERS),
        )
        features_ND = np.concatenate(list(batches))
        return features_ND[: len(self.fit)], features_ND[len(self.fit) :]


def running_test(config: Config, *, device: torch.device) -> RunningTest:
    """The test on `monitor.knn_data`: of its own validation part, else of a fifth of the training part.

    The rest of the training part is learned from. The test part stays unseen: these numbers are looked at again and
    again, and choose.

    Raises:
        DataError: the data cannot be read, or have too few images for a validation part.
    """
    assert config.monitor.knn_data is not None
    evaluation = config.evaluation
    labelled = load_labelled(config.monitor.knn_data, evaluation)
    parts = labelled.fit_and_validation(VALIDATION_FRACTION, seed=evaluation.seed)
    # A part of them drawn at random, where there are very many: the other processes wait meanwhile.
    share = min(1.0, config.monitor.knn_images / sum(len(part) for part in parts))
    random = np.random.default_rng(evaluation.seed)
    fit, validation = (np.sort(random.permutation(part)[: max(1, round(share * len(part)))]) for part in parts)
    logger.info(
        "k-NN every %d steps on %s: %d images among %d neighbours, %d classes (contents %s)",
        config.monitor.knn_every_steps, labelled.name, len(validation), len(fit), len(labelled.classes),
        labelled.split_digest[:8],
    )  # fmt: skip
    return RunningTest(config, labelled, fit, validation, device)

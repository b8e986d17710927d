"""k-NN of a network that still trains: a number to watch, on labelled images that no test uses."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

from dino_path.config import Config
from dino_path.distributed import usable_cores
from dino_path.evaluation.labelled.datasets import VALIDATION_FRACTION, load_labelled
from dino_path.evaluation.protocols.knn import knn_classify
from dino_path.features.extractor import Extractor, iterate_features
from dino_path.preprocessing import training_preprocessing
from dino_path.tiles.source import Subset

logger = logging.getLogger(__name__)
MAX_WORKERS = 8


def running_knn(config: Config, *, device: torch.device) -> Callable[[nn.Module], float]:
    """A function from a backbone in eval mode to its k-NN accuracy on `monitor.knn_data`.

    The accuracy is that of the data's own validation part, else of a fifth of the training part, with the rest of the
    training part as neighbours. The test part stays unseen: this number is looked at again and again, and chooses.

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
    images = Subset(labelled.source, np.concatenate([fit, validation]))
    logger.info(
        "k-NN every %d steps on %s: %d images among %d neighbours, %d classes (contents %s)",
        config.monitor.knn_every_steps, labelled.name, len(validation), len(fit), len(labelled.classes),
        labelled.split_digest[:8],
    )  # fmt: skip

    def measure(backbone: nn.Module) -> float:
        extractor = Extractor(
            name="teacher",
            module=backbone,
            preprocessing=training_preprocessing(config, tile_px=None, mpp=labelled.source.mpp),
            digest="",  # its features are not kept
            num_features=int(backbone.num_features),  # type: ignore[arg-type]
        )
        batches = iterate_features(
            extractor,
            images,
            batch_size=evaluation.batch_size,
            input_px=evaluation.input_px,
            device=device,
            num_workers=min(usable_cores(), MAX_WORKERS),
        )
        features_ND = np.concatenate(list(batches))
        result = knn_classify(
            features_ND[: len(fit)],
            labelled.labels[fit],
            features_ND[len(fit) :],
            num_classes=len(labelled.classes),
            ks=[evaluation.knn_k],
            temperature=evaluation.knn_temperature,
        )
        return float((result[evaluation.knn_k].predicted == labelled.labels[validation]).mean())

    return measure

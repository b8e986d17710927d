"""How much features reveal about the slide of an image, within one tissue class.

Staining and scanning leave a signature that features pick up; a classifier may then read the slide (or centre) instead
of the tissue. Two numbers per model, each image against all others of the set, cosine similarity, without any training:

- slide identity: share of images whose slide (or patient) is found by k-NN among the images of their own class. Lower
  is better; `chance` is what guessing by frequency gives.
- robustness: share of an image's k nearest neighbours that have its class and come from another slide. Higher is
  better; `chance` is what random neighbours give. The idea is the robustness index of de Jong et al. 2025 and PathoROB
  (Koemen et al. 2025); their ratio (same class, other centre) / (that + other class, same centre) is given besides
  where slides hold several classes. Where each slide has one class it would be 1 whatever the features.

Shape suffixes: N images, D features, K neighbours.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dino_path.evaluation.labelled.datasets import LabelledSet
from dino_path.evaluation.measures.intervals import Score
from dino_path.evaluation.measures.means import mean_score
from dino_path.evaluation.measures.sample import Units
from dino_path.evaluation.protocols.knn import NeighbourIndex, sum_votes

logger = logging.getLogger(__name__)

MAX_IMAGES = 20_000  # 20,000 x 384 features of 9 classes: 5 CPU seconds
NEIGHBOURS = 20
TEMPERATURE = 0.07


@dataclass(frozen=True)
class Signature:
    """How much features reveal about slides.

    Attributes:
        identity: share of images whose slide is found among the images of their class; None: no class has two slides.
        robustness: share of neighbours of the same class from another slide.
        robustness_ratio: as PathoROB defines it; None: no neighbour was of either kind, or each slide has one class.
        unit: "patients" or "slides", what is meant by slide; the bootstrap draws them.
        num_images: distinct ones that took part, a random part of the set where it has more than MAX_IMAGES.
    """

    identity: Score | None
    identity_chance: float | None
    robustness: Score
    robustness_chance: float
    robustness_ratio: float | None
    unit: str
    num_images: int

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "identity": None if self.identity is None else self.identity.record(),
            "identity_chance": self.identity_chance,
            "robustness": self.robustness.record(),
            "robustness_chance": self.robustness_chance,
            "robustness_ratio": self.robustness_ratio,
            "unit": self.unit,
            "num_images": self.num_images,
            "neighbours": NEIGHBOURS,
        }


def slide_signature(
    features_ND: NDArray[np.float32], labelled: LabelledSet, *, num_bootstrap: int, seed: int
) -> Signature | None:
    """The signature over training and test images together; None where no groups are known, or there is only one.

    Exact copies of an image take part once: a copy would find its slide by being itself.
    """
    if labelled.groups is None or len(np.unique(labelled.groups)) < 2:
        return None
    chosen = np.unique(labelled.content, return_index=True)[1]
    if len(chosen) > MAX_IMAGES:
        chosen = np.random.default_rng(seed).choice(chosen, MAX_IMAGES, replace=False)
    chosen.sort()
    unit = f"{labelled.group_kind}s"
    features_ND, label_N = features_ND[chosen], labelled.labels[chosen]
    slide_N = np.unique(labelled.groups[chosen], return_inverse=True)[1].astype(np.int64)
    found_N, identity_chance_N = _find_slides(features_ND, label_N, slide_N)
    known_N = ~np.isnan(found_N)

    neighbour_NK = _neighbours(features_ND, NEIGHBOURS)[1]
    same_class_NK = label_N[neighbour_NK] == label_N[:, None]
    same_slide_NK = slide_N[neighbour_NK] == slide_N[:, None]
    wanted_NK = same_class_NK & ~same_slide_NK
    confounded = int((~same_class_NK & same_slide_NK).sum())
    pairs = np.unique(np.stack([slide_N, label_N], axis=1), axis=0)
    is_ratio_known = len(pairs) > slide_N.max() + 1 and wanted_NK.sum() + confounded > 0

    def score(values_N: NDArray[np.float64], slides_N: NDArray[np.int64]) -> Score:
        units = Units(unit, np.unique(slides_N, return_inverse=True)[1].astype(np.int64))
        return mean_score(values_N, units, num_bootstrap=num_bootstrap, seed=seed)

    return Signature(
        identity=score(found_N[known_N], slide_N[known_N]) if known_N.any() else None,
        identity_chance=float(identity_chance_N[known_N].mean()) if known_N.any() else None,
        robustness=score(wanted_NK.mean(axis=1), slide_N),
        robustness_chance=float(_random_share(label_N, slide_N)),
        robustness_ratio=float(wanted_NK.sum() / (wanted_NK.sum() + confounded)) if is_ratio_known else None,
        unit=unit,
        num_images=len(chosen),
    )


def _find_slides(
    features_ND: NDArray[np.float32], label_N: NDArray[np.int64], slide_N: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Whether each image's slide was found within its class (1, 0), and the chance of guessing it by frequency.

    NaN for images that are alone of their slide in their class, and for classes of one slide: nothing can be found, or
    nothing else.
    """
    found_N, chance_N = np.full(len(label_N), np.nan), np.full(len(label_N), np.nan)
    for label in np.unique(label_N):
        members = np.flatnonzero(label_N == label)
        number_M = np.unique(slide_N[members], return_inverse=True)[1].astype(np.int64)
        count_M = np.bincount(number_M)[number_M]
        if number_M.max() == 0:
            continue
        similarity_MK, neighbour_MK = _neighbours(features_ND[members], NEIGHBOURS)
        votes = sum_votes(
            similarity_MK, number_M[neighbour_MK], num_classes=int(number_M.max()) + 1, temperature=TEMPERATURE
        )
        is_known_M = count_M > 1
        found_N[members[is_known_M]] = (votes.argmax(axis=1) == number_M)[is_known_M]
        chance_N[members[is_known_M]] = ((count_M - 1) / (len(members) - 1))[is_known_M]
    return found_N, chance_N


def _neighbours(features_ND: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Similarity and number (N, K) of the nearest others of each image; K is clamped."""
    k = min(k, len(features_ND) - 1)
    parts = []
    for start, similarity_QK, neighbour_QK in NeighbourIndex(features_ND, "flat").search(features_ND, k + 1):
        own_Q1 = np.arange(start, start + len(neighbour_QK))[:, None]
        # Itself is dropped; where equal features crowd it out of its own list, the last one is.
        is_dropped_QK = neighbour_QK == own_Q1
        is_dropped_QK[~is_dropped_QK.any(axis=1), -1] = True
        parts.append((similarity_QK[~is_dropped_QK].reshape(-1, k), neighbour_QK[~is_dropped_QK].reshape(-1, k)))
    return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])


def _random_share(label_N: NDArray[np.int64], slide_N: NDArray[np.int64]) -> float:
    """Expected share of the same class and another slide among random other images."""
    cells = np.zeros((int(label_N.max()) + 1, int(slide_N.max()) + 1), np.int64)
    np.add.at(cells, (label_N, slide_N), 1)
    of_class_N = cells.sum(axis=1)[label_N]
    share: float = ((of_class_N - cells[label_N, slide_N]) / (len(label_N) - 1)).mean()
    return share

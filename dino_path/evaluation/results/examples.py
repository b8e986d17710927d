"""Tiles that illustrate the numbers: neighbours, confident errors, attention; and each test slide's result.

Shape suffixes: N images of the set, M tested images, Q queries, D features, C classes.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dino_path.config import FrozenProtocol
from dino_path.errors import CheckpointError
from dino_path.evaluation.labelled.division import Division
from dino_path.evaluation.protocols.cache import FeatureCache, Images
from dino_path.evaluation.protocols.knn import unit_length
from dino_path.evaluation.results.row import Row
from dino_path.features.attention import cls_attention_picture
from dino_path.features.extractor import Extractor
from dino_path.features.images import stain_normalised
from dino_path.records.examples import (
    EXAMPLES,
    FILE_NAME,
    AttentionRecord,
    ExamplesRecord,
    MistakeRecord,
    ModelExamplesRecord,
    NeighbourRecord,
    QueryRecord,
    SlideResultRecord,
    TileRecord,
)
from dino_path.records.feature_kinds import is_comparison
from dino_path.slides.slide import RgbImage

logger = logging.getLogger(__name__)

NUM_QUERIES, NUM_NEIGHBOURS = 8, 5
MOST_MISTAKES = 36  # in all: four of each of nine classes, fewer of each where there are more classes
MISTAKES_PER_CLASS = 4
NUM_ATTENTION = 4
TILE_PX, JPEG_QUALITY = 160, 85  # about 10 kB each
# Whose answers are shown where several protocols ran. The order was fixed beforehand: the best is not picked.
PROTOCOLS: tuple[FrozenProtocol, ...] = ("linear", "logistic", "linear-uni", "linear-dino", "knn", "knn-uni")
NAME_IN_STORE = re.compile(r"(?P<slide>.+) x=\d+ y=\d+")


def write_examples(
    out: Path,
    division: Division,
    extractors: Mapping[str, tuple[str, Extractor]],
    cache: FeatureCache,
    rows: Sequence[Row],
    scores: Mapping[tuple[str, FrozenProtocol], NDArray[np.float64]],
    *,
    seed: int,
) -> None:
    """Write `examples.json` of the models that are no controls; where all are, of the first.

    Args:
        scores: (M, C) by model and protocol; features come from the cache.

    Raises:
        TileStoreError: an image cannot be read.
    """
    labelled = division.labelled
    protocol = next(name for name in PROTOCOLS if any(row.protocol == name for row in rows))
    chosen = [name for name, (spec, _) in extractors.items() if not is_comparison(spec)] or [next(iter(extractors))]
    tiles = _Tiles(division)
    queries = choose_queries(labelled.labels, tiles.slides, np.unique(division.tested), seed=seed)
    models = {}
    for name in chosen:
        spec, extractor = extractors[name]
        features_ND = cache.features(extractor, Images.of(labelled))
        attention, why_not = _attention(spec, extractor, tiles, queries[:NUM_ATTENTION])
        models[name] = ModelExamplesRecord(
            queries=tuple(_with_neighbours(features_ND, queries, tiles)),
            mistakes=tuple(_mistakes(scores[name, protocol], division, tiles)),
            attention=attention,
            no_attention=why_not,
        )
    unit, results = _slide_results([row for row in rows if row.protocol in (protocol, "end-to-end")], division, tiles)
    record = ExamplesRecord(
        split_digest=labelled.split_digest,
        protocol=protocol,
        apart=None if labelled.groups is None else f"{labelled.group_kind}s",
        unit=unit,
        tiles=tuple(tiles.records),
        models=models,
        slides=tuple(results),
    )
    EXAMPLES.write(out / FILE_NAME, record)
    logger.info("examples for the report: %s", out / FILE_NAME)


class _Tiles:
    """The images of a set; those that are asked for become records, each once."""

    def __init__(self, division: Division) -> None:
        labelled = self.labelled = division.labelled
        names = [labelled.source.name(index) for index in range(len(labelled.labels))]
        in_store = [NAME_IN_STORE.fullmatch(name) for name in names]
        self.names = [name if match else Path(name).name for name, match in zip(names, in_store, strict=True)]
        self.slides: list[str | None] = [match["slide"] if match else None for match in in_store]
        if labelled.group_kind == "slide" and labelled.groups is not None:
            self.slides = [str(group) for group in labelled.groups]
        self.records: list[TileRecord] = []
        self._numbers: dict[int, int] = {}

    def number(self, index: int) -> int:
        """Of an image among the records, where it is added when it is new."""
        if index not in self._numbers:
            self._numbers[index] = len(self.records)
            image_HWC = self.labelled.source.read_image(index)
            self.records.append(TileRecord(
                name=self.names[index],
                slide=self.slides[index],
                label=self.labelled.classes[self.labelled.labels[index]],
                jpeg=_jpeg(image_HWC, TILE_PX),
            ))  # fmt: skip
        return self._numbers[index]


def choose_queries(
    labels_N: NDArray[np.int64], slides: Sequence[str | None], tested: NDArray[np.int64], *, seed: int
) -> list[int]:
    """Up to NUM_QUERIES tested images: one of each class in turn, each from another slide as long as there is one."""
    shuffled = np.random.default_rng(seed).permutation(tested)
    by_class = {label: [int(i) for i in shuffled if labels_N[i] == label] for label in np.unique(labels_N[tested])}
    queries: list[int] = []
    used: set[str | None] = set()
    while len(queries) < NUM_QUERIES and any(by_class.values()):
        for of_class in by_class.values():
            if of_class and len(queries) < NUM_QUERIES:
                index = next((i for i in of_class if slides[i] not in used), of_class[0])
                of_class.remove(index)
                queries.append(index)
                used.add(slides[index])
    return queries


def nearest_elsewhere(
    features_ND: NDArray[np.float32], query: int, is_elsewhere_N: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Up to NUM_NEIGHBOURS images of `is_elsewhere_N` by cosine, most similar first, and their similarities."""
    candidates = np.flatnonzero(is_elsewhere_N)
    query_1D = unit_length(np.asarray(features_ND[query : query + 1]))
    similarity = np.concatenate([
        unit_length(np.asarray(features_ND[candidates[start : start + 65536]])) @ query_1D[0]
        for start in range(0, len(candidates), 65536)
    ] or [np.empty(0, np.float32)])  # fmt: skip
    best = np.argsort(-similarity, kind="stable")[:NUM_NEIGHBOURS]
    return candidates[best].astype(np.int64), similarity[best]


def _with_neighbours(features_ND: NDArray[np.float32], queries: Sequence[int], tiles: _Tiles) -> list[QueryRecord]:
    labelled, found = tiles.labelled, []
    for query in queries:
        is_elsewhere_N = labelled.content != labelled.content[query]
        if labelled.groups is not None:
            is_elsewhere_N &= labelled.groups != labelled.groups[query]
        neighbours = [
            NeighbourRecord(tile=tiles.number(int(index)), similarity=round(float(similarity), 4))
            for index, similarity in zip(*nearest_elsewhere(features_ND, query, is_elsewhere_N), strict=True)
        ]
        found.append(QueryRecord(tile=tiles.number(query), neighbours=tuple(neighbours)))
    return found


def _mistakes(scores_MC: NDArray[np.float64], division: Division, tiles: _Tiles) -> list[MistakeRecord]:
    """Of each class the mistakes that the model was surest of, by the share of its score among all classes'."""
    classes, tested, labels = division.labelled.classes, division.tested, division.labels
    predicted, confidence = scores_MC.argmax(axis=1), _as_shares(scores_MC).max(axis=1)
    per_class = max(1, min(MISTAKES_PER_CLASS, MOST_MISTAKES // len(classes)))
    found = []
    for label in range(len(classes)):
        wrong = np.flatnonzero((labels == label) & (predicted != label))
        surest = wrong[np.argsort(-confidence[wrong], kind="stable")]
        images = list(dict.fromkeys(tested[surest].tolist()))[:per_class]  # repeats test an image several times
        for image in images:
            row = next(int(row) for row in surest if tested[row] == image)
            found.append(MistakeRecord(
                tile=tiles.number(image), predicted=classes[predicted[row]], score=round(float(confidence[row]), 4)
            ))  # fmt: skip
    return found


def _as_shares(scores_MC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows that sum to 1: k-NN and probes give them so; margins go through a softmax."""
    if (scores_MC >= 0).all() and np.allclose(scores_MC.sum(axis=1), 1, atol=1e-3):
        return scores_MC
    exponentials_MC = np.exp(scores_MC - scores_MC.max(axis=1, keepdims=True))
    shares_MC: NDArray[np.float64] = exponentials_MC / exponentials_MC.sum(axis=1, keepdims=True)
    return shares_MC


def _attention(
    spec: str, extractor: Extractor, tiles: _Tiles, queries: Sequence[int]
) -> tuple[tuple[AttentionRecord, ...], str | None]:
    """Pictures of some queries; of a model without [CLS] none, and why."""
    if is_comparison(spec):
        return (), "is a control."
    pictures = []
    source = stain_normalised(tiles.labelled.source, extractor.preprocessing.stain_normalisation)
    for query in queries:
        try:
            picture_HWC = cls_attention_picture(extractor, source.read_image(query))
        except CheckpointError as error:
            return (), error.found
        pictures.append(AttentionRecord(tile=tiles.number(query), jpeg=_jpeg(picture_HWC, max(picture_HWC.shape[:2]))))
    return tuple(pictures), None


def _slide_results(
    rows: Sequence[Row], division: Division, tiles: _Tiles
) -> tuple[str | None, list[SlideResultRecord]]:
    """Each test slide's accuracies, by name; where only patients are known, theirs: numbered, as ids name people."""
    labelled, tested = division.labelled, division.tested
    if all(tiles.slides[index] is not None for index in tested):
        unit, units_M = "slide", np.array([tiles.slides[index] for index in tested], np.str_)
    elif labelled.groups is not None:
        unit, numbers = "patient", np.unique(labelled.groups[tested], return_inverse=True)[1]
        units_M = np.array([f"patient {number + 1}" for number in numbers], np.str_)
    else:
        return None, []
    names = sorted(set(units_M.tolist()), key=lambda name: (len(name), name) if unit == "patient" else (0, name))
    results = []
    for name in names:
        is_of = units_M == name
        results.append(SlideResultRecord(
            name=name,
            num_images=int(is_of.sum()),
            accuracy={row.model: round(float((row.predicted[is_of] == division.labels[is_of]).mean()), 4)
                      for row in rows},
        ))  # fmt: skip
    return unit, results


def _jpeg(image_HWC: RgbImage, edge_px: int) -> str:
    """The picture, its longer edge at most `edge_px`, as base64."""
    scale = min(1.0, edge_px / max(image_HWC.shape[:2]))
    size = max(1, round(image_HWC.shape[1] * scale)), max(1, round(image_HWC.shape[0] * scale))
    small = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
    return base64.b64encode(encoded.tobytes()).decode()

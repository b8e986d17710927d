"""The features of all kept tiles of a store: their clusters, and the tiles most like one.

Shape suffixes: N tiles of the store, D features, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from dino_path.distributed import World
from dino_path.features.embed import embed_store, encoder_folder_name
from dino_path.features.extractor import Extractor, extract_features
from dino_path.features.files import other_features, read_feature_file
from dino_path.features.layouts import TridentLayout
from dino_path.tiles.layout import StoreFolder
from dino_path.tiles.store import TileStore

BATCH_SIZE = 64
NUM_NEIGHBOURS = 12
CLUSTERING_STEPS, CLUSTERING_SEED = 25, 0


@dataclass(frozen=True)
class Neighbour:
    """One tile of the store, and the cosine of its features with those of the tile that was asked for."""

    tile: int
    similarity: float


class Cohort:
    """Features of a store's tiles, each of length one.

    Attributes:
        clusters_N: 0 to K - 1, the largest cluster first.
        examples_K: of each cluster the tile nearest to its centre.
        sizes_K: tiles in each.
    """

    def __init__(self, features_ND: NDArray[np.float32], starts: NDArray[np.int64], groups: list[str], k: int) -> None:
        """Args:
        starts: (S + 1,) number of each slide's first tile, and N.
        groups: of each slide its patient, or the slide itself where none is known.
        k: clusters; fewer where there are fewer tiles.
        """
        lengths = np.linalg.norm(features_ND, axis=1, keepdims=True)
        self._features_ND = np.ascontiguousarray(features_ND / np.maximum(lengths, np.finfo(np.float32).tiny))
        self._groups_N = np.repeat(np.unique(groups, return_inverse=True)[1], np.diff(starts))
        self.clusters_N, self.examples_K = cluster(self._features_ND, k)
        self.sizes_K = np.bincount(self.clusters_N, minlength=len(self.examples_K))

    def neighbours(self, tile: int, *, of_others: bool) -> list[Neighbour]:
        """The NUM_NEIGHBOURS tiles most like this one, over the whole store, most alike first.

        Args:
            of_others: only tiles of other patients (other slides, where no patient is known).
        """
        similarities_N = self._features_ND @ self._features_ND[tile]
        similarities_N[tile] = -np.inf
        if of_others:
            similarities_N[self._groups_N == self._groups_N[tile]] = -np.inf
        count = min(NUM_NEIGHBOURS, len(similarities_N) - 1)
        nearest = np.argpartition(-similarities_N, count)[: count + 1]
        nearest = nearest[np.lexsort((nearest, -similarities_N[nearest]))][:count]
        return [Neighbour(int(one), float(similarities_N[one])) for one in nearest if similarities_N[one] > -np.inf]


def cluster(features_ND: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Spherical k-means by FAISS of features of length one, with a fixed seed; the largest cluster is the first.

    Returns:
        (N,) the cluster of each tile, and (K,) the tile nearest to each centre. Clusters without a tile are left out.
    """
    k = min(k, len(features_ND))
    means = faiss.Kmeans(
        features_ND.shape[1], k, niter=CLUSTERING_STEPS, seed=CLUSTERING_SEED, spherical=True, min_points_per_centroid=1
    )
    means.train(features_ND)
    similarities, found = means.assign(features_ND)
    places = np.argsort(np.argsort(-np.bincount(found, minlength=k), kind="stable"))  # by size, of each centre
    clusters_N = places[found]
    members = [np.flatnonzero(clusters_N == one) for one in range(int(clusters_N.max()) + 1)]
    return clusters_N, np.array([tiles[np.argmax(similarities[tiles])] for tiles in members])


def cohort_features(
    extractor: Extractor, store: TileStore, folder: Path | None, *, device: torch.device, allow_other_mpp: bool
) -> NDArray[np.float32]:
    """Features (N, D) of a store, in its order.

    Args:
        folder: as `dino-path embed` fills it; what is missing there is made first. None: they stay in memory.

    Raises:
        TileStoreError: a tile cannot be read, or the tiles' mpp is not the model's.
        DataError: the folder holds features of another model, or of other tiles.
    """
    if folder is None:
        return extract_features(extractor, store, batch_size=BATCH_SIZE, device=device)
    world = World(rank=0, size=1, local_rank=0, device=device)
    embed_store(extractor, store, folder, batch_size=BATCH_SIZE, world=world, allow_other_mpp=allow_other_mpp)
    layout, parts = TridentLayout(StoreFolder(store.path).read_config()), []
    for number, record in enumerate(store.slides):
        file = layout.feature_file(folder, encoder_folder_name(extractor), record)
        content = read_feature_file(file)
        first, last = store.starts[number : number + 2]
        corners_N2 = np.stack([store.x_level0[first:last], store.y_level0[first:last]], axis=1)
        if content.coords is None or not np.array_equal(content.coords, corners_N2):
            raise other_features(file)
        parts.append(content.features)
    return np.concatenate(parts)

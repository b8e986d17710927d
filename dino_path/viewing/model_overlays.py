"""A model's layers for the slides of a store: clusters, neighbours, colours of patches, attention."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dino_path.features.extractor import load_extractor
from dino_path.tiles.store import TileStore
from dino_path.viewing.cohort import Cohort, cohort_features
from dino_path.viewing.patch_maps import PatchMaps


@dataclass(frozen=True)
class ModelOverlays:
    """A model's view of the kept tiles of a store."""

    store: TileStore
    cohort: Cohort
    maps: PatchMaps


def load_model_overlays(
    spec: str,
    store: TileStore,
    features: Path | None,
    *,
    num_clusters: int,
    device: torch.device,
    allow_other_mpp: bool,
) -> ModelOverlays:
    """Load a model, and take or make the features of the store's tiles.

    Args:
        spec: as `load_extractor` reads it.
        features: folder of feature files; None: they stay in memory.

    Raises:
        CheckpointError: the model cannot be loaded, or gives numbers that are not finite.
        TileStoreError: a tile cannot be read, or the tiles' mpp is not the model's.
        DataError: the folder holds features of another model, or of other tiles.
    """
    extractor = load_extractor(spec, device=device)
    features_ND = cohort_features(extractor, store, features, device=device, allow_other_mpp=allow_other_mpp)
    groups = [record.patient_id or record.slide_id for record in store.slides]
    cohort = Cohort(features_ND, store.starts, groups, num_clusters)
    return ModelOverlays(store, cohort, PatchMaps(extractor, store, device))

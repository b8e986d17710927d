"""Names of models, checked without torch, so that a mistyped name is refused at once."""

from __future__ import annotations

from pathlib import Path

from dino_path.errors import TileStoreError
from dino_path.model.folder import ModelFolder, read_model_folder, require_weights
from dino_path.model.names import timm_model_and_file
from dino_path.records.feature_kinds import split_kind

CONTROL_NAMES = ("mean-colour", "colour-statistics")
LARGEST_MPP_DIFFERENCE = 0.05  # relative


def look_at_model(spec: str) -> ModelFolder | None:
    """The description in the model folder `spec`; None for timm models and controls.

    Args:
        spec: as `extractor.load_extractor` reads it.

    Raises:
        CheckpointError: nothing of that name is there, as far as names and paths tell.
    """
    _, spec = split_kind(spec)
    if spec in CONTROL_NAMES:
        return None
    place = spec.removeprefix("untrained:")
    if place.startswith("timm:"):
        timm_model_and_file(place.removeprefix("timm:"))
        return None
    folder = read_model_folder(Path(place))
    if place == spec:
        require_weights(folder)
    return folder


def refuse_other_mpp(model: str, model_mpp: float | None, mpp: float, name: str) -> None:
    """Check that tiles at `mpp` are what the model was trained on.

    Raises:
        TileStoreError: they differ by more than 5 %.
    """
    if model_mpp is None or abs(mpp / model_mpp - 1) <= LARGEST_MPP_DIFFERENCE + 1e-9:
        return
    raise TileStoreError(
        name,
        f"tiles are at {mpp:g} um/px, and {model} was trained at {model_mpp:g} um/px.",
        "A model needs tissue at the resolution at which it was trained (within 5 %).",
        f"Tile again with tiles.mpp={model_mpp:g}, or embed with --allow-other-mpp.",
    )

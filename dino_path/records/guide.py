"""The distilled model: `RUN/guide.json`, and `RUN/guide_features/features.json` if its features are cached."""

from __future__ import annotations

from dino_path.errors import CheckpointError
from dino_path.records.format import Format, Record


class GuideRecord(Record):
    """The frozen model of `objective.distill.teacher`.

    Attributes:
        name: of a model folder its name, without the path.
        digest: SHA-256 of architecture, weights and preprocessing, as features are kept under.
        num_features: G.
        input_px: edge at which it sees the views.
        num_patches: of a view, where patches are compared; None: they are not.
    """

    name: str
    digest: str
    num_parameters: int
    num_features: int
    input_px: int
    num_patches: int | None


class GuideFeaturesRecord(Record):
    """The origin of cached features: equal records mean equal features.

    Attributes:
        tiles_digest, contents_digest: which tiles, and what they held; the second is empty where it is not known.
        view_px: edge of the whole tile as a view, before the guide's own resize.
        stain_normalisation: `views.stain_normalisation`.
        precision: in which the guide ran.
    """

    guide: GuideRecord
    num_tiles: int
    tiles_digest: str
    contents_digest: str
    view_px: int
    stain_normalisation: str | None
    precision: str


NEEDED = "A file as `dino-path pretrain` writes it is needed."
GUIDE = Format(
    "guide.json", GuideRecord, CheckpointError, NEEDED, "Start the run once more: it writes the file at its start."
)
GUIDE_FEATURES = Format(
    "features.json",
    GuideFeaturesRecord,
    CheckpointError,
    NEEDED,
    "Delete its folder, and start the run again: the features are then computed again.",
)

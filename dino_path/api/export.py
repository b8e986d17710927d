"""`dino_path.export`: run -> model folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dino_path.api.inputs import check_checkpoint
from dino_path.api.settings import PathLike
from dino_path.disk import refuse_unwritable
from dino_path.records.feature_kinds import FeatureKind

if TYPE_CHECKING:
    from dino_path.exporting.format_names import Precision
    from dino_path.exporting.model_folder import ExportResult

logger = logging.getLogger(__name__)


def export(
    run: PathLike,
    out: PathLike,
    *,
    best: bool = False,
    network: Literal["teacher", "student"] = "teacher",
    features: FeatureKind | None = None,
    format: str | Sequence[str] = "timm",
    precision: Precision = "fp32",
    license: str = "unknown",
    input_px: int | None = None,
    push_to_hub: str | None = None,
) -> ExportResult:
    """Make a model folder of a run: the frozen extractor, which `load` and timm read.

    Every file is loaded back in a fresh process, and its features are compared with those of the run.

    Args:
        run: run folder (its newest checkpoint) or checkpoint file.
        out: model folder.
        best: of a run folder the best checkpoint instead of the newest.
        network: which of the two networks to export.
        features: [CLS] token, mean of the patch tokens, or both; None: as the network pools them.
        format: `timm`, `onnx`, `pt2`; timm is always written.
        precision: of the stored weights.
        license: the Hub's name of a licence, such as `cc-by-nc-4.0`.
        input_px: edge that tiles are resized to, in pixels; None: that of the training's global views.
        push_to_hub: `OWNER/NAME` of a repository of the Hugging Face Hub to upload it to; a new one is private.

    Raises:
        CheckpointError: no checkpoint of ours, or the written folder does not give its features.
        ConfigError: a format cannot be written here.
        DataError: `out` exists and is not a model folder.
        LaunchError: the Hub cannot be reached, or refuses; the folder is complete.
    """
    from dino_path.exporting.format_names import read_formats, refuse_impossible
    from dino_path.exporting.overwriting import refuse_to_overwrite

    place, folder = Path(run), Path(out)
    kinds = read_formats(format if isinstance(format, str) else ",".join(format))
    refuse_impossible(kinds, precision)
    if best:
        from dino_path.records.best import best_checkpoint

        place = best_checkpoint(place)
        logger.info("the best: %s", place)
    check_checkpoint(place)
    refuse_unwritable(folder)
    refuse_to_overwrite(folder)
    logger.info("loading torch and timm")
    from dino_path.exporting.checkpoint import export_checkpoint

    result = export_checkpoint(
        place, folder, network=network, formats=kinds, precision=precision, license=license, features=features,
        input_px=input_px,
    )  # fmt: skip
    if push_to_hub is None:
        return result
    from dino_path.exporting.hub import push_to_hub as push

    logger.info("uploading to %s", push_to_hub)
    return replace(result, uploaded=push(folder, push_to_hub))

"""Export of a run's checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dino_path.config import Config
from dino_path.errors import CheckpointError, DataError, NewerFormat
from dino_path.exporting.card import UNKNOWN_LICENSE
from dino_path.exporting.format_names import Format, Precision
from dino_path.exporting.model_folder import ExportResult, ExportSource, export_model
from dino_path.model.checkpoint import Checkpoint, lineage, read_checkpoint
from dino_path.model.lora import merged
from dino_path.model.published import Network, read_published, timm_model_of
from dino_path.preprocessing import Preprocessing, Triple, training_preprocessing
from dino_path.records.environment import EnvironmentRecord, read_environment
from dino_path.records.evaluation import RESULTS
from dino_path.records.feature_kinds import FeatureKind
from dino_path.records.guide import GUIDE, GuideRecord
from dino_path.run import RunFolder, newest_checkpoint
from dino_path.settings import digest, section_from_file
from dino_path.walk import Found, files_below

logger = logging.getLogger(__name__)

VERSIONS_TOLD = ("dino-path", "torch", "timm")

METHODS = {"dino": "DINO", "dinov2": "DINOv2", "dinov3": "DINOv3"}  # of facebookresearch's programs

# What facebookresearch's programs normalise by, in training and evaluation, and timm's ViTs such as UNI.
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)


def export_checkpoint(
    path: Path,
    out: Path,
    *,
    network: Network = "teacher",
    formats: tuple[Format, ...] = ("timm",),
    precision: Precision = "fp32",
    license: str = UNKNOWN_LICENSE,
    features: FeatureKind | None = None,
    input_px: int | None = None,
) -> ExportResult:
    """Write the backbone of a checkpoint as a model folder.

    Args:
        path: a checkpoint file, or a run folder (its newest checkpoint).
        formats, precision: see `export_model`.
        license, features: see `ExportSource`.
        input_px: edge that the model asks its tiles to be resized to; None: that of the training's global views.

    Raises:
        CheckpointError: no checkpoint of ours, its network has no features of this kind, or the written folder does not
            give its features.
        ConfigError: a format cannot be written here.
        DataError: `out` exists and is not a model folder.
    """
    file = newest_checkpoint(path)
    checkpoint = read_checkpoint(file)
    run = RunFolder(file.resolve().parent.parent)
    source = export_source(checkpoint, run, name=str(file), network=network)
    source = replace(source, license=license, features=features)
    if input_px is not None:
        source = replace(source, preprocessing=replace(source.preprocessing, input_px=input_px))
    return export_model(source, out, formats=formats, precision=precision)


def import_checkpoint(
    path: Path, out: Path, *, arch: str | None, network: Network | None, mpp: float | None
) -> ExportResult:
    """Write the backbone of published weights (see `published`) as a model folder.

    At the image size of its position embedding the features are theirs; at other sizes timm resamples the position
    embedding with antialiasing, which dino, and dinov2 without registers, do not.

    Args:
        arch: timm model name; None: told by the weights or the settings in the file.
        network: None: the teacher, or the only network there is.
        mpp: microns per pixel of the images that it was trained on; None: unknown.

    Raises:
        CheckpointError: no such checkpoint, its architecture cannot be told, or its weights do not fit `arch`.
        DataError: `out` exists and is not a model folder.
    """
    checkpoint = read_published(path, network)
    model = timm_model_of(checkpoint, arch)
    method, trainer = (
        (METHODS[checkpoint.trainer], f"facebookresearch/{checkpoint.trainer}")
        if checkpoint.trainer is not None
        else ("an unknown method", "unknown authors")
    )
    provenance = {
        "method": method,
        "trained_by": trainer,
        "file": path.name,
        "network": checkpoint.network,
        "epochs": checkpoint.epoch,
    }
    source = ExportSource(
        backbone=model.name,
        arguments=model.arguments,
        state_dict=checkpoint.backbone,
        preprocessing=Preprocessing(IMAGENET_MEAN, IMAGENET_STD, model.input_px, mpp),
        provenance=provenance,
        source=str(path),
    )
    return export_model(source, out)


def export_source(checkpoint: Checkpoint, run: RunFolder, *, name: str, network: Network) -> ExportSource:
    """The description of a checkpoint's backbone; the run folder adds environment and evaluation results.

    Args:
        name: of the checkpoint, for messages.
    """
    weights = (checkpoint.teacher if network == "teacher" else checkpoint.student)["backbone"]
    config = section_from_file(Config, checkpoint.config, name)
    return ExportSource(
        backbone=config.model.backbone,
        arguments=config.model.backbone_arguments,
        state_dict=merged(weights, config.model),
        preprocessing=training_preprocessing(config, tile_px=checkpoint.tile_px, mpp=checkpoint.tile_mpp),
        provenance=_provenance(checkpoint, config, run, network=network),
        results=tuple(_read_results(run)),
        source=name,
    )


def _provenance(checkpoint: Checkpoint, config: Config, run: RunFolder, *, network: Network) -> dict[str, Any]:
    """How the weights came about, as plain values; no date, so that the same checkpoint gives the same folder."""
    environment = _environment_of(run)
    versions = environment.versions if environment else {}
    objective = config.objective
    head = objective.dino if objective.dino.weight > 0 else objective.ibot
    guide = _guide_of(run) if objective.distill.weight > 0 else None
    method = " + ".join(objective.methods)
    return {
        "method": method if guide is None else method.replace("distillation", f"distillation of {guide.name}"),
        "distilled_from": guide
        and {
            "model": guide.name,
            "parameters": guide.num_parameters,
            "features": guide.num_features,
            "input": f"{guide.input_px} px",
            "digest": guide.digest[:16],
        },
        "network": network,
        "steps": checkpoint.step,
        "global_batch_size": checkpoint.global_batch_size,
        "tiles_seen": checkpoint.tiles_seen,
        "slides": checkpoint.num_slides,
        "tiles_in_store": checkpoint.num_tiles,
        "views": f"2 x {config.views.global_px} px, {config.views.num_local} x {config.views.local_px} px, "
        f"recipe {config.views.recipe}",
        "prototypes": head.num_prototypes if objective.has_prototypes else None,
        "optimizer": f"{config.optim.optimizer}, base_lr {config.optim.base_lr:g}, weight decay "
        f"{config.optim.weight_decay:g} to {config.optim.final_weight_decay:g}",
        "started_from": _started_from(checkpoint, config),
        "config_digest": digest(config),
        "git_commit": environment.git_commit if environment else None,
        "versions": {key: versions[key] for key in VERSIONS_TOLD if versions.get(key)},
    }


def _guide_of(run: RunFolder) -> GuideRecord | None:
    """The model that the run learned from; None where that is not known any more."""
    try:
        return GUIDE.read(run.guide_file)
    except (CheckpointError, NewerFormat) as error:
        logger.warning("the model card does not say what was distilled. %s", error)
        return None


def _started_from(checkpoint: Checkpoint, config: Config) -> str:
    """The runs before, or the name of the start weights."""
    if checkpoint.starts:
        return lineage(checkpoint.starts)
    return Path(config.model.weights).name if config.model.weights else "random weights"


def _read_results(run: RunFolder) -> Iterator[dict[str, Any]]:
    """The evaluations in the run folder, in the order of their paths."""
    found = (
        files_below(run.evaluation, lambda name: name == "results.json") if run.evaluation.exists() else Found((), ())
    )
    for one in found.unreadable:
        logger.warning("%s: its evaluations are not in the model card", one)
    for file in found.files:
        try:
            yield RESULTS.plain(RESULTS.read(file))
        except (DataError, NewerFormat) as error:
            logger.warning("its results are not in the model card. %s", error)


def _environment_of(run: RunFolder) -> EnvironmentRecord | None:
    """In which environment the run was started; None where that is not known any more."""
    try:
        return read_environment(run.environment_file)
    except (DataError, NewerFormat) as error:
        logger.warning("the model card does not say with which versions it was trained. %s", error)
        return None

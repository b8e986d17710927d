"""What a command or call will read and write, looked at before anything slow: before torch is imported.

Nothing here may import torch (tests/repository/test_waiting.py).
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dino_path.errors import CheckpointError, ConfigError, TileStoreError

if TYPE_CHECKING:
    from dino_path.config import Config
    from dino_path.evaluation.labelled.datasets import LabelledSet


def check_slides(slides: Sequence[str], config: Config) -> None:
    """There are slides, each with a unique id."""
    from dino_path.slides.find import find_slides

    find_slides([Path(name) for name in slides], config.slides.exclude, masks=config.slides.masks)


def check_store(config: Config) -> None:
    """There is a store, or a folder of images, with tiles of the split; tiling may still be running."""
    from dino_path.tiles.source import refuse_no_tiles

    assert config.store is not None
    refuse_no_tiles(config.store, split=config.slides.split, exclude=config.slides.exclude)


def check_pretraining(config: Config) -> None:
    """TensorBoard, tiles, backbone, weights of a start, a model to learn from and the data of the running k-NN, as far
    as paths and names tell."""
    from dino_path.features.specs import look_at_model
    from dino_path.model.names import architecture
    from dino_path.tiles.expected import refuse_unfinished

    assert config.store is not None
    check_tensorboard(config)
    check_store(config)
    refuse_unfinished(config.store)
    architecture(config.model.backbone)
    weights = config.model.weights
    if weights is not None and (Path(weights) / "checkpoints").is_dir():
        check_checkpoint(Path(weights))
    elif weights is not None and weights != "timm" and not Path(weights).is_file():
        check_models([weights])
    check_settings_of_distillation(config)
    distill = config.objective.distill
    if distill.weight > 0:
        assert distill.teacher is not None
        look_at_model(distill.teacher)
    if config.monitor.knn_data is not None:
        check_labelled(config.monitor.knn_data, config)


def check_tensorboard(config: Config) -> None:
    """If the run writes for TensorBoard, TensorBoard is installed."""
    if config.monitor.tensorboard and find_spec("tensorboard") is None:
        raise ConfigError(
            "monitor.tensorboard=true",
            "the package tensorboard is not installed.",
            "It writes the files for TensorBoard.",
            "Install the extra: uv pip install 'dino-path[tensorboard]'. Or set monitor.tensorboard=false.",
        )


def check_checkpoint(path: Path) -> None:
    """The path is a run folder with a checkpoint, or a file in torch's format."""
    from dino_path.run import newest_checkpoint

    file = newest_checkpoint(path)
    if not zipfile.is_zipfile(file):
        raise CheckpointError(
            str(file),
            "cannot be read as a checkpoint (not a torch archive).",
            "A file written by `dino-path pretrain` is needed; other files are never unpickled.",
            "Check the path; if the file is damaged, use the previous checkpoint.",
        )


def check_foreign_checkpoint(file: Path, arch: str | None) -> None:
    """The file exists, and timm knows the architecture, if one is named."""
    from dino_path.model.names import architecture

    if not file.is_file():
        raise CheckpointError(
            str(file),
            "cannot be read (no such file).",
            "A file of published weights is needed: a backbone, or a training checkpoint.",
            "Check the path. For a checkpoint of `dino-path pretrain` use `dino-path export`.",
        )
    if arch is not None:
        architecture(arch)


def check_images(paths: Sequence[Path]) -> None:
    """All are files."""
    for path in paths:
        if not path.is_file():
            raise TileStoreError(
                str(path),
                "is a folder." if path.is_dir() else "no such file.",
                "Image files are needed (JPEG, PNG, TIFF, BMP or WebP).",
                "Check the path.",
            )


def check_baseline(folder: Path, labelled: LabelledSet, config: Config, fractions: Sequence[float] = ()) -> None:
    """There is a finished baseline for the data: of all labels, or of one of these fractions."""
    from dino_path.evaluation.baseline.files import BaselineFolder
    from dino_path.evaluation.labelled.division import divide

    first = BaselineFolder(divide(labelled, config.evaluation).folders(folder)[0])
    if not any(first.of_draw(share, 0).is_finished() for share in fractions):
        first.read_result()


def check_continued_run(config: Config) -> None:
    """The run to continue exists and has a checkpoint."""
    from dino_path.training.other_run import check_start

    check_start(config)


def check_settings_of_distillation(config: Config) -> None:
    """The settings are consistent; an earlier job may still make the model to learn from."""
    from dino_path.training.distill_settings import check_distillation

    check_distillation(config)


def check_labelled(data: str, config: Config, *, coming_store: Path | None = None) -> None:
    """There are labelled images; a store that a tiling job will make is not checked."""
    from dino_path.evaluation.labelled.datasets import check_listing

    if coming_store is None or Path(data.removeprefix("store:")).resolve() != coming_store.resolve():
        check_listing(data, config.evaluation)


def check_masked(data: str) -> None:
    """There are images with masks."""
    from dino_path.evaluation.labelled.published_masks import list_masked

    list_masked(data)


def check_cohort(folders: Sequence[str], labels: Path) -> None:
    """There are feature files, and a table of slides."""
    from dino_path.evaluation.cohorts.cohort import read_labels
    from dino_path.features.bags import find_bags

    for folder in folders:
        find_bags(Path(folder))
    read_labels(labels)


def check_models(specs: Sequence[str]) -> None:
    """Each is a control, a model known to timm, or a model folder; none is given twice."""
    from dino_path.features.specs import look_at_model

    for spec in specs:
        if specs.count(spec) > 1:
            raise ConfigError(spec, "is given twice.", "Each model is one row.", "Give it once.")
        look_at_model(spec)


def check_models_to_come(specs: Sequence[str]) -> None:
    """The paths of models that a job will read exist. A single word may be made by an earlier job."""
    from dino_path.records.feature_kinds import split_kind

    for spec in specs:
        path = Path(split_kind(spec)[1].removeprefix("untrained:"))
        if ":" not in str(path) and len(path.parts) > 1 and not path.exists():
            raise CheckpointError(
                str(path), "no such folder.", "A model folder is needed.", "Make one with `dino-path export`."
            )


def parse_fractions(text: str) -> list[float]:
    """`1,0.1` -> [1.0, 0.1]."""
    try:
        fractions = [float(word) for word in text.split(",")]
    except ValueError:
        fractions = []
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions) or len({*fractions}) < len(fractions):
        raise ConfigError(
            f"fraction {text!r}",
            "not a list of different fractions.",
            "Numbers above 0 and up to 1 are needed, with commas between, such as 1,0.1,0.01.",
            "Correct --fractions or --fraction.",
        )
    return fractions

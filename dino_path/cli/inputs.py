"""What a job will read, looked at when it is submitted: it may wait for days, and then find nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dino_path.cli.program import split_arguments
from dino_path.config import Config
from dino_path.errors import CheckpointError


def check_stage_inputs(stage: str, given: dict[str, Any], config: Config) -> None:
    """Refuse what the stage would refuse at its start, as far as paths tell.

    Args:
        given: what its command line gives the command, by the names of its parameters.

    Raises:
        DinoPathError: as the stage's own.
    """
    match stage:
        case "tile":
            check_slides(split_arguments(given["slides"])[0], config)
        case "pretrain":
            check_store(config)
            check_continued_run(config)
        case "baseline":
            check_labelled(given["data"], config)
        case "evaluate":
            check_labelled(given["data"], config)
            check_models(split_arguments(given["models"])[0])
        case "embed":
            check_models([given["model"]])


def check_slides(slides: Sequence[str], config: Config) -> None:
    """There are slides, each with an id of its own."""
    from dino_path.slides.find import find_slides

    find_slides([Path(name) for name in slides], config.slides.exclude, masks=config.slides.masks)


def check_store(config: Config) -> None:
    """There is a store, or a folder of images, with tiles of the split; tiling may still be under way."""
    from dino_path.tiles.source import open_tiles

    assert config.store is not None
    open_tiles(config.store, split=config.slides.split, exclude=config.slides.exclude)


def check_continued_run(config: Config) -> None:
    """The run that training is to continue is there, with a checkpoint."""
    from dino_path.training.continuation import check_start

    check_start(config)


def check_labelled(data: str, config: Config, *, coming_store: Path | None = None) -> None:
    """There are labelled images; a store that tiling has yet to make is taken on trust."""
    from dino_path.evaluation.datasets import check_listing

    if coming_store is None or Path(data.removeprefix("store:")).resolve() != coming_store.resolve():
        check_listing(data, config.evaluation)


def check_models(specs: Sequence[str]) -> None:
    """Model folders are there; names of published models are left to the stage."""
    for spec in specs:
        path = Path(spec.removeprefix("untrained:"))
        if ":" not in str(path) and len(path.parts) > 1 and not path.exists():
            raise CheckpointError(
                str(path), "no such folder.", "A model folder is needed.", "Make one with `dino-path export`."
            )

"""What a stage of a submitted job will read, looked at before the job waits for days.

Nothing here may import torch (tests/repository/test_waiting.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino_path.api.inputs import (
    check_cohort,
    check_continued_run,
    check_labelled,
    check_masked,
    check_models_to_come,
    check_settings_of_distillation,
    check_slides,
    check_store,
    check_tensorboard,
)
from dino_path.cli.program import split_arguments
from dino_path.errors import ConfigError

if TYPE_CHECKING:
    from dino_path.config import Config
SHIPPED_SUITES = ("development", "public")  # of configs/suites/


def check_stage_inputs(stage: str, given: dict[str, Any], config: Config) -> None:
    """Refuse inputs that the stage would refuse at its start, judging by paths.

    Args:
        stage: for `evaluate` with its command, such as `evaluate knn`.
        given: the command's parameters by name.

    Raises:
        DinoPathError: as the stage's own.
    """
    match stage:
        case "tile":
            check_slides(split_arguments(given["slides"])[0], config)
        case "pretrain":
            check_store(config)
            check_continued_run(config)
            check_settings_of_distillation(config)
            check_tensorboard(config)
        case "baseline":
            check_labelled(given["data"], config)
        case "evaluate slides":
            check_cohort(split_arguments(given["features"])[0], given["labels"])
        case "evaluate suite":
            check_suite(given)
            check_models_to_come(split_arguments(given["models"])[0])
        case "evaluate segmentation":
            check_masked(given["data"])
            check_models_to_come(split_arguments(given["models"])[0])
        case _ if stage.startswith("evaluate "):
            check_labelled(given["data"], config)
            check_models_to_come(split_arguments(given["models"])[0])
        case "embed":
            check_models_to_come([given["model"]])


def check_suite(given: dict[str, Any]) -> None:
    """The suite's file can be read, and its sets exist.

    Args:
        given: what the command line gives `evaluate suite`.
    """
    from dino_path.evaluation.results.suite_plan import look_at_suite
    from dino_path.settings import load_suite

    suite = load_suite(suite_file(given["suite"]), split_arguments(given["models"])[1])
    look_at_suite(suite, root=given["root"], skip_missing=given["skip_missing"])


def suite_file(name: str) -> Path:
    """A file, or one of `configs/suites/` by its name.

    Raises:
        ConfigError: neither.
    """
    from dino_path.settings import shipped_config

    if Path(name).is_file():
        return Path(name)
    if name in SHIPPED_SUITES:
        return shipped_config(f"suites/{name}.yaml")
    raise ConfigError(
        f"--suite {name}",
        "no such file.",
        f"A YAML file of sets is needed, or one of {', '.join(SHIPPED_SUITES)}.",
        "Check the path; docs/evaluation-suite.md describes such a file.",
    )

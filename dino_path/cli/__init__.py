"""The command line: one thin function per command. Heavy imports live inside, so that `--help` answers at once."""

<<<<<<< HEAD
# The order of `dino-path --help`.
from dino_path.cli import (  # isort: skip
    pretraining,
    extractor,
    attention,
    feature_map,
    view,
    baseline,
    evaluate,
    evaluate_retrieval,
    evaluate_robustness,
    evaluate_segmentation,
    evaluate_slides,
    report,
    verify,
    cluster,
)
=======
from dino_path.cli import pretraining, extractor, baseline, evaluate, evaluate_suite, report, cluster  # isort: skip  # the order of `dino-path --help`
>>>>>>> suite
from dino_path.cli import program
from dino_path.cli.program import app, check_command, main

__all__ = [
    "app",
    "attention",
    "baseline",
    "check_command",
    "cluster",
    "evaluate",
<<<<<<< HEAD
    "evaluate_retrieval",
    "evaluate_robustness",
    "evaluate_segmentation",
    "evaluate_slides",
=======
    "evaluate_suite",
>>>>>>> suite
    "extractor",
    "feature_map",
    "main",
    "pretraining",
    "program",
    "report",
    "verify",
    "view",
]

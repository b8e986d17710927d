"""The command line: one thin function per command. Heavy imports live inside, so that `--help` answers at once."""

# The order of `dino-path --help`.
from dino_path.cli import (  # isort: skip
    start,
    plan,
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
    evaluate_suite,
    report,
    verify,
    pseudonyms,
    licences,
    cluster,
)
from dino_path.cli import program
from dino_path.cli.program import app, check_command, main

__all__ = [
    "app",
    "attention",
    "baseline",
    "check_command",
    "cluster",
    "evaluate",
    "evaluate_retrieval",
    "evaluate_robustness",
    "evaluate_segmentation",
    "evaluate_slides",
    "evaluate_suite",
    "extractor",
    "feature_map",
    "licences",
    "main",
    "plan",
    "pretraining",
    "program",
    "pseudonyms",
    "report",
    "start",
    "verify",
    "view",
]

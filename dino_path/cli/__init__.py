"""The command line: one thin function per command. Heavy imports live inside, so that `--help` answers at once."""

from dino_path.cli import pretraining, extractor, baseline, evaluate, evaluate_suite, report, cluster  # isort: skip  # the order of `dino-path --help`
from dino_path.cli import program
from dino_path.cli.program import app, check_command, main

__all__ = [
    "app",
    "baseline",
    "check_command",
    "cluster",
    "evaluate",
    "evaluate_suite",
    "extractor",
    "main",
    "pretraining",
    "program",
    "report",
]

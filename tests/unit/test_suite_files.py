"""configs/suites/: every file loads, its header's command exists, and its sets are read where they are there."""

import re
import shlex
from pathlib import Path
from typing import get_args

import pytest

from dino_path.cli import check_command
from dino_path.cli.inputs import SHIPPED_SUITES, suite_file
from dino_path.config import FrozenProtocol
from dino_path.evaluation.labelled.datasets import LAYOUTS
from dino_path.evaluation.labelled.published_masks import LAYOUTS as MASK_LAYOUTS
from dino_path.evaluation.results.suite_plan import look_at_suite
from dino_path.settings import load_suite

FILES = sorted((Path(__file__).parents[2] / "configs" / "suites").glob("*.yaml"))


def test_the_files_are_those_that_the_command_knows_by_name() -> None:
    assert {file.stem for file in FILES} == set(SHIPPED_SUITES)
    assert all(suite_file(file.stem).read_bytes() == file.read_bytes() for file in FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_suite_loads_and_its_header_gives_a_command_that_exists(file: Path) -> None:
    suite = load_suite(file)
    found = [shlex.split(line) for line in re.findall(r"^#   dino-path (.*)$", file.read_text(), re.MULTILINE)]
    assert found
    for words in found:
        assert check_command(words)["suite"] == file.stem
    for one in suite.sets.values():
        assert one.about
        assert one.primary.protocol in (*get_args(FrozenProtocol), "segmentation")


def test_every_published_layout_is_in_the_public_suite() -> None:
    suite = load_suite(next(file for file in FILES if file.stem == "public"))
    assert {one.data.partition(":")[0] for one in suite.sets.values()} == {*LAYOUTS, *MASK_LAYOUTS} - {"store"}


def test_the_development_sets_are_what_lies_in_shared_data(shared_data: Path) -> None:
    suite = load_suite(next(file for file in FILES if file.stem == "development"))
    look_at_suite(suite, root=shared_data, skip_missing=False)

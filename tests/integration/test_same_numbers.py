"""The same settings and seed give bit for bit the numbers of the release in which they were recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from same_numbers import CASES, OF_TWO, RECORD, check_numbers, train_alone, train_two

RECORDED: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))


THEN = ".".join(RECORDED["machine"]["torch"].split(".")[:2])
pytestmark = pytest.mark.skipif(
    not torch.__version__.startswith(f"{THEN}."),
    reason=f"recorded with torch {THEN}; other releases may draw other initial weights from a seed (2.11 does)",
)


def check(name: str, found: dict[str, Any]) -> None:
    check_numbers(found, RECORDED["runs"][name], machine_then=RECORDED["machine"])


@pytest.mark.parametrize("name", CASES)
def test_one_process_gives_the_recorded_losses_and_weights(tiles_folder: Path, tmp_path: Path, name: str) -> None:
    check(name, train_alone(name, tiles_folder, tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_TWO)
def test_two_processes_give_the_recorded_losses_and_weights(tiles_folder: Path, tmp_path: Path, name: str) -> None:
    check(name, train_two(name, tiles_folder, tmp_path / "run"))

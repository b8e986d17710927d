"""The same settings and seed give bit for bit the numbers of the release in which they were recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
from same_numbers import CASES, OF_TWO, RECORD, check_numbers, train_alone, train_two

RECORDED: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))


def check(name: str, found: dict[str, Any]) -> None:
    check_numbers(found, RECORDED["runs"][name], machine_then=RECORDED["machine"])


@pytest.mark.parametrize("name", CASES)
def test_one_process_gives_the_recorded_losses_and_weights(tiles_folder: Path, tmp_path: Path, name: str) -> None:
    check(name, train_alone(name, tiles_folder, tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("name", OF_TWO)
def test_two_processes_give_the_recorded_losses_and_weights(tiles_folder: Path, tmp_path: Path, name: str) -> None:
    check(name, train_two(name, tiles_folder, tmp_path / "run"))

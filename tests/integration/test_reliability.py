"""Short forms of benchmarks/reliability: kills, pairs and bad disks of `tile`, which needs no torch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).parents[2] / "benchmarks" / "reliability"
PATIENCE_S = 900


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs that the scripts make once."""
    return tmp_path_factory.mktemp("reliability")


def said_by(script: str, work: Path, *words: str) -> str:
    """What a script prints when nothing is lost; else the test fails with it."""
    answer = subprocess.run(
        [sys.executable, "-W", "ignore", str(FOLDER / script), "--work", str(work), *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(FOLDER.parents[1])},
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr[-2000:]
    return answer.stdout


def test_a_command_that_is_killed_and_called_again_leaves_what_an_undisturbed_run_leaves(work: Path) -> None:
    assert "in all: 6 tried" in said_by("kills.py", work, "--moments", "6", "--only", "tile")


def test_two_at_once_on_one_output_leave_what_one_of_them_leaves(work: Path) -> None:
    assert "in all: 1 tried, 1 survived" in said_by("pairs.py", work, "--pairs", "1", "--only", "tile")


def test_a_slow_disk_and_a_clock_that_jumps_change_nothing(work: Path) -> None:
    said = said_by("disks.py", work, "--times", "1", "--only", "tile", "--troubles", "slow", "clock back")
    assert [line.split()[-1] for line in said.splitlines()[-2:]] == ["0", "0"]

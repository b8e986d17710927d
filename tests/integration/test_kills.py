"""The short forms of kills.py, pairs.py and disks.py of benchmarks/reliability, in one process: imports take long."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "reliability"
SCRIPT = """
import sys
import disks, kills, pairs

work = sys.argv[1]

def attack(script, *words):
    print(f"== {script.__name__}", flush=True)
    sys.argv = [script.__name__, "--work", work, "--seed", "0", "--seconds", "1000", *words]
    print("exit code", script.main(), flush=True)

attack(kills, "--moments", "4", "--only", "tile", "pretrain")
attack(pairs, "--pairs", "1", "--only", "tile")
attack(disks, "--times", "1", "--only", "tile")
"""
PATIENCE_S = 600  # of 40 s on two idle cores


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each script says, by its name."""
    work = tmp_path_factory.mktemp("attacks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARKS)}
    answer = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(work)], env=environment, timeout=PATIENCE_S, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    parts = answer.stdout.split("== ")[1:]
    return {part.partition("\n")[0]: part for part in parts}


def test_commands_that_are_killed_and_called_again_leave_what_undisturbed_ones_leave(said: dict[str, str]) -> None:
    kills = said["kills"]
    assert re.search(r"in all: 8 tried, \d+ killed, 8 survived, 0 lost", kills), kills
    assert "exit code 0" in kills


def test_of_two_commands_at_once_none_destroys_the_output_of_the_other(said: dict[str, str]) -> None:
    assert "in all: 1 tried, 1 survived, 0 lost" in said["pairs"], said["pairs"]
    assert "exit code 0" in said["pairs"]


def test_after_a_bad_disk_the_next_call_repairs_all(
    said: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import disks

    found = said["disks"]
    assert "exit code 0" in found, found
    rows = {line[:16].strip(): line[16:].split() for line in found.splitlines() if line[:16].strip() in disks.TROUBLES}
    assert {*rows} >= {*disks.TROUBLES} - disks.ON_TMPFS
    for trouble, (tried, *_, other_ends, tracebacks, lost) in rows.items():
        assert (tried, other_ends, tracebacks, lost) == ("1", "0", "0", "0"), (trouble, found)
    if not disks.can_mount(tmp_path / "disk"):
        pytest.skip("full and read-only disks need a tmpfs, which only root may mount")
    assert {*rows} == {*disks.TROUBLES}

"""Processes that cannot meet say who is missing; one that fails shows why, and the others end within seconds."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT, TESTS = Path(__file__).with_name("launches.py"), Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
PATIENCE_S = 200  # of which most is importing torch on a busy machine
WITHIN_S = 30.0  # the watch needs 1 + 5 s; the processes that hang would do so for 100 s
REFUSED, FAILED = 2, 1


def outcome(case: str) -> tuple[list[int], float, str]:
    """Exit codes, seconds from the start of the processes to their end, and all that they said."""
    answer = subprocess.run(
        [sys.executable, str(SCRIPT), case], env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_S,
        check=True,
    )  # fmt: skip
    *codes, seconds = answer.stdout.split()
    return [int(code) for code in codes], float(seconds), answer.stderr


def test_processes_that_all_come_meet_and_say_nothing() -> None:
    codes, _, said = outcome("all come")
    assert (codes, said) == ([0, 0, 0], "")


@pytest.mark.parametrize(
    ("case", "codes", "found"),
    [
        ("two are missing", [2, 2], "ranks 1, 3 of 4 did not come (rank 0 on "),
        ("the first is missing", [2], "does not reach rank 0 at 127.0.0.1:"),
        ("one comes twice", [2, 2, 2], "two processes are rank 1 of the run at 127.0.0.1:"),
        ("one was told of another size", [2, 2], "was told of a world of 3 processes, and rank 0 of 2."),
        ("no such host", [2, 2], "rank 0 on "),
    ],
)
def test_processes_that_cannot_meet_say_why_within_the_time_out_and_are_refused(
    case: str, codes: list[int], found: str
) -> None:
    found_codes, seconds, said = outcome(case)
    assert found_codes == codes
    assert found in said
    assert "Traceback" not in said
    assert "frame #" not in said
    assert seconds < WITHIN_S


def test_all_that_came_say_who_is_missing() -> None:
    assert outcome("two are missing")[2].count("ranks 1, 3 of 4 did not come") == 2


@pytest.mark.parametrize(
    ("case", "culprit"),
    [("one raises", 1), ("one raises, others hang", 1), ("the first raises, others hang", 0)],
)
def test_one_that_raises_shows_its_traceback_and_the_others_end_within_seconds(case: str, culprit: int) -> None:
    codes, seconds, said = outcome(case)
    assert codes == [FAILED if rank == culprit else REFUSED for rank in range(3)]
    assert said.count("Traceback") == 1
    assert said.count(f"ValueError: a bug on rank {culprit}") == 3  # each of the others names it
    assert seconds < WITHIN_S


def test_when_the_first_is_killed_the_others_end_within_seconds() -> None:
    codes, seconds, said = outcome("the first is killed, others hang")
    assert codes == [-9, REFUSED, REFUSED]
    assert said.count("rank 0, which served the meeting point, is gone.") == 2
    assert seconds < WITHIN_S


def test_processes_that_stop_in_order_disturb_none_of_the_others() -> None:
    codes, _, said = outcome("all stop")
    assert codes == [REFUSED] * 3  # the command line makes 85 of it
    assert said.count("run: stopped.") == 3
    assert "has failed" not in said


def test_under_torchrun_one_that_raises_ends_all_too() -> None:
    start_s = time.monotonic()
    answer = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT),
        ],
        env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert answer.returncode == 1
    assert "ValueError: a bug on rank 1" in answer.stderr
    assert time.monotonic() - start_s < PATIENCE_S

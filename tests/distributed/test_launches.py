"""Processes that cannot meet say who is missing; one that fails shows why, and the others end within seconds."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
SCRIPT, TESTS = Path(__file__).with_name("launches.py"), Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
PATIENCE_S = 400  # of which most is importing torch on a busy machine
WITHIN_S = 90.0  # the watch needs 20 + 12 s on an idle machine; what hangs would do so for 100 s
REFUSED, FAILED = 2, 1


class Outcome:
    """Exit codes, seconds from the start of the processes to their end, and all that they said."""

    def __init__(self, folder: Path, case: str) -> None:
        *codes, seconds = (folder / f"{case}.outcome").read_text().split()
        self.codes, self.seconds = [int(code) for code in codes], float(seconds)
        said = (folder / f"{case}.said").read_text()
        # torch's own remark, where no name server answers.
        self.said = "".join(line for line in said.splitlines(keepends=True) if "client socket cannot be" not in line)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outcomes of all cases."""
    folder = tmp_path_factory.mktemp("launches")
    subprocess.run([sys.executable, str(SCRIPT), str(folder)], env=ENVIRONMENT, timeout=PATIENCE_S, check=True)
    return folder


def test_processes_that_all_come_meet_and_say_nothing(folder: Path) -> None:
    came = Outcome(folder, "all come")
    assert (came.codes, came.said) == ([0, 0, 0], "")


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
    folder: Path, case: str, codes: list[int], found: str
) -> None:
    refused = Outcome(folder, case)
    assert refused.codes == codes
    assert found in refused.said
    assert "Traceback" not in refused.said
    assert "frame #" not in refused.said
    assert refused.seconds < WITHIN_S


def test_all_that_came_say_who_is_missing(folder: Path) -> None:
    assert Outcome(folder, "two are missing").said.count("ranks 1, 3 of 4 did not come") == 2


@pytest.mark.parametrize(
    ("case", "culprit"),
    [("one raises", 1), ("one raises, others hang", 1), ("the first raises, others hang", 0)],
)
def test_one_that_raises_shows_its_traceback_and_the_others_end_within_seconds(
    folder: Path, case: str, culprit: int
) -> None:
    failed = Outcome(folder, case)
    assert failed.codes == [FAILED if rank == culprit else REFUSED for rank in range(3)]
    assert failed.said.count("Traceback") == 1
    assert failed.said.count(f"ValueError: a bug on rank {culprit}") == 3  # each of the others names it
    assert failed.seconds < WITHIN_S


def test_when_the_first_is_killed_the_others_end_within_seconds(folder: Path) -> None:
    killed = Outcome(folder, "the first is killed, others hang")
    assert killed.codes == [-9, REFUSED, REFUSED]
    assert killed.said.count("rank 0, which served the meeting point, is gone.") == 2
    assert killed.seconds < WITHIN_S


@pytest.mark.parametrize("case", ["one is stopped", "one is stopped, others work", "one is killed"])
def test_one_that_is_stopped_or_killed_is_named_by_the_others_which_end_within_the_time_out(
    folder: Path, case: str
) -> None:
    lost = Outcome(folder, case)
    assert lost.codes == [REFUSED, -9, REFUSED]
    assert len(re.findall(r"rank 1 on \S+ has shown no sign of life", lost.said)) == 2
    assert "Traceback" not in lost.said
    assert lost.seconds < WITHIN_S


def test_when_the_first_is_stopped_the_others_say_so_and_end_though_its_store_answers_nothing(folder: Path) -> None:
    stopped = Outcome(folder, "the first is stopped")
    assert stopped.codes == [-9, REFUSED, REFUSED]
    assert stopped.said.count("rank 0, which serves the meeting point, has not answered for 20 s: it is stopped") == 2
    assert stopped.seconds < WITHIN_S


@pytest.mark.parametrize(
    ("case", "function"), [("one hangs", "hangs_on_1"), ("one hangs in a sharded pass", "<lambda>")]
)
def test_one_that_hangs_is_named_with_the_line_where_it_hangs_and_all_end(
    folder: Path, case: str, function: str
) -> None:
    hangs = Outcome(folder, case)
    assert hangs.codes == [REFUSED] * 3
    place = rf"rank 1 on \S+ has kept the others waiting for 20 s: rank 1 is at \S+launches.py:\d+ \({function}\)"
    assert len(re.findall(place, hangs.said)) == 3
    assert hangs.seconds < WITHIN_S


def test_one_whose_device_is_gone_is_named_with_cudas_words(folder: Path) -> None:
    lost = Outcome(folder, "one loses its device")
    assert lost.codes == [REFUSED, FAILED, REFUSED]
    assert len(re.findall(r"rank 1 on \S+: AcceleratorError: CUDA error: unspecified", lost.said)) == 2


def test_one_that_works_on_when_the_others_have_left_waits_for_none_of_them(folder: Path) -> None:
    left = Outcome(folder, "the others have left")
    assert (left.codes, left.said) == ([0, 0, 0], "")


def test_processes_that_stop_in_order_disturb_none_of_the_others(folder: Path) -> None:
    stopped = Outcome(folder, "all stop")
    assert stopped.codes == [REFUSED] * 3  # the command line makes 85 of it
    assert stopped.said.count("run: stopped.") == 3
    assert "has failed" not in stopped.said


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

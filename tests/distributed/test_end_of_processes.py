"""What is left of a process group when a process has done its work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import free_port

pytestmark = pytest.mark.slow
SCRIPT = """
from pathlib import Path

import torch
import torch.distributed as dist

from dino_path.distributed import open_world

with open_world("cpu"):
    dist.all_reduce(torch.ones(10))
print(*sorted(name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")), sep=",")
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_no_thread_of_the_group_is_left_that_could_abort_python_as_it_ends() -> None:
    """One of gloo's threads that drops a tensor while Python ends aborts the process: exit code -6 for a good run."""
    environment = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }  # fmt: skip
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT], env={**environment, "RANK": rank, "LOCAL_RANK": rank}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in ("0", "1")
    ]  # fmt: skip
    for rank in ranks:
        out, err = rank.communicate(timeout=240)
        assert rank.returncode == 0, err
        assert "gloo" not in out, out

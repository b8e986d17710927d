"""Jobs on a real SLURM: two virtual nodes on this machine, where the tool for them lies beside the checkout."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny import tiny_config, write_tiles

from dino_path.cluster.submission import submit
from dino_path.errors import LaunchError
from dino_path.run import RunFolder

TOOL = Path(__file__).parents[3] / "shared" / "tools" / "slurm-cluster"
REPOSITORY = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("sbatch") is None, reason="SLURM's commands are not installed"),
    pytest.mark.skipif(not TOOL.exists(), reason="../shared/tools/slurm-cluster is not on this machine"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a private SLURM needs root"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A SLURM of this test's own, with its SLURM_CONF in the environment."""
    settings = {**os.environ, "SC_DIR": str(tmp_path_factory.mktemp("slurm")), "SC_PORT": "18300", "SC_GPUS": "0"}
    answer = subprocess.run([TOOL, "up"], env=settings, capture_output=True, text=True, check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", re.search(r"SLURM_CONF=(\S+)", answer.stdout)[1])  # type: ignore[index]
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    subprocess.run([TOOL, "down"], env=settings, capture_output=True, check=True)


def wait_for(job_id: str, *, timeout_s: float = 180) -> str:
    """The state in which the job ends."""
    end_s = time.monotonic() + timeout_s
    while time.monotonic() < end_s:
        answer = subprocess.run(["scontrol", "show", "job", job_id, "-o"], capture_output=True, text=True, check=True)
        state = re.search(r"JobState=(\w+)", answer.stdout)
        if state and state[1] not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING"):
            return state[1]
        time.sleep(0.5)
    pytest.fail(f"job {job_id} did not end within {timeout_s} s")


def test_a_pretraining_on_two_nodes_is_submitted_meets_and_finishes(slurm: None, tmp_path: Path) -> None:
    config = tiny_config(
        write_tiles(tmp_path / "tiles"), tmp_path / "run",
        "cluster.gpus_per_node=0", "cluster.nodes=2", "cluster.cpus_per_gpu=1", "cluster.time=10",
    )  # fmt: skip
    assert config.out is not None
    dry = submit("pretrain", config, [], out=config.out, dry_run=True)
    assert "nodes node[1-2]" in (dry.verdict or "")

    submission = submit("pretrain", config, [], out=config.out, dry_run=False)
    assert submission.job_id is not None
    state = wait_for(submission.job_id)
    log = (config.out / "slurm" / f"dino-pretrain-{submission.job_id}.out").read_text()
    assert state == "COMPLETED", log
    assert "2 process(es)" in log
    run = RunFolder(config.out)
    assert run.checkpoint_file(10).exists()
    assert [record["step"] for record in run.read_metrics()] == list(range(10))


def test_more_than_the_cluster_has_is_refused_in_slurms_words(slurm: None, tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "tiles", tmp_path / "run", "cluster.nodes=9", "cluster.gpus_per_node=0")
    with pytest.raises(LaunchError, match="SLURM refuses the job: sbatch: error: "):
        submit("pretrain", config, [], out=tmp_path / "run", dry_run=False)

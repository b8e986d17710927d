"""Pretrainings on a real SLURM that are warned, preempted, or lose a node: they end with the same result."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import metrics_of, state_in
from slurm_cluster import Cluster, show, wait_for
from tiny import ALONE, differences, tiny_config

from dino_path.cluster.submission import submit
from dino_path.config import Config
from dino_path.run import RunFolder
from dino_path.training.loop import pretrain

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
NUM_STEPS = 120
SETTINGS = (
    f"training.num_steps={NUM_STEPS}", "training.checkpoint_every_steps=10", "cluster.partition=low",
    "cluster.gpus_per_node=0", "cluster.cpus_per_gpu=1", "cluster.time=10",
)  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tiles_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The state after all steps in one go, in one process."""
    return state_in(pretrain(tiny_config(tiles_folder, tmp_path_factory.mktemp("whole"), *SETTINGS), ALONE))


def scontrol(*words: str) -> None:
    subprocess.run(["scontrol", *words], check=True, capture_output=True)


def preempt(cluster: Cluster, job_id: str) -> None:
    """A job of a partition with a higher priority takes all nodes."""
    subprocess.run(
        ["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1"],
        check=True, capture_output=True,
    )  # fmt: skip


def warn_of_the_time_limit(cluster: Cluster, job_id: str) -> None:
    """What `--signal=USR1@180` sends to every process of every step; SLURM looks at the clock only every 30 s."""
    subprocess.run(["scancel", "--signal=USR1", job_id], check=True)


def crash_its_node(cluster: Cluster, job_id: str) -> None:
    """The node loses power, SLURM is informed at once, and the node returns a little later."""
    node = show(job_id)["NodeList"]
    cluster.crash(node)
    scontrol("update", f"nodename={node}", "state=down", "reason=test")
    time.sleep(1)
    cluster.start_node(node)


def submitted(config: Config) -> str:
    """The id of a pretraining job that has made some steps."""
    assert config.out is not None
    job_id = submit("pretrain", config, [], out=config.out, dry_run=False).job_id
    assert job_id is not None
    end_s = time.monotonic() + 180
    while len(metrics_of(RunFolder(config.out))) < 15:
        assert time.monotonic() < end_s, "the job makes no steps"
        time.sleep(0.2)
    return job_id


def check_finished(run: RunFolder, job_id: str) -> None:
    """The job was queued again, and the run has every step exactly once."""
    state = wait_for(job_id, timeout_s=300)
    log = (run.path / "slurm" / f"dino-pretrain-{job_id}.out").read_text()
    assert state == "COMPLETED", log
    assert int(show(job_id)["Restarts"]) >= 1, log
    assert [record["step"] for record in metrics_of(run)] == list(range(NUM_STEPS))  # none repeated, none missing


@pytest.mark.parametrize("interrupt", [warn_of_the_time_limit, preempt, crash_its_node])
def test_an_interrupted_job_is_queued_again_and_ends_with_the_weights_of_an_undisturbed_run(
    cluster: Cluster,
    tiles_folder: Path,
    tmp_path: Path,
    undisturbed: dict[str, torch.Tensor],
    interrupt: Callable[[Cluster, str], None],
) -> None:
    config = tiny_config(tiles_folder, tmp_path / "run", *SETTINGS, "training.num_workers=1", "wandb.mode=offline")
    job_id, run = submitted(config), RunFolder(tmp_path / "run")
    interrupt(cluster, job_id)
    check_finished(run, job_id)
    if interrupt is not crash_its_node:
        log = (run.path / "slurm" / f"dino-pretrain-{job_id}.out").read_text()
        assert "stopped by SIG" in log, "it had the time to save, and lost no step"
    assert differences(state_in(run.checkpoint_file(NUM_STEPS)), undisturbed) == []
    wandb_id = run.wandb_id_file.read_text().strip()
    starts = [folder.name.rpartition("-")[2] for folder in (run.path / "wandb").glob("offline-run-*")]
    assert starts == [wandb_id] * 2


def test_a_job_whose_second_node_stays_away_goes_on_with_one_and_the_same_global_batch(
    cluster: Cluster, tiles_folder: Path, tmp_path: Path
) -> None:
    settings = (*SETTINGS, "model.drop_path_rate=0")  # its random numbers are each process's own
    undisturbed = state_in(pretrain(tiny_config(tiles_folder, tmp_path / "whole", *settings), ALONE))
    config = tiny_config(tiles_folder, tmp_path / "run", *settings, "cluster.nodes=2", "training.batch_size_per_gpu=2")
    job_id, run = submitted(config), RunFolder(tmp_path / "run")
    cluster.crash("node2")  # nobody tells SLURM, which notices after 10 to 30 s
    assert wait_for(job_id, state="PENDING") == "PENDING"
    scontrol("update", f"jobid={job_id}", "numnodes=1", "numtasks=1")
    try:
        check_finished(run, job_id)
    finally:
        cluster.start_node("node2")
    assert (
        "global batch of 4 tiles, as before: 1 process(es) now take 2 in each of 2 pass(es)" in run.log_file.read_text()
    )
    for name, value in state_in(run.checkpoint_file(NUM_STEPS)).items():
        torch.testing.assert_close(value, undisturbed[name], rtol=1e-3, atol=1e-4, msg=name)

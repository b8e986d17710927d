"""Jobs on a real SLURM: two virtual nodes on this machine, where the tool for them lies beside the checkout."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runs import state_in
from slide_files import tissue_image, write_jpeg_slide
from tiny import ALONE, differences, tiny_config, write_tiles

from dino_path.cluster.pipeline import submit_pipeline
from dino_path.cluster.status import run_status
from dino_path.cluster.submission import submit
from dino_path.errors import LaunchError
from dino_path.run import RunFolder
from dino_path.training.loop import pretrain

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
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SC_DIR", str(tmp_path_factory.mktemp("slurm")))
        patch.setenv("SC_PORT", "18300")
        patch.setenv("SC_GPUS", "0")
        answer = subprocess.run([TOOL, "up"], capture_output=True, text=True, check=True)
        patch.setenv("SLURM_CONF", re.search(r"SLURM_CONF=(\S+)", answer.stdout)[1])  # type: ignore[index]
        patch.setenv("PYTHONPATH", str(REPOSITORY))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
        subprocess.run([TOOL, "down"], capture_output=True, check=True)


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


def test_a_pipeline_walks_the_whole_road_and_a_failed_stage_stops_what_depends_on_it(
    slurm: None, tmp_path: Path
) -> None:
    for name in "ab":
        write_jpeg_slide(tmp_path / "slides" / f"{name}.tif", [tissue_image()], tile_px=64)
    (tmp_path / "slides" / "broken.svs").write_bytes(b"no slide")  # listed, and no reason to stop
    labels = [write_tiles(tmp_path / "labelled" / name, 8).parent for name in ("one", "two")]
    config = tiny_config(
        tmp_path / "store", tmp_path / "run", "tiles.mpp=0.5", "tiles.size_px=64", "tiles.mask_mpp=4.0",
        "tiles.min_area_um2=500", "cluster.gpus_per_node=0", "cluster.cpus_per_gpu=1", "cluster.time=10",
        "cluster.array_tasks=2", "baseline.num_epochs=1", "baseline.input_px=32", "baseline.backbone=resnet10t",
        "evaluation.num_bootstrap=100", "evaluation.allow_duplicates=true",
    )  # fmt: skip
    slides = [str(tmp_path / "slides")]
    jobs = submit_pipeline(config, slides, str(labels[0]), dry_run=False)
    with pytest.raises(LaunchError, match="still waits or runs"):
        submit_pipeline(config, slides, str(labels[0]), dry_run=False)
    state = wait_for(str(jobs[-1].job_id), timeout_s=400)
    logs = "\n".join(file.read_text() for file in sorted((tmp_path / "run/slurm").glob("*.out")))
    assert state == "COMPLETED", logs
    assert [stage.state for stage in run_status(tmp_path / "run")] == ["3", "done", "done", "done", "done", "done"]
    assert (tmp_path / "run/eval/results.json").is_file()

    (tmp_path / "run/checkpoints").rename(tmp_path / "run/lost")
    (tmp_path / "run/checkpoints").write_text("a file: nothing can be written here")
    again = submit_pipeline(config, [], None, dry_run=False)
    assert wait_for(str(again[0].job_id)) == "FAILED"
    assert {wait_for(str(job.job_id)) for job in again[1:]} == {"CANCELLED"}


def show(job_id: str) -> dict[str, str]:
    answer = subprocess.run(["scontrol", "show", "job", job_id, "-o"], capture_output=True, text=True, check=True)
    return dict(re.findall(r"(\w+)=(\S*)", answer.stdout))


def wait_for_steps(run: RunFolder, count: int, *, timeout_s: float = 180) -> None:
    """Return as soon as so many records are there."""
    end_s = time.monotonic() + timeout_s
    while len(run.read_metrics()) < count:
        assert time.monotonic() < end_s, "the job makes no steps"
        time.sleep(0.2)


def preempt(job_id: str) -> None:
    """A job of a partition with a higher priority takes the whole node."""
    subprocess.run(
        ["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1"],
        check=True, capture_output=True,
    )  # fmt: skip


def warn_of_the_time_limit(job_id: str) -> None:
    """What `--signal=USR1@180` sends to every process of every step; SLURM looks at the clock only every 30 s."""
    subprocess.run(["scancel", "--signal=USR1", job_id], check=True)


def crash_its_node(job_id: str) -> None:
    """The node loses its power, and comes back a little later."""
    node = show(job_id)["NodeList"]
    subprocess.run([TOOL, "crash", node], check=True, capture_output=True)
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"], check=True)
    time.sleep(1)
    subprocess.run([TOOL, "start", node], check=True, capture_output=True)
    subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=True)


@pytest.mark.parametrize("interrupt", [warn_of_the_time_limit, preempt, crash_its_node])
def test_an_interrupted_job_is_queued_again_and_ends_with_the_weights_of_an_undisturbed_run(
    slurm: None, tmp_path: Path, interrupt: Callable[[str], None]
) -> None:
    settings = (
        "training.num_steps=120", "training.checkpoint_every_steps=10", "training.num_workers=1",
        "cluster.partition=low", "cluster.gpus_per_node=0", "cluster.cpus_per_gpu=1", "cluster.time=10",
    )  # fmt: skip
    tiles = write_tiles(tmp_path / "tiles")
    config = tiny_config(tiles, tmp_path / "run", *settings)
    assert config.out is not None
    job_id = submit("pretrain", config, [], out=config.out, dry_run=False).job_id
    assert job_id is not None
    run = RunFolder(config.out)
    wait_for_steps(run, 15)
    interrupt(job_id)
    state = wait_for(job_id, timeout_s=300)
    log = (config.out / "slurm" / f"dino-pretrain-{job_id}.out").read_text()
    assert state == "COMPLETED", log
    assert int(show(job_id)["Restarts"]) >= 1, log
    assert [record["step"] for record in run.read_metrics()] == list(range(120))  # none repeated, none missing
    undisturbed = tiny_config(tiles, tmp_path / "undisturbed", *settings)
    pretrain(undisturbed, ALONE)
    expected = state_in(RunFolder(tmp_path / "undisturbed").checkpoint_file(120))
    assert differences(state_in(run.checkpoint_file(120)), expected) == []

"""Jobs on a real SLURM with two nodes, on this machine: submission, refusals, chains, and the resulting files."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from runs import metrics_of
from slide_files import tissue_image, write_jpeg_slide
from slurm_cluster import Cluster, show, wait_for
from tiny import TINY, tiny_config, write_tiles

from dino_path.cluster.jobs import jobs_of
from dino_path.cluster.pipeline import submit_pipeline
from dino_path.cluster.status import job_lines, run_status
from dino_path.cluster.submission import submit
from dino_path.errors import LaunchError
from dino_path.records.pseudonyms import read_mapping
from dino_path.run import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.slurm]
ON_A_CPU = ("cluster.gpus_per_node=0", "cluster.cpus_per_gpu=1", "cluster.time=10")


def test_a_pretraining_on_two_nodes_is_submitted_meets_and_finishes(cluster: Cluster, tmp_path: Path) -> None:
    config = tiny_config(write_tiles(tmp_path / "tiles"), tmp_path / "run", "cluster.nodes=2", *ON_A_CPU)
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
    assert [record["step"] for record in metrics_of(run)] == list(range(10))


@pytest.mark.parametrize(
    ("setting", "slurms_words"),
    [
        ("cluster.partition=gpus", "invalid partition specified: gpus"),
        ("cluster.nodes=9", "More processors requested than permitted"),
        ("cluster.cpus_per_gpu=64", "More processors requested than permitted"),
        ("cluster.time=9-00:00:00", "Requested time limit is invalid"),
        ("cluster.gpus_per_node=8", r"Invalid generic resource \(gres\) specification"),
        ("cluster.time=soon", "Invalid --time specification"),
    ],
)
def test_what_the_cluster_cannot_grant_is_refused_in_slurms_words(
    cluster: Cluster, tmp_path: Path, setting: str, slurms_words: str
) -> None:
    config = tiny_config(tmp_path / "tiles", tmp_path / "run", *ON_A_CPU, setting)
    dry = submit("pretrain", config, [], out=tmp_path / "run", dry_run=True)
    assert re.search(slurms_words, str(dry.refusal))
    assert not (tmp_path / "run").exists()
    with pytest.raises(LaunchError, match=slurms_words):
        submit("pretrain", config, [], out=tmp_path / "run", dry_run=False)
    assert jobs_of(tmp_path / "run") == []


def test_a_refusal_is_exit_code_2(cluster: Cluster, tmp_path: Path) -> None:
    write_tiles(tmp_path / "tiles")
    words = ["submit", "pretrain", *TINY, "store=tiles", "out=run", *ON_A_CPU, "cluster.partition=gpus"]
    answer = subprocess.run(
        [sys.executable, "-m", "dino_path", *words], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2, answer.stdout
    assert "SLURM refuses the job: sbatch: error: invalid partition specified: gpus" in answer.stderr


def test_a_pipeline_walks_the_whole_road_and_a_failed_stage_stops_what_depends_on_it(
    cluster: Cluster, tmp_path: Path
) -> None:
    for name, width in (("a", 1024), ("b", 960)):
        write_jpeg_slide(tmp_path / "slides" / f"{name}.tif", [tissue_image(width)], tile_px=64)
    (tmp_path / "slides" / "broken.svs").write_bytes(b"no slide")  # listed, and no reason to stop
    labelled = str(tmp_path / "labelled")
    for name in ("one", "two"):
        write_tiles(tmp_path / "labelled" / name, 8)
    config = tiny_config(
        tmp_path / "store", tmp_path / "run", "tiles.mpp=0.5", "tiles.size_px=64", "tiles.mask_mpp=4.0",
        "tiles.min_area_um2=500", "cluster.array_tasks=2", "baseline.num_epochs=1", "baseline.input_px=32",
        "baseline.backbone=resnet10t", "evaluation.num_bootstrap=100", "evaluation.allow_duplicates=true", *ON_A_CPU,
    )  # fmt: skip
    (tmp_path / "private").mkdir(mode=0o700)
    mapping = tmp_path / "private" / "mapping.csv"
    slides = [str(tmp_path / "slides"), "--pseudonymise", str(mapping)]  # both tasks of the array want to write it
    jobs = submit_pipeline(config, slides, labelled, dry_run=False)
    assert [show(str(job.job_id))["JobState"] for job in jobs[1:]] == ["PENDING"] * 5
    with pytest.raises(LaunchError, match="still waits or runs"):
        submit_pipeline(config, slides, labelled, dry_run=False)
    state = wait_for(str(jobs[-1].job_id), timeout_s=400)
    logs = {file.name: file.read_text() for file in sorted((tmp_path / "run/slurm").glob("*.out"))}
    assert state == "COMPLETED", logs
    tiling = [log for name, log in logs.items() if name.startswith("dino-tile")]
    assert sorted(len(re.findall("^ *(?:done|failed)  ", log, re.MULTILINE)) for log in tiling) == [1, 2], tiling
    pseudonyms = {entry.pseudonym for entry in read_mapping(mapping)}
    assert len(pseudonyms) == 3
    assert {file.stem for file in (tmp_path / "store" / "slides").glob("*.json")} == pseudonyms
    states = {stage.stage: stage.state for stage in run_status(tmp_path / "run")}
    assert states.pop("embed") == "-"  # it was not asked for
    assert [*states.values()] == ["3", "done", "done", "done", "done", "done"]
    assert (tmp_path / "run/eval/results.json").is_file()

    (tmp_path / "run/checkpoints").rename(tmp_path / "run/lost")
    (tmp_path / "run/checkpoints").write_text("a file: nothing can be written here")
    again = submit_pipeline(config, [], None, dry_run=False)
    assert wait_for(str(again[0].job_id)) == "FAILED"
    assert {wait_for(str(job.job_id)) for job in again[1:]} == {"CANCELLED"}
    job_states = {line.split()[2]: line.split()[3] for line in job_lines(tmp_path / "run")}
    assert tuple(job_states[stage] for stage in ("pretrain", "export", "report")) == (
        "FAILED",
        "CANCELLED",
        "CANCELLED",
    )

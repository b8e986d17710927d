"""The submitted jobs of a run folder, and their state in SLURM."""

from __future__ import annotations

import json
import re
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from dino_path.disk import parse_json
from dino_path.errors import LaunchError
from dino_path.run import TIME_FORMAT

ACTIVE = ("PENDING", "RUNNING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SUSPENDED", "CONFIGURING", "COMPLETING")


@dataclass(frozen=True)
class Job:
    """One submitted job. `submitted` is in local time."""

    stage: str
    job_id: str
    submitted: str


def note_job(out: Path, stage: str, job_id: str) -> None:
    """Add a job to `OUT/slurm/jobs.jsonl`."""
    job = Job(stage, job_id, time.strftime(TIME_FORMAT))
    with (out / "slurm" / "jobs.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(asdict(job)) + "\n")


def jobs_of(out: Path) -> list[Job]:
    """The jobs that were submitted for this folder, oldest first."""
    file = out / "slurm" / "jobs.jsonl"
    lines = file.read_bytes().splitlines() if file.is_file() else []
    try:
        return [Job(**parse_json(line)) for line in lines]
    except (ValueError, TypeError) as error:
        raise LaunchError(
            str(file),
            f"is damaged ({' '.join(str(error).split())}).",
            "One line of JSON for each job is needed.",
            "Delete the damaged line; jobs themselves are not touched.",
        ) from None


def state_of(job_id: str) -> str | None:
    """SLURM's word for a job, such as RUNNING; the first active one of an array; None when SLURM has forgotten it.

    Asked of `scontrol`, which every cluster has; it forgets jobs some minutes after their end.
    """
    try:
        answer = subprocess.run(["scontrol", "show", "job", job_id, "-o"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    states = re.findall(r"\bJobState=(\w+)", answer.stdout)
    return next((state for state in states if state in ACTIVE), states[0] if states else None)


def active_jobs(out: Path) -> list[Job]:
    """The jobs of this folder that wait or run."""
    return [job for job in jobs_of(out) if state_of(job.job_id) in ACTIVE]

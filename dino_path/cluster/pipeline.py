"""The whole road as a chain of SLURM jobs: tile, pretrain, export, baseline, evaluate, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dino_path.cluster.jobs import active_jobs
from dino_path.cluster.submission import Stage, Submission, submit
from dino_path.config import Config
from dino_path.errors import LaunchError


def pipeline_stages(config: Config, slides: Sequence[str], data: str | None) -> list[tuple[Stage, list[str]]]:
    """What each stage is called with, in their order.

    Args:
        slides: files, folders or a CSV; none where the store is made already.
        data: the labelled images of the evaluation; None: it is left out.
    """
    assert config.store is not None
    assert config.out is not None
    store, run = str(config.store), config.out
    model, baseline, evaluation = str(run / "model"), str(run / "baseline"), str(run / "eval")
    stages: list[tuple[Stage, list[str]]] = []
    if slides:
        stages.append(("tile", [*slides, "--out", store]))
    stages.append(("pretrain", []))
    stages.append(("export", [str(run), "--out", model]))
    if data is not None:
        stages.append(("baseline", ["--data", data, "--out", baseline]))
        models = [model, f"untrained:{model}", "mean-colour"]
        stages.append(("evaluate", ["table", *models, "--data", data, "--baseline", baseline, "--out", evaluation]))
    page = str(run / "report.html")
    stages.append(("report", [str(run), "--store", store, "--model", model, "--out", page]))
    return stages


def submit_pipeline(config: Config, slides: Sequence[str], data: str | None, *, dry_run: bool) -> list[Submission]:
    """Submit all stages, each to start when the one before has ended well; a stage that is done ends at once.

    Raises:
        LaunchError: jobs of this run still wait or run, there is no SLURM, or it refuses a job. Stages that were
            submitted before the refusal stay submitted; the message names them.
    """
    assert config.out is not None
    if not dry_run:
        _refuse_second(config.out)
    submissions: list[Submission] = []
    after = None
    for stage, arguments in pipeline_stages(config, slides, data):
        try:
            submission = submit(stage, config, arguments, out=config.out, dry_run=dry_run, after=after)
        except LaunchError as error:
            before = ", ".join(f"{one.job_id} ({one.stage})" for one in submissions)
            remedy = f"{error.remedy} Submitted before: {before}; stop them with scancel." if before else error.remedy
            raise LaunchError(error.thing, error.found, error.needed, remedy) from None
        submissions.append(submission)
        after = submission.job_id
    return submissions


def _refuse_second(out: Path) -> None:
    active = active_jobs(out)
    if active:
        raise LaunchError(
            str(out),
            f"{', '.join(f'job {job.job_id} ({job.stage})' for job in active)} of this run still waits or runs.",
            "One chain of jobs at a time may write a run folder.",
            f"Wait for it, or stop it: scancel {' '.join(job.job_id for job in active)}",
        )

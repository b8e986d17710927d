"""The whole road as a chain of SLURM jobs: tile, pretrain, export, (embed,) baseline, evaluate, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_path.cluster.jobs import active_jobs
from dino_path.cluster.resources import Stage
from dino_path.cluster.submission import Submission, submit
from dino_path.config import Config
from dino_path.errors import LaunchError


@dataclass(frozen=True)
class PlannedStage:
    """A stage, its arguments, and the stage that must succeed before it starts."""

    stage: Stage
    words: list[str]
    after: Stage | None


def pipeline_stages(
    config: Config, slides: Sequence[str], data: str | None, *, has_features: bool = False
) -> list[PlannedStage]:
    """The stages, in their order.

    Args:
        slides: files, folders or a CSV, and options of `tile`; none if the store already exists.
        data: the labelled images of the evaluation; None: it is left out.
        has_features: also embed the store's tiles. No other stage waits for this one.
    """
    assert config.store is not None
    assert config.out is not None
    store, run = str(config.store), config.out
    model, baseline, evaluation = str(run / "model"), str(run / "baseline"), str(run / "eval")
    road: list[tuple[Stage, list[str]]] = []
    if slides:
        road.append(("tile", [*slides, "--out", store]))
    road.append(("pretrain", []))
    road.append(("export", [str(run), "--out", model]))
    if data is not None:
        road.append(("baseline", ["--data", data, "--out", baseline]))
        models = [model, f"untrained:{model}", "mean-colour"]
        road.append(("evaluate", ["table", *models, "--data", data, "--baseline", baseline, "--out", evaluation]))
    page = str(run / "report.html")
    road.append(("report", [str(run), "--store", store, "--model", model, "--out", page]))
    before = [None, *(stage for stage, _ in road)]
    planned = [PlannedStage(stage, words, after) for (stage, words), after in zip(road, before, strict=False)]
    if has_features:
        planned.append(PlannedStage("embed", [model, store, "--out", str(run / "features")], "export"))
    return planned


def submit_pipeline(
    config: Config, slides: Sequence[str], data: str | None, *, dry_run: bool, has_features: bool = False
) -> list[Submission]:
    """Submit all stages, each to start when the previous one has succeeded; a finished stage ends at once.

    Raises:
        LaunchError: jobs of this run still wait or run, there is no SLURM, or it refuses a job. Stages that were
            submitted before the refusal stay submitted; the message names them.
    """
    assert config.out is not None
    if not dry_run:
        _refuse_second(config.out)
    submissions: list[Submission] = []
    job_ids: dict[Stage | None, str | None] = {None: None}
    for one in pipeline_stages(config, slides, data, has_features=has_features):
        try:
            submission = submit(one.stage, config, one.words, out=config.out, dry_run=dry_run, after=job_ids[one.after])
        except LaunchError as error:
            before = ", ".join(f"{done.job_id} ({done.stage})" for done in submissions)
            remedy = f"{error.remedy} Submitted before: {before}; stop them with scancel." if before else error.remedy
            raise LaunchError(error.thing, error.found, error.needed, remedy) from None
        submissions.append(submission)
        job_ids[one.stage] = submission.job_id
    return submissions


def _refuse_second(out: Path) -> None:
    active = active_jobs(out)
    if active:
        raise LaunchError(
            str(out),
            f"{', '.join(f'job {job.job_id} ({job.stage})' for job in active)} of this run still waits or runs.",
            "Only one chain of jobs at a time may write to a run folder.",
            f"Wait for it, or stop it: scancel {' '.join(job.job_id for job in active)}",
        )

"""The state of a run's stages and jobs, read from its files and from SLURM."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_path.cluster.jobs import jobs_of, state_of
from dino_path.config import Config
from dino_path.errors import CheckpointError, NewerFormat
from dino_path.records.best import is_exhausted, read_best
from dino_path.records.metrics import StepRecord, read_metrics
from dino_path.records.model_folder import CONFIG_NAME, read_model_record
from dino_path.records.slide import SlideRecord, read_slide_record
from dino_path.records.store import read_expected
from dino_path.run import RunFolder
from dino_path.settings import digest, digest_of_file, load_config
from dino_path.walk import files_like

FORGOTTEN = "ended (SLURM has forgotten it)"
MAX_FAILURES = 5  # named in the line of a stage


@dataclass(frozen=True)
class StageStatus:
    """One line: how far a stage is."""

    stage: str
    state: str
    facts: str

    def line(self) -> str:
        return f"{self.stage:9s} {self.state:8s} {self.facts}".rstrip()


def run_status(path: Path) -> list[StageStatus]:
    """How far each stage of a run is, in their order.

    Raises:
        CheckpointError: no run folder, and none that was submitted.
    """
    run = RunFolder(path)
    config_file = next((file for file in (run.config_file, path / "slurm" / "pretrain.yaml") if file.is_file()), None)
    if config_file is None:
        raise CheckpointError(
            str(path),
            "holds neither config.yaml nor slurm/pretrain.yaml.",
            "A run folder written by `dino-path pretrain` or `submit` is needed.",
            "Check the path.",
        )
    config = load_config(config_file)
    return [
        _tiling(config),
        _pretraining(run, config),
        _file_stage("export", _models(path, {digest(config), digest_of_file(config_file)})),
        _file_stage("embed", sorted((path / "features").glob("embed_*.json"))),
        _file_stage("baseline", [file for folder in _folders_near(path) if (file := folder / "result.json").is_file()]),
        _file_stage("evaluate", sorted(run.evaluation.rglob("results.json"))),
        _file_stage("report", [file for file in (path / "report.html",) if file.is_file()]),
    ]


def job_lines(path: Path) -> list[str]:
    """The newest job of each stage, with its state in SLURM."""
    newest = {job.stage: job for job in jobs_of(path)}
    return [
        f"job {job.job_id}  {job.stage:9s} {state_of(job.job_id) or FORGOTTEN}  submitted {job.submitted}"
        + "".join(f"  log {_quoted(file)}" for file in _logs_of(path, job.job_id))
        for job in newest.values()
    ]


def _logs_of(path: Path, job_id: str) -> list[Path]:
    """The log files of a job: one, or one for each task of an array."""
    return [*files_like(path / "slurm", f"*-{job_id}.out"), *files_like(path / "slurm", f"*-{job_id}_*.out")]


def _tiling(config: Config) -> StageStatus:
    if config.store is None or not (config.store / "store.json").is_file():
        return StageStatus(
            "tile", "-", f"no tile store at {_quoted(config.store)}" if config.store else "no store is named"
        )
    records = [read_slide_record(file) for file in files_like(config.store / "slides", "[!.]*.json")]
    counts = Counter(record.status for record in records)
    num_tiles = sum(record.num_tiles for record in records)
    facts = ", ".join(f"{counts[status]} {status}" for status in ("done", "empty", "failed"))
    facts = f"slides so far: {facts}; {num_tiles:,} tiles in {_quoted(config.store)}"
    ids = {record.slide_id for record in records}
    num_missing = sum(slide_id not in ids for slide_id in read_expected(config.store / "expected.json"))
    facts += f"; {num_missing} to come" if num_missing else ""
    return StageStatus("tile", f"{len(records)}", facts + _failures(records, config.store))


def _failures(records: Sequence[SlideRecord], store: Path) -> str:
    """The first failed slides with their reasons, and where all are listed; empty if none failed."""
    failed = [record for record in records if record.status == "failed"]
    lines = [f"failed {record.slide_id}: {record.reason}" for record in failed[:MAX_FAILURES]]
    if len(failed) > MAX_FAILURES:
        lines.append(f"{len(failed) - MAX_FAILURES} more failed: {_quoted(store / 'slides.csv')} has all reasons")
    return "".join(f"\n{'':19}{line}" for line in lines)


def _pretraining(run: RunFolder, config: Config) -> StageStatus:
    metrics, checkpoints = read_metrics(run.metrics_file), run.checkpoint_files()
    if not metrics.records:
        return StageStatus("pretrain", "-", "no step yet")
    last = metrics.records[-1]
    step, num_steps = last.step + 1, _num_steps(config, last)
    age_s = time.time() - run.metrics_file.stat().st_mtime
    facts = [
        f"step {step}/{num_steps}",
        f"loss {last.loss:.3f}" if last.loss is not None else "no finite loss",
        f"{last.tiles_per_s:.0f} tiles/s",
        f"newest checkpoint {checkpoints[-1].stem}" if checkpoints else "no checkpoint yet",
    ]
    best = read_best(run)
    has_ended = is_exhausted(best, config.monitor.stop_after)
    facts += [f"best {best}"] if best is not None else []
    facts += ["ended without a gain (monitor.stop_after)"] if has_ended else []
    facts += [f"collapse: {last.collapse}"] if last.collapse else []
    facts += [f"{last.num_skipped} steps skipped"] if last.num_skipped else []
    facts += [f"{len(metrics.unreadable)} unreadable lines in metrics.jsonl"] if metrics.unreadable else []
    facts += [f"log {_quoted(run.log_file)}"] if run.log_file.is_file() else []
    if step < num_steps and not has_ended:
        facts.append(f"last record {_duration(age_s)} ago, {_duration(last.eta_s)} left at that time")
    return StageStatus(
        "pretrain", "done" if step >= num_steps or has_ended else f"{step / num_steps:.0%}", ", ".join(facts)
    )


def _num_steps(config: Config, record: StepRecord) -> int:
    """The run's length in steps, whichever unit it was given in."""
    if record.num_steps is not None:
        return record.num_steps
    training = config.training
    assert training is not None
    step = record.step + 1
    if training.num_steps is not None:
        return training.num_steps
    if training.num_epochs is not None:
        return max(1, round(training.num_epochs * step / record.epoch))
    assert training.num_tiles is not None
    return max(1, round(training.num_tiles * step / record.tiles_seen))


def _models(path: Path, digests: Collection[str]) -> list[Path]:
    """The exported models of this run: RUN/model of `submit pipeline`, or a folder of any name beside the run."""
    files = [file for folder in _folders_near(path) if (file := folder / CONFIG_NAME).is_file()]
    return [file for file in files if file == path / "model" / CONFIG_NAME or _is_of_run(file, digests)]


def _is_of_run(model_config: Path, digests: Collection[str]) -> bool:
    """Whether a model folder says that it was made with the config of one of these digests."""
    try:
        made = read_model_record(model_config).dino_path or {}
    except (CheckpointError, NewerFormat):  # another tool's config.json, or of no version that we know
        return False
    return made.get("config_digest") in digests


def _folders_near(path: Path) -> list[Path]:
    """The folders in the run folder, beside it, and where we are: there README's commands put what a run leads to."""
    found: dict[Path, Path] = {}
    for place in (path, path.absolute().parent, Path.cwd()):
        for folder in sorted(one for one in place.iterdir() if one.is_dir()) if place.is_dir() else ():
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _file_stage(stage: str, files: Sequence[Path]) -> StageStatus:
    if not files:
        return StageStatus(stage, "-", "")
    return StageStatus(stage, "done", ", ".join(_quoted(file) for file in files))


def _quoted(path: Path) -> str:
    """A path quoted for a shell; relative if it is below the current folder."""
    is_below = path.is_absolute() and path.is_relative_to(Path.cwd())
    return shlex.quote(str(path.relative_to(Path.cwd()) if is_below else path))


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else f"{minutes}m" if minutes else f"{seconds:.0f}s"

"""The chain of jobs, and where a run stands; SLURM's commands are small fakes here (tests/integration has SLURM)."""

import json
import os
from pathlib import Path

import pytest
from slide_files import tissue_image, write_slide_file
from tiny import ALONE, tiny_config, write_tiles
from typer.testing import CliRunner

from dino_path.cli import app
from dino_path.cluster.jobs import active_jobs, jobs_of
from dino_path.cluster.pipeline import submit_pipeline
from dino_path.cluster.status import job_lines, run_status
from dino_path.config import TilesConfig
from dino_path.errors import CheckpointError, LaunchError
from dino_path.records.best import read_best, write_best
from dino_path.records.slide import SlideRecord, write_slide_record
from dino_path.run import RunFolder
from dino_path.settings import as_plain, as_yaml, digest, digest_of_plain
from dino_path.tiles.layout import StoreFolder
from dino_path.training.loop import pretrain

STAGES = ("tile", "pretrain", "export", "embed", "baseline", "evaluate", "report")
SETTINGS = ("tiles.mpp=0.5", "training.num_steps=10")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fakes: sbatch numbers its jobs from 101 and notes its arguments; scontrol answers with the file `state`."""
    programs, note = tmp_path / "bin", tmp_path / "note"
    programs.mkdir()
    (programs / "sbatch").write_text(
        f'#!/bin/sh\necho "$@" >> {note}\n[ $(wc -l < {note}) -gt ${{REFUSE_AFTER:-99}} ] && echo no >&2 && exit 1\n'
        f"echo $((100 + $(wc -l < {note})))\n"
    )
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "JobId=$3 JobState=$(cat {tmp_path}/state)"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    (tmp_path / "state").write_text("RUNNING")
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def slides(tmp_path: Path) -> list[str]:
    """A slide and the settings of a pipeline; labelled images beside it."""
    slide = write_slide_file(tmp_path / "a.tif", [tissue_image(256, 256)])
    for name in ("one", "two"):
        write_tiles(tmp_path / "labelled" / name, 2)
    return [str(slide), *SETTINGS]


def test_every_job_of_the_chain_waits_for_the_one_before(slurm: Path, slides: list[str]) -> None:
    words = [*slides, f"store={slurm}/store", f"out={slurm}/run", "--data", "labelled"]
    result = CliRunner().invoke(app, ["submit", "pipeline", *words])
    assert result.exit_code == 0, result.output
    calls = [line.split() for line in (slurm / "note").read_text().splitlines()]
    stages = ["tile", "pretrain", "export", "baseline", "evaluate", "report"]
    assert [Path(call[-1]).stem for call in calls] == stages
    assert "--dependency" not in " ".join(calls[0])
    for number, call in enumerate(calls[1:]):
        assert f"--dependency=afterok:{101 + number}" in call
        assert "--kill-on-invalid-dep=yes" in call
    assert [(job.stage, job.job_id) for job in jobs_of(slurm / "run")] == [
        (stage, str(101 + number)) for number, stage in enumerate(stages)
    ]
    assert (slurm / "store/store.json").is_file()
    script = (slurm / "run/slurm/evaluate.sbatch").read_text()
    model = slurm / "run/model"
    assert f"set -- evaluate table {model} untrained:{model} mean-colour --data labelled" in script


def test_without_slides_or_data_the_chain_is_shorter_and_says_so(slurm: Path) -> None:
    words = ["training.num_steps=10", f"store={write_tiles(slurm / 'tiles')}", f"out={slurm}/run"]
    result = CliRunner().invoke(app, ["submit", "pipeline", *words])
    assert result.exit_code == 0, result.output
    assert [job.stage for job in jobs_of(slurm / "run")] == ["pretrain", "export", "report"]
    assert "nothing will be evaluated" in result.output


def test_a_second_chain_is_refused_while_the_first_is_active(slurm: Path) -> None:
    config = tiny_config(slurm / "store", slurm / "run")
    submit_pipeline(config, [], None, dry_run=False)
    assert len(active_jobs(slurm / "run")) == 3
    with pytest.raises(LaunchError, match=r"(?s)job 101 \(pretrain\).*scancel 101"):
        submit_pipeline(config, [], None, dry_run=False)
    (slurm / "state").write_text("COMPLETED")
    assert submit_pipeline(config, [], None, dry_run=False)[0].job_id == "104"


def test_a_refusal_in_the_middle_names_the_jobs_that_were_submitted(
    slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSE_AFTER", "1")
    with pytest.raises(LaunchError, match=r"(?s)SLURM refuses.*Submitted before: 101 \(pretrain\)"):
        submit_pipeline(tiny_config(slurm / "store", slurm / "run"), [], None, dry_run=False)


def test_a_mistake_anywhere_in_the_chain_is_refused_before_the_first_job(slurm: Path, slides: list[str]) -> None:
    write_tiles(slurm / "labelled" / "train" / "one", 2)
    for words in (
        ["tiles.mpp=0.5"], [*slides, "optim.wieght_decay=1"], [*slides, "--dta", "x"], ["no.svs", *SETTINGS],
        [*SETTINGS], [*slides, "--data", "nowhere"], [*slides, "--data", "labelled/one"],
    ):  # fmt: skip
        result = CliRunner().invoke(app, ["submit", "pipeline", *words, f"store={slurm}/s", f"out={slurm}/run"])
        assert result.exit_code != 0
    assert not (slurm / "note").exists()
    assert not (slurm / "s").exists()


def test_slides_get_their_pseudonyms_when_the_chain_is_submitted(slurm: Path, slides: list[str]) -> None:
    """Before the array starts, whose tasks would each make a key."""
    private = slurm / "private"
    private.mkdir(mode=0o700)
    words = [f"store={slurm}/store", f"out={slurm}/run", "--pseudonymise", "private/mapping.csv", "--key=private/key"]
    assert CliRunner().invoke(app, ["submit", "pipeline", *slides, *words, "--dry-run"]).exit_code == 0
    assert list(private.iterdir()) == []
    for wrong, said in (("--key=private/key", "goes with --pseudonymise"), ("--pseudonymise", "needs a value")):
        refused = CliRunner().invoke(app, ["submit", "pipeline", *slides, *words[:2], "--dry-run", wrong])
        assert said in str(refused.exception)
    result = CliRunner().invoke(app, ["submit", "pipeline", *slides, *words])
    assert result.exit_code == 0, result.output
    assert "a.tif" in (private / "mapping.csv").read_text()
    assert {oct(file.stat().st_mode & 0o777) for file in private.iterdir() if file.name[0] != "."} == {"0o600"}
    script = (slurm / "run/slurm/tile.sbatch").read_text()
    assert f"a.tif --pseudonymise private/mapping.csv --key private/key --out {slurm}/store " in script
    without = CliRunner().invoke(app, ["submit", "pipeline", *SETTINGS, *words])
    assert "Name the slides" in str(without.exception)


def test_features_are_a_job_beside_the_chain(slurm: Path, slides: list[str]) -> None:
    words = [*slides, f"store={slurm}/store", f"out={slurm}/run", "--embed"]
    result = CliRunner().invoke(app, ["submit", "pipeline", *words])
    assert result.exit_code == 0, result.output
    calls = [line.split() for line in (slurm / "note").read_text().splitlines()]
    assert [Path(call[-1]).stem for call in calls] == ["tile", "pretrain", "export", "report", "embed"]
    assert all("--dependency=afterok:103" in call for call in calls[3:])
    script = (slurm / "run/slurm/embed.sbatch").read_text()
    assert f"set -- embed {slurm}/run/model {slurm}/store --out {slurm}/run/features --workers 8\n" in script


def test_a_dry_run_of_the_chain_shows_every_script(slurm: Path, slides: list[str]) -> None:
    words = [*slides, f"store={slurm}/store", f"out={slurm}/run", "--dry-run", "--data", "labelled"]
    result = CliRunner().invoke(app, ["submit", "pipeline", *words])
    assert result.exit_code == 0, result.output
    assert [line.split()[2] for line in result.output.splitlines() if line.startswith("set -- ")][1:] == [
        "--config", "export", "baseline", "evaluate", "report",
    ]  # fmt: skip
    assert not (slurm / "run").exists()
    assert not (slurm / "store").exists()


def test_status_says_how_far_each_stage_is(slurm: Path) -> None:
    run = slurm / "run"
    with pytest.raises(CheckpointError, match="neither config"):
        run_status(run)
    config = tiny_config(write_tiles(slurm / "tiles"), run, "monitor.log_every_steps=1")
    submit_pipeline(config, [], None, dry_run=False)
    states = {stage.stage: stage.state for stage in run_status(run)}
    assert states == dict.fromkeys(STAGES, "-")
    pretrain(config, ALONE)
    records = (run / "metrics.jsonl").read_text().splitlines()
    assert {stage.stage: stage.state for stage in run_status(run)}["pretrain"] == "done"
    (run / "metrics.jsonl").write_text("\n".join(records[:4]) + "\n")
    (line,) = (stage.line() for stage in run_status(run) if stage.stage == "pretrain")
    best = read_best(RunFolder(run))
    assert best is not None
    assert f"best {best}" in line
    (run / "config.yaml").write_text(as_yaml(tiny_config(slurm / "tiles", run, "monitor.stop_after=3")))
    write_best(RunFolder(run), best.model_copy(update={"num_without_gain": 3}))
    (ended,) = (stage for stage in run_status(run) if stage.stage == "pretrain")
    assert (ended.state, "to go" in ended.facts) == ("done", False)
    assert "ended without a gain (monitor.stop_after)" in ended.facts
    (run / "config.yaml").write_text(as_yaml(config))
    assert "40%" in line
    assert f"step {json.loads(records[3])['step'] + 1}/10" in line
    (slurm / "my model").mkdir()
    for told in (digest(config), digest_of_plain(as_plain(config))):  # of now, and of earlier versions
        pretrained = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
        model = {"architecture": "vit", "pretrained_cfg": pretrained, "dino_path": {"config_digest": told}}
        (slurm / "my model/config.json").write_text(json.dumps(model))
        assert {stage.stage: stage.facts for stage in run_status(run)}["export"] == "'my model/config.json'"
    (slurm / "other").mkdir()
    (slurm / "other/config.json").write_text('{"architecture": "another model"}')
    assert {stage.stage: stage.facts for stage in run_status(run)}["export"] == "'my model/config.json'"
    (slurm / "state").write_text("RUNNING")
    assert [line.split()[3] for line in job_lines(run)] == ["RUNNING"] * 3
    result = CliRunner().invoke(app, ["status", str(run)])
    assert result.exit_code == 0
    assert "pretrain" in result.output


def test_status_says_which_slides_failed_and_why_and_where_the_logs_are(slurm: Path) -> None:
    run, store = slurm / "run", slurm / "a store"
    config = tiny_config(store, run)
    submit_pipeline(config, [], None, dry_run=False)
    folder = StoreFolder(store)
    folder.prepare(TilesConfig(mpp=0.5))
    for number in range(7):
        record = SlideRecord(f"s{number}", f"s{number}.svs", "failed", reason=f"reason {number}")
        write_slide_record(folder.record_file(record.slide_id), record)
    (tile,) = (stage.line() for stage in run_status(run) if stage.stage == "tile")
    assert [line.strip() for line in tile.splitlines()[1:]] == [
        *(f"failed s{number}: reason {number}" for number in range(5)),
        "2 more failed: 'a store/slides.csv' has all reasons",
    ]
    (job,) = (one for one in jobs_of(run) if one.stage == "export")
    (run / "slurm" / f"dino-export-{job.job_id}.out").write_text("")
    (line,) = (line for line in job_lines(run) if " export " in line)
    assert line.endswith(f"log run/slurm/dino-export-{job.job_id}.out")

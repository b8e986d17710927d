"""Rendered sbatch files, and what happens to them; `sbatch` is a small fake here (tests/integration has SLURM)."""

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from slide_files import tissue_image, write_slide_file
from tiny import write_tiles
from typer.testing import CliRunner

from dino_path.cli import app, check_command
from dino_path.cluster.resources import Stage
from dino_path.cluster.submission import OPTION, render, submit, template_file
from dino_path.config import ClusterConfig, Config
from dino_path.errors import ConfigError, LaunchError
from dino_path.settings import load_config

STAGES: tuple[Stage, ...] = ("tile", "pretrain", "export", "embed", "baseline", "evaluate", "report")


def rendered(stage: Stage, *, words: Sequence[str] = (), **cluster: object) -> str:
    config = ClusterConfig.model_validate(cluster)
    return render(stage, config, words, log_file=Path("/runs/a/slurm/%x-%j.out"), start_folder=Path("/work"))


def options(script: str) -> dict[str, str]:
    """The active #SBATCH options; an option that stands twice is a fault."""
    pairs = re.findall(r'^#SBATCH --([a-z-]+)(?:=("[^"]*"|\S+))?', script, flags=re.MULTILINE)
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fake sbatch on the PATH: it notes its arguments and stdin, and answers as sbatch does. Returns the note."""
    note, program = tmp_path / "note", tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        f'echo "$@" >> {note}\n'
        'if [ -n "$REFUSE" ]; then echo "$REFUSE" >&2; exit 1; fi\n'
        f'if [ "$1" = --test-only ]; then cat >> {note}; echo "sbatch: Job 9 to start at noon" >&2; exit 0; fi\n'
        'echo "4711;lab"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return note


@pytest.mark.parametrize("stage", STAGES)
def test_the_files_of_slurm_and_what_is_made_of_them_are_sound_bash(stage: Stage) -> None:
    for script in (template_file(stage).read_text(), rendered(stage, words=["a b", "x='y'"], gpus_per_node=2)):
        checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
        assert (checked.returncode, checked.stderr) == (0, "")


@pytest.mark.parametrize("stage", ["tile", "pretrain", "evaluate"])
def test_the_command_in_the_head_of_a_file_exists(stage: Stage) -> None:
    file = template_file(stage)
    words = re.search(rf"^#   sbatch slurm/{file.name} (.*)$", file.read_text(), flags=re.MULTILINE)
    assert words is not None
    check_command([*([] if file.stem == "command" else [stage]), *words[1].split()])


@pytest.mark.parametrize("stage", STAGES)
def test_sbatch_reads_options_only_above_the_first_command(stage: Stage) -> None:
    lines = rendered(stage, extra_lines=["--mail-type=END"], setup_lines=["module load cuda"]).splitlines()
    last_option = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    first_command = min(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    assert lines[last_option] == "#SBATCH --mail-type=END"
    assert last_option < first_command
    assert lines[first_command].startswith("dino_path=(dino-path)")
    assert lines[first_command + 1] == "module load cuda"


def test_pretraining_asks_for_one_process_per_gpu_on_every_node() -> None:
    script = rendered(
        "pretrain", nodes=4, gpus_per_node=8, cpus_per_gpu=12, memory_per_node="900G", time="2-00:00:00",
        partition="gpu", account="lab", constraint="h200",
    )  # fmt: skip
    assert options(script) == {
        "job-name": "dino-pretrain", "nodes": "4", "ntasks-per-node": "8", "gpus-per-node": "8", "cpus-per-task": "12",
        "mem": "900G", "time": "2-00:00:00", "partition": "gpu", "account": "lab", "constraint": "h200",
        "chdir": "/work", "signal": "USR1@180", "requeue": "", "open-mode": "append",
        "output": "/runs/a/slurm/%x-%j.out",
    }  # fmt: skip


def test_without_gpus_there_is_one_process_per_node_and_no_gpu_is_asked_for() -> None:
    found = options(rendered("pretrain", nodes=2, gpus_per_node=0))
    assert (found["nodes"], found["ntasks-per-node"]) == ("2", "1")
    assert "gpus-per-node" not in found
    assert not {"mem", "partition", "account", "constraint"} & set(found)


def test_tiling_is_an_array_without_gpus_and_evaluation_takes_one_gpu() -> None:
    tile, evaluate = (options(rendered(s, nodes=4, gpus_per_node=8, array_tasks=16)) for s in ("tile", "evaluate"))
    assert (tile["array"], tile["nodes"], tile["ntasks-per-node"]) == ("1-16", "1", "1")
    assert "gpus-per-node" not in tile
    assert (evaluate["nodes"], evaluate["ntasks-per-node"], evaluate["gpus-per-node"]) == ("1", "1", "1")
    assert "array" not in evaluate
    assert "gpus-per-node" not in options(rendered("report", gpus_per_node=8))
    assert "gpus-per-node" not in options(rendered("export", gpus_per_node=8))


def test_a_path_with_a_space_is_quoted_for_slurm_and_arguments_for_bash() -> None:
    words = ["/my slides", "--out", "it's"]
    script = render("tile", ClusterConfig(), words, log_file=Path("/a b/%j.out"), start_folder=Path("/where i am"))
    assert options(script)["output"] == '"/a b/%j.out"'
    assert options(script)["chdir"] == '"/where i am"'
    given = next(line for line in script.splitlines() if line.startswith("set -- "))
    shown = subprocess.run(["bash", "-c", f'{given}\nprintf "%s|" "$@"'], capture_output=True, text=True, check=True)
    assert shown.stdout == "/my slides|--out|it's|"


def test_without_setup_lines_the_job_uses_the_python_that_submits() -> None:
    assert re.search(r"^dino_path=\(/\S+ -m dino_path\)$", rendered("pretrain"), flags=re.MULTILINE)
    script = rendered("pretrain", setup_lines=["source ~/venv/bin/activate"])
    assert "-m dino_path)" not in script
    assert script.index("source ~/venv/bin/activate") < script.index("set -euo pipefail")


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_not_an_option_stays_as_it_is_in_the_file(stage: Stage) -> None:
    template, script = template_file(stage).read_text(), rendered(stage)
    body = template[template.index("set -euo pipefail") :]
    assert script.endswith(body)
    assert all(OPTION.fullmatch(line) for line in template.splitlines() if line.startswith(("#SBATCH", "##SBATCH")))


def test_a_submission_leaves_its_script_and_settings_beside_each_other_and_knows_its_job(
    sbatch: Path, tmp_path: Path
) -> None:
    config = load_config(None, ["training.num_steps=3", "optim.base_lr=7e-4", "cluster.gpus_per_node=0"])
    submission = submit("pretrain", config, [], out=tmp_path / "run", dry_run=False)
    folder = tmp_path / "run" / "slurm"
    assert submission.job_id == "4711"
    assert sbatch.read_text().split() == ["--parsable", str(folder / "pretrain.sbatch")]
    assert (folder / "pretrain.sbatch").read_text() == submission.script
    assert load_config(folder / "pretrain.yaml") == config
    assert f"set -- --config {folder / 'pretrain.yaml'}\n" in submission.script
    assert str(folder / "dino-pretrain-4711.out") in submission.text()


def test_a_dry_run_asks_slurm_and_leaves_nothing(sbatch: Path, tmp_path: Path) -> None:
    submission = submit("evaluate", Config(), ["knn", "m", "--data", "d"], out=tmp_path / "run", dry_run=True)
    assert submission.job_id is None
    assert submission.verdict == "sbatch: Job 9 to start at noon"
    assert sbatch.read_text() == f"--test-only\n{submission.script}"
    assert not (tmp_path / "run").exists()


def test_a_refusal_has_slurms_own_words(sbatch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFUSE", "sbatch: error: Invalid partition name specified")
    with pytest.raises(LaunchError, match="Invalid partition name specified"):
        submit("tile", Config(), ["s"], out=tmp_path / "store", dry_run=False)
    dry = submit("tile", Config(), ["s"], out=tmp_path / "store", dry_run=True)
    assert "Invalid partition name specified" in str(dry.refusal)
    assert dry.text().startswith("#!/bin/bash")


def test_a_machine_that_reaches_no_slurm_is_told_so(
    sbatch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = "sbatch: error: fetch_config: lookup failed\nsbatch: fatal: Could not establish a configuration source"
    monkeypatch.setenv("REFUSE", lines)
    with pytest.raises(LaunchError, match=r"no SLURM from this machine \(fatal: Could not establish") as caught:
        submit("tile", Config(), ["s"], out=tmp_path / "store", dry_run=False)
    assert "login node" in str(caught.value)


def test_without_slurm_a_dry_run_shows_the_script_and_a_submission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    dry = submit("pretrain", Config(), [], out=tmp_path / "run", dry_run=True)
    assert (dry.verdict, dry.refusal) == (None, None)
    assert "no SLURM here" in dry.text()
    with pytest.raises(LaunchError, match="not on this machine"):
        submit("pretrain", Config(), [], out=tmp_path / "run", dry_run=False)


@pytest.mark.parametrize(
    ("code", "state", "queued"),
    [(0, "RUNNING", False), (85, "RUNNING", True), (85, "COMPLETING", False), (2, "RUNNING", False)],
)
def test_a_job_that_was_told_to_stop_and_still_runs_goes_back_into_the_queue(
    tmp_path: Path, code: int, state: str, queued: bool
) -> None:
    note = tmp_path / "note"
    programs = {"srun": f'echo "$@"; exit {code}', "squeue": f"echo {state}", "scontrol": f'echo "$@" >> {note}'}
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_JOB_ID": "4711", "SLURM_CPUS_PER_TASK": "2",
        "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "4",
    }  # fmt: skip
    answer = subprocess.run(["bash", "-c", rendered("pretrain")], env=environment, capture_output=True, check=False)
    assert answer.returncode == code, answer.stderr
    assert b"--ntasks=8 " in answer.stdout
    assert ("requeue 4711" in note.read_text()) is queued


def test_stages_have_partitions_accounts_times_and_gpus_of_their_own() -> None:
    cluster: dict[str, object] = {
        "partition": "gpu", "account": "lab", "qos": "long", "gpus_per_node": "a100:2", "cpus_per_gpu": 16,
        "stages": {
            "cpu": {"partition": "cpu", "qos": "normal", "cpus": 4, "memory": "8G"},
            "tile": {"time": "2:00:00", "cpus": 32}, "evaluate": {"gpus": "l40s:4", "account": 4711},
        },
    }  # fmt: skip
    tile, pretrain, export, evaluate, baseline = (
        options(rendered(stage, **cluster)) for stage in ("tile", "pretrain", "export", "evaluate", "baseline")
    )
    assert [tile[key] for key in ("partition", "account", "qos", "cpus-per-task", "mem", "time")] == [
        "cpu", "lab", "normal", "32", "8G", "2:00:00",
    ]  # fmt: skip
    assert (export["partition"], export["cpus-per-task"], export["time"]) == ("cpu", "4", "24:00:00")
    assert not any("gpu" in key or "gres" in key for key in (*tile, *export))
    assert (pretrain["gpus-per-node"], pretrain["ntasks-per-node"], pretrain["partition"]) == ("a100:2", "2", "gpu")
    assert (baseline["gpus-per-node"], baseline["ntasks-per-node"], baseline["qos"]) == ("a100:1", "1", "long")
    assert (evaluate["gpus-per-node"], evaluate["ntasks-per-node"], evaluate["account"]) == ("l40s:4", "4", "4711")


def test_gpus_can_be_asked_for_as_generic_resources() -> None:
    found = options(rendered("pretrain", gpus_per_node="a100:2", gpu_request="gres"))
    assert found["gres"] == "gpu:a100:2"
    assert "gpus-per-node" not in found


@pytest.mark.parametrize("line", ["--gpus-per-node=a100:2", "#SBATCH --gres=gpu:a100:2", "-G 2", "--gpus=2"])
def test_a_stage_without_a_gpu_asks_for_none_whatever_lines_are_added(line: str) -> None:
    added = {"extra_lines": [line, "--mail-type=END"], "gpus_per_node": 0}
    assert line.removeprefix("#SBATCH ") not in rendered("tile", **added)
    assert "--mail-type=END" in rendered("tile", **added)
    assert line.removeprefix("#SBATCH ") in rendered("pretrain", **added)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("cluster.stages.tile.gpus=1", "tile, export and report use no GPU"),
        ("cluster.gpus_per_node=a100", "cluster.gpus_per_node"),
        ("cluster.stages.tiel.partition=cpu", "tiel"),
        ("cluster.stages.tile.partitoin=cpu", "partitoin"),
    ],
)
def test_a_request_that_means_nothing_is_refused(setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config(None, [setting])


# --- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stages read, in the present folder: a slide, a labelled set, tiles."""
    write_slide_file(tmp_path / "slides" / "a.tif", [tissue_image(256, 256)])
    for name in ("one", "two"):
        write_tiles(tmp_path / "set" / name, 2)
    write_tiles(tmp_path / "tiles", 2)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("inputs")
def test_the_command_passes_the_stages_own_options_on(sbatch: Path, tmp_path: Path) -> None:
    words = ["submit", "evaluate", "table", "model", "--data", "set", "--out", f"{tmp_path}/eval", "evaluation.knn_k=7"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "eval" / "slurm"
    script = (folder / "evaluate.sbatch").read_text()
    assert f"set -- evaluate table model --data set --out {tmp_path}/eval --config {folder / 'evaluate.yaml'}" in script
    assert "--workers 8\n" in script
    assert load_config(folder / "evaluate.yaml").evaluation.knn_k == 7
    assert "job 4711: evaluate" in result.output


@pytest.mark.usefixtures("inputs")
def test_the_command_makes_the_store_before_it_submits_tiling(sbatch: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    result = CliRunner().invoke(app, ["submit", "tile", "slides", "tiles.mpp=0.5", "--out", str(store)])
    assert result.exit_code == 0, result.output
    assert (store / "store.json").exists()
    assert f"set -- slides --out {store} --config" in (store / "slurm" / "tile.sbatch").read_text()


def test_a_mistake_in_the_stages_own_options_is_refused_at_submission(sbatch: Path, tmp_path: Path) -> None:
    for words in (
        ["evaluate", "table", "model", "--dta", "set", "--out", str(tmp_path)],
        ["evaluate", "tabel", "model", "--data", "set", "--out", str(tmp_path)],
        ["tile", "slides", "tiles.mpp=0.5", "--wrokers", "3", "--out", str(tmp_path)],
    ):
        result = CliRunner().invoke(app, ["submit", *words])
        assert result.exit_code == 2, result.output
    assert not sbatch.exists()


def test_every_evaluation_gets_the_options_that_it_takes(sbatch: Path, inputs: Path) -> None:
    (inputs / "suite.yaml").write_text(
        "title: T\nsets:\n  one: {data: set, protocols: [knn], primary: {protocol: knn}}\n"
    )
    (inputs / "masks.csv").write_text("path,mask\nset/one/000.png,set/one/001.png\n")
    (inputs / "features").mkdir()
    (inputs / "features" / "a.h5").touch()
    (inputs / "slides.csv").write_text("slide_id,label\na,x\n")
    given = {
        "retrieval": ["mean-colour", "--data", "set", "evaluation.knn_k=7"],
        "segmentation": ["mean-colour", "--data", "masks.csv"],
        "slides": ["features", "--labels", "slides.csv", "cohort.repeats=2"],
        "suite": ["mean-colour", "--suite", "suite.yaml", "evaluation.knn_k=7", "cluster.partition=big"],
    }
    for name, words in given.items():
        result = CliRunner().invoke(app, ["submit", "evaluate", name, *words, f"out={inputs}/{name}"])
        assert result.exit_code == 0, (name, result.output, result.exception)
        script = (inputs / name / "eval" / "slurm" / "evaluate.sbatch").read_text()
        line = next(line for line in script.splitlines() if line.startswith("set -- "))
        assert ("--config" in line) == (name != "suite"), line
        assert ("--workers" in line) == (name != "slides"), line
        assert (" evaluation.knn_k=7 " in line) == (name == "suite"), line
        check_command(shlex.split(line)[2:])
    assert options(script)["partition"] == "big"


@pytest.mark.usefixtures("inputs")
def test_results_of_an_evaluation_go_into_the_run_folder_of_the_config(sbatch: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["submit", "evaluate", "knn", "model", "--data", "set", f"out={tmp_path}/run"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "run" / "eval" / "slurm" / "evaluate.sbatch").exists()


@pytest.mark.parametrize("stage", ["tile", "embed", "export"])
@pytest.mark.parametrize(("code", "job"), [(0, 0), (1, 1), (2, 2), (3, 0), (137, 137)])
def test_a_job_is_completed_when_all_is_done_or_what_failed_is_listed_and_failed_otherwise(
    tmp_path: Path, stage: Stage, code: int, job: int
) -> None:
    (tmp_path / "srun").write_text(f"#!/bin/sh\nexit {code}\n")
    (tmp_path / "srun").chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "2", "SLURM_ARRAY_TASK_ID": "1",
        "SLURM_ARRAY_TASK_COUNT": "2",
    }  # fmt: skip
    answer = subprocess.run(["bash", "-c", rendered(stage)], env=environment, capture_output=True, check=False)
    assert answer.returncode == job, answer.stderr


@pytest.mark.usefixtures("inputs")
def test_baseline_and_embedding_are_stages_too(sbatch: Path, tmp_path: Path) -> None:
    run, runner = tmp_path / "run", CliRunner()
    result = runner.invoke(app, ["submit", "baseline", "--data", "set", f"out={run}", "baseline.num_epochs=3"])
    assert result.exit_code == 0, result.output
    folder = run / "baseline" / "slurm"
    words = f"set -- baseline --data set --out {run}/baseline --config {folder}/baseline.yaml --workers 8\n"
    assert words in (folder / "baseline.sbatch").read_text()
    for source, has_config in (("tiles", False), ("slides", True)):
        result = runner.invoke(app, ["submit", "embed", "mean-colour", source, "--out", f"{run}/{source}"])
        assert result.exit_code == 0, result.output
        script = (run / source / "slurm" / "embed.sbatch").read_text()
        assert ("--config" in script) is has_config
        assert "--gpus-per-node=1" in script


@pytest.mark.usefixtures("inputs")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tile", "nowhere.svs", "tiles.mpp=0.5", "--out", "s"], "nowhere.svs: no such file or folder"),
        (["pretrain", "training.num_steps=3", "store=nowhere", "out=r"], "nowhere: no such folder"),
        (["evaluate", "knn", "mean-colour", "--data", "nowhere", "out=r"], "nowhere"),
        (["evaluate", "knn", "r/model", "--data", "set", "out=r"], "r/model: no such folder"),
        (["evaluate", "robustness", "mean-colour", "--data", "nowhere", "out=r"], "nowhere"),
        (["evaluate", "segmentation", "mean-colour", "--data", "set", "out=r"], "path and mask"),
        (["evaluate", "segmentation", "mean-colour", "--data", "consep:nowhere", "out=r"], "nowhere"),
        (["evaluate", "slides", "nowhere", "--labels", "slides.csv", "out=r"], "nowhere"),
        (["evaluate", "suite", "mean-colour", "--suite", "nowhere", "out=r"], "nowhere"),
        (["evaluate", "suite", "mean-colour", "--suite", "public", "out=r"], "10 of 10 sets cannot be evaluated"),
        (["baseline", "--data", "tiles", "out=r"], "tiles"),
        (["embed", "r/model", "tiles", "out=r"], "r/model: no such folder"),
    ],
)
def test_what_a_stage_would_not_find_is_refused_when_it_is_submitted(sbatch: Path, words: list[str], said: str) -> None:
    result = CliRunner().invoke(app, ["submit", *words])
    assert result.exit_code != 0
    assert said in str(result.exception)
    assert not sbatch.exists()
    dry = CliRunner().invoke(app, ["submit", *words, "--dry-run"])
    assert said in str(dry.exception)
    assert dry.output.startswith("#!/bin/bash")


@pytest.mark.parametrize("stage", STAGES)
def test_a_percent_sign_in_a_path_is_doubled_where_slurm_would_read_a_placeholder(
    stage: Stage, sbatch: Path, tmp_path: Path
) -> None:
    out = tmp_path / "RUN_10%subset%j"
    config = load_config(None, ["store=S%x", f"out={out}", "training.num_steps=1"])
    submission = submit(stage, config, ["--out", "a%b"], out=out, dry_run=False)
    found = options(submission.script)
    assert found["output"].replace("%%", "").count("%") == (3 if stage == "tile" else 2)
    assert found["output"].startswith(f"{tmp_path}/RUN_10%%subset%%j/slurm/%x-%")
    assert "a%b" in submission.script
    assert f"{out}/slurm/dino-{stage}-4711" in submission.text()


@pytest.mark.parametrize(
    ("cluster", "folder"),
    [
        ({"partition": "gpu\ntouch owned"}, "/a"),
        ({"account": 'x" \ntouch owned'}, "/a"),
        ({"constraint": 'h200"'}, "/a"),
        ({"extra_lines": ["--mail-type=END\ntouch owned"]}, "/a"),
        ({}, "/a\ntouch owned"),
    ],
)
def test_a_value_that_would_end_its_line_in_the_script_is_refused(cluster: dict[str, Any], folder: str) -> None:
    with pytest.raises(LaunchError, match="one line of plain text"):
        render("tile", ClusterConfig(**cluster), [], log_file=Path(folder) / "%j.out", start_folder=Path("/a"))

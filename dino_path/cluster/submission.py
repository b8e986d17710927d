"""Submitting a stage to SLURM: the sbatch files of `slurm/`, with their resources taken from the config."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dino_path.atomic import atomic_write
from dino_path.cluster.jobs import note_job
from dino_path.cluster.resources import Resources, Stage, resources_of
from dino_path.config import ClusterConfig, Config
from dino_path.errors import LaunchError
from dino_path.settings import as_yaml

TEMPLATES: dict[Stage, str] = {"tile": "tile", "pretrain": "pretrain"}  # the others: command
HAS_CONFIG = ("tile", "pretrain", "baseline", "evaluate")
HAS_PROCESSES = ("pretrain", "embed", "evaluate")  # one for each GPU; the others use one
HAS_WORKERS = ("embed", "baseline", "evaluate")  # tile.sbatch says it itself
NO_ANSWER = ("Unable to contact slurm controller", "Could not establish a configuration source")

# `#SBATCH --option=value   # why`, or switched off by a second #
OPTION = re.compile(r"#?#SBATCH (?P<name>--[a-z-]+)(=\S*)?(?P<why> +# .*)?")
COMMAND = re.compile(r"dino_path=\(.*")
WHY_COLUMN = 38
HEADER = """\
# Written by `dino-path submit` after slurm/{template}.sbatch, which explains itself. The settings lie in the YAML
# beside it, the arguments stand below: `sbatch` with this file and nothing else submits the same job again.
"""


@dataclass(frozen=True)
class Submission:
    """One stage that was submitted, or would have been.

    Attributes:
        script: text of the sbatch file.
        script_file: where it lies (or would).
        log_file: where SLURM writes the output, in SLURM's notation (%j is the job id).
        job_id: None after a dry run.
        verdict: of a dry run: SLURM's own words on when and where the job would start; None without SLURM.
        refusal: of a dry run: why SLURM would not take the job; None when it would, or is not there.
    """

    stage: Stage
    script: str
    script_file: Path
    log_file: Path
    job_id: str | None
    verdict: str | None = None
    refusal: LaunchError | None = None

    def line(self) -> str:
        """One line of a chain of jobs."""
        what = f"job {self.job_id}" if self.job_id else self.verdict or "not submitted"
        return f"{self.stage:9s} {what}  {shlex.quote(str(self.script_file))}"

    def text(self) -> str:
        """What the terminal shows."""
        if self.job_id is None:
            verdict = self.verdict or (
                "" if self.refusal else "There is no SLURM here, so the resources were not checked."
            )
            return f"{self.script}\n{self.script_file}: not written, not submitted.\n{verdict}".rstrip()
        meant = {"%j": self.job_id, "%A": self.job_id, "%x": f"dino-{self.stage}", "%a": "*", "%%": "%"}
        output = re.sub("%.", lambda found: meant[found[0]], str(self.log_file))
        return (
            f"job {self.job_id}: {self.stage}\n"
            f"script: {shlex.quote(str(self.script_file))}\n"
            f"output: {shlex.quote(output)}\n"
            f"watch: squeue --job {self.job_id}; stop: scancel {self.job_id}"
        )


def submit(
    stage: Stage,
    config: Config,
    arguments: Sequence[str],
    *,
    out: Path,
    dry_run: bool,
    after: str | None = None,
    has_config: bool | None = None,
    has_workers: bool | None = None,
) -> Submission:
    """Write `OUT/slurm/STAGE.{sbatch,yaml}` and hand the script to SLURM; a dry run writes and submits nothing.

    The job reads the YAML beside its script, not the file that the user gave. So it runs exactly the checked
    settings, however long it waits and whatever is edited meanwhile.

    Args:
        arguments: of `dino-path STAGE`, without `--config` and settings (those are in `config`).
        out: run folder, or whatever folder the stage writes to.
        after: id of the job that must have ended well before this one starts.
        has_config, has_workers: whether this command of the stage takes --config and --workers; None: as most of the
            stage's do.

    Raises:
        LaunchError: there is no SLURM here, or it refuses the job (in its own words).
    """
    folder = out.resolve() / "slurm"
    script_file, config_file = folder / f"{stage}.sbatch", folder / f"{stage}.yaml"
    log_file = _without_placeholders(folder) / ("%x-%A_%a.out" if stage == "tile" else "%x-%j.out")
    words = [*arguments]
    if stage in HAS_CONFIG if has_config is None else has_config:
        words += ["--config", str(config_file)]
    if (stage in HAS_WORKERS if has_workers is None else has_workers) and "--workers" not in words:
        words += ["--workers", str(resources_of(stage, config.cluster).cpus)]
    script = render(stage, config.cluster, words, log_file=log_file, start_folder=Path.cwd())
    if dry_run:
        verdict, refusal = None, None
        if shutil.which("sbatch"):
            try:
                verdict = _test(script, script_file)
            except LaunchError as error:
                refusal = error
        return Submission(stage, script, script_file, log_file, job_id=None, verdict=verdict, refusal=refusal)
    with atomic_write(config_file) as stream:
        stream.write(as_yaml(config))
    with atomic_write(script_file) as stream:
        stream.write(script)
    # A job whose condition can no longer be met is cancelled instead of waiting for ever.
    conditions = [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"] if after else []
    answer = _sbatch(["--parsable", *conditions, str(script_file)], script_file)
    job_id = answer.stdout.strip().split(";")[0]  # "ID" or "ID;CLUSTER"
    note_job(out, stage, job_id)
    return Submission(stage, script, script_file, log_file, job_id=job_id)


def render(stage: Stage, cluster: ClusterConfig, words: Sequence[str], *, log_file: Path, start_folder: Path) -> str:
    """The sbatch file of `stage` with its resources, environment and arguments filled in.

    Args:
        words: the arguments that the script passes on; `sbatch SCRIPT` then needs none.
        start_folder: where the job starts, so that relative paths mean what they meant here.
    """
    resources = resources_of(stage, cluster)
    options = _options(stage, cluster, resources, log_file, start_folder)
    template = template_file(stage).read_text(encoding="utf-8").splitlines()
    words = words if stage in TEMPLATES else [stage, *words]
    first_blank = template.index("")
    last_option = max(number for number, line in enumerate(template) if OPTION.fullmatch(line))
    script = [template[0], *HEADER.format(template=TEMPLATES.get(stage, "command")).splitlines()]
    for number, line in enumerate(template[first_blank:], first_blank):
        option = OPTION.fullmatch(line)
        if option and option["name"] in options:
            script += _option_lines(*options[option["name"]], option["why"] or "")
        elif COMMAND.fullmatch(line):
            script += [*_environment_lines(line, cluster), f"set -- {shlex.join(words)}"]
        else:
            script.append(line)
        if number == last_option:
            for extra in resources.extra_lines:
                _refuse_second_line("cluster.extra_lines", extra.replace('"', ""))
                script.append(f"#SBATCH {extra.removeprefix('#SBATCH ')}")
    return "\n".join(script) + "\n"


def template_file(stage: Stage) -> Path:
    """The file of `slurm/` for `stage`: in the installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    folder = package / "slurm" if (package / "slurm").is_dir() else package.parent / "slurm"
    return folder / f"{TEMPLATES.get(stage, 'command')}.sbatch"


def _options(
    stage: Stage, cluster: ClusterConfig, resources: Resources, log_file: Path, start_folder: Path
) -> dict[str, tuple[str, str | None]]:
    """The value of each #SBATCH option of a template, by name; None: the option is left out."""
    values = {
        "--job-name": f"dino-{stage}",
        "--array": f"1-{cluster.array_tasks}" if stage == "tile" else None,
        "--nodes": str(cluster.nodes if stage == "pretrain" else 1),
        "--ntasks-per-node": str(max(resources.num_gpus, 1) if stage in HAS_PROCESSES else 1),
        "--gpus-per-node": resources.gpus,
        "--cpus-per-task": str(resources.cpus),
        "--mem": resources.memory,
        "--time": resources.time,
        "--partition": resources.partition,
        "--account": resources.account,
        "--qos": resources.qos,
        "--constraint": resources.constraint,
        "--output": str(log_file),
        "--chdir": str(start_folder),
    }
    options = {name: (name, value) for name, value in values.items()}
    if cluster.gpu_request == "gres" and resources.gpus is not None:
        options["--gpus-per-node"] = "--gres", f"gpu:{resources.gpus}"
    return options


def _without_placeholders(folder: Path) -> Path:
    """A folder as SLURM writes it where `%` begins a placeholder (in --output; elsewhere it means itself)."""
    return Path(str(folder).replace("%", "%%"))


def _option_lines(name: str, value: str | None, why: str) -> list[str]:
    """The #SBATCH line with its comment; none for an option that is off."""
    if value is None:
        return []
    _refuse_second_line(name, value)
    text = f'"{value}"' if re.search(r"[\s#]", value) else value
    line = f"#SBATCH {name}={text}"
    return [f"{line:{WHY_COLUMN - 2}}  {why.strip()}" if why else line]


def _refuse_second_line(name: str, value: str) -> None:
    """Check that a value cannot end an option's line or its quotation marks: the rest would run as shell code.

    Raises:
        LaunchError: the value has a line break, another control character, or a quotation mark.
    """
    if not value.isprintable() or '"' in value:
        raise LaunchError(
            f"{name}={value!r}",
            "has a line break, a control character or a quotation mark.",
            "A SLURM option must be one line of plain text.",
            "Correct it in the config's section `cluster`, or give the folder another name.",
        )


def _environment_lines(command: str, cluster: ClusterConfig) -> list[str]:
    """The config's own set-up; without one, the very Python that submits."""
    if cluster.setup_lines:
        return [command, *cluster.setup_lines]
    return [f"dino_path=({shlex.quote(sys.executable)} -m dino_path)"]


def _test(script: str, script_file: Path) -> str:
    """SLURM's forecast for a script that is not submitted: "sbatch: Job 7 to start at ..."."""
    answer = _sbatch(["--test-only"], script_file, text=script)
    return " ".join((answer.stderr or answer.stdout).split())


def _sbatch(options: Sequence[str], script_file: Path, *, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run sbatch on a file, or on `text` by way of stdin.

    Raises:
        LaunchError: there is no sbatch, or it refuses.
    """
    try:
        answer = subprocess.run(["sbatch", *options], input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise LaunchError(
            "sbatch",
            "is not on this machine.",
            "SLURM's commands are needed to submit.",
            "Submit from a login node of the cluster. `--dry-run` shows the script anywhere; torchrun needs no SLURM.",
        ) from None
    said = " ".join((answer.stderr or answer.stdout).split())
    if answer.returncode != 0 and any(words in said for words in NO_ANSWER):
        raise LaunchError(
            "sbatch",
            f"reaches no SLURM from this machine ({said.rpartition('sbatch: ')[2]}).",
            "The commands of SLURM are installed, but no cluster answers them.",
            "Submit from a login node of the cluster, or see what `sinfo` says. `--dry-run` shows the script anywhere.",
        )
    if answer.returncode != 0:
        raise LaunchError(
            str(script_file),
            f"SLURM refuses the job: {said}",
            "The cluster must be able to grant the requested resources.",
            "Change the config's `cluster` section (see `sinfo`; settings for one stage, or for all without a GPU,"
            " are under cluster.stages), or the #SBATCH lines of the script.",
        )
    return answer

"""Commands for the cluster and the machine: submit, status, doctor."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dino_path.cli.extractor import are_slides
from dino_path.cli.help import Command
from dino_path.cli.program import (
    EXIT_SOME_FAILED,
    AsJson,
    ConfigFile,
    Quiet,
    app,
    check_command,
    log_to,
    overrides_only,
    split_arguments,
)
from dino_path.cli.terminal import say, say_json, say_table
from dino_path.errors import ConfigError, DinoPathError

if TYPE_CHECKING:
    from dino_path.config import Config
    from dino_path.slides.pseudonyms import PseudonymFiles

# What each stage requires, and the default folder below `out` for its results.
NEEDS = {
    "tile": ("tiles", "store"), "pretrain": ("store", "out", "training"), "embed": ("out",), "baseline": ("out",),
    "evaluate": ("out",),
}  # fmt: skip
BELOW_OUT = {"embed": "features", "baseline": "baseline", "evaluate": "eval"}


@app.command(
    cls=Command,
    context_settings={"ignore_unknown_options": True},
    epilog="""
    dino-path submit pretrain --config configs/vits16_8gpu.yaml store=tiles out=runs/vits16
    dino-path submit pipeline slides/ --config configs/vits16_8gpu.yaml store=tiles out=runs/vits16 --data labelled/
    dino-path submit tile slides/ --config configs/vits16_8gpu.yaml --out tiles --dry-run
    """,
)
def submit(
    stage: Annotated[
        Literal["tile", "pretrain", "embed", "baseline", "evaluate", "pipeline"],
        typer.Argument(metavar="STAGE", help="tile, pretrain, embed, baseline, evaluate, or pipeline: a chain of all"),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ARGUMENT]... [KEY=VALUE]...", help="as for 'dino-path STAGE', including its options"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="as for the stage; default: the config's store or out")] = None,
    config: ConfigFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the script, ask SLURM, submit nothing")] = False,
) -> None:
    """Run a stage, or all of them, as SLURM jobs.

    The resources come from the config's section "cluster". 'submit pipeline SLIDES... --data SPEC [--embed]' chains
    tile, pretrain, export, baseline, evaluate and report, and with --embed also embeds the store. It also takes
    --pseudonymise and --key, as tile does. Submitted again, every stage continues.
    """
    from dino_path.cli.inputs import check_stage_inputs
    from dino_path.cluster.submission import submit as submit_stage
    from dino_path.config import SuiteConfig
    from dino_path.settings import load_config

    if stage == "pipeline":
        _submit_pipeline(list(arguments or ()), out, config, dry_run=dry_run)
        return
    words, overrides = ([], overrides_only(arguments)) if stage == "pretrain" else split_arguments(arguments or ())
    command = f"{stage} {words[0]}" if stage == "evaluate" and words else stage
    if command == "evaluate suite":  # it has its own file, whose settings stay on its command line
        own = [one for one in overrides if re.split("[.=]", one)[0] in SuiteConfig.model_fields]
        words, overrides = words + own, [one for one in overrides if one not in own]
    key = "store" if stage == "tile" else "out"
    resolved = load_config(config, overrides, needs=NEEDS[stage], settings={key: out} if out else None)
    folder = resolved.store if stage == "tile" else resolved.out
    assert folder is not None
    if stage in BELOW_OUT and out is None:
        folder /= BELOW_OUT[stage]
    if stage != "pretrain":
        words += ["--out", str(folder)]
    given = check_command([stage, *words])
    refusals = _refusals(partial(check_stage_inputs, command, given, resolved), dry_run=dry_run)
    refusals += _refusals(partial(_pseudonyms_of, given), dry_run=dry_run) if stage == "tile" else []
    if stage == "tile" and not dry_run:
        _prepare_tiling(given, resolved)
    submission = submit_stage(
        stage, resolved, words, out=folder, dry_run=dry_run,
        has_config=are_slides(given["inputs"]) if stage == "embed" else "config" in given,
        has_workers=stage != "tile" and "workers" in given,
    )  # fmt: skip
    say(submission.text())
    _raise_first([*refusals, submission.refusal])


def _submit_pipeline(arguments: list[str], out: Path | None, config: Path | None, *, dry_run: bool) -> None:
    from dino_path.api.inputs import check_continued_run, check_labelled, check_slides, check_store
    from dino_path.cluster.pipeline import pipeline_stages, submit_pipeline
    from dino_path.settings import load_config

    has_features = "--embed" in arguments
    arguments, data = _without_option([word for word in arguments if word != "--embed"], "--data")
    of_tile: list[str] = []
    for name in ("--pseudonymise", "--key"):
        arguments, value = _without_option(arguments, name)
        of_tile += [name, value] if value is not None else []
    slides, overrides = split_arguments(arguments)
    if of_tile and not slides:
        raise ConfigError(
            of_tile[0], "goes with slides.", "Slides get their pseudonyms when they are tiled.", "Name the slides."
        )
    needs = ("tiles", "store", "out", "training") if slides else ("store", "out", "training")
    resolved = load_config(config, overrides, needs=needs, settings={"out": out} if out else None)
    stages = pipeline_stages(resolved, [*slides, *of_tile], data, has_features=has_features)
    given = {one.stage: check_command([one.stage, *one.words]) for one in stages}
    coming_store = resolved.store if slides else None
    checks: list[Callable[[], object]] = [
        partial(check_slides, slides, resolved) if slides else partial(check_store, resolved)
    ]
    checks += [partial(_pseudonyms_of, given["tile"])] if slides else []
    checks += [partial(check_continued_run, resolved)]
    checks += [partial(check_labelled, data, resolved, coming_store=coming_store)] if data is not None else []
    refusals = [refusal for check in checks for refusal in _refusals(check, dry_run=dry_run)]
    if slides and not dry_run:
        _prepare_tiling(given["tile"], resolved)
    submissions = submit_pipeline(resolved, [*slides, *of_tile], data, dry_run=dry_run, has_features=has_features)
    for submission in submissions:
        say(submission.text() if dry_run else submission.line())
        if submission.refusal is not None:
            say(submission.refusal.found)
    if data is None:
        say("no --data: nothing will be evaluated, and the report will say so")
    _raise_first([*refusals, *(submission.refusal for submission in submissions)])
    if not dry_run:
        say(f"watch: dino-path status {shlex.quote(str(resolved.out))}")


def _prepare_tiling(given: Mapping[str, Any], config: Config) -> None:
    """What all tasks of the array share is made before they start: the store's settings, the mapping and the key.

    Args:
        given: the parameters of `tile`.
    """
    from dino_path.api.named_slides import search_named
    from dino_path.tiles.layout import StoreFolder

    assert config.tiles is not None
    folder, names = StoreFolder(Path(given["out"])), _pseudonyms_of(given)
    if names is not None:
        search_named(split_arguments(given["slides"])[0], config.slides, names, folder)
    folder.prepare(config.tiles)


def _pseudonyms_of(given: Mapping[str, Any]) -> PseudonymFiles | None:
    """The mapping and the key in the parameters of `tile`, which may lie there. Raises as `pseudonym_files`."""
    from dino_path.api.named_slides import pseudonym_files

    mapping, key = (None if given[name] is None else Path(given[name]) for name in ("pseudonymise", "key"))
    return pseudonym_files(mapping, key, Path(given["out"]))


def _refusals(check: Callable[[], object], *, dry_run: bool) -> list[DinoPathError]:
    """The refusals of a check of the inputs; a dry run shows its scripts before it ends with them.

    Raises:
        DinoPathError: unless it is a dry run.
    """
    try:
        check()
    except DinoPathError as error:
        if not dry_run:
            raise
        return [error]
    return []


def _raise_first(refusals: Sequence[DinoPathError | None]) -> None:
    for refusal in refusals:
        if refusal is not None:
            raise refusal


def _without_option(arguments: list[str], name: str) -> tuple[list[str], str | None]:
    """The arguments without `NAME VALUE` or `NAME=VALUE`, and that value (None if absent).

    Raises:
        ConfigError: the name stands last, without a value.
    """
    for number, argument in enumerate(arguments):
        if argument == name:
            if number + 1 == len(arguments):
                raise ConfigError(name, "stands last.", "It needs a value.", f"Write {name} VALUE.")
            return arguments[:number] + arguments[number + 2 :], arguments[number + 1]
        if argument.startswith(f"{name}="):
            return arguments[:number] + arguments[number + 1 :], argument.partition("=")[2]
    return arguments, None


@app.command(
    cls=Command,
    epilog="""
    dino-path status runs/vits16
    dino-path status runs/vits16 --json
    """,
)
def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder")],
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show the state of a run's stages and jobs."""
    log_to(None, is_quiet=quiet)
    from dino_path.cluster.status import job_lines, run_status

    stages, jobs = run_status(run), job_lines(run)
    if as_json:
        say_json({"stages": [asdict(stage) for stage in stages], "jobs": jobs})
        return
    say_table(["stage", "state", ""], [[stage.stage, stage.state, stage.facts] for stage in stages])
    for line in jobs:
        say(line)


@app.command(
    cls=Command,
    epilog="""
    dino-path doctor
    dino-path doctor --out runs --json
    """,
)
def doctor(
    out: Annotated[Path, typer.Option(help="folder whose disk and write access are checked")] = Path(),
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Check what this machine has and lacks.

    Every check runs the real thing and says how to fix what fails.
    """
    log_to(None, is_quiet=quiet)
    from dino_path.doctor import examine

    findings = examine(out)
    if as_json:
        say_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            say(finding.line())
    if any(finding.is_fault for finding in findings):
        raise typer.Exit(EXIT_SOME_FAILED)

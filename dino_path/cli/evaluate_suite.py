"""`dino-path evaluate suite`: many labelled sets and protocols in one call."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dino_path.api.inputs import check_models
from dino_path.cli.evaluate import Models, evaluate
from dino_path.cli.help import Command
from dino_path.cli.inputs import suite_file
from dino_path.cli.program import (
    AsJson,
    Device,
    Quiet,
    Workers,
    announce,
    loading,
    log_to,
    split_arguments,
)
from dino_path.cli.terminal import say, say_json, say_markdown
from dino_path.disk import refuse_unwritable
from dino_path.errors import ConfigError
from dino_path.launch import is_first


@evaluate.command(
    cls=Command,
    epilog="""
    dino-path evaluate suite model untrained:model mean-colour --suite public --root /data --skip-missing
    dino-path evaluate suite model other --suite mine.yaml --out results evaluation.num_bootstrap=2000
    """,
)
def suite(
    models: Models,
    suite: Annotated[str, typer.Option("--suite", help="YAML file, or development or public (configs/suites/)")],
    root: Annotated[Path, typer.Option(help="folder that paths in the suite file are relative to")] = Path(),
    out: Annotated[Path | None, typer.Option(help="folder; default: eval/suite-NAME of the model's run")] = None,
    baselines: Annotated[
        Path | None, typer.Option(help="folder with one 'dino-path baseline' folder for each set, named like the set")
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="leave out sets whose data do not exist")
    ] = False,
    device: Device = "auto",
    workers: Workers = 2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Many sets and protocols in one call, one table and one page.

    Called again, finished sets are not evaluated again.
    """
    log_to(None, is_first=is_first(), is_quiet=quiet)
    specs, overrides = split_arguments(models)
    check_models(specs)
    from dino_path.settings import load_suite

    file = suite_file(suite)
    config = load_suite(file, overrides)
    if baselines is not None and not baselines.is_dir():
        raise ConfigError(
            f"--baselines {baselines}",
            "no such folder.",
            "A folder with one `dino-path baseline` folder for each set is needed.",
            "Check the path.",
        )
    from dino_path.evaluation.results.earlier import folder_of_run

    out = out or folder_of_run(specs) / f"suite-{file.stem}"
    refuse_unwritable(out)
    announce(f"reading {len(config.sets)} sets")
    from dino_path.evaluation.results.suite_plan import plan_suite

    plan = plan_suite(config, specs, root=root, baselines=baselines, out=out, skip_missing=skip_missing)
    loading()
    from dino_path.api.evaluation import EXTRACTION_TIMEOUT_S
    from dino_path.distributed import open_world
    from dino_path.evaluation.results.suite import evaluate_suite, extract_suite
    from dino_path.evaluation.results.suite_text import suite_markdown
    from dino_path.lock import only_writer
    from dino_path.records.suite import SUITE
    from dino_path.reporting.suite_page import write_suite_page

    with open_world(device, timeout_s=EXTRACTION_TIMEOUT_S) as world:
        if world.size > 1:
            extract_suite(plan, world=world, num_workers=workers)
    if not world.is_first:
        return
    with only_writer(out):
        record = evaluate_suite(config, plan, specs, device=world.device, out=out, num_workers=workers)
        page = write_suite_page(out)
    if as_json:
        say_json(SUITE.plain(record))
        return
    say_markdown(suite_markdown(record))
    say(f"page: {page}")

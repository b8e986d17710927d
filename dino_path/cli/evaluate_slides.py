"""`evaluate slides`: slide or patient labels, or survival, on feature files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_path.cli.evaluate import evaluate
from dino_path.cli.help import Command
from dino_path.cli.program import (
    AsJson,
    ConfigFile,
    Device,
    Quiet,
    announce,
    loading,
    log_to,
    resolve_config,
    split_arguments,
)
from dino_path.cli.terminal import say, say_json, say_markdown
from dino_path.disk import refuse_unwritable
from dino_path.errors import ConfigError, DataError
from dino_path.launch import is_first

if TYPE_CHECKING:
    from dino_path.config import CohortConfig
    from dino_path.evaluation.cohorts.cohort import Cohort


@evaluate.command(
    name="slides",
    cls=Command,
    epilog="""
    dino-path evaluate slides features/20x_256px_0px_overlap/features_vits16 --labels slides.csv --out eval/grade
    dino-path evaluate slides f/features_mine f/features_untrained-mine f/features_mean-colour --labels s.csv --out e
    dino-path evaluate slides f/features_mine --labels slides.csv --out e --heatmap S-17 --slides slides/S-17.svs
    dino-path evaluate slides f/features_mine --labels survival.csv --out eval/survival cohort.repeats=10
    """,
)
def evaluate_slides_command(
    features: Annotated[
        list[str],
        typer.Argument(metavar="FEATURES... [KEY=VALUE]...", help="folders with one .h5 or .pt file for each slide"),
    ],
    labels: Annotated[
        Path, typer.Option(help="CSV: slide_id, label (or time,event), and patient_id and centre if known")
    ],
    out: Annotated[Path, typer.Option(help="folder for the results")],
    heatmap: Annotated[
        list[str] | None, typer.Option(help="slide_id of which to draw an attention map; may be repeated")
    ] = None,
    slides: Annotated[
        list[Path] | None, typer.Option(help="slide files or folders to draw the maps over; may be repeated")
    ] = None,
    config: ConfigFile = None,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Slide labels or survival: mean pooling, attention-MIL, Cox.

    Reads features of 'dino-path embed', TRIDENT or CLAM. Called again, the command resumes.
    """
    from dino_path.lock import only_writer

    if not is_first():
        return  # one process does it all
    log_to(None, is_quiet=quiet)
    folders, overrides = split_arguments(features)
    cohort_config = resolve_config(config, overrides).cohort
    refuse_unwritable(out)
    from dino_path.features.bags import find_bags

    found = [find_bags(Path(folder)) for folder in folders]
    announce(f"reading {labels}")
    if any(folder.needs_torch for folder in found):
        loading("torch, for .pt files")
    from dino_path.evaluation.cohorts.cohort import read_cohort
    from dino_path.evaluation.cohorts.files import refuse_to_lose_slides
    from dino_path.evaluation.cohorts.folds import draw_cohort_folds

    cohort, sources = read_cohort(labels, found, cohort_config)
    folds = draw_cohort_folds(cohort, cohort_config)
    slide_files = _check_maps(cohort, cohort_config, heatmap or [], slides or [])
    refuse_to_lose_slides(out, cohort, sources, folds, cohort_config)
    _require_lifelines(cohort)
    loading("torch, scikit-learn" + (" and lifelines" if cohort.task == "survival" else ""))
    from dino_path.distributed import choose_device
    from dino_path.evaluation.cohorts.page import page_of
    from dino_path.evaluation.cohorts.slides import evaluate_slides

    with only_writer(out):
        refuse_to_lose_slides(out, cohort, sources, folds, cohort_config)  # another may have written since
        record = evaluate_slides(
            cohort, sources, folds, cohort_config, out=out, mapped=heatmap or [], slides=slide_files,
            device=choose_device(device, 0),
        )  # fmt: skip
    if as_json:
        say_json(json.loads((out / "slides.json").read_text(encoding="utf-8")))
        return
    say_markdown(page_of(record))
    say(f"results: {out / 'slides.json'}")


def _check_maps(cohort: Cohort, config: CohortConfig, mapped: Sequence[str], slides: Sequence[Path]) -> dict[str, Path]:
    """The slide file of each mapped slide, if it is among `slides`."""
    known = {slide for of_case in cohort.slides for slide in of_case}
    for slide in mapped:
        if cohort.task == "survival" or "abmil" not in config.aggregators:
            raise ConfigError(
                f"--heatmap {slide}",
                "no attention is trained here.",
                "A map shows the attention of attention-MIL, which needs labels and abmil in cohort.aggregators.",
                "Leave --heatmap out.",
            )
        if slide not in known:
            why = cohort.left_out.get(slide, "not in the table, or without a label")
            raise DataError(
                f"--heatmap {slide}", f"{why}.", "A slide_id that takes part is needed.", f"Such as {min(known)}."
            )
    if not slides or not mapped:
        return {}
    from dino_path.features.layouts import TridentLayout
    from dino_path.slides.find import find_slides

    rows = find_slides(list(slides))
    files = {TridentLayout.name_for_reader(str(row.path)): row.path for row in rows}
    files |= {row.slide_id: row.path for row in rows}
    found = {
        slide: file for slide in mapped if (file := files.get(slide) or files.get(TridentLayout.name_for_reader(slide)))
    }
    lacking = [slide for slide in mapped if slide not in found]
    if lacking:
        raise DataError(
            f"--slides {' '.join(map(str, slides))}",
            f"no slide file named {lacking[0]}.",
            "The file of each slide of --heatmap is needed, named like the slide.",
            "Correct --slides, or leave it out to draw maps without the slide under them.",
        )
    return found


def _require_lifelines(cohort: Cohort) -> None:
    if cohort.task == "survival" and find_spec("lifelines") is None:
        raise ConfigError(
            "lifelines",
            "is not installed.",
            "It computes the Cox regression.",
            "Install the extra: uv pip install 'dino-path[survival]'.",
        )

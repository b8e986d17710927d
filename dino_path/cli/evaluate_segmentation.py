"""The command that evaluates frozen patch vectors on images with masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_path.api.inputs import check_models
from dino_path.cli.evaluate import Models, ResultsFolder, evaluate
from dino_path.cli.help import Command
from dino_path.cli.program import (
    AsJson,
    ConfigFile,
    Device,
    Quiet,
    Workers,
    announce,
    loading,
    log_to,
    resolve_config,
    split_arguments,
)
from dino_path.cli.terminal import say, say_json, say_markdown
from dino_path.disk import refuse_unwritable
from dino_path.launch import is_first

if TYPE_CHECKING:
    from dino_path.config import Config
    from dino_path.evaluation.labelled.masks import MaskedSet


@evaluate.command(
    cls=Command,
    epilog="""
    dino-path evaluate segmentation runs/vits16/model untrained:runs/vits16/model mean-colour --data masks.csv
    dino-path evaluate segmentation model untrained:timm:resnet50 --data pannuke:PanNuke --out nuclei
    dino-path evaluate segmentation model --data masks.csv 'evaluation.segmentation_classes={nucleus: 1}'
    """,
)
def segmentation(
    models: Models,
    data: Annotated[
        str,
        typer.Option(
            help="CSV of path,mask[,label,patient_id,slide_id,split,centre], or monusac: consep: pannuke: + FOLDER"
        ),
    ],
    out: ResultsFolder = None,
    config: ConfigFile = None,
    device: Device = "auto",
    workers: Workers = 2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Dice and IoU of masks predicted from patch tokens.

    A linear layer and k-NN on frozen patch tokens (of a CNN: its last feature map) predict the class of every pixel.
    """
    from dino_path.lock import only_writer

    if not is_first():
        return  # one process does it all
    log_to(None, is_quiet=quiet)
    specs, overrides = split_arguments(models)
    resolved = resolve_config(config, overrides)
    masked, out = _check(specs, data, out, resolved)
    loading()
    from dino_path.distributed import choose_device
    from dino_path.evaluation.labelled.division import divide
    from dino_path.evaluation.results.earlier import refuse_to_lose_masks
    from dino_path.evaluation.results.segmentation import evaluate_segmentation

    with only_writer(out):
        labelled = divide(masked.labelled, resolved.evaluation).labelled
        refuse_to_lose_masks(out, specs, labelled, masked.digest, resolved.evaluation)  # another may have written since
        outcome = evaluate_segmentation(
            specs, masked, resolved.evaluation, device=choose_device(device, 0), out=out, num_workers=workers
        )
    if as_json:
        say_json(json.loads((out / "segmentation.json").read_text(encoding="utf-8")))
        return
    say_markdown(outcome.text)
    say(f"results: {out / 'segmentation.json'}; pictures: {out / 'segmentation.jpg'}")


def _check(specs: list[str], data: str, out: Path | None, config: Config) -> tuple[MaskedSet, Path]:
    """The data, and the folder for the results: all that can be refused is refused here, before torch is imported."""
    check_models(specs)
    if out is not None:
        refuse_unwritable(out)
    announce(f"reading {data}")
    from dino_path.evaluation.labelled.division import divide
    from dino_path.evaluation.labelled.published_masks import load_masked
    from dino_path.evaluation.results.earlier import refuse_to_lose_masks, results_folder

    masked = load_masked(data, config.evaluation)
    division = divide(masked.labelled, config.evaluation)
    masked.check_splits(division.splits, seed=config.evaluation.seed)
    out = out or results_folder(specs, masked.labelled, "segmentation")
    refuse_unwritable(out)
    refuse_to_lose_masks(out, specs, division.labelled, masked.digest, config.evaluation)
    return masked, out

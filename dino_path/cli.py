"""The command line: one thin function per command. Heavy imports live inside, so that `--help` answers at once."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dino_path.errors import ConfigError, DinoPathError, SlideError, StoppedBySignal

if TYPE_CHECKING:
    from dino_path.config import Config
    from dino_path.distributed import World
    from dino_path.features.extractor import Extractor
    from dino_path.tiles.source import TileSource
    from dino_path.tiles.store import TileStore

app = typer.Typer(
    name="dino-path",
    help="Self-supervised DINO pretraining for histology: slides in, frozen feature extractor and report out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file; see configs/")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings: dotted.key=value")]
DataSpec = Annotated[
    str,
    typer.Option(
        "--data",
        help="class folders, manifest CSV, store:STORE, or nct-crc: pcam: mhist: breakhis: bach: + FOLDER",
    ),
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="auto is CUDA where there is one")]
Workers = Annotated[int, typer.Option(help="processes (or threads) that read and decode", min=0)]

SETTING = re.compile(r"[a-z_0-9]+(\.[A-Za-z_0-9]+)*=.*", re.DOTALL)
EXTRACTION_TIMEOUT_S = 24 * 3600.0  # a process whose share was small waits for the others
EXIT_SOME_FAILED, EXIT_REFUSED, EXIT_STOPPED, EXIT_INTERRUPTED = 1, 2, 85, 130  # slurm/pretrain.sbatch knows 85


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for everything that the demo makes")] = Path("demo"),
    fast: Annotated[bool, typer.Option(help="a minute's version: too short to learn anything")] = False,
) -> None:
    """The whole road on synthetic slides, on a CPU, ending in OUT/report.html."""
    from dino_path.demo import run_demo

    log_to(out / "log.txt")
    run_demo(out, is_fast=fast)


@app.command()
def tile(
    slides: Annotated[list[str], typer.Argument(metavar="SLIDES... [KEY=VALUE]...", help="files, folders, or a CSV")],
    out: Annotated[Path, typer.Option(help="tile store")],
    config: ConfigFile = None,
    shard: Annotated[str, typer.Option(help="I/N: only every N-th slide, from the I-th (1 to N)")] = "1/1",
    layout: Annotated[str | None, typer.Option(help="also coordinate files: trident, clam, or both")] = None,
    workers: Workers = 2,
) -> None:
    """Cut slides into tiles. Needs tiles.mpp. Called again, it does what is missing."""
    from dino_path.features.layouts import LAYOUTS, read_layouts, refuse_shared_names
    from dino_path.slides.find import find_slides
    from dino_path.tiles.tiling import tile_slides

    log_to(None)
    inputs, overrides = split_arguments(slides)
    settings = _config(config, overrides, needs=("tiles",))
    assert settings.tiles is not None
    # Coordinate files that the store has are kept in step with its tiles.
    layouts = read_layouts(layout) if layout else [known for known in LAYOUTS if (out / known).is_dir()]
    rows = find_slides([Path(name) for name in inputs], settings.slides.exclude, masks=settings.slides.masks)
    refuse_shared_names([str(row.path) for row in rows], layouts)
    summary = tile_slides(rows, settings.tiles, out, shard=_shard(shard), num_workers=workers)
    for record in summary.records:
        size = f"{record.num_tiles:6d} tiles  {record.seconds:6.1f} s" if record.status == "done" else record.reason
        typer.echo(f"{record.status:7s} {record.slide_id}  {size}" + "".join(f"  [{flag}]" for flag in record.flags))
    typer.echo(
        f"{summary.num_done} done, {summary.num_skipped} there before, {summary.num_empty} empty,"
        f" {summary.num_failed} failed: {summary.num_tiles:,} tiles in {out}"
        + (f" ({summary.num_judged_again} by other quality limits, unread)" if summary.num_judged_again else "")
    )
    typer.echo(f"every slide: {out / 'slides.csv'}, {out / 'contact_sheet_001.jpg'}, {out / 'overlays'}")
    if layouts:
        from dino_path.features.coordinates import write_coordinate_files

        typer.echo(write_coordinate_files(out, layouts, out).text())
    if summary.num_failed == len(rows):
        raise SlideError(
            inputs[0] if len(inputs) == 1 else f"{len(inputs)} inputs",
            f"none of {len(rows)} slide(s) could be tiled; the first: {summary.records[0].reason}",
            "At least one readable slide whose microns per pixel are known is needed.",
            "Every reason stands above; a CSV with the columns path,mpp gives mpp where the file does not.",
        )
    if summary.num_failed:
        raise typer.Exit(EXIT_SOME_FAILED)


@app.command()
def views(
    tiles: Annotated[Path, typer.Argument(metavar="STORE_OR_FOLDER", help="tile store or image folder")],
    out: Annotated[Path, typer.Option(help="PNG file")],
    settings: Overrides = None,
    config: ConfigFile = None,
    num_tiles: Annotated[int, typer.Option(min=1, help="rows for each recipe")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="as training.seed: the same tiles and views")] = 0,
) -> None:
    """Contact sheet of tiles and the views that training makes of them, for each recipe and for the settings given."""
    from dino_path.tiles.source import open_tiles
    from dino_path.views.sheet import recipes_to_show, write_sheet

    log_to(None)
    resolved = _config(config, _overrides_only(settings))
    if out.suffix.lower() != ".png" or out.is_dir():
        raise ConfigError(f"--out {out}", "is no PNG file.", "A name that ends in .png is needed.", "Correct --out.")
    check_output_folder(out.parent)
    source = open_tiles(tiles, split=resolved.slides.split, exclude=resolved.slides.exclude)
    balance = resolved.training.balance if resolved.training else None
    num_tiles = min(num_tiles, len(source))
    write_sheet(out, source, recipes_to_show(resolved.views), balance=balance, num_tiles=num_tiles, seed=seed)
    typer.echo(f"contact sheet: {out}")


@app.command()
def pretrain(settings: Overrides = None, config: ConfigFile = None) -> None:
    """DINO on the tiles of `store=STORE` into the run folder `out=RUN`. Called again, it continues.

    SIGTERM or SIGUSR1 to any of its processes: all end the same step, save it, and exit with code 85. A second signal,
    three seconds later or more, ends the process at once.
    """
    from dino_path.distributed import open_world
    from dino_path.training.global_batch import keep_global_batch
    from dino_path.training.loop import pretrain as run_pretraining

    resolved = _config(config, _overrides_only(settings), needs=("store", "out", "training"))
    assert resolved.out is not None
    assert resolved.training is not None
    check_output_folder(resolved.out)
    with open_world(resolved.training.device, timeout_s=resolved.training.timeout_s) as world:
        log_to(resolved.out / "log.txt" if world.is_first else None, is_first=world.is_first)
        resolved = keep_global_batch(resolved, world.size)
        knn = None
        if resolved.monitor.knn_data is not None and world.is_first:
            from dino_path.evaluation.running import running_knn

            knn = running_knn(resolved, device=world.device)
        checkpoint = run_pretraining(resolved, world, knn=knn)
        if world.is_first:
            typer.echo(f"checkpoint: {checkpoint}")


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="run folder or checkpoint file")],
    out: Annotated[Path, typer.Option(help="model folder")],
    network: Annotated[Literal["teacher", "student"], typer.Option(help="which of the two networks")] = "teacher",
    formats: Annotated[
        str, typer.Option("--format", help="timm, onnx, pt2 with commas between; timm is always written")
    ] = "timm",
    precision: Annotated[Literal["fp32", "fp16", "bf16"], typer.Option(help="of the stored weights")] = "fp32",
    license: Annotated[str, typer.Option(help="the Hub's name of a licence, such as cc-by-nc-4.0")] = "unknown",
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="upload it there too; a new repository is private")
    ] = None,
) -> None:
    """Write the frozen extractor as a folder that timm.create_model("local-dir:OUT", pretrained=True) loads."""
    from dino_path.export.checkpoint import export_checkpoint
    from dino_path.export.formats import read_formats

    log_to(None)
    result = export_checkpoint(
        run, out, network=network, formats=read_formats(formats), precision=precision, license=license
    )
    typer.echo(result.text())
    if push_to_hub is not None:
        from dino_path.export.hub import push_to_hub as push

        typer.echo(f"uploaded: {push(out, push_to_hub)}")


@app.command("import-checkpoint")
def import_checkpoint(
    file: Annotated[Path, typer.Argument(help="checkpoint of facebookresearch/dino: of a training, or a backbone")],
    out: Annotated[Path, typer.Option(help="model folder")],
    arch: Annotated[str | None, typer.Option(help="timm model name; default: told by the file")] = None,
    network: Annotated[
        Literal["teacher", "student"] | None, typer.Option(help="default: the teacher, or the only network there is")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="microns per pixel of its training tiles; default: unknown", min=0.05, max=50)
    ] = None,
) -> None:
    """Turn a checkpoint of facebookresearch/dino into a model folder, as `export` writes it."""
    from dino_path.export.checkpoint import import_checkpoint as run_import

    log_to(None)
    typer.echo(run_import(file, out, arch=arch, network=network, mpp=mpp).text())


@app.command()
def embed(
    model: Annotated[str, typer.Argument(help="model folder, timm:NAME, untrained:FOLDER, mean-colour, ...")],
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT... [KEY=VALUE]...", help="tile store, image folder, or slides (files, folders, a CSV)"
        ),
    ],
    out: Annotated[Path, typer.Option(help="folder for the feature files")],
    config: ConfigFile = None,
    layout: Annotated[str, typer.Option(help="trident, clam, or both with a comma between")] = "trident",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="default: 512 on CUDA, halved until it fits, else 64")
    ] = None,
    precision: Annotated[Literal["fp32", "bf16", "fp16"], typer.Option(help="in which the model runs")] = "fp32",
    allow_other_mpp: Annotated[bool, typer.Option(help="embed tiles at another mpp than the model's")] = False,
    device: Device = "auto",
    workers: Workers = 2,
) -> None:
    """Turn tiles, or slides, into feature files that TRIDENT and CLAM read. Called again, it does what is missing.

    Slides are tiled at the model's mpp (tiles.mpp=... for a model that does not know it), and no tile is written.
    Started by torchrun or srun, every process takes some of the slides.
    """
    from dino_path.distributed import open_world
    from dino_path.features.embed import embed_images, embed_store
    from dino_path.features.extractor import load_extractor
    from dino_path.features.layouts import read_layouts
    from dino_path.tiles.source import open_tiles
    from dino_path.tiles.store import TileStore

    check_output_folder(out)
    layouts = read_layouts(layout)
    words, overrides = split_arguments(inputs)
    # Slides differ in size: a process that is done waits for the others, hours perhaps.
    with open_world(device, timeout_s=7 * 24 * 3600) as world:
        log_to(None, is_first=world.is_first)
        extractor = load_extractor(model, device=world.device).at(precision)
        images_at_a_time = batch_size or (512 if world.device.type == "cuda" else 64)
        if _are_slides(words):
            tiles: TileSource = _find_tiles(words, config, overrides, out, extractor, world, workers, allow_other_mpp)
        elif overrides or config:
            raise ConfigError(
                " ".join(overrides) or f"--config {config}",
                f"{words[0]} is tiled already.",
                "Settings are for slides: tiles are as they are.",
                "Leave them out, or give the slides.",
            )
        else:
            tiles = open_tiles(Path(words[0]))
        if not isinstance(tiles, TileStore):
            if world.is_first:  # one file, one process
                file = embed_images(
                    extractor, tiles, out, root=Path(words[0]), batch_size=images_at_a_time, device=world.device,
                    num_workers=workers,
                )  # fmt: skip
                typer.echo(f"{len(tiles):,} images -> {file}")
            return
        summary = embed_store(
            extractor,
            tiles,
            out,
            layouts=layouts,
            batch_size=images_at_a_time,
            world=world,
            num_workers=workers,
            allow_other_mpp=allow_other_mpp,
        )
        if world.is_first:
            typer.echo(summary.text())
    if summary.failed and world.is_first:
        raise typer.Exit(EXIT_SOME_FAILED)


def _are_slides(words: Sequence[str]) -> bool:
    """Slides to be tiled, or else one tile store or one folder of images."""
    from dino_path.slides.find import holds_slides

    if len(words) != 1:
        return True
    path = Path(words[0])
    return path.is_file() or (not (path / "store.json").exists() and holds_slides(path))


def _find_tiles(
    words: Sequence[str],
    config: Path | None,
    overrides: Sequence[str],
    out: Path,
    extractor: Extractor,
    world: World,
    num_workers: int,
    allow_other_mpp: bool,
) -> TileStore:
    """The tiles of slides, at the model's mpp unless the settings say otherwise."""
    from dino_path.features.embed import refuse_other_mpp
    from dino_path.features.from_slides import find_tiles
    from dino_path.settings import load_config
    from dino_path.slides.find import find_slides

    resolved = load_config(
        config,
        overrides,
        needs=("tiles",),
        settings={"tiles.coordinates_only": True},
        fallback={"tiles.mpp": extractor.mpp} if extractor.mpp is not None else None,
    )
    assert resolved.tiles is not None
    if not allow_other_mpp:
        refuse_other_mpp(extractor, resolved.tiles.mpp, "the slides")
    rows = find_slides([Path(name) for name in words], resolved.slides.exclude, masks=resolved.slides.masks)
    return find_tiles(rows, resolved.tiles, out, world=world, num_workers=num_workers)


@app.command()
def baseline(
    data: DataSpec,
    out: Annotated[Path, typer.Option(help="folder for the baseline")],
    settings: Overrides = None,
    config: ConfigFile = None,
    fraction: Annotated[float, typer.Option(help="of the training labels: once for each draw of them")] = 1.0,
    device: Device = "auto",
    workers: Workers = 2,
) -> None:
    """Train the supervised ResNet-50 end to end on the train part of the data and test it once."""
    from dino_path.distributed import choose_device
    from dino_path.evaluation.baseline import train_baseline
    from dino_path.evaluation.baseline_files import BaselineFolder
    from dino_path.evaluation.datasets import load_labelled

    log_to(None)
    check_output_folder(out)
    resolved = _config(config, _overrides_only(settings))
    labelled = load_labelled(data, resolved.evaluation)
    draws = labelled.label_draws(
        _fractions(str(fraction))[0], resolved.evaluation.fraction_draws, seed=resolved.evaluation.seed
    )
    for number, drawn in enumerate(draws):
        result = train_baseline(
            drawn,
            resolved.baseline,
            num_bootstrap=resolved.evaluation.num_bootstrap,
            seed=resolved.evaluation.seed,
            out=BaselineFolder(out).of_draw(fraction, number).path,
            device=choose_device(device, 0),
            num_workers=workers,
        )
        typer.echo(
            f"test accuracy {result.metrics.accuracy}, balanced {result.metrics.balanced_accuracy}"
            f" [95 % over {result.metrics.num_units} {result.metrics.unit}]; best epoch {result.best_epoch};"
            f" {result.out}"
        )


@app.command()
def evaluate(
    protocol: Annotated[
        Literal["knn", "knn-uni", "linear", "linear-uni", "linear-dino", "fewshot", "table"],
        typer.Argument(help="table is all of evaluation.protocols, side by side"),
    ],
    models: Annotated[list[str], typer.Argument(metavar="MODEL... [KEY=VALUE]...", help="as for `dino-path embed`")],
    data: DataSpec,
    out: Annotated[Path, typer.Option(help="folder for the results")] = Path("eval"),
    config: ConfigFile = None,
    baseline: Annotated[Path | None, typer.Option(help="folder of `dino-path baseline`")] = None,
    fractions: Annotated[
        str | None, typer.Option(help="table at these fractions of the labels instead, such as 1,0.1,0.01")
    ] = None,
    device: Device = "auto",
    workers: Workers = 2,
) -> None:
    """Frozen features on labelled images: k-NN, linear probe, or both, beside the supervised ResNet-50.

    knn: cosine, k = 20, T = 0.07 (Caron et al. 2021). linear: logistic regression, its strength chosen on a validation
    part of the training data. knn-uni, linear-uni: as in Chen et al. 2024. linear-dino: SGD on random crops, as in
    Caron et al. 2021. fewshot: episodes of few labelled images per class (SimpleShot). Started by torchrun or srun, all
    processes extract features and the first evaluates; called again, extraction goes on where it was.
    """
    from dino_path.distributed import open_world
    from dino_path.evaluation.datasets import load_labelled
    from dino_path.evaluation.fewshot import evaluate_fewshot
    from dino_path.evaluation.fractions import evaluate_fractions
    from dino_path.evaluation.table import evaluate_table, extract_together

    if fractions is not None and protocol != "table":
        raise ConfigError(
            "--fractions", f"was given to evaluate {protocol}.", "It belongs to evaluate table.", "Leave it out."
        )
    specs, overrides = split_arguments(models)
    resolved = _config(config, overrides)
    wanted = () if protocol == "fewshot" else resolved.evaluation.protocols if protocol == "table" else (protocol,)
    with open_world(device, timeout_s=EXTRACTION_TIMEOUT_S) as world:
        log_to(None, is_first=world.is_first)
        check_output_folder(out)
        labelled = load_labelled(data, resolved.evaluation)
        if world.size > 1:
            needed = wanted if fractions is None else ()
            extract_together(
                specs, labelled, resolved.evaluation, world=world, out=out, protocols=needed, num_workers=workers
            )
    if not world.is_first:
        return
    common: dict[str, Any] = {"device": world.device, "out": out, "baseline": baseline, "num_workers": workers}
    if fractions is not None:
        text = evaluate_fractions(specs, labelled, resolved.evaluation, _fractions(fractions), **common)
        file = "fractions.json"
    elif protocol == "fewshot":
        text, file = evaluate_fewshot(specs, labelled, resolved.evaluation, **common), "fewshot.json"
    else:
        text = evaluate_table(specs, labelled, resolved.evaluation, protocols=wanted, **common).markdown()
        file = "results.json"
    typer.echo(text)
    typer.echo(f"results: {out / file}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="run folders")],
    out: Annotated[Path, typer.Option(help="HTML file")] = Path("report.html"),
    store: Annotated[Path | None, typer.Option(help="tile store, for the section on slides")] = None,
    model: Annotated[list[Path] | None, typer.Option(help="exported model folder; may be given again")] = None,
    evaluation: Annotated[list[Path] | None, typer.Option(help="further folders with a results.json")] = None,
) -> None:
    """Everything that run folders hold, as one self-contained page."""
    from dino_path.reporting.report import write_report

    log_to(None)
    check_output_folder(out.parent)
    if out.is_dir():
        raise ConfigError(f"--out {out}", "is a folder.", "The name of an HTML file is needed.", "Correct --out.")
    write_report(runs, out, store=store, models=model or (), evaluations=evaluation or ())
    typer.echo(f"report: {out}")


@app.command()
def models(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="timm names, or names as S/16")] = None,
    px: Annotated[list[int] | None, typer.Option(help="edge of the image; may be given again", min=1)] = None,
    local_px: Annotated[int, typer.Option(help="edge of local views", min=1)] = 96,
) -> None:
    """Table of backbones: width, depth, heads, parameters and GFLOPs, counted on the built models."""
    from dino_path.model.sizes import KNOWN, backbone_size, size_table

    edges_px = px or (224, 384)
    rows = [backbone_size(name, edges_px, local_px) for name in names or KNOWN]
    typer.echo(size_table(rows, edges_px, local_px))


@app.command()
def attention(
    model: Annotated[str, typer.Argument(help="model folder of a ViT, or timm:NAME")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="image files")],
    out: Annotated[Path, typer.Option(help="folder for the pictures")],
    px: Annotated[int | None, typer.Option(help="edge of the image; larger: finer maps", min=8, max=2048)] = None,
    device: Device = "auto",
) -> None:
    """Pictures of what a ViT's last block attends to: [CLS] per head, and five reference points."""
    from dino_path.distributed import choose_device
    from dino_path.features.attention import draw_attention
    from dino_path.features.extractor import load_extractor

    log_to(None)
    check_output_folder(out)
    extractor = load_extractor(model, device=choose_device(device, 0))
    for file in draw_attention(extractor, images, out, edge_px=px):
        typer.echo(f"{file}")


@app.command(context_settings={"ignore_unknown_options": True})
def submit(
    stage: Annotated[
        Literal["tile", "pretrain", "evaluate", "pipeline"],
        typer.Argument(help="what the job does; pipeline is the whole road as a chain of jobs"),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ARGUMENT]... [KEY=VALUE]...", help="as for `dino-path STAGE`, its options too"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="as for the stage; default: the config's store or out")] = None,
    config: ConfigFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show the script, ask SLURM, submit nothing")] = False,
) -> None:
    """Run a stage as a SLURM job, with the resources of the config's `cluster` section.

    pipeline: `submit pipeline SLIDES... --config F store=STORE out=RUN --data SPEC` chains tile, pretrain, export,
    baseline, evaluate and report; submitted again, every stage goes on where it was.
    """
    from dino_path.cluster.submission import submit as submit_stage
    from dino_path.run import RunFolder
    from dino_path.settings import load_config
    from dino_path.tiles.layout import StoreFolder

    if stage == "pipeline":
        _submit_pipeline(list(arguments or ()), out, config, dry_run=dry_run)
        return
    needs = {"tile": ("tiles", "store"), "pretrain": ("store", "out", "training"), "evaluate": ("out",)}[stage]
    words, overrides = ([], _overrides_only(arguments)) if stage == "pretrain" else split_arguments(arguments or ())
    key = "store" if stage == "tile" else "out"
    resolved = load_config(config, overrides, needs=needs, settings={key: out} if out else None)
    folder = resolved.store if stage == "tile" else resolved.out
    assert folder is not None
    if stage == "evaluate" and out is None:
        folder = RunFolder(folder).evaluation
    if stage != "pretrain":
        words += ["--out", str(folder)]
    check_command([stage, *words])
    if stage == "tile" and not dry_run:
        assert resolved.tiles is not None
        StoreFolder(folder).prepare(resolved.tiles)
    submission = submit_stage(stage, resolved, words, out=folder, dry_run=dry_run)
    typer.echo(submission.text())
    if submission.refusal is not None:
        raise submission.refusal


def _submit_pipeline(arguments: list[str], out: Path | None, config: Path | None, *, dry_run: bool) -> None:
    from dino_path.cluster.pipeline import pipeline_stages, submit_pipeline
    from dino_path.settings import load_config
    from dino_path.tiles.layout import StoreFolder

    arguments, data = _without_option(arguments, "--data")
    slides, overrides = split_arguments(arguments)
    needs = ("tiles", "store", "out", "training") if slides else ("store", "out", "training")
    resolved = load_config(config, overrides, needs=needs, settings={"out": out} if out else None)
    for stage, words in pipeline_stages(resolved, slides, data):
        check_command([stage, *words])
    if slides and not dry_run:
        assert resolved.tiles is not None
        assert resolved.store is not None
        StoreFolder(resolved.store).prepare(resolved.tiles)
    submissions = submit_pipeline(resolved, slides, data, dry_run=dry_run)
    for submission in submissions:
        typer.echo(submission.line())
    if data is None:
        typer.echo("no --data: nothing is evaluated, and the report will say so")
    refusals = [submission.refusal for submission in submissions if submission.refusal is not None]
    if refusals:
        raise refusals[0]
    if not dry_run:
        typer.echo(f"watch: dino-path status {resolved.out}")


def _without_option(arguments: list[str], name: str) -> tuple[list[str], str | None]:
    """The arguments without `NAME VALUE` or `NAME=VALUE`, and that value (None when it is not there)."""
    for number, argument in enumerate(arguments):
        if argument == name and number + 1 < len(arguments):
            return arguments[:number] + arguments[number + 2 :], arguments[number + 1]
        if argument.startswith(f"{name}="):
            return arguments[:number] + arguments[number + 1 :], argument.partition("=")[2]
    return arguments, None


@app.command()
def status(run: Annotated[Path, typer.Argument(help="run folder")]) -> None:
    """Where the stages and SLURM jobs of a run stand."""
    from dino_path.cluster.status import job_lines, run_status

    for stage in run_status(run):
        typer.echo(stage.line())
    for line in job_lines(run):
        typer.echo(line)


@app.command()
def doctor(
    out: Annotated[Path, typer.Option(help="folder whose disk and write access are checked")] = Path(),
) -> None:
    """What this machine has and lacks for dino_path, and how to mend it."""
    from dino_path.doctor import examine

    findings = examine(out)
    for finding in findings:
        typer.echo(finding.line())
    if any(finding.is_fault for finding in findings):
        raise typer.Exit(EXIT_SOME_FAILED)


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Positional arguments and `dotted.key=value` settings; a path that exists is no setting."""
    positionals: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        is_setting = SETTING.fullmatch(argument) and not Path(argument).exists()
        (overrides if is_setting else positionals).append(argument)
    return positionals, overrides


def _overrides_only(arguments: Sequence[str] | None) -> list[str]:
    """Settings of a command that takes no other positional argument; `load_config` refuses the rest by name."""
    return list(arguments or ())


def check_command(words: Sequence[str]) -> None:
    """Parse a command line without running it: a wrong option is refused at submission, not when the job starts."""
    command, context, name, rest = typer.main.get_command(app), None, "dino-path", list(words)
    while isinstance(command, typer.core.TyperGroup):
        context = typer.Context(command, info_name=name, parent=context)
        known, found, rest = command.resolve_command(context, rest)
        assert known is not None
        assert found is not None
        command, name = found, known
    command.make_context(name, rest, parent=context)


def _config(file: Path | None, overrides: Sequence[str], *, needs: Sequence[str] = ()) -> Config:
    from dino_path.settings import load_config

    return load_config(file, overrides, needs=needs)


def _fractions(text: str) -> list[float]:
    """`1,0.1` -> [1.0, 0.1]."""
    try:
        fractions = [float(word) for word in text.split(",")]
    except ValueError:
        fractions = []
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions) or len({*fractions}) < len(fractions):
        raise ConfigError(
            f"fraction {text!r}",
            "not a list of different fractions.",
            "Numbers above 0 and up to 1 are needed, with commas between, such as 1,0.1,0.01.",
            "Correct --fractions or --fraction.",
        )
    return fractions


def _shard(text: str) -> tuple[int, int]:
    """`2/8` -> (1, 8)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(
            f"--shard {text}", "not of the form I/N.", "1 <= I <= N is needed, such as 3/8.", "Correct --shard."
        )
    return int(match[1]) - 1, int(match[2])


def check_output_folder(path: Path) -> None:
    """Refuse a folder that cannot be made or written, before the work instead of after it."""
    nearest = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ConfigError(
            str(path),
            f"nothing can be written here: {nearest} is {'not ours to write in' if nearest.is_dir() else 'a file'}.",
            "A folder where you may write is needed.",
            "Name another folder as out.",
        )


def log_to(file: Path | None, *, is_first: bool = True) -> None:
    """Configure logging once: the console, and `file`. Ranks other than the first speak at ERROR only."""
    from rich.logging import RichHandler

    from dino_path.progress import console

    root = logging.getLogger("dino_path")
    root.setLevel(logging.INFO if is_first else logging.ERROR)
    root.propagate = False
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    if sys.stderr.isatty():
        screen: logging.Handler = RichHandler(console=console, show_path=False, show_level=False, markup=False)
        screen.addFilter(lambda record: record.name != "dino_path.steps")
    else:
        screen = logging.StreamHandler(sys.stderr)
        screen.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    root.addHandler(screen)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        journal = logging.FileHandler(file, encoding="utf-8")
        journal.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        root.addHandler(journal)


def main() -> None:
    """Run the command line; refusals end with their message and exit code 2."""
    # Idle OpenMP threads sleep instead of spinning: on a shared 2-core machine a ResNet-50 step took 7 to 13 s with
    # spinning threads and 1.2 to 1.5 s without. It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app()
    except StoppedBySignal as stopped:
        typer.echo(str(stopped), err=True)
        sys.exit(EXIT_STOPPED)
    except DinoPathError as error:
        typer.echo(f"{type(error).__name__}: {error}", err=True)
        sys.exit(EXIT_REFUSED)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command continues", err=True)
        sys.exit(EXIT_INTERRUPTED)

"""Commands from slides to a trained run: demo, tile, views, pretrain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dino_path.cli.help import Command
from dino_path.cli.named_slides import Key, Pseudonymise
from dino_path.cli.program import (
    EXIT_SOME_FAILED,
    AsJson,
    ConfigFile,
    Overrides,
    Quiet,
    Workers,
    announce,
    app,
    loading,
    log_to,
    overrides_only,
    resolve_config,
    split_arguments,
)
from dino_path.cli.terminal import say, say_json, say_table
from dino_path.disk import refuse_unwritable, refuse_unwritable_file
from dino_path.errors import ConfigError
from dino_path.launch import is_first

if TYPE_CHECKING:
    from dino_path.api.tiling import Tiling


@app.command(
    cls=Command,
    epilog="""
    dino-path demo
    dino-path demo --fast --out quick
    """,
)
def demo(
    out: Annotated[Path, typer.Option(help="folder for all files of the demo")] = Path("demo"),
    fast: Annotated[
        bool, typer.Option("--fast", help="a version that takes a minute, too short to learn anything")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Run the whole workflow on synthetic slides.

    Runs on a CPU and ends with OUT/report.html. Called again, it continues.
    """
    from dino_path.lock import only_writer

    refuse_unwritable(out)
    with only_writer(out):
        log_to(out / "log.txt", is_quiet=quiet)
        loading()
        from dino_path.demo import run_demo

        run_demo(out, is_fast=fast)


@app.command(
    cls=Command,
    epilog="""
    dino-path tile slides/ --out tiles tiles.mpp=0.5 tiles.size_px=256
    dino-path tile slides.csv --out tiles --config configs/vits16_1gpu.yaml --workers 8
    dino-path tile slides/ --out tiles tiles.mpp=0.5 --shard 3/8
    dino-path tile slides/ --out tiles tiles.mpp=0.5 --pseudonymise ~/private/mapping.csv
    """,
)
def tile(
    slides: Annotated[list[str], typer.Argument(metavar="SLIDES... [KEY=VALUE]...", help="files, folders, or a CSV")],
    out: Annotated[Path, typer.Option(help="tile store")],
    config: ConfigFile = None,
    shard: Annotated[str, typer.Option(help="I/N: only every N-th slide, from the I-th (1 to N)")] = "1/1",
    layout: Annotated[str | None, typer.Option(help="also coordinate files: trident, clam, or both")] = None,
    pseudonymise: Pseudonymise = None,
    key: Key = None,
    workers: Workers = 2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Cut slides into tiles.

    tiles.mpp is required: microns per pixel of the tiles. Called again, the command continues.
    """
    log_to(None, is_quiet=quiet)
    announce(f"reading {slides[0] if pseudonymise is None else 'the slides'}")
    from dino_path.api.tiling import refuse_nothing, tile_what_can_be

    inputs, overrides = split_arguments(slides)
    settings = resolve_config(config, overrides, needs=("tiles",))
    tiling = tile_what_can_be(
        inputs, out, config=settings, shard=shard, layout=layout, pseudonymise=pseudonymise, key=key, workers=workers
    )
    if as_json:
        say_json(
            {
                "store": out,
                "num_tiles": tiling.num_tiles,
                "slides": tiling.rows(),
                "unreadable": [str(lost) for lost in tiling.unreadable],
            }
        )
    else:
        _tell_tiling(tiling, is_quiet=quiet)
    refuse_nothing(tiling, inputs, says_why=False)
    records = tiling.summary.records
    if records and not tiling.num_tiles and not as_json:  # else a later stage would only say: no tiles
        say(f"NO TILES: none of {len(records)} slide(s) has any, {tiling.summary.commonest_reason}")
    if tiling.some_failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _tell_tiling(tiling: Tiling, *, is_quiet: bool) -> None:
    """A row for each slide (when quiet: that failed), the counts, and where to look."""
    from dino_path.api.tiling import slide_cells

    header, rows = slide_cells(tiling, only_failed=is_quiet)
    if rows:
        say_table(header, rows)
    for lost in tiling.unreadable:
        say(f"failed  {lost}")
    say(tiling.counts())
    store = tiling.store
    say(f"every slide: {store / 'slides.csv'}, {store / 'contact_sheet_001.jpg'}, {store / 'overlays'}")
    if tiling.coordinates is not None:
        say(tiling.coordinates)


@app.command(
    cls=Command,
    epilog="""
    dino-path views tiles --out views.png
    dino-path views tiles --out views.png --num-tiles 4 views.recipe=dino views.num_local=6
    """,
)
def views(
    tiles: Annotated[Path, typer.Argument(metavar="STORE_OR_FOLDER", help="tile store or image folder")],
    out: Annotated[Path, typer.Option(help="PNG file")],
    settings: Overrides = None,
    config: ConfigFile = None,
    num_tiles: Annotated[int, typer.Option(min=1, help="rows for each recipe")] = 6,
    seed: Annotated[int, typer.Option(min=0, help="as training.seed: the same tiles and views")] = 0,
    quiet: Quiet = False,
) -> None:
    """Draw tiles and the views that training makes of them.

    The contact sheet has some rows for each recipe, and for the given settings.
    """
    log_to(None, is_quiet=quiet)
    announce(f"reading {tiles}")
    from dino_path.tiles.source import open_tiles

    resolved = resolve_config(config, overrides_only(settings))
    if out.suffix.lower() != ".png" or out.is_dir():
        raise ConfigError(f"--out {out}", "is not a PNG file.", "A name that ends in .png is needed.", "Correct --out.")
    refuse_unwritable_file(out)
    source = open_tiles(tiles, split=resolved.slides.split, exclude=resolved.slides.exclude)
    balance = resolved.training.balance if resolved.training else None
    num_tiles = min(num_tiles, len(source))
    loading("torch and albumentations")
    from dino_path.views.sheet import recipes_to_show, write_sheet

    ibot, patch_px = resolved.objective.ibot, None
    if ibot.weight > 0:
        from dino_path.model.sizes import patch_grid

        rows, _ = patch_grid(resolved.model.backbone, resolved.model.backbone_arguments, resolved.views.global_px)
        patch_px = resolved.views.global_px // rows
    write_sheet(
        out,
        source,
        recipes_to_show(resolved.views),
        balance=balance,
        num_tiles=num_tiles,
        seed=seed,
        masks=ibot.masks,
        patch_px=patch_px,
    )
    say(f"contact sheet: {out}")


@app.command(
    cls=Command,
    epilog="""
    dino-path pretrain --config configs/vits16_1gpu.yaml store=tiles out=runs/vits16
    dino-path pretrain store=tiles out=runs/short training.num_steps=2000 --apply-advice
    torchrun --nproc-per-node 8 -m dino_path pretrain --config configs/vits16_8gpu.yaml store=tiles out=runs/vits16
    """,
)
def pretrain(
    settings: Overrides = None,
    config: ConfigFile = None,
    apply_advice: Annotated[
        bool, typer.Option("--apply-advice", help="apply the settings that the run advises at its start")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Pretrain a backbone with DINO on tiles.

    Reads the tiles of store=STORE and writes the run to out=RUN. Called again, it continues. On Ctrl-C, SIGTERM or
    SIGUSR1 to any process, all processes finish the same step, save it, and exit with code 85. A second Ctrl-C ends the
    process at once, and so does a second signal after three seconds or more.
    """
    is_speaker = is_first()
    log_to(None, is_first=is_speaker, is_quiet=quiet)
    from dino_path.api.pretraining import pretrain as run_pretraining
    from dino_path.api.pretraining import result_parts

    resolved = resolve_config(config, overrides_only(settings), needs=("store", "out", "training"))
    result = run_pretraining(config=resolved, apply_advice=apply_advice)
    if is_speaker:
        for part in result_parts(result):
            if isinstance(part, str):
                say(part)
            else:
                say_table(*part)

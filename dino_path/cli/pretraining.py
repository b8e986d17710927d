"""Commands from slides to a trained run: demo, tile, views, pretrain."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from dino_path.cli.program import (
    EXIT_SOME_FAILED,
    ConfigFile,
    Overrides,
    Workers,
    app,
    check_output_folder,
    log_to,
    overrides_only,
    resolve_config,
    split_arguments,
)
from dino_path.errors import ConfigError, SlideError


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="folder for everything that the demo makes")] = Path("demo"),
    fast: Annotated[bool, typer.Option(help="a minute's version: too short to learn anything")] = False,
) -> None:
    """The whole road on synthetic slides, on a CPU, ending in OUT/report.html."""
    from dino_path.demo import run_demo
    from dino_path.lock import only_writer

    with only_writer(out):
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
    from dino_path.slides.find import search_slides
    from dino_path.tiles.slide_identity import refuse_known_contents
    from dino_path.tiles.tiling import tile_slides

    log_to(None)
    inputs, overrides = split_arguments(slides)
    settings = resolve_config(config, overrides, needs=("tiles",))
    assert settings.tiles is not None
    # Coordinate files that the store has are kept in step with its tiles.
    layouts = read_layouts(layout) if layout else [known for known in LAYOUTS if (out / known).is_dir()]
    search = search_slides([Path(name) for name in inputs], settings.slides.exclude, masks=settings.slides.masks)
    rows = search.rows
    refuse_shared_names([str(row.path) for row in rows], layouts)
    refuse_known_contents(out, rows)
    summary = tile_slides(rows, settings.tiles, out, shard=_shard(shard), num_workers=max(workers, 1))
    for record in summary.records:
        size = f"{record.num_tiles:6d} tiles  {record.seconds:6.1f} s" if record.status == "done" else record.reason
        typer.echo(f"{record.status:7s} {record.slide_id}  {size}" + "".join(f"  [{flag}]" for flag in record.flags))
    for lost in search.unreadable:
        typer.echo(f"failed  {lost}")
    typer.echo(
        f"{summary.num_done} done, {summary.num_skipped} there before, {summary.num_empty} empty,"
        f" {summary.num_failed} failed: {summary.num_tiles:,} tiles in {out}"
        + (f"; {len(search.unreadable)} folder(s) could not be read" if search.unreadable else "")
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
    if summary.records and not summary.num_tiles:  # a later stage would only say that there is nothing to train on
        typer.echo(f"NO TILES: none of {len(summary.records)} slide(s) has any, {summary.commonest_reason}")
    if summary.num_failed or search.unreadable or (summary.records and not summary.num_tiles):
        raise typer.Exit(EXIT_SOME_FAILED)


def _shard(text: str) -> tuple[int, int]:
    """`2/8` -> (1, 8)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(
            f"--shard {text}", "not of the form I/N.", "1 <= I <= N is needed, such as 3/8.", "Correct --shard."
        )
    return int(match[1]) - 1, int(match[2])


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
    resolved = resolve_config(config, overrides_only(settings))
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

    Ctrl-C, SIGTERM or SIGUSR1 to any of its processes: all end the same step, save it, and exit with code 85. A second
    Ctrl-C ends the process at once, a second signal if it comes three seconds later or more.
    """
    from dino_path.distributed import open_world
    from dino_path.training.global_batch import keep_global_batch
    from dino_path.training.loop import pretrain as run_pretraining

    resolved = resolve_config(config, overrides_only(settings), needs=("store", "out", "training"))
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

"""Commands from slides to a trained run: demo, tile, views, pretrain."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dino_path.cli.help import Command
from dino_path.cli.inputs import check_pretraining
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
from dino_path.errors import ConfigError, SlideError
from dino_path.launch import is_first, world_shape
from dino_path.run import RunFolder

if TYPE_CHECKING:
    from dino_path.config import Config
    from dino_path.evaluation.protocols.running import RunningTest
    from dino_path.slides.find import SlideSearch
    from dino_path.tiles.tiling import TilingSummary


@app.command(
    cls=Command,
    epilog="""
    dino-path demo
    dino-path demo --fast --out quick
    """,
)
def demo(
    out: Annotated[Path, typer.Option(help="folder for everything that the demo makes")] = Path("demo"),
    fast: Annotated[bool, typer.Option("--fast", help="a minute's version: too short to learn anything")] = False,
    quiet: Quiet = False,
) -> None:
    """Walk the whole road on synthetic slides.

    It runs on a CPU and ends in OUT/report.html. Called again, it does what is missing.
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
    """,
)
def tile(
    slides: Annotated[list[str], typer.Argument(metavar="SLIDES... [KEY=VALUE]...", help="files, folders, or a CSV")],
    out: Annotated[Path, typer.Option(help="tile store")],
    config: ConfigFile = None,
    shard: Annotated[str, typer.Option(help="I/N: only every N-th slide, from the I-th (1 to N)")] = "1/1",
    layout: Annotated[str | None, typer.Option(help="also coordinate files: trident, clam, or both")] = None,
    workers: Workers = 2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Cut slides into tiles.

    tiles.mpp is needed: microns per pixel of the tiles. Called again, it does what is missing.
    """
    log_to(None, is_quiet=quiet)
    announce(f"reading {slides[0]}")
    from dino_path.features.layouts import LAYOUTS, read_layouts, refuse_shared_names
    from dino_path.slides.find import search_slides
    from dino_path.tiles.slide_identity import refuse_known_contents
    from dino_path.tiles.tiling import tile_slides

    inputs, overrides = split_arguments(slides)
    settings = resolve_config(config, overrides, needs=("tiles",))
    assert settings.tiles is not None
    refuse_unwritable(out)
    # Coordinate files that the store has are kept in step with its tiles.
    layouts = read_layouts(layout) if layout else [known for known in LAYOUTS if (out / known).is_dir()]
    search = search_slides([Path(name) for name in inputs], settings.slides.exclude, masks=settings.slides.masks)
    rows = search.rows
    refuse_shared_names([str(row.path) for row in rows], layouts)
    refuse_known_contents(out, rows)
    summary = tile_slides(rows, settings.tiles, out, shard=_shard(shard), num_workers=max(workers, 1))
    coordinates = None
    if layouts:
        from dino_path.features.coordinates import write_coordinate_files

        coordinates = write_coordinate_files(out, layouts, out).text()
    if as_json:
        say_json(_as_record(summary, search, out))
    else:
        _tell_tiling(summary, search, out, is_quiet=quiet)
        if coordinates is not None:
            say(coordinates)
    if summary.num_failed == len(rows):
        raise SlideError(
            inputs[0] if len(inputs) == 1 else f"{len(inputs)} inputs",
            f"none of {len(rows)} slide(s) could be tiled.",
            "At least one readable slide whose microns per pixel are known is needed.",
            "Every reason stands above; a CSV with the columns path,mpp gives mpp where the file does not.",
        )
    if summary.records and not summary.num_tiles and not as_json:  # else a later stage would only say: no tiles
        say(f"NO TILES: none of {len(summary.records)} slide(s) has any, {summary.commonest_reason}")
    if summary.num_failed or search.unreadable or (summary.records and not summary.num_tiles):
        raise typer.Exit(EXIT_SOME_FAILED)


def _as_record(summary: TilingSummary, search: SlideSearch, out: Path) -> dict[str, Any]:
    """What became of the slides, for programs."""
    return {
        "store": out,
        "num_tiles": summary.num_tiles,
        "slides": [
            {
                name: getattr(record, name)
                for name in ("slide_id", "path", "status", "reason", "flags", "num_tiles", "seconds")
            }
            | {"was_there_before": record.slide_id in summary.skipped}
            for record in summary.records
        ],
        "unreadable": [str(lost) for lost in search.unreadable],
    }


def _tell_tiling(summary: TilingSummary, search: SlideSearch, out: Path, *, is_quiet: bool) -> None:
    """A row for each slide (when quiet: that failed), the counts, and where to look."""
    told = [record for record in summary.records if not is_quiet or record.status == "failed"]
    if told:
        say_table(
            ["status", "slide", "tiles", "s", "notes"],
            [
                [
                    record.status, record.slide_id, f"{record.num_tiles:,}", f"{record.seconds:.1f}",
                    "; ".join(filter(None, ["" if record.status == "done" else record.reason, *record.flags])),
                ]
                for record in told
            ],
        )  # fmt: skip
    for lost in search.unreadable:
        say(f"failed  {lost}")
    say(
        f"{summary.num_done} done, {summary.num_skipped} there before, {summary.num_empty} empty,"
        f" {summary.num_failed} failed: {summary.num_tiles:,} tiles in {out}"
        + (f"; {len(search.unreadable)} folder(s) could not be read" if search.unreadable else "")
        + (f" ({summary.num_judged_again} by other quality limits, unread)" if summary.num_judged_again else "")
    )
    say(f"every slide: {out / 'slides.csv'}, {out / 'contact_sheet_001.jpg'}, {out / 'overlays'}")


def _shard(text: str) -> tuple[int, int]:
    """`2/8` -> (1, 8)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise ConfigError(
            f"--shard {text}", "not of the form I/N.", "1 <= I <= N is needed, such as 3/8.", "Correct --shard."
        )
    return int(match[1]) - 1, int(match[2])


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

    A contact sheet: some rows for each recipe, and for the settings given.
    """
    log_to(None, is_quiet=quiet)
    announce(f"reading {tiles}")
    from dino_path.tiles.source import open_tiles

    resolved = resolve_config(config, overrides_only(settings))
    if out.suffix.lower() != ".png" or out.is_dir():
        raise ConfigError(f"--out {out}", "is no PNG file.", "A name that ends in .png is needed.", "Correct --out.")
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
        bool, typer.Option("--apply-advice", help="set what the advice at the start of the run says")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Pretrain a backbone with DINO on tiles.

    The tiles are those of store=STORE, the run goes into out=RUN. Called again, it continues. Ctrl-C, SIGTERM or
    SIGUSR1 to any of its processes: all end the same step, save it, and exit with code 85. A second Ctrl-C ends the
    process at once, a second signal if it comes three seconds later or more.
    """
    is_speaker = is_first()
    log_to(None, is_first=is_speaker, is_quiet=quiet)
    resolved = resolve_config(config, overrides_only(settings), needs=("store", "out", "training"))
    assert resolved.out is not None
    assert resolved.training is not None
    refuse_unwritable(resolved.out)
    announce(f"reading {resolved.store}")
    run = RunFolder(resolved.out)
    check_pretraining(resolved)
    if apply_advice:
        resolved = _with_advice(resolved)
    from dino_path.training.finished import finished_checkpoint, finished_text, unlearned_text

    if (finished := finished_checkpoint(resolved)) is not None:
        if is_speaker:
            say(finished_text(run, finished))
        return
    loading()
    from dino_path.distributed import open_world
    from dino_path.training.global_batch import keep_global_batch
    from dino_path.training.loop import pretrain as run_pretraining

    assert resolved.training is not None
    with open_world(resolved.training.device, timeout_s=resolved.training.timeout_s) as world:
        log_to(run.log_file if world.is_first else None, is_first=world.is_first, is_quiet=quiet)
        resolved = keep_global_batch(resolved, world.size)
        test = None
        if resolved.monitor.knn_data is not None and world.is_first:
            from dino_path.evaluation.protocols.running import running_test
            from dino_path.evaluation.results.running_sheet import knn_with_sheet
            from dino_path.evaluation.results.verdict import note_start

            test = running_test(resolved, device=world.device)
            is_shown = resolved.wandb.log_images and resolved.wandb.mode != "disabled"
            knn = partial(knn_with_sheet, run, test) if is_shown else test.knn
            checkpoint = run_pretraining(resolved, world, knn=knn, note_start=partial(note_start, run, test))
        else:
            checkpoint = run_pretraining(resolved, world)
    if is_speaker:
        from dino_path.records.best import read_best

        say(f"checkpoint: {checkpoint}")
        if (best := read_best(run)) is not None:
            say(f"best: {best}; `dino-path export --best` takes it")
        if (text := unlearned_text(run, resolved)) is not None:
            say(text)
        _say_verdict(run, resolved, test, checkpoint)


def _say_verdict(run: RunFolder, config: Config, test: RunningTest | None, end: Path) -> None:
    """Whether the run beat its start, measured now; of a run with a start and without labels, how to know."""
    assert config.training is not None
    if config.model.weights is None and config.training.continue_from is None:
        return
    if test is None:
        say("whether it beats its start is not known: monitor.knn_data=SPEC lets the next run say it")
        return
    announce("testing the start against the end")
    from dino_path.evaluation.results.verdict import judge
    from dino_path.records.verdict import TITLES, interval, signed

    verdict = judge(run, test, end)
    if verdict is None:
        say(
            f"whether it beats its start is not known: {run.verdict_file} holds no answers of the start to these"
            " images, which are asked before the first step"
        )
        return
    header = ["", "step", *(f"{title} accuracy" for title in TITLES.values())]
    rows = [[row.name, f"{row.step}", *(interval(row.accuracy[one]) for one in TITLES)] for row in verdict.rows]
    rows += [
        [f"{row.name} - start", "", *(signed(row.minus_start[one]) for one in TITLES)]
        for row in verdict.rows
        if row.minus_start
    ]
    say_table(header, rows)
    say(f"{verdict.data}: {verdict.num_images} validation images, {verdict.num_neighbours} to learn from;"
        f" {verdict.interval}")  # fmt: skip
    if len(verdict.rows) > 2:
        say("the best was chosen by k-NN on these images, which flatters it: test it on others")
    say(verdict.sentence)


def _with_advice(config: Config) -> Config:
    """The config with the settings that the advice names; of a run that has begun, with those that it began with."""
    from dino_path.tiles.source import open_tiles
    from dino_path.training.advice import advised, settings_begun_with

    assert config.out is not None
    assert config.store is not None
    changed = settings_begun_with(RunFolder(config.out), config)
    if changed is None:
        tiles = open_tiles(config.store, split=config.slides.split, exclude=config.slides.exclude)
        changed = advised(config, num_tiles=len(tiles), world_size=world_shape(os.environ)[1])
    from dino_path.settings import with_settings

    for key, value in changed.items():
        announce(f"--apply-advice: {key}='{value}'" if " " in value else f"--apply-advice: {key}={value}")
    if not changed:
        announce("--apply-advice: there is no advice for these settings")
    return with_settings(config, changed)

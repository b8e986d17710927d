"""Commands that make and use a frozen extractor: export, import-checkpoint, embed, attention, models."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dino_path.cli.program import (
    EXIT_SOME_FAILED,
    ConfigFile,
    Device,
    Workers,
    app,
    check_output_folder,
    log_to,
    split_arguments,
)
from dino_path.errors import ConfigError

if TYPE_CHECKING:
    from dino_path.distributed import World
    from dino_path.features.extractor import Extractor
    from dino_path.tiles.source import TileSource
    from dino_path.tiles.store import TileStore
    from dino_path.walk import Unreadable


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
    input_px: Annotated[
        int | None, typer.Option(min=16, help="edge that tiles are resized to; default: views.global_px")
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="upload it there too; a new repository is private")
    ] = None,
) -> None:
    """Write the frozen extractor as a folder that timm.create_model("local-dir:OUT", pretrained=True) loads."""
    from dino_path.export.checkpoint import export_checkpoint
    from dino_path.export.formats import read_formats

    log_to(None)
    result = export_checkpoint(
        run, out, network=network, formats=read_formats(formats), precision=precision, license=license,
        input_px=input_px,
    )  # fmt: skip
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
    from dino_path.features.embed import embed_store
    from dino_path.features.embed_images import embed_images
    from dino_path.features.extractor import load_extractor
    from dino_path.features.layouts import read_layouts
    from dino_path.tiles.expected import refuse_unfinished
    from dino_path.tiles.images import ImageFiles
    from dino_path.tiles.source import open_readable_tiles
    from dino_path.tiles.store import TileStore

    check_output_folder(out)
    layouts = read_layouts(layout)
    words, overrides = split_arguments(inputs)
    # Slides differ in size: a process that is done waits for the others, hours perhaps.
    with open_world(device, timeout_s=7 * 24 * 3600) as world:
        log_to(None, is_first=world.is_first)
        extractor = load_extractor(model, device=world.device).at(precision)
        images_at_a_time = batch_size or (512 if world.device.type == "cuda" else 64)
        tiles: TileSource
        if are_slides(words):
            tiles, lost = _find_tiles(words, config, overrides, out, extractor, world, workers, allow_other_mpp)
        elif overrides or config:
            raise ConfigError(
                " ".join(overrides) or f"--config {config}",
                f"{words[0]} is tiled already.",
                "Settings are for slides: tiles are as they are.",
                "Leave them out, or give the slides.",
            )
        else:
            refuse_unfinished(Path(words[0]))
            tiles, lost = open_readable_tiles(Path(words[0]))
        if not isinstance(tiles, TileStore):
            assert isinstance(tiles, ImageFiles)
            failed = False
            if world.is_first:  # one file, one process
                file = embed_images(
                    extractor, tiles, out, root=Path(words[0]), batch_size=images_at_a_time, device=world.device,
                    num_workers=workers,
                )  # fmt: skip
                typer.echo(f"{len(tiles):,} images -> {file}")
                typer.echo(f"input: {extractor.preprocessing.of_tiles(None, tiles.mpp).text()}")
        else:
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
            failed = bool(summary.failed)
            if world.is_first:
                typer.echo(summary.text())
    if world.is_first:
        _list_lost(lost)
        if failed or lost:
            raise typer.Exit(EXIT_SOME_FAILED)


def _list_lost(lost: Sequence[Unreadable]) -> None:
    for one in lost:
        typer.echo(f"failed   {one}")
    if lost:
        typer.echo(f"{len(lost)} folder(s) or link(s) could not be read: what they hold has no features")


def are_slides(words: Sequence[str]) -> bool:
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
) -> tuple[TileStore, Sequence[Unreadable]]:
    """The tiles of slides, at the model's mpp unless the settings say otherwise; and folders that cannot be read."""
    from dino_path.features.embed import refuse_other_mpp
    from dino_path.features.from_slides import find_tiles
    from dino_path.settings import load_config
    from dino_path.slides.find import search_slides

    as_trained = {"tiles.mpp": extractor.preprocessing.mpp, "tiles.size_px": extractor.preprocessing.tile_px}
    resolved = load_config(
        config,
        overrides,
        needs=("tiles",),
        settings={"tiles.coordinates_only": True},
        fallback={key: value for key, value in as_trained.items() if value is not None},
    )
    assert resolved.tiles is not None
    if not allow_other_mpp:
        refuse_other_mpp(extractor, resolved.tiles.mpp, "the slides")
    search = search_slides([Path(name) for name in words], resolved.slides.exclude, masks=resolved.slides.masks)
    tiles = find_tiles(search.rows, resolved.tiles, out, world=world, num_workers=max(num_workers, 1))
    return tiles, search.unreadable


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

"""Commands that make and use a frozen extractor: export, import-checkpoint, embed, models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dino_path.cli.help import Command
from dino_path.cli.inputs import check_checkpoint, check_foreign_checkpoint, check_models
from dino_path.cli.program import (
    EXIT_SOME_FAILED,
    AsJson,
    ConfigFile,
    Device,
    Quiet,
    Workers,
    announce,
    app,
    loading,
    log_to,
    split_arguments,
)
from dino_path.cli.terminal import say, say_json, say_table
from dino_path.disk import refuse_unwritable
from dino_path.errors import ConfigError
from dino_path.launch import is_first

if TYPE_CHECKING:
    import torch

    from dino_path.config import TilesConfig
    from dino_path.features.extractor import Extractor, Precision
    from dino_path.features.layouts import LayoutName
    from dino_path.slides.find import SlideRow
    from dino_path.tiles.images import ImageFiles
    from dino_path.tiles.source import TileSource
    from dino_path.walk import Unreadable


@app.command(
    cls=Command,
    epilog="""
    dino-path export runs/vits16 --out runs/vits16/model
    dino-path export runs/vits16 --out model --features cls+mean
    dino-path export runs/vits16 --best --out runs/vits16/best-model
    dino-path export runs/vits16 --out model --format onnx --precision fp16 --license cc-by-nc-4.0
    dino-path export runs/vits16/checkpoints/step_00050000.pt --out earlier
    """,
)
def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="run folder or checkpoint file")],
    out: Annotated[Path, typer.Option(help="model folder")],
    best: Annotated[
        bool, typer.Option("--best", help="of a run folder the best checkpoint instead of the newest (its best.json)")
    ] = False,
    network: Annotated[Literal["teacher", "student"], typer.Option(help="which of the two networks")] = "teacher",
    features: Annotated[
        Literal["cls", "mean", "cls+mean"] | None,
        typer.Option(help="[CLS], mean of the patch tokens, or both; default: as the network pools, cls for most ViTs"),
    ] = None,
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
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a model folder of a run: the frozen extractor.

    timm.create_model("local-dir:OUT", pretrained=True) loads it. Every file is loaded back in a fresh process, and its
    features are compared with those of the run.
    """
    log_to(None, is_quiet=quiet)
    announce(f"reading {run}")
    from dino_path.export.format_names import read_formats, refuse_impossible
    from dino_path.export.overwriting import refuse_to_overwrite

    kinds = read_formats(formats)
    refuse_impossible(kinds, precision)
    if best:
        from dino_path.records.best import best_checkpoint

        run = best_checkpoint(run)
        announce(f"the best: {run}")
    check_checkpoint(run)
    refuse_unwritable(out)
    refuse_to_overwrite(out)
    loading()
    from dino_path.export.checkpoint import export_checkpoint

    result = export_checkpoint(
        run, out, network=network, formats=kinds, precision=precision, license=license, features=features,
        input_px=input_px,
    )  # fmt: skip
    address = None
    if push_to_hub is not None:
        from dino_path.export.hub import push_to_hub as push

        announce(f"uploading to {push_to_hub}")
        address = push(out, push_to_hub)
    if as_json:
        say_json({**asdict(result), "uploaded": address})
        return
    say(result.text())
    if address is not None:
        say(f"uploaded: {address}")


@app.command(
    "import-checkpoint",
    cls=Command,
    epilog="""
    dino-path import-checkpoint dino_deitsmall16_pretrain.pth --out dino-vits16
    dino-path import-checkpoint dinov2_vits14_reg4_pretrain.pth --out dinov2-vits14
    dino-path import-checkpoint checkpoint.pth --out model --network student --mpp 0.5
    """,
)
def import_checkpoint(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="published weights: a backbone, or a checkpoint of a training")
    ],
    out: Annotated[Path, typer.Option(help="model folder")],
    arch: Annotated[str | None, typer.Option(help="timm model name; default: told by the file")] = None,
    network: Annotated[
        Literal["teacher", "student"] | None, typer.Option(help="default: the teacher, or the only network there is")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="microns per pixel of its training tiles; default: unknown", min=0.05, max=50)
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a model folder of published weights.

    Of facebookresearch's dino, dinov2 and dinov3, and of timm. The folder is what 'dino-path export' writes.
    """
    log_to(None, is_quiet=quiet)
    announce(f"reading {file}")
    from dino_path.export.overwriting import refuse_to_overwrite

    check_foreign_checkpoint(file, arch)
    refuse_unwritable(out)
    refuse_to_overwrite(out)
    loading()
    from dino_path.export.checkpoint import import_checkpoint as run_import

    result = run_import(file, out, arch=arch, network=network, mpp=mpp)
    if as_json:
        say_json(asdict(result))
    else:
        say(result.text())


@app.command(
    cls=Command,
    epilog="""
    dino-path embed runs/vits16/model tiles --out features
    dino-path embed runs/vits16/model slides/ --out features --layout trident,clam
    dino-path embed cls+mean:runs/vits16/model tiles --out features --tokens
    dino-path embed timm:resnet50.a1_in1k slides.csv tiles.mpp=0.5 tiles.size_px=224 --out features
    """,
)
def embed(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="model folder, timm:NAME, untrained:FOLDER, mean-colour, ...; before it cls:, mean: or cls+mean:"
            " for other features of its tokens than its own",
        ),
    ],
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
    tokens: Annotated[
        bool, typer.Option("--tokens", help="patch tokens too: fp16, hundreds of times the features' size")
    ] = False,
    allow_other_mpp: Annotated[
        bool, typer.Option("--allow-other-mpp", help="embed tiles at another mpp than the model's")
    ] = False,
    device: Device = "auto",
    workers: Workers = 2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Turn tiles or slides into feature files.

    TRIDENT and CLAM read them. Called again, it does what is missing. Slides are tiled at the model's mpp
    (tiles.mpp=... for a model that does not know it), and no tile is written. Started by torchrun or srun, every
    process takes some of the slides.
    """
    log_to(None, is_first=is_first(), is_quiet=quiet)
    announce(f"reading {model}, {inputs[0]}")
    from dino_path.features.layouts import read_layouts

    refuse_unwritable(out)
    layouts = read_layouts(layout)
    words, overrides = split_arguments(inputs)
    check_models([model])
    found = _look_at_inputs(model, words, config, overrides, allow_other_mpp=allow_other_mpp)
    if tokens:
        _refuse_tokens_of_images(found, words[0])
    loading()
    made = _embed(
        found, model, Path(words[0]), out, layouts=layouts, batch_size=batch_size, precision=precision, device=device,
        num_workers=workers, allow_other_mpp=allow_other_mpp, with_tokens=tokens,
    )  # fmt: skip
    if made is None:
        return
    if as_json:
        say_json({**made.record, "unreadable": [str(one) for one in found.unreadable]})
    else:
        say(made.text)
        _list_lost(found.unreadable)
    if made.some_failed or found.unreadable:
        raise typer.Exit(EXIT_SOME_FAILED)


def _refuse_tokens_of_images(found: _Inputs, name: str) -> None:
    from dino_path.tiles.store import TileStore

    if found.tiles is not None and not isinstance(found.tiles, TileStore):
        raise ConfigError(
            "--tokens",
            f"{name} is a folder of images.",
            "Patch tokens are written slide by slide.",
            "Give a tile store or slides, or leave --tokens out.",
        )


@dataclass(frozen=True)
class _Made:
    """What `embed` made, as JSON and as text, and whether some slides failed."""

    record: dict[str, Any]
    text: str
    some_failed: bool = False


def _embed(
    found: _Inputs,
    model: str,
    root: Path,
    out: Path,
    *,
    layouts: Sequence[LayoutName],
    batch_size: int | None,
    precision: Precision,
    device: Literal["auto", "cpu", "cuda"],
    num_workers: int,
    allow_other_mpp: bool,
    with_tokens: bool,
) -> _Made | None:
    """Write the features; None in all processes but the first."""
    from dino_path.distributed import open_world
    from dino_path.features.embed import embed_store
    from dino_path.features.extractor import load_extractor
    from dino_path.features.from_slides import find_tiles
    from dino_path.tiles.images import ImageFiles
    from dino_path.tiles.store import TileStore

    # Slides differ in size: a process that is done waits for the others, hours perhaps.
    with open_world(device, timeout_s=7 * 24 * 3600) as world:
        extractor = load_extractor(model, device=world.device).at(precision)
        images_at_a_time = batch_size or (512 if world.device.type == "cuda" else 64)
        tiles = found.tiles
        if tiles is None:
            assert found.settings is not None
            tiles = find_tiles(found.rows, found.settings, out, world=world, num_workers=max(num_workers, 1))
        if isinstance(tiles, TileStore):
            summary = embed_store(
                extractor, tiles, out, layouts=layouts, batch_size=images_at_a_time, world=world,
                num_workers=num_workers, allow_other_mpp=allow_other_mpp, with_tokens=with_tokens,
            )  # fmt: skip
            made = _Made(asdict(summary), summary.text(), some_failed=bool(summary.failed))
            return made if world.is_first else None
        assert isinstance(tiles, ImageFiles)
        if not world.is_first:  # one file, one process
            return None
        return _embed_folder(extractor, tiles, root, out, images_at_a_time, world.device, num_workers)


def _embed_folder(
    extractor: Extractor,
    images: ImageFiles,
    root: Path,
    out: Path,
    batch_size: int,
    device: torch.device,
    num_workers: int,
) -> _Made:
    """Write the features of a folder of images, `root`."""
    from dino_path.features.embed_images import embed_images

    file = embed_images(
        extractor, images, out, root=root, batch_size=batch_size, device=device, num_workers=num_workers
    )
    text = f"{len(images):,} images -> {file}\ninput: {extractor.preprocessing.of_tiles(None, images.mpp).text()}"
    return _Made({"num_images": len(images), "file": file}, text)


def _list_lost(lost: Sequence[Unreadable]) -> None:
    for one in lost:
        say(f"failed   {one}")
    if lost:
        say(f"{len(lost)} folder(s) or link(s) could not be read: what they hold has no features")


def are_slides(words: Sequence[str]) -> bool:
    """Slides to be tiled, or else one tile store or one folder of images."""
    from dino_path.slides.find import holds_slides

    if len(words) != 1:
        return True
    path = Path(words[0])
    return path.is_file() or (not (path / "store.json").exists() and holds_slides(path))


@dataclass(frozen=True)
class _Inputs:
    """What is to be embedded: tiles, or the slides that are still to be tiled.

    Attributes:
        rows, settings: of the slides; tiles is None then.
        unreadable: folders and links that could not be looked at.
    """

    tiles: TileSource | None
    rows: Sequence[SlideRow]
    settings: TilesConfig | None
    unreadable: Sequence[Unreadable]


def _look_at_inputs(
    model: str, words: Sequence[str], config: Path | None, overrides: Sequence[str], *, allow_other_mpp: bool
) -> _Inputs:
    """What is to be embedded; slides are tiled at the model's mpp unless the settings say otherwise."""
    from dino_path.features.specs import look_at_model, refuse_other_mpp
    from dino_path.settings import load_config
    from dino_path.slides.find import search_slides
    from dino_path.tiles.expected import refuse_unfinished
    from dino_path.tiles.source import open_readable_tiles
    from dino_path.tiles.store import TileStore

    folder = look_at_model(model)
    trained = folder.preprocessing if folder is not None else None
    name, mpp = Path(model).name, trained.mpp if trained is not None else None
    if not are_slides(words):
        if overrides or config:
            raise ConfigError(
                " ".join(overrides) or f"--config {config}",
                f"{words[0]} is tiled already.",
                "Settings are for slides: tiles are as they are.",
                "Leave them out, or give the slides.",
            )
        refuse_unfinished(Path(words[0]))
        tiles, unreadable = open_readable_tiles(Path(words[0]))
        if isinstance(tiles, TileStore) and not allow_other_mpp:
            refuse_other_mpp(name, mpp, tiles.mpp, words[0])
        return _Inputs(tiles, (), None, unreadable)
    as_trained = {} if trained is None else {"tiles.mpp": mpp, "tiles.size_px": trained.tile_px}
    resolved = load_config(
        config,
        overrides,
        needs=("tiles",),
        settings={"tiles.coordinates_only": True},
        fallback={key: value for key, value in as_trained.items() if value is not None},
    )
    assert resolved.tiles is not None
    if not allow_other_mpp:
        refuse_other_mpp(name, mpp, resolved.tiles.mpp, "the slides")
    search = search_slides([Path(name) for name in words], resolved.slides.exclude, masks=resolved.slides.masks)
    return _Inputs(None, search.rows, resolved.tiles, search.unreadable)


@app.command(
    cls=Command,
    epilog="""
    dino-path models
    dino-path models S/16 resnet50 --px 224 --px 448
    """,
)
def models(
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="timm names, or names as S/16")] = None,
    px: Annotated[list[int] | None, typer.Option(help="edge of the image; may be given again", min=1)] = None,
    local_px: Annotated[int, typer.Option(help="edge of local views", min=1)] = 96,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show how large backbones are.

    Width, depth, heads, parameters and GFLOPs, counted on the built models.
    """
    log_to(None, is_quiet=quiet)
    from dino_path.model.known_sizes import KNOWN
    from dino_path.model.names import architecture

    for name in names or ():
        if name not in KNOWN:
            architecture(name)
    loading()
    from dino_path.model.sizes import FOOTNOTES, backbone_size, size_table
    from dino_path.progress import progress

    edges_px, wanted = px or [224, 384], names or list(KNOWN)
    sizes = [
        backbone_size(name, edges_px, local_px)
        for name in progress(wanted, "counting", total=len(wanted), unit="models")
    ]
    if as_json:
        say_json([asdict(size) for size in sizes])
        return
    say_table(*size_table(sizes, edges_px, local_px))
    say(FOOTNOTES)

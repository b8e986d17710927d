"""Commands that make and use a frozen extractor: export, import-checkpoint, embed, models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dino_path.api.inputs import check_foreign_checkpoint, check_models
from dino_path.api.named_slides import pseudonym_files, search_named
from dino_path.cli.help import Command
from dino_path.cli.named_slides import Key, Pseudonymise
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
    from dino_path.slides.pseudonyms import PseudonymFiles
    from dino_path.tiles.images import ImageFiles
    from dino_path.tiles.source import TileSource
    from dino_path.tiles.workers import Limits
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
        bool,
        typer.Option(
            "--best", help="export the best checkpoint of a run folder instead of the newest (see its best.json)"
        ),
    ] = False,
    network: Annotated[
        Literal["teacher", "student"], typer.Option(help="which of the two networks to export")
    ] = "teacher",
    features: Annotated[
        Literal["cls", "mean", "cls+mean"] | None,
        typer.Option(
            help="[CLS], mean of the patch tokens, or both; default: the network's own pooling, cls for most ViTs"
        ),
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", help="timm, onnx, pt2, separated by commas; timm is always written")
    ] = "timm",
    precision: Annotated[
        Literal["fp32", "fp16", "bf16"], typer.Option(help="precision of the stored weights")
    ] = "fp32",
    license: Annotated[str, typer.Option(help="licence, by its name on the Hub, such as cc-by-nc-4.0")] = "unknown",
    input_px: Annotated[
        int | None, typer.Option(min=16, help="edge that tiles are resized to; default: views.global_px")
    ] = None,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="also upload the model there; a new repository is private")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Export a run's network as a frozen feature extractor.

    Load it with timm.create_model("local-dir:OUT", pretrained=True). Every file is loaded in a fresh process, and its
    features are compared with those of the run.
    """
    log_to(None, is_quiet=quiet)
    announce(f"reading {run}")
    from dino_path.api.export import export as run_export

    result = run_export(
        run, out, best=best, network=network, features=features, format=formats, precision=precision, license=license,
        input_px=input_px, push_to_hub=push_to_hub,
    )  # fmt: skip
    if as_json:
        say_json(asdict(result))
    else:
        say(result.text())


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
        Path, typer.Argument(metavar="FILE", help="published weights: a backbone, or a training checkpoint")
    ],
    out: Annotated[Path, typer.Option(help="model folder")],
    arch: Annotated[str | None, typer.Option(help="timm model name; default: recognised from the file")] = None,
    network: Annotated[
        Literal["teacher", "student"] | None, typer.Option(help="default: the teacher, or the only network in the file")
    ] = None,
    mpp: Annotated[
        float | None, typer.Option(help="microns per pixel of its training tiles; default: unknown", min=0.05, max=50)
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make a model folder from published weights.

    Reads weights of facebookresearch's dino, dinov2 and dinov3, and of timm. The folder is like those of
    'dino-path export'.
    """
    log_to(None, is_quiet=quiet)
    announce(f"reading {file}")
    from dino_path.exporting.overwriting import refuse_to_overwrite

    check_foreign_checkpoint(file, arch)
    refuse_unwritable(out)
    refuse_to_overwrite(out)
    loading()
    from dino_path.exporting.checkpoint import import_checkpoint as run_import

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
            help="model folder, timm:NAME, untrained:FOLDER, mean-colour, ...; with the prefix cls:, mean: or"
            " cls+mean: to choose other token features than the model's own",
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
    layout: Annotated[str, typer.Option(help="trident, clam, or both, separated by a comma")] = "trident",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="default: 512 on CUDA, halved until it fits, else 64")
    ] = None,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"], typer.Option(help="precision in which the model runs")
    ] = "fp32",
    tokens: Annotated[
        bool,
        typer.Option("--tokens", help="also write patch tokens, in fp16: hundreds of times the size of the features"),
    ] = False,
    allow_other_mpp: Annotated[
        bool, typer.Option("--allow-other-mpp", help="embed tiles at another mpp than the model's")
    ] = False,
    pseudonymise: Pseudonymise = None,
    key: Key = None,
    device: Device = "auto",
    workers: Workers = 2,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Turn tiles or slides into feature files.

    TRIDENT and CLAM can read them. Called again, the command continues. Slides are tiled at the model's mpp
    (give tiles.mpp=... if the model does not state it), without writing tiles. Under torchrun or srun, each
    process takes a share of the slides.
    """
    log_to(None, is_first=is_first(), is_quiet=quiet)
    announce(f"reading {model}, {inputs[0] if pseudonymise is None else 'the slides'}")
    from dino_path.features.layouts import read_layouts

    refuse_unwritable(out)
    layouts = read_layouts(layout)
    words, overrides = split_arguments(inputs)
    check_models([model])
    names = pseudonym_files(pseudonymise, key, out)
    found = _look_at_inputs(model, words, config, overrides, out, names, allow_other_mpp=allow_other_mpp)
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
    """The result of `embed`, as JSON and as text, and whether some slides failed."""

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
    """Write the features; None in all processes except the first."""
    from dino_path.distributed import open_world
    from dino_path.features.embed import embed_store
    from dino_path.features.extractor import load_extractor
    from dino_path.features.from_slides import find_tiles
    from dino_path.tiles.images import ImageFiles
    from dino_path.tiles.store import TileStore

    # Slides differ in size: a process that has finished waits for the others, possibly for hours.
    with open_world(device, timeout_s=7 * 24 * 3600) as world:
        extractor = load_extractor(model, device=world.device).at(precision)
        images_at_a_time = batch_size or (512 if world.device.type == "cuda" else 64)
        tiles = found.tiles
        if tiles is None:
            assert found.settings is not None
            tiles = find_tiles(
                found.rows,
                found.settings,
                out,
                world=world,
                num_workers=max(num_workers, 1),
                limits=found.limits,
                key_check=found.key_check,
            )
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
        say(f"{len(lost)} folder(s) or link(s) could not be read: their contents have no features")


def are_slides(words: Sequence[str]) -> bool:
    """Whether these are slides to be tiled, not a tile store or a folder of images."""
    from dino_path.slides.find import holds_slides

    if len(words) != 1:
        return True
    path = Path(words[0])
    return path.is_file() or (not (path / "store.json").exists() and holds_slides(path))


@dataclass(frozen=True)
class _Inputs:
    """The inputs of `embed`: tiles, or slides that are still to be tiled.

    Attributes:
        rows, settings, limits: of the slides; tiles is None then.
        unreadable: folders and links that could not be looked at.
        key_check: of the key that gave the slides their pseudonyms; None: they have none.
    """

    tiles: TileSource | None
    rows: Sequence[SlideRow]
    settings: TilesConfig | None
    limits: Limits
    unreadable: Sequence[Unreadable]
    key_check: str | None = None


def _look_at_inputs(
    model: str,
    words: Sequence[str],
    config: Path | None,
    overrides: Sequence[str],
    out: Path,
    names: PseudonymFiles | None,
    *,
    allow_other_mpp: bool,
) -> _Inputs:
    """What is to be embedded; slides are tiled at the model's mpp unless the settings say otherwise."""
    from dino_path.features.layouts import job_folder_name
    from dino_path.features.specs import look_at_model, refuse_other_mpp
    from dino_path.settings import load_config
    from dino_path.tiles.expected import refuse_unfinished
    from dino_path.tiles.layout import StoreFolder
    from dino_path.tiles.source import open_readable_tiles
    from dino_path.tiles.store import TileStore
    from dino_path.tiles.workers import NO_LIMITS, Limits

    folder = look_at_model(model)
    trained = folder.preprocessing if folder is not None else None
    name, mpp = Path(model).name, trained.mpp if trained is not None else None
    if not are_slides(words):
        if names is not None:
            raise ConfigError(
                f"--pseudonymise {names.mapping}",
                f"{words[0]} is tiled already, or holds images.",
                "Slides get their pseudonyms when they are tiled, and keep them.",
                "Leave it out, or give the slides.",
            )
        if overrides or config:
            raise ConfigError(
                " ".join(overrides) or f"--config {config}",
                f"{words[0]} is tiled already.",
                "Settings apply only to slides that are still to be tiled.",
                "Leave them out, or give the slides.",
            )
        refuse_unfinished(Path(words[0]))
        tiles, unreadable = open_readable_tiles(Path(words[0]))
        if isinstance(tiles, TileStore) and not allow_other_mpp:
            refuse_other_mpp(name, mpp, tiles.mpp, words[0])
        return _Inputs(tiles, (), None, NO_LIMITS, unreadable)
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
    store = StoreFolder(out / job_folder_name(resolved.tiles) / "store")
    search, key_check = search_named(words, resolved.slides, names, store)
    limits = Limits(resolved.slides.max_seconds, resolved.slides.max_memory_gb)
    return _Inputs(None, search.rows, resolved.tiles, limits, search.unreadable, key_check)


@app.command(
    cls=Command,
    epilog="""
    dino-path models
    dino-path models S/16 resnet50 --px 224 --px 448
    """,
)
def models(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="timm names, or short names such as S/16")
    ] = None,
    px: Annotated[list[int] | None, typer.Option(help="edge of the image; may be given again", min=1)] = None,
    local_px: Annotated[int, typer.Option(help="edge of local views", min=1)] = 96,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show the size of backbones.

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

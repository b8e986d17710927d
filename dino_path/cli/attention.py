"""Pictures of what a model attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dino_path.api.inputs import check_images, check_models
from dino_path.cli.help import Command
from dino_path.cli.program import AsJson, Device, Quiet, announce, app, loading, log_to
from dino_path.cli.terminal import say, say_json
from dino_path.disk import refuse_unwritable
from dino_path.errors import ConfigError


@app.command(
    cls=Command,
    epilog="""
    dino-path attention runs/vits16/model tile_1.png tile_2.png --out attention
    dino-path attention runs/vits16/model tile.png --out attention --px 448 --point 0.4,0.6 --point 0.1,0.1
    dino-path attention runs/vits16/model slide.svs --region 12000,8000,2048 --out attention
    """,
)
def attention(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="model folder of a ViT, or timm:NAME")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="image files; or one slide, with --region")],
    out: Annotated[Path, typer.Option(help="folder for the pictures")],
    px: Annotated[
        int | None,
        typer.Option(
            help="edge of the network's input; larger gives finer maps. Default: the model's own; for a region, the"
            " edge that shows it at the um/px of the training",
            min=8,
            max=2048,
        ),
    ] = None,
    point: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y", help="reference point, as fractions of the edges from 0 to 1; may be repeated"),
    ] = None,
    mass: Annotated[float, typer.Option(help="share of the attention held by the marked patches")] = 0.6,
    region: Annotated[
        list[str] | None,
        typer.Option(metavar="X,Y,EDGE", help="square of the slide, level-0 px; may be repeated"),
    ] = None,
    device: Device = "auto",
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Draw what a ViT's last block attends to.

    One picture per image or region: the attention of [CLS], mean and each head; the smallest set of patches with 60 %
    of it; and the attention of reference points.
    """
    log_to(None, is_quiet=quiet)
    announce(f"reading {model}")
    points = [_parse_point(text) for text in point or ()]
    regions = [_parse_region(text) for text in region or ()]
    if not 0 < mass <= 1:
        raise ConfigError(
            f"--mass {mass:g}", "is no share.", "A number above 0 and up to 1 is needed.", "Correct --mass."
        )
    if regions and len(images) > 1:
        raise ConfigError(
            "--region", f"{len(images)} files are given.", "Regions are of one slide.", "Name one slide at a time."
        )
    refuse_unwritable(out)
    check_models([model])
    check_images(images)
    loading()
    from dino_path.distributed import choose_device
    from dino_path.features.attention import POINTS, draw_attention, draw_region_attention
    from dino_path.features.extractor import load_extractor
    from dino_path.slides.slide import Slide

    extractor = load_extractor(model, device=choose_device(device, 0))
    if regions:
        with Slide.open(images[0]) as slide:
            sheets = draw_region_attention(
                extractor, slide, regions, out, edge_px=px, points=points or POINTS, mass=mass
            )
    else:
        sheets = draw_attention(extractor, images, out, edge_px=px, points=points or POINTS, mass=mass)
    if as_json:
        say_json([asdict(sheet) for sheet in sheets])
        return
    for sheet in sheets:
        mpp = "" if sheet.seen_mpp is None else f" at {sheet.seen_mpp:.4g} um/px"
        say(f"{sheet.file}   {sheet.edge_px} px{mpp}")


def _parse_point(text: str) -> tuple[float, float]:
    numbers = _numbers(text)
    if len(numbers) != 2 or not all(0 <= number < 1 for number in numbers):
        raise ConfigError(
            f"--point {text}",
            "is no point of an image.",
            "Two parts of its edges from 0 up to (not including) 1 are needed, such as 0.4,0.6.",
            "Correct --point.",
        )
    return numbers[0], numbers[1]


def _parse_region(text: str) -> tuple[int, int, int]:
    numbers = _numbers(text)
    if len(numbers) != 3 or not all(number.is_integer() for number in numbers) or numbers[2] < 1:
        raise ConfigError(
            f"--region {text}",
            "is no square of a slide.",
            "Three whole numbers are needed, left, top and edge in level-0 px, such as 12000,8000,2048.",
            "Correct --region.",
        )
    left, top, edge = map(int, numbers)
    return left, top, edge


def _numbers(text: str) -> Sequence[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        return ()

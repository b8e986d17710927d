"""Pictures of what a model attends to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dino_path.cli.help import Command
from dino_path.cli.inputs import check_images, check_models
from dino_path.cli.program import Device, Quiet, announce, app, check_output_folder, loading, log_to
from dino_path.cli.terminal import say


@app.command(
    cls=Command,
    epilog="""
    dino-path attention runs/vits16/model tile_1.png tile_2.png --out attention
    dino-path attention runs/vits16/model tile.png --out attention --px 448
    """,
)
def attention(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="model folder of a ViT, or timm:NAME")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE...", help="image files")],
    out: Annotated[Path, typer.Option(help="folder for the pictures")],
    px: Annotated[int | None, typer.Option(help="edge of the image; larger: finer maps", min=8, max=2048)] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Draw what a ViT's last block attends to.

    One picture per image: [CLS] of each head, and five reference points.
    """
    log_to(None, is_quiet=quiet)
    announce(f"reading {model}")
    check_output_folder(out)
    check_models([model])
    check_images(images)
    loading()
    from dino_path.distributed import choose_device
    from dino_path.features.attention import draw_attention
    from dino_path.features.extractor import load_extractor

    extractor = load_extractor(model, device=choose_device(device, 0))
    for file in draw_attention(extractor, images, out, edge_px=px):
        say(f"{file}")

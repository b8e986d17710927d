"""`configs` lists the shipped configs and what each is for; `init` writes a config to start from."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from dino_path.cli.help import Command
from dino_path.cli.program import AsJson, app
from dino_path.cli.terminal import say, say_json, say_table
from dino_path.disk import refuse_unwritable
from dino_path.errors import ConfigError


@app.command(
    cls=Command,
    epilog="""
    dino-path configs
    dino-path configs vits16_1gpu > mine.yaml
    """,
)
def configs(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="print this one")] = None,
    as_json: AsJson = False,
) -> None:
    """List the shipped configs, or print one.

    Every --config accepts a NAME of this list instead of a file.
    """
    from dino_path.settings import named_config
    from dino_path.shipped import shipped_configs

    file = named_config(name, given=name) if name is not None else None
    found = [one for one in shipped_configs() if file is None or one.file == file]
    if as_json:
        say_json([asdict(one) for one in found])
    elif file is not None:
        typer.echo(file.read_text(encoding="utf-8"), nl=False)
    else:
        say_table(
            ["name", "model", "hardware", "hours", "for"],
            [[one.name, one.backbone, one.short("Hardware"), one.short("Hours"), one.short("For")] for one in found],
        )
        say("the whole file: dino-path configs NAME; to use it: --config NAME; expected results: docs/configs.md")
        say("time and memory of a run: dino-path plan --config NAME store=STORE; a config of your own: dino-path init")


Place = Literal["laptop", "gpu", "cluster"]
CONFIG_NAME = "pretrain.yaml"
# What comes next in the new folder; SLIDES is the user's.
NEXT: dict[Place, tuple[str, ...]] = {
    "laptop": (
        "dino-path doctor                                           # is everything installed?",
        "dino-path tile SLIDES --config pretrain.yaml --out tiles   # SLIDES: files, a folder, or a CSV with path,mpp",
        "dino-path views tiles --config pretrain.yaml --out views.png",
        "dino-path plan --config pretrain.yaml                      # how long, how much memory and disk",
        "dino-path pretrain --config pretrain.yaml",
        "dino-path export runs/first --out model",
    ),
    "gpu": (
        "dino-path doctor                                           # is everything installed, is the GPU usable?",
        "dino-path tile SLIDES --config pretrain.yaml --out tiles   # SLIDES: files, a folder, or a CSV with path,mpp",
        "dino-path views tiles --config pretrain.yaml --out views.png",
        "dino-path plan --config pretrain.yaml                      # how long, how much memory and disk",
        "dino-path pretrain --config pretrain.yaml --apply-advice",
        "dino-path export runs/first --out model",
    ),
    "cluster": (
        "$EDITOR pretrain.yaml                                      # the section cluster first",
        "srun --gpus=1 dino-path doctor                             # is everything installed, is a GPU usable?",
        "dino-path submit tile SLIDES --config pretrain.yaml        # SLIDES: files, a folder, or a CSV with path,mpp",
        "dino-path plan --config pretrain.yaml                      # how long, and what to ask SLURM for",
        "dino-path submit pretrain --config pretrain.yaml --dry-run # shows the script; then without --dry-run",
        "dino-path status runs/first",
    ),
}


@app.command(
    cls=Command,
    epilog="""
    dino-path init my_project --for laptop
    dino-path init --for cluster
    """,
)
def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="the folder; created if it does not exist")] = Path(),
    place: Annotated[
        Place | None, typer.Option("--for", help="where it will train; without it, a terminal asks")
    ] = None,
) -> None:
    """Write a commented config to start from.

    It is written to DIR/pretrain.yaml; an existing file is not overwritten. The next commands are printed.
    """
    from dino_path.settings import shipped_config

    file = folder / CONFIG_NAME
    if file.exists():
        raise ConfigError(
            str(file), "is there already.", "init overwrites no file.", "Name another folder, or move the file away."
        )
    chosen = place or _asked()
    refuse_unwritable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with file.open("x", encoding="utf-8") as stream:
        stream.write(shipped_config(f"start/{chosen}.yaml").read_text(encoding="utf-8"))
    say(f"written: {file}")
    say("next:")
    if folder != Path():
        say(f"  cd {shlex.quote(str(folder))}")
    for line in NEXT[chosen]:
        say(f"  {line}")


def _asked() -> Place:
    """The user's answer in a terminal.

    Raises:
        ConfigError: there is nobody to ask, or the answer is none of the three.
    """
    places: tuple[Place, ...] = get_args(Place)
    answer = None
    if sys.stdin.isatty() and sys.stdout.isatty():
        say("Where will it train?")
        say("  laptop   a computer without a GPU: a small model, to learn the tool")
        say("  gpu      one GPU: a ViT-S on your own slides")
        say("  cluster  SLURM: a ViT-S on 8 GPUs, which you can enlarge")
        answer = typer.prompt("laptop, gpu or cluster").strip().lower()
        for one in places:
            if answer == one:
                return one
    raise ConfigError(
        "--for" if answer is None else answer,
        "is not given." if answer is None else "is none of the choices.",
        "One of laptop, gpu, cluster is needed: their configs differ in size, device and the request to SLURM.",
        "Give --for laptop, --for gpu or --for cluster.",
    )

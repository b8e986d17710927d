"""Descriptions of the shipped configs, read from their headers, without torch.

A header is the comment at the top of a file of `configs/`: a title, the commands, then fields, one paragraph each:

    # Hours: 0.8 on one core of an AMD EPYC. That is 72,000 tiles at 25 tiles/s.

A field's first sentence is its short form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from dino_path.errors import ConfigError
from dino_path.settings import load_config, shipped_folder, shipped_names

FIELDS = ("For", "Hardware", "Hours", "Number to expect", "Change first")
FIELD = re.compile(rf"# ({'|'.join((*FIELDS, 'Source'))}): (.*)")
COMMAND = re.compile(r"#   ((?:dino-path|torchrun) .*)")
MORE = re.compile(r"#   (.*)")


@dataclass(frozen=True)
class ShippedConfig:
    """One file of `configs/`.

    Attributes:
        title: the header's first line.
        backbone: timm's name.
        num_gpus: on all its nodes; 0: it trains on a CPU.
        commands: as they are typed, in the header's order.
        fields: the header's paragraphs by name: those of `FIELDS`, and perhaps `Source`.
    """

    name: str
    file: Path
    title: str
    backbone: str
    num_gpus: int
    commands: tuple[str, ...]
    fields: dict[str, str]

    def short(self, field: str) -> str:
        """The field's first sentence, without its full stop."""
        return re.split(r"\.(?: |$)", self.fields[field], maxsplit=1)[0]


def shipped_configs() -> list[ShippedConfig]:
    """All of them, the fewest GPUs first."""
    found = [_read(shipped_folder() / f"{name}.yaml") for name in shipped_names()]
    return sorted(found, key=lambda one: one.num_gpus)


def _read(file: Path) -> ShippedConfig:
    """One config and its header.

    Raises:
        ConfigError: the header lacks a field.
    """
    lines = file.read_text(encoding="utf-8").splitlines()
    commands: list[str] = []
    fields: dict[str, str] = {}
    name: str | None = None
    for line in lines:
        if not line.startswith("#"):
            break
        if command := COMMAND.fullmatch(line) if name is None else None:
            commands.append(command[1])
        elif field := FIELD.fullmatch(line):
            name, fields[field[1]] = field[1], field[2]
        elif name is not None and (more := MORE.fullmatch(line)):
            fields[name] += f" {more[1]}"
    if missing := [one for one in FIELDS if one not in fields]:
        raise ConfigError(
            str(file),
            f"its header lacks {', '.join(missing)}.",
            "The header of a shipped config says all of " + ", ".join(FIELDS) + ".",
            "Add a line `# Hours: ...` and so on, as the other files of configs/ have it.",
        )
    config = load_config(file)
    has_gpus = config.training is not None and config.training.device == "cuda"
    return ShippedConfig(
        name=file.stem,
        file=file,
        title=lines[0].removeprefix("# "),
        backbone=config.model.backbone,
        num_gpus=config.cluster.nodes * int(str(config.cluster.gpus_per_node).rpartition(":")[2]) if has_gpus else 0,
        commands=tuple(commands),
        fields=fields,
    )

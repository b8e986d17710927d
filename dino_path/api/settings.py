"""Settings of a call: a YAML file, or sections by keyword; `tiles={"mpp": 0.5}` is `tiles.mpp=0.5` of the commands."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from dino_path.config import Config
from dino_path.settings import as_plain, by_dotted_key, load_config

PathLike = str | os.PathLike[str]
ConfigLike = PathLike | Config | None
SectionLike = Mapping[str, Any]


class Settings(TypedDict, total=False):
    """Sections of `docs/config.md`, each with some of its settings by name; they win over the file's."""

    slides: SectionLike
    tiles: SectionLike
    views: SectionLike
    model: SectionLike
    objective: SectionLike
    optim: SectionLike
    training: SectionLike
    monitor: SectionLike
    evaluation: SectionLike
    wandb: SectionLike


def settled(config: ConfigLike, settings: Mapping[str, Any], *, needs: Sequence[str] = ()) -> Config:
    """The settings of a call.

    Args:
        config: YAML file, or settings that were read already; None: the defaults.
        settings: sections, or single settings by dotted key; they win over `config`.
        needs: keys or sections that the call cannot do without.

    Raises:
        ConfigError: with every unknown, missing or mistyped setting in one message.
    """
    is_read = isinstance(config, Config)
    base = as_plain(config) if isinstance(config, Config) else {}
    file = None if config is None or is_read else Path(config)  # type: ignore[arg-type]
    return load_config(file, needs=needs, settings=base | by_dotted_key(settings))

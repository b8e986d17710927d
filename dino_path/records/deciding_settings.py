"""The settings that enter a digest, chosen so that a new setting of dino_path changes no digest of earlier files.

A file that was made before a setting existed was made in some way: mostly as the setting's default has it. So a younger
setting counts only where it has another value.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any

from dino_path.config import Section
from dino_path.settings import as_plain

NOTHING: Mapping[str, Any] = MappingProxyType({})


def deciding_settings(
    section: Section, *, first: Collection[str], before: Mapping[str, Any] = NOTHING
) -> dict[str, Any]:
    """The settings of a section that distinguish it from others, as plain data.

    Args:
        first: names of the settings that count whatever their value is: those of the oldest files.
        before: name of a younger setting -> what was done before it existed, where its default does something else.
    """
    fields = type(section).model_fields
    as_ever = {name: before.get(name, field.get_default(call_default_factory=True)) for name, field in fields.items()}
    return {
        name: value
        for name, value in as_plain(section).items()
        if name in first or getattr(section, name) != as_ever[name]
    }

"""docs/config.md, generated from the config itself. After a change there:

python -m dino_path.config_docs docs/config.md
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from dino_path.atomic import atomic_write
from dino_path.config import RECIPES, Config, Duration, Section

INTRODUCTION = """\
# Settings

Generated from `dino_path/config/` by `python -m dino_path.config_docs docs/config.md`; do not edit.

Settings are given in a YAML file (`--config`) or on the command line as `section.key=value`, which takes precedence:

    dino-path pretrain --config configs/vits16_8gpu.yaml store=STORE out=RUN optim.base_lr=1e-3

Unknown, repeated and mistyped keys are refused before any work starts. The resolved settings of a run are saved in
its folder as `config.yaml`. YAML is plain data here: no anchors, no environment variables.

- A **duration** has a unit: `500 steps`, `10 epochs` (passes over the store), `2e6 tiles` (seen), `10 %` (of the run).
- `null` means off, or not given.
- Names of earlier versions, such as `model.num_prototypes`, still work; the log gives the new names.
- A key without a default must be given if its section is used.
"""
NAMES: dict[Any, str] = {
    bool: "true/false",
    int: "int",
    float: "float",
    str: "text",
    Path: "path",
    Duration: "duration",
}
SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def render() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    own = {key: field for key, field in Config.model_fields.items() if section_of(field) is None}
    parts.append("## Top level\n\n" + "\n".join(table_lines("", own)) + "\n")
    for key, field in Config.model_fields.items():
        section = section_of(field)
        if section is not None:
            parts += section_parts(key, section)
        if key == "views":
            for recipe, defaults in RECIPES.items():
                values = ", ".join(f"`{name}: {json.dumps(value)}`" for name, value in defaults.items())
                parts.append(f"`recipe: {recipe}` has other defaults: {values}.\n")
    return "\n".join(parts)


def section_parts(key: str, section: type[Section]) -> Iterator[str]:
    """A heading with the purpose of the section and the table of its settings, then its subsections."""
    inner = {name: section_of(field) for name, field in section.model_fields.items()}
    own = {name: field for name, field in section.model_fields.items() if inner[name] is None or is_map(field)}
    lines = "\n\n" + "\n".join(table_lines(f"{key}.", own)) if own else ""
    yield f"## {key}\n\n{' '.join((section.__doc__ or '').split())}{lines}\n"
    for name, below in inner.items():
        if below is None:
            continue
        if is_map(section.model_fields[name]):
            table = table_lines(f"{key}.{name}.<name>.", below.model_fields)
            yield "\n".join([" ".join((below.__doc__ or "").split()), "", *table]) + "\n"
        else:
            yield from section_parts(f"{key}.{name}", below)


def is_map(field: FieldInfo) -> bool:
    """Whether a field holds several sections by name."""
    return get_origin(field.annotation) is dict


def section_of(field: FieldInfo) -> type[Section] | None:
    """The section that a field holds, or of which it holds several by name; None for a plain value."""
    options = (field.annotation, *get_args(field.annotation))
    return next((option for option in options if is_section(option)), None)


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section) and annotation is not Duration


def table_lines(prefix: str, fields: dict[str, FieldInfo]) -> Iterator[str]:
    """One Markdown table: key, type, default, meaning."""
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for key, field in fields.items():
        default = "" if field.is_required() else f"`{default_text(field.default)}`"
        bounds = ", ".join(bound_texts(field))
        kind = type_text(field.annotation) + (f", {bounds}" if bounds else "")
        yield f"| `{prefix}{key}` | {kind} | {default} | {meaning(field)} |"


def meaning(field: FieldInfo) -> str:
    """The description, as Markdown: `null` is what YAML calls None, and `<...>` is no HTML."""
    text = re.sub(r"\bNone\b", "`null`", field.description or "")
    return text.replace("|", r"\|").replace("<", "&lt;")


def type_text(annotation: Any) -> str:
    """A type in the words of someone who writes YAML."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(inner[0])
    if origin in (Union, UnionType):
        names = [type_text(option) for option in inner if option is not NoneType]
        return " or ".join([*names, *(["null"] if NoneType in inner else [])])
    if origin is Literal:
        return " or ".join(f"`{option}`" for option in inner)
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return f"list of {type_text(inner[0])}"
        return "[" + ", ".join(type_text(item) for item in inner) + "]"
    if origin is dict:
        return "map" if is_section(inner[1]) else f"map of {type_text(inner[1])}"
    return NAMES[annotation]


def bound_texts(field: FieldInfo) -> Iterator[str]:
    """`>= 1` and so on."""
    kinds = (annotated_types.Ge, annotated_types.Gt, annotated_types.Le, annotated_types.Lt)
    for bound in field.metadata:
        if isinstance(bound, kinds):
            name = type(bound).__name__.lower()
            yield f"{SIGNS[name]} {getattr(bound, name):g}"


def default_text(value: Any) -> str:
    """A default as it would stand in YAML, on one line."""
    if isinstance(value, Duration):
        return str(value)
    if isinstance(value, float):
        return f"{value:.4g}" if value < 1000 else f"{value:.0f}"
    if isinstance(value, tuple):
        return "[" + ", ".join(default_text(item) for item in value) + "]"
    return value if isinstance(value, str) else json.dumps(value)


if __name__ == "__main__":
    with atomic_write(Path(sys.argv[1])) as stream:
        stream.write(render())

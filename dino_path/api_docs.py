"""docs/api.md, made from the docstrings of the Python interface. After a change there:

python -m dino_path.api_docs docs/api.md
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dino_path
from dino_path import errors
from dino_path.api.settings import Settings
from dino_path.atomic import atomic_write

INTRODUCTION = """\
# Python

Generated from the docstrings of `dino_path/api/` by `python -m dino_path.api_docs docs/api.md`; do not edit.

```python
import dino_path

store = dino_path.tile("slides/", out="tiles", tiles={"mpp": 0.5, "size_px": 224}).tiles()
dino_path.pretrain(store="tiles", out="run", config="configs/vits16_1gpu.yaml")
dino_path.export("run", out="run/model")

extractor = dino_path.load("run/model")
features = extractor.embed(store)  # or images, arrays, paths
features.to_pandas()

print(dino_path.evaluate("knn", ["run/model", "mean-colour"], data="labelled/"))
```

`examples/first_features.py` goes from slides to a picture of neighbours, cell by cell.

- The words are those of the commands, and the commands call these functions: `dino-path tile slides/ --out tiles
  tiles.mpp=0.5` is `dino_path.tile("slides/", out="tiles", tiles={"mpp": 0.5})`. If a command can resume, so can the
  call.
- **Settings** are given by section: SECTIONS.
  [config.md](config.md) lists them. `config` names a YAML file; settings in the call take precedence.
- **Refusals** are exceptions of `dino_path.errors`, all of them `dino_path.DinoPathError`, with the message that the
  command prints.
- **Progress** goes to the logger `dino_path`. `logging.basicConfig(level=logging.INFO)` shows it, with a progress bar
    in a terminal.
- A `PathLike` is a string or a path, a `ConfigLike` the path of a YAML file.
- `import dino_path` takes milliseconds: torch is imported when a network is needed.
- Results print as the command prints them, and are tables: `to_arrow()`, and `to_pandas()` where pandas is installed.
- **Processes**: `workers` of `tile` may be used in any script. DataLoader workers (`embed`, `evaluate`, `pretrain`,
  your own loops) are forked on Linux up to Python 3.13; on macOS and Windows a script that uses them needs Python's
  `if __name__ == "__main__":`.
"""
# In the order in which the data walk.
CHAPTERS = {
    "Tiles": ("tile", "Tiling", "TileStore", "labelled", "TileDataset"),
    "Networks": ("pretrain", "Pretraining", "export", "ExportResult"),
    "Features": ("load", "Extractor", "Features"),
    "Evaluation": ("evaluate", "Evaluation"),
}
LONGEST_LINE = 100
HEADING = re.compile(r"^(Args|Attributes|Returns|Raises):$")
ENTRY = re.compile(r"^(\*{0,2}[\w., *]+): (.*)$")


def render() -> str:
    """The whole page."""
    sections = ", ".join(f"`{name}`" for name in Settings.__annotations__)
    parts = [INTRODUCTION.replace("SECTIONS", sections)]
    for title, names in CHAPTERS.items():
        parts.append(f"## {title}\n")
        for name in names:
            parts += object_parts(name, getattr(dino_path, name))
    parts += ["## Errors\n", *error_lines(), ""]
    return "\n".join(parts)


def object_parts(name: str, thing: Any) -> Iterator[str]:
    """A function, or a class with its methods and properties."""
    if not inspect.isclass(thing):
        yield f"### {name}\n\n{signature(f'dino_path.{name}', thing)}\n\n{markdown(thing)}\n"
        return
    yield f"### {name}\n\n{markdown(thing)}\n"
    if is_called(thing):
        yield f"{signature(f'dino_path.{name}', thing.__init__)}\n\n{markdown(thing.__init__)}\n"
    for member, value, is_own in members(thing):
        if not inspect.isfunction(value):
            yield f"`.{member}`: {markdown(value)}\n"
        elif is_own:
            yield f"{signature(f'.{member}', value)}\n\n{markdown(value)}\n"
        else:
            yield f"`.{member}()`: {markdown(value).splitlines()[0]}\n"


def error_lines() -> Iterator[str]:
    """One line for each kind of refusal."""
    for name, kind in vars(errors).items():
        if inspect.isclass(kind) and issubclass(kind, errors.DinoPathError):
            yield f"- `{name}`: {(inspect.getdoc(kind) or '').splitlines()[0]}"


def is_called(thing: type) -> bool:
    """Whether users make one themselves: its `__init__` then says what it takes."""
    return "__init__" in vars(thing) and bool(vars(thing)["__init__"].__doc__)


def members(thing: type) -> Iterator[tuple[str, Any, bool]]:
    """Public methods and properties that have a docstring; of bases of ours too, which are not its own."""
    seen: set[str] = set()
    for base in thing.__mro__:
        if not base.__module__.startswith("dino_path."):
            continue
        for name, value in vars(base).items():
            is_ours = inspect.isfunction(value) or isinstance(value, property) or hasattr(value, "attrname")
            if not name.startswith("_") and name not in seen and is_ours and value.__doc__:
                seen.add(name)
                yield name, value, base is thing


def signature(name: str, function: Any) -> str:
    """How it is called, as code; over several lines where one is too long."""
    found = inspect.signature(function)
    words: list[str] = []
    for one in found.parameters.values():
        if one.name == "self":
            continue
        if one.kind is one.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        words.append(parameter(one))
        if one.kind is one.POSITIONAL_ONLY:
            words.append("/")
    is_silent = found.return_annotation in ("None", inspect.Signature.empty)
    answer = "" if is_silent else f" -> {found.return_annotation}"
    line = f"{name}({', '.join(words)}){answer}"
    if len(line) > LONGEST_LINE:
        line = "\n".join([f"{name}(", *(f"    {word}," for word in words), f"){answer}"])
    return f"```python\n{line}\n```"


def parameter(one: inspect.Parameter) -> str:
    """`shard: str = "1/1"`."""
    name = f"**{one.name}" if one.kind is one.VAR_KEYWORD else one.name
    text = f"{name}: {one.annotation}".replace("'", '"')
    if one.default is one.empty:
        return text
    return f"{text} = {json.dumps(one.default) if isinstance(one.default, str) else repr(one.default)}"


def markdown(thing: Any) -> str:
    """A docstring as Markdown: its sections become lists."""
    lines: list[str] = []
    for line in inspect.cleandoc(thing.__doc__ or "").splitlines():
        text = line.strip()
        if HEADING.match(text) and not line.startswith(" "):
            lines += [f"**{text.removesuffix(':')}**", ""]
        elif line.startswith("    ") and not line.startswith("     ") and (entry := ENTRY.match(text)):
            names = ", ".join(f"`{one.strip()}`" for one in entry[1].split(","))
            lines.append(f"- {names}: {entry[2]}")
        elif line.startswith("    "):
            lines.append(f"  {text}" if line.startswith("     ") else text)
        else:
            lines.append(text)
    return "\n".join(lines).strip()


if __name__ == "__main__":
    with atomic_write(Path(sys.argv[1])) as stream:
        stream.write(render())

"""Settings from text and back: YAML files and dotted overrides become the config tree of `config/`.

YAML is read as plain data (no anchors, no repeated keys), and all faults of all sources come in one message.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import re
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin

import yaml
from pydantic import ValidationError

from dino_path.config import Config, Section, SuiteConfig
from dino_path.config.durations import length_text
from dino_path.errors import ConfigError
from dino_path.moved_settings import MOVED, lift_settings

logger = logging.getLogger(__name__)
DEEPEST = 20  # levels of YAML; ours have six
LONGEST_NUMBER = 300  # digits; Python refuses to read more than 4,300, and a float ends at 1e308
NUMBER = re.compile(r"[-+]?[0-9][0-9_]*")
Name = TypeVar("Name", bound=str)


def read_names(text: str, known: Sequence[Name], option: str) -> tuple[Name, ...]:
    """Comma-separated names, each once, in the given order; blanks and capitals are ignored.

    Raises:
        ConfigError: one is not among the known, or there is none. `option` is what the user gave, such as `--layout`.
    """
    by_text: dict[str, Name] = {str(name): name for name in known}
    found = dict.fromkeys(name for part in text.split(",") if (name := part.strip().lower()))
    unknown = [name for name in found if name not in by_text]
    if unknown or not found:
        raise ConfigError(
            f"{option} {text}",
            f"{', '.join(unknown) or 'nothing'} is not a known {option.removeprefix('--')}.",
            f"One or more of {', '.join(known)} is needed, separated by commas.",
            f"Correct {option}.",
        )
    return tuple(by_text[name] for name in found)


class _StrictLoader(yaml.SafeLoader):
    """YAML as plain data: no anchors, and of the words without quotes only null, true, false and numbers are special.

    YAML 1.1 would read 24:00:00 as 86400, 2026-01-31 as a date, 010 as 8, `no` as false, and 1e-4 as a string.
    Repeated keys are collected in `repeated`.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.repeated: list[str] = []
        self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        fault = None
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            fault = "anchors and aliases are not used here"
        elif getattr(event, "tag", None):  # `!!int x` makes PyYAML raise whatever int("x") does
            fault = "tags such as !!int are not used here"
        elif self.depth == DEEPEST:
            fault = f"lists and sections stand in one another more than {DEEPEST} deep"
        elif (
            isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST_NUMBER and NUMBER.fullmatch(event.value)
        ):
            fault = f"a number of more than {LONGEST_NUMBER} digits"
        if fault is not None:
            raise yaml.constructor.ConstructorError(None, None, fault, event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                self.repeated.append(f"key {key!r} is given twice (again in line {key_node.start_mark.line + 1})")
            seen.add(key)
        return super().construct_mapping(node, deep)


_StrictLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"^(?:~|null|Null|NULL|)$", [*"~nN", ""]),
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", [*"tTfF"]),
    ("int", r"^[-+]?(?:0|[1-9][0-9_]*)$", [*"-+0123456789"]),
    (
        "float",
        r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$|^[-+]?[0-9]+\.[0-9]*$|^[-+]?\.[0-9]+$",
        [*"-+0123456789."],
    ),
):
    _StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), _first)


def _parse_yaml(text: str) -> tuple[Any, list[str]]:
    """The data, and one fault for each repeated key."""
    loader = _StrictLoader(text)
    try:
        return loader.get_single_data(), loader.repeated
    finally:
        loader.dispose()


Tree = dict[str, Any]
T = TypeVar("T", bound=Section)


def load_config(
    file: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    needs: Sequence[str] = (),
    settings: Tree | None = None,
    fallback: Tree | None = None,
) -> Config:
    """Read `file`, apply `dotted.key=value` overrides (last wins), check everything, report all faults at once.

    `file` may be the name of a shipped config, such as `vits16_1gpu`; a file of that name wins. Settings under a name
    of an earlier version are taken, and one line of the log says where they stand now.

    Args:
        needs: keys or sections that the command cannot do without, such as `store` or `tiles`.
        settings: dotted keys that the command line gave by its own options, such as {"out": Path("run")}, or that a
            call in Python gave.
        fallback: dotted keys that the command knows from elsewhere, for where nobody gave them.

    Raises:
        ConfigError: with every unknown, missing, repeated or mistyped key in one message.
    """
    source = str(file) if file else "command line" if overrides or settings is None else "settings"
    tree, faults = _read_yaml(config_file(file)) if file else ({}, [])
    tree, moved, twice = lift_settings(tree)
    faults += [f"{old!r} is '{MOVED[old]}' now, and both are given" for old in twice]
    for override in overrides:
        faults += _override(tree, override)
        tree, found, _ = lift_settings(tree)  # an old name that is there now is this override's: the last wins
        moved += found
    for key, value in (settings or {}).items():
        _set(tree, key, value)
    tree, found, _ = lift_settings(tree)
    moved += found
    for key, value in (fallback or {}).items():
        if not _is_given(tree, key):
            _set(tree, key, value)
    # `optim:` with nothing below it is an empty section, as when all its lines are commented out.
    tree = {key: value for key, value in tree.items() if value is not None or _section_at([key]) is None}
    for key in needs:
        if _section_at([key]) is not None:
            tree.setdefault(key, {})
        elif tree.get(key) is None:
            faults.append(f"missing key '{key}' ({Config.model_fields[key].description})")
    config = None
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        faults += _fault_lines(error, tree, Config)
    if faults or config is None:
        raise ConfigError(
            source,
            faults[0] if len(faults) == 1 else f"{len(faults)} faults:\n" + "\n".join(f"    - {f}" for f in faults),
            "Every key must be known, given once, and of the right type.",
            "Correct the file or the dotted overrides; docs/config.md lists all keys.",
        )
    if moved:
        logger.warning("%s: settings have moved: %s", source, ", ".join(f"{old} -> {MOVED[old]}" for old in moved))
    return config


def _override(tree: dict[str, Any], override: str) -> list[str]:
    """Apply one `dotted.key=value` to the tree; returns its faults."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        return [f"{override!r} is not of the form dotted.key=value"]
    try:
        value, repeated = _parse_yaml(text)
        _set(tree, key, value)
    except (yaml.YAMLError, TypeError) as error:
        return [f"{override!r}: {_one_line(error)}"]
    return repeated


def load_suite(file: Path, overrides: Sequence[str] = ()) -> SuiteConfig:
    """Read a suite file and apply `dotted.key=value` overrides, as `load_config` does.

    Raises:
        ConfigError: with every unknown, missing, repeated or mistyped key in one message.
    """
    tree, faults = _read_yaml(file)
    for override in overrides:
        faults += _override(tree, override)
    suite = None
    try:
        suite = SuiteConfig.model_validate(tree)
    except ValidationError as error:
        faults += _fault_lines(error, tree, SuiteConfig)
    if faults or suite is None:
        raise ConfigError(
            str(file),
            faults[0] if len(faults) == 1 else f"{len(faults)} faults:\n" + "\n".join(f"    - {f}" for f in faults),
            "Every key must be known, given once, and of the right type.",
            "Correct the file or the dotted overrides; docs/evaluation-suite.md lists the keys of a suite.",
        )
    return suite


def shipped_folder() -> Path:
    """The folder of the shipped configs: in the installed package, or at the top of a checkout.

    Raises:
        ConfigError: it is in neither.
    """
    package = Path(__file__).parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "demo.yaml").is_file():
            return folder
    raise ConfigError("configs/", "is not in this installation.", "It holds the shipped configs.", "Install again.")


def shipped_config(name: str) -> Path:
    """A file of `configs/` by its path in there, such as `demo.yaml`.

    Raises:
        ConfigError: there is none.
    """
    file = shipped_folder() / name
    if not file.is_file():
        raise ConfigError(
            name, "is not among the shipped configs.", "The installation is incomplete.", "Install again."
        )
    return file


def shipped_names() -> list[str]:
    """What `--config NAME` takes: the names of the shipped configs, in alphabetical order."""
    return sorted(file.stem for file in shipped_folder().glob("*.yaml"))


def config_file(file: Path) -> Path:
    """`file`, or the shipped config of that name where there is no such file and the name has no folder and no ending.

    Raises:
        ConfigError: a bare name that is neither.
    """
    if file.is_file() or len(file.parts) > 1 or file.suffix:
        return file
    return named_config(file.name, given=f"--config {file}")


def named_config(name: str, *, given: str) -> Path:
    """The shipped config of this name.

    Args:
        given: what the user typed, for the message.

    Raises:
        ConfigError: there is none; the nearest names are suggested.
    """
    names = shipped_names()
    if name in names:
        return shipped_config(f"{name}.yaml")
    close = difflib.get_close_matches(name, names, n=2)
    raise ConfigError(
        given,
        "is neither a file nor the name of a shipped config.",
        f"The names are {', '.join(names)}.",
        f"Did you mean {' or '.join(close)}?" if close else "`dino-path configs` says what each is for.",
    )


def section_from_file(cls: type[T], tree: Tree, source: str) -> T:
    """A section read from a JSON or YAML file of dino_path."""
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(
            source,
            "; ".join(_fault_lines(error, tree, cls)),
            f"A {cls.__name__} as this version of dino_path writes it is needed.",
            "The file was made by another version, or edited.",
        ) from None


def section_with(section: T, texts: Mapping[str, str], source: str) -> T:
    """The section with some settings read from text, as on the command line.

    Raises:
        ConfigError: unknown or impossible settings. `source` says whose they are.
    """
    tree = as_plain(section)
    try:
        tree |= {key: _parse_yaml(text)[0] for key, text in texts.items()}
        return type(section).model_validate(tree)
    except (yaml.YAMLError, ValidationError) as error:
        faults = _fault_lines(error, tree, type(section)) if isinstance(error, ValidationError) else [_one_line(error)]
        needed = "Every setting must be known and of the right type."
        raise ConfigError(source, "; ".join(faults), needed, "docs/config.md lists all settings.") from None


def with_settings(config: Config, texts: Mapping[str, str]) -> Config:
    """The config with some settings, as text by dotted key, read as on the command line."""
    tree = as_plain(config)
    for key, text in texts.items():
        _set(tree, key, _parse_yaml(text)[0])
    return Config.model_validate(tree)


def by_dotted_key(settings: Mapping[str, Any]) -> Tree:
    """Settings by section as settings by dotted key: {"tiles": {"mpp": 0.5}} -> {"tiles.mpp": 0.5}."""
    flat: Tree = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and _section_at(key.split(".")) is not None:
            flat |= by_dotted_key({f"{key}.{name}": inner for name, inner in value.items()})
        else:
            flat[key] = value
    return flat


def setting_text(value: Any) -> str:
    """A plain value as one writes it on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def as_plain(section: Section) -> Tree:
    """The section as plain data that YAML and JSON can hold and `load_config` reads back."""
    plain: Tree = json.loads(section.model_dump_json())
    short: Tree = _shorten_durations(plain)
    return short


def as_yaml(section: Section) -> str:
    """The section as YAML text."""
    return yaml.safe_dump(as_plain(section), sort_keys=False, width=110)


def digest(section: Section) -> str:
    """16 hexadecimal digits that change when a setting of the section does.

    Settings with their default play no part, so that one which is new in dino_path changes nothing.
    """
    return digest_of_plain(_shorten_durations(json.loads(section.model_dump_json(exclude_defaults=True))))


def digest_of_file(file: Path) -> str:
    """The digest by which earlier versions knew a resolved config: of all settings that they had.

    Raises:
        ConfigError: no YAML file of settings.
    """
    return digest_of_plain(_read_yaml(file)[0])


def digest_of_plain(tree: Tree) -> str:
    """The digest of a section that is plain data already."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]


def _shorten_durations(tree: Any) -> Any:
    if isinstance(tree, dict):
        if set(tree) == {"amount", "unit"}:
            return length_text(tree["amount"], tree["unit"])
        return {key: _shorten_durations(value) for key, value in tree.items()}
    return tree


def _read_yaml(file: Path) -> tuple[Tree, list[str]]:
    """The tree, and one fault for each repeated key."""
    try:
        tree, faults = _parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            str(file),
            f"cannot be read ({_one_line(error)}).",
            "A YAML file is needed.",
            f"Give --config {file.stem}: that is a shipped config."
            if file.stem in shipped_names()
            else "Check the path; `dino-path configs` lists the shipped configs.",
        ) from None
    except yaml.YAMLError as error:
        raise ConfigError(
            str(file),
            _one_line(error),
            "A YAML file of plain keys and values is needed.",
            "Correct that line; configs/ has examples.",
        ) from None
    if tree is None:
        return {}, faults
    if not isinstance(tree, dict):
        raise ConfigError(
            str(file),
            f"holds a {type(tree).__name__}.",
            "Sections such as `tiles:` are needed.",
            "See configs/ for examples.",
        )
    return tree, faults


def _set(tree: Tree, dotted: str, value: Any) -> None:
    *sections, key = dotted.split(".")
    for name in sections:
        if tree.get(name) is None:
            tree[name] = {}
        tree = tree[name]
        if not isinstance(tree, dict):
            raise TypeError(f"{name!r} holds a value, not a section")
    tree[key] = value


def _is_given(tree: Tree, dotted: str) -> bool:
    *sections, key = dotted.split(".")
    for name in sections:
        tree = tree.get(name) or {}
        if not isinstance(tree, dict):
            return True  # a fault that is told later
    return key in tree


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _fault_lines(error: ValidationError, tree: Tree, root: type[Section]) -> list[str]:
    """The faults in plain words, one per place; pydantic gives one per type if a value fits none of several.

    Args:
        root: the section that the tree was to be.
    """
    by_place: dict[tuple[int | str, ...], list[Any]] = {}
    for fault in error.errors():
        by_place.setdefault(_place(fault, tree), []).append(fault)
    return [_fault_line(place, faults, root) for place, faults in by_place.items()]


def _place(fault: Any, tree: Any) -> tuple[int | str, ...]:
    """The place of a fault in the given tree, without what pydantic appends for the type that it tried."""
    if fault["type"] in ("extra_forbidden", "missing"):
        return tuple(fault["loc"])
    place = []
    for part in fault["loc"]:
        is_there = part in tree if isinstance(tree, dict) else isinstance(tree, list | tuple) and isinstance(part, int)
        if not is_there:
            break
        tree = tree[part]
        place.append(part)
    return tuple(place)


def _fault_line(place: Sequence[int | str], faults: Sequence[Any], root: type[Section]) -> str:
    """One fault of pydantic's in our words: `unknown key 'optim.wieght_decay'. Did you mean 'weight_decay'?`"""
    fault = faults[0]
    location = [str(part) for part in place]
    dotted = ".".join(location)
    if fault["type"] == "extra_forbidden":
        known = _known_keys(location[:-1], root)
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else f" Known here: {', '.join(sorted(known))}."
        return f"unknown key '{dotted}'.{hint}"
    if fault["type"] == "missing":
        section = _section_at(location[:-1], root)
        if section is None:  # a tuple that is too short
            return f"'{'.'.join(location[:-1])}': {location[-1]} value(s) given, more are needed"
        return f"missing key '{dotted}' ({section.model_fields[location[-1]].description or 'no default'})"
    message = fault["msg"].removeprefix("Value error, ")
    if len(faults) > 1:
        message = f"one of {', '.join(str(fault['loc'][-1]) for fault in faults)} is needed"
    return f"'{dotted}': {message}" + ("" if isinstance(fault["input"], dict) else f" (given: {fault['input']!r})")


def _section_at(location: Sequence[str], root: type[Section] = Config) -> type[Section] | None:
    """The section class that sits at a dotted place of the tree; sections by name (`sets.pcam`) have the name in it."""
    section, rest = root, list(location)
    while rest:
        field = section.model_fields.get(rest.pop(0))
        options = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        inner = [option for option in options if isinstance(option, type) and issubclass(option, Section)]
        if not inner:
            return None
        section = inner[0]
        if field is not None and get_origin(field.annotation) is dict and rest:
            rest.pop(0)
    return section


def _known_keys(location: Sequence[str], root: type[Section]) -> list[str]:
    section = _section_at(location, root)
    return list(section.model_fields) if section else []

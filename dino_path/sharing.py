"""What may leave the hospital: files that are meant to be shared name no folder, host, user or command of this machine.

The names of files and of the last folder of a path stay: a run, a model and a data set are called by them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

# A text that is a path, perhaps with what it is before it: `/data/x`, `pcam:/data/x`, `untrained:../models/x`.
PATH = re.compile(r"(?P<kind>(?:[\w+-]+:)*)(?P<path>(?:/(?!/)|\.{1,2}/|~/)(?:[^:\n]|:(?!\s))*)")
# An absolute path within a sentence: folders may have blanks in their names; `um/` is a unit.
WITHIN = re.compile(r"(?<![\w/.])(?!//)/(?:[^/\n'\"():;,]*(?<!\bum)/)*(?P<name>[^\s/'\"():;,]*)")
# Settings that name files, folders or what lies there, absolute or not.
OF_FILES = ("store", "out", "masks", "regions", "weights", "continue_from", "knn_data", "teacher")
HUBS = ("hf-hub:", "hf_hub:")


def without_folders(value: Any) -> Any:
    """A plain value (text, list, mapping) with every absolute path shortened to its last part."""
    if isinstance(value, str):
        if whole := PATH.fullmatch(value):
            return f"{whole['kind']}{PurePath(whole['path']).name}"
        return WITHIN.sub(lambda found: found["name"], value)
    if isinstance(value, Mapping):
        return {without_folders(key): without_folders(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(without_folders, value))
    return value


def shared_name(spec: str, *, num_parts: int = 1) -> str:
    """What a model or data set was given as, with the last parts of its path alone.

    With 2 parts, `untrained:/data/runs/vits16/model` is `untrained:vits16/model`: the run and its model.
    """
    kind, colon, path = spec.rpartition(":")
    is_path = "/" in path and not spec.startswith(HUBS)
    return f"{kind}{colon}{PurePath(*PurePath(path).parts[-num_parts:])}" if is_path else spec


def shared_settings(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run without cluster, account and folders, which say where it ran."""
    left = {key: value for key, value in tree.items() if key not in ("cluster", "entity")}
    return {
        key: shared_settings(value)
        if isinstance(value, Mapping)
        else shared_name(value)
        if key in OF_FILES and isinstance(value, str)
        else without_folders(value)
        for key, value in left.items()
    }

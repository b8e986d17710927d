"""What stands where an export is to be written. Known without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dino_path.errors import DataError
from dino_path.model.folder import CONFIG_NAME, WEIGHTS_NAME


def refuse_to_overwrite(out: Path) -> None:
    """Check that nothing but an older export of ours stands where a model folder is to be written.

    Raises:
        DataError: something else does.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    config = out / CONFIG_NAME
    if not (config.is_file() and (out / WEIGHTS_NAME).is_file() and "architecture" in read_json(config)):
        found = "exists and is not a model folder."
    elif "dino_path" not in read_json(config):
        found = "is a model folder that `dino-path export` has not written."
    else:
        return
    raise DataError(
        str(out),
        found,
        "A new or empty folder, or an older export to replace, is needed.",
        "Choose another --out.",
    )


def read_json(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}

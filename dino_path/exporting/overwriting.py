"""Check of the target folder of an export, without importing torch."""

from __future__ import annotations

from pathlib import Path

from dino_path.errors import CheckpointError, DataError
from dino_path.records.model_folder import CONFIG_NAME, WEIGHTS_NAME, ModelRecord, read_model_record


def refuse_to_overwrite(out: Path) -> None:
    """Check that the target folder is empty, new, or an older export.

    Raises:
        DataError: something else does. NewerFormat: a later dino_path wrote it.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    record = _model_record(out)
    if record is None:
        found = "exists and is not a model folder."
    elif record.dino_path is None:
        found = "is a model folder that was not written by `dino-path export`."
    else:
        return
    raise DataError(
        str(out),
        found,
        "A new or empty folder, or an older export to replace, is needed.",
        "Choose another --out.",
    )


def _model_record(folder: Path) -> ModelRecord | None:
    """The description in a model folder; None if it is not a model folder."""
    if not (folder / WEIGHTS_NAME).is_file():
        return None
    try:
        return read_model_record(folder / CONFIG_NAME)
    except CheckpointError:
        return None

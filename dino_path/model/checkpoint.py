"""The checkpoint file of a pretraining run: its name and version, and how it is read back."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

from dino_path.errors import CheckpointError

FORMAT = "dino_path checkpoint"
VERSION = 1
# What torch's reader raises on files that are damaged, or no checkpoints at all (tried with random bytes).
UNREADABLE = (
    OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, struct.error,
    pickle.UnpicklingError, zipfile.BadZipFile,
)  # fmt: skip
_KEYS = ("step", "config", "num_tiles", "world_size", "tile_mpp", "student_backbone", "teacher_backbone")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The record in a checkpoint file of ours, on the CPU; only tensors and plain values are unpickled.

    Raises:
        CheckpointError: not a file that torch.load(weights_only=True) reads, or not one of ours.
    """
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
        torn = torn_member(path)
    except UNREADABLE as error:
        raise _not_ours(path, f"cannot be read as a checkpoint ({' '.join(str(error).split())[:160]}).") from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise _not_ours(path, "is a torch file, but no checkpoint of dino_path.")
    if record.get("version") != VERSION:
        raise _not_ours(path, f"has checkpoint version {record.get('version')!r}.")
    if torn is not None:
        raise _not_ours(path, f"cannot be read as a checkpoint (the checksum of {torn} is wrong).")
    missing = [key for key in _KEYS if key not in record]
    if missing:
        raise _not_ours(path, f"lacks {', '.join(missing)}.")
    return record


def torn_member(path: Path) -> str | None:
    """The first tensor whose checksum does not match: torch writes checksums, and does not look at them."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        return archive.testzip()


def _not_ours(path: Path, found: str) -> CheckpointError:
    return CheckpointError(
        str(path),
        found,
        f"A file that `dino-path pretrain` has written (version {VERSION}) is needed; nothing else is unpickled.",
        "Check the path; if the file is damaged, use the checkpoint before it.",
    )

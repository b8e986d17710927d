"""Files that torch.save wrote, read with their checksums: torch writes those, and does not look at them."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch

# What reading raises on files that are damaged, or no files of torch's at all (tried with random bytes).
UNREADABLE = (
    OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, struct.error,
    pickle.UnpicklingError, zipfile.BadZipFile,
)  # fmt: skip


def load_torch_file(path: Path, device: torch.device | str = "cpu") -> Any:
    """The contents of a file, on `device`; only tensors and plain values are unpickled.

    Raises:
        UNREADABLE: no such file, damaged, a checksum that is wrong, or a file that unpacks to more than its own size.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            _refuse_bomb(archive)
            if (torn := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"the checksum of {torn} is wrong")
    return torch.load(path, map_location=device, weights_only=True)


def _refuse_bomb(archive: zipfile.ZipFile) -> None:
    """Refuse compressed files: torch does not compress, and a small file could unpack to gigabytes."""
    packed = [member for member in archive.infolist() if member.file_size > member.compress_size]
    if packed:
        size = sum(member.file_size for member in archive.infolist())
        raise zipfile.BadZipFile(f"it is compressed, and would unpack to {size / 1e9:.2g} GB")

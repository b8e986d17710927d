"""Our refusal says in one sentence what decoding libraries log of a damaged file in thousands of lines."""

from __future__ import annotations

import logging


def silence_decoders() -> None:
    """Called where such a library is imported, in worker processes too."""
    for library in ("tifffile", "wsidicom", "pydicom", "imagecodecs"):
        logging.getLogger(library).setLevel(logging.CRITICAL + 1)

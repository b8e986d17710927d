"""Turns decoders' errors on damaged files into one kind of refusal."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dino_path.errors import SlideError

# One changed byte of a TIFF's directory gives any of these. tifffile's own errors are ValueErrors, those of imagecodecs
# and slideio RuntimeErrors.
DECODER_ERRORS: tuple[type[Exception], ...] = (
    OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError,
    struct.error,
)  # fmt: skip


@contextmanager
def damage_refused(path: Path, *others: type[Exception]) -> Iterator[None]:
    """Turn decoders' errors into a SlideError.

    Args:
        others: exceptions that a library has of its own.
    """
    try:
        yield
    except DECODER_ERRORS + others as error:
        raise undecodable(path, " ".join(str(error).split()) or type(error).__name__) from None


def undecodable(path: Path, found: str) -> SlideError:
    """A file that its decoder refuses: damaged, or, where the decoder says so, of a kind that it lacks."""
    if "support" not in found.lower():
        return damaged(path, found)
    return SlideError(
        str(path),
        f"cannot be decoded ({found}).",
        "A slide in 8-bit colour and a common compression is needed.",
        "Convert it to pyramidal TIFF with the scanner's own software, or list the slide under slides.exclude.",
    )


def damaged(path: Path, found: str) -> SlideError:
    """A file whose bytes contradict each other, or end early."""
    return SlideError(
        str(path),
        f"cannot be read ({found}).",
        "A complete and undamaged file is needed.",
        "Copy the file again; if that does not help, list the slide under slides.exclude.",
    )

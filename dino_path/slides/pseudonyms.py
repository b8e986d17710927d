"""Pseudonyms of slides and patients, and the two files that hold what they stand for: a mapping and a secret key.

A pseudonym is HMAC-SHA256 (RFC 2104) of the id under the key, cut to 60 bits and written in Crockford's base 32, such
as `s-4k7q-m2xd-9tbr`: the same id has the same name in every run with the same key, on any machine, and nobody without
the key can tell by trying ids. Of a million slides, two share a name with a probability of 4e-7; that is refused.
"""

from __future__ import annotations

import hmac
import logging
import os
import re
import secrets
import stat
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import TextIOWrapper
from pathlib import Path
from typing import Literal

from dino_path.atomic import atomic_write, one_at_a_time
from dino_path.errors import ConfigError, SlideError
from dino_path.identity import files_of
from dino_path.records.pseudonyms import ONLY_OWNER, Entry, read_mapping, write_mapping
from dino_path.slides.find import SlideRow

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: no i, l, o, u
LETTERS, GROUP, BITS = 12, 4, 5
KEY_BYTES = 32
KEY_PATTERN = re.compile(r"[0-9a-f]{64}")
FOLDER = re.compile(r"(?<![\w.])/[^\s'\",;:)]+")  # an absolute path within a message
HIDDEN = "(a file)"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PseudonymFiles:
    """Where the mapping and the key lie."""

    mapping: Path
    key: Path

    @property
    def notes(self) -> Path:
        """What the search for slides says, with names of files; for the owner of the mapping alone."""
        return self.mapping.with_name(f"{self.mapping.name}.log")

    def key_check(self) -> str:
        """What tells the key from others; "" where it is yet to be made.

        Raises:
            ConfigError: the file holds no key.
        """
        return key_check(_key_in(self.key)) if self.key.exists() else ""

    def refuse_unsafe(self, out: Path) -> None:
        """Check that the files lie outside `out`, and that nobody but their owner may read them.

        Raises:
            ConfigError: they do not, others may, or there is a mapping without its key.
        """
        for file in (self.mapping, self.key):
            if file.resolve().is_relative_to(out.resolve()):
                raise ConfigError(
                    str(file),
                    f"lies inside {out}.",
                    "The mapping and the key must lie apart from what they keep secret.",
                    "Name a file elsewhere, in a folder that you alone may read.",
                )
        for file in (self.mapping, self.key, self.notes):
            if file.exists():
                refuse_readable(file)
        if self.mapping.exists() and not self.key.exists():
            raise ConfigError(
                str(self.key),
                "there is no such file.",
                f"The key is needed that the names in {self.mapping} were made with.",
                "Restore it, or name it with --key. For new names under a new key, name another mapping.",
            )


def refuse_readable(file: Path) -> None:
    """Check that nobody but its owner may read or write a file.

    Raises:
        ConfigError: it is no file, or others may.
    """
    mode = file.stat().st_mode
    if not stat.S_ISREG(mode):
        raise ConfigError(str(file), "is no file.", "The name of a file is needed.", "Correct --pseudonymise or --key.")
    if mode & 0o077:
        raise ConfigError(
            str(file),
            f"others may read or write it (mode {stat.S_IMODE(mode):o}).",
            "It says whom the pseudonyms stand for: only its owner may read it (mode 600).",
            f"If nobody has read it, call `chmod 600 {file}`.",
        )


def pseudonymise(rows: Sequence[SlideRow], files: PseudonymFiles) -> tuple[list[SlideRow], str]:
    """The slides under their pseudonyms, sorted by them, and what tells the key from others.

    A slide that the mapping knows by its path keeps its name, wherever the search began. Key and mapping are made where
    they are missing; any number of tasks may do so at once.

    Raises:
        ConfigError: the key is none, or not that of the mapping; the files cannot be written.
        SlideError: two slides, or two patients, have one pseudonym.
    """
    try:
        with one_at_a_time(files.mapping.with_name(f".{files.mapping.name}.lock")):
            key = _key_in(files.key)
            before = read_mapping(files.mapping) if files.mapping.exists() else []
            _refuse_other_key(before, key, files)
            renamed, mapping = _renamed(rows, before, key)
            if mapping != before:
                write_mapping(files.mapping, mapping)
    except OSError as error:
        raise ConfigError(
            str(files.mapping),
            f"the mapping or its key cannot be read or written ({error}).",
            "A folder where you may write is needed.",
            "Check the path and who may write there.",
        ) from None
    return sorted(renamed, key=lambda row: row.slide_id), key_check(key)


def pseudonym(key: bytes, kind: Literal["slide", "patient"], name: str) -> str:
    """The pseudonym of an id: `s-` or `p-`, and three groups of four letters."""
    text = f"{kind}\0{unicodedata.normalize('NFC', name)}".encode()
    number = int.from_bytes(hmac.digest(key, text, "sha256"), "big")
    letters = [ALPHABET[number >> BITS * place & len(ALPHABET) - 1] for place in range(LETTERS)]
    groups = ("".join(letters[at : at + GROUP]) for at in range(0, LETTERS, GROUP))
    return "-".join([kind[0], *groups])


def key_check(key: bytes) -> str:
    """16 hex digits that tell one key from another."""
    return hmac.digest(key, b"key check", "sha256").hex()[:16]


def without_names(row: SlideRow, text: str) -> str:
    """A message about a slide without what names it: its files, their folders, any absolute path.

    The message as it is where the slide has no pseudonym.
    """
    if not row.shown_path:
        return text
    shown: dict[str, str] = {}
    for file in _files_of(row):
        name = f"{row.slide_id}{_suffix(file)}"
        shown |= {str(file): name, file.name: name, file.stem: row.slide_id}
    longest_first = sorted(shown, key=len, reverse=True)
    names = re.compile("|".join(rf"(?<!\w){re.escape(name)}(?!\w)" for name in longest_first))
    return FOLDER.sub(HIDDEN, names.sub(lambda found: shown[found[0]], text))


@contextmanager
def kept_private(files: PseudonymFiles) -> Iterator[Callable[[str], None]]:
    """What is logged inside names files: it goes to `files.notes` alone, and a line says so. Gives what notes more."""
    log, counted = logging.getLogger("dino_path"), _Counter()
    files.notes.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Opened by the first note, not removed where there was none: another task may be about to write to it.
    journal = _PrivateFile(files.notes, delay=True, encoding="utf-8")
    journal.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    shown, log.handlers = log.handlers, [journal, counted]
    try:
        yield logger.warning
    finally:
        log.handlers = shown
        journal.close()
    if counted.number:
        logger.warning("%d notes on the search for slides name files: they are in %s", counted.number, files.notes)


class _PrivateFile(logging.FileHandler):
    """A log that its owner alone may read."""

    def _open(self) -> TextIOWrapper:
        descriptor = os.open(self.baseFilename, os.O_WRONLY | os.O_CREAT | os.O_APPEND, ONLY_OWNER)
        return os.fdopen(descriptor, "a", encoding=self.encoding)


class _Counter(logging.Handler):
    """How many warnings there were."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.number = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.number += 1


def _key_in(file: Path) -> bytes:
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as stream:
            os.fchmod(stream.fileno(), ONLY_OWNER)
            stream.write(f"{secrets.token_hex(KEY_BYTES)}\n")
    text = file.read_text(encoding="utf-8", errors="replace").strip()
    if not KEY_PATTERN.fullmatch(text):
        raise ConfigError(
            str(file),
            "holds no key.",
            f"{2 * KEY_BYTES} hexadecimal digits are needed, as `dino-path tile --pseudonymise` writes them.",
            "Name another file with --key, or restore the key.",
        )
    return bytes.fromhex(text)


def _refuse_other_key(mapping: Sequence[Entry], key: bytes, files: PseudonymFiles) -> None:
    if any(entry.pseudonym != pseudonym(key, "slide", entry.slide_id) for entry in mapping):
        raise ConfigError(
            str(files.key),
            f"is not the key that the names in {files.mapping} were made with.",
            "One mapping holds the names of one key: else a slide would have two.",
            "Name the right key with --key, or another mapping.",
        )


def _renamed(
    rows: Sequence[SlideRow], before: Sequence[Entry], key: bytes
) -> tuple[list[SlideRow], list[Entry]]:  # fmt: skip
    """The rows under their pseudonyms, and the mapping with them, sorted."""
    by_path = {entry.path: entry for entry in before}
    mapping = {entry.pseudonym: entry for entry in before}
    patients = {entry.patient_pseudonym: entry.patient_id for entry in before if entry.patient_id}
    renamed = []
    for row in rows:
        path = os.fsencode(row.path).decode(errors="backslashreplace")  # a name in no encoding can be written too
        known = by_path.get(path)
        slide_id = known.slide_id if known is not None else row.slide_id
        name = pseudonym(key, "slide", slide_id)
        patient_id = row.patient_id or ""
        patient = pseudonym(key, "patient", patient_id) if patient_id else ""
        if (other := patients.setdefault(patient, patient_id)) != patient_id:
            raise _two_of_one_name("patient", patient, other, patient_id)
        entry = Entry(name, slide_id, patient, patient_id, path)
        if (there := mapping.get(name)) is not None and (
            there.slide_id != slide_id or (there.path != entry.path and os.path.exists(there.path))  # noqa: PTH110
        ):
            raise _two_of_one_name("slide", name, there.path, entry.path)
        mapping[name] = entry
        renamed.append(replace(row, slide_id=name, patient_id=patient or None, shown_path=f"{name}{_suffix(row.path)}"))
    return renamed, [mapping[name] for name in sorted(mapping)]


def _two_of_one_name(kind: str, name: str, one: str, other: str) -> SlideError:
    return SlideError(
        other,
        f"its {kind} would have the pseudonym {name}, which stands for {one}.",
        f"Every {kind} needs a pseudonym of its own, and so an id of its own.",
        f"Give {kind} ids in a CSV (columns path,slide_id,patient_id), or use another mapping with another key.",
    )


def _files_of(row: SlideRow) -> Iterator[Path]:
    """The files that a slide consists of, and its mask."""
    yield row.path
    if mask := (row.overrides or {}).get("mask"):
        yield Path(mask)
    with suppress(OSError):  # it is gone
        yield from files_of(row.path)


def _suffix(file: Path) -> str:
    """The extension; none of DICOM files that are named by numbers."""
    return "" if file.suffix[1:].isdecimal() else file.suffix.lower()

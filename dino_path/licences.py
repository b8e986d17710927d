"""The licences of all that dino-path needs, as the installed packages' metadata give them. Imports none of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Literal

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

Note = Literal["", "copyleft", "weak copyleft", "proprietary", "unknown", "not installed"]

UNKNOWN = "unknown"
LONGEST_NAME = 100  # characters: a longer License field is the text of a licence
CLASSIFIER = "License :: "
NO_NAME = re.compile(r"unknown|(licen[cs]e|copying)(\.\w+)?", re.IGNORECASE)  # some name a file there
BRACKETS = re.compile(r"\(([^()]*)\)")
PROPRIETARY = re.compile(r"proprietary|nvidia|commercial", re.IGNORECASE)
# The first binds what is linked with it; the second the files of the package itself.
STRONG = re.compile(r"\bA?GPL|General Public License|CC-BY-SA", re.IGNORECASE)
WEAK = re.compile(r"\bLGPL|Lesser General Public|Library General Public|\bMPL|Mozilla|\bEPL|Eclipse|\bEUPL|\bCDDL"
                  r"|GPL[^()]* WITH [\w.-]*exception", re.IGNORECASE)  # fmt: skip


@dataclass(frozen=True)
class Licence:
    """One package.

    Attributes:
        version: "" where the package is not installed.
        licence: an SPDX expression, or what the package calls it; "unknown".
        note: what is to be looked at before the package is passed on; "" otherwise.
    """

    name: str
    version: str
    licence: str
    note: Note


def licences(package: str = "dino-path") -> list[Licence]:
    """Of every package that `package` needs, those of its extras that are installed too, by name.

    Raises:
        PackageNotFoundError: `package` itself is not installed.
    """
    found: dict[str, Licence] = {}
    seen: set[tuple[str, str]] = set()
    root = distribution(package)
    waiting = [(name, extra) for name, extra in _needs(root, {"", *_installed_extras(root)})]
    while waiting:
        name, extras = waiting.pop()
        new = {extra for extra in ("", *extras) if (name, extra) not in seen}
        seen |= {(name, extra) for extra in new}
        installed = _distribution(name)
        if installed is None:
            found[name] = Licence(name, "", UNKNOWN, "not installed")
        elif new:
            text = licence_of(installed)
            found[name] = Licence(installed.metadata["Name"], installed.version, text, note_of(text))
            waiting += _needs(installed, new)
    found.pop(canonicalize_name(package), None)
    return [found[name] for name in sorted(found)]


def _needs(installed: Distribution, extras: set[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """(name, its extras) of what a package with these extras needs on this machine."""
    for line in installed.requires or ():
        needed = Requirement(line)
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
            yield canonicalize_name(needed.name), frozenset(needed.extras)


def _installed_extras(installed: Distribution) -> Iterator[str]:
    always = {*_needs(installed, {""})}
    for extra in installed.metadata.get_all("Provides-Extra") or ():
        if all(_distribution(name) is not None for name, _ in {*_needs(installed, {extra})} - always):
            yield extra


def _distribution(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def licence_of(installed: Distribution) -> str:
    """The License-Expression (PEP 639), else the License field, else the classifiers; "unknown" without any.

    Of a License field that is the whole text of a licence the first line stands, where there are no classifiers.
    """
    expression = _field(installed, "License-Expression")
    if expression:
        return expression
    field = _field(installed, "License").strip()
    if NO_NAME.fullmatch(field):
        field = ""
    if field and "\n" not in field and len(field) <= LONGEST_NAME:
        return field
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in installed.metadata.get_all("Classifier") or ()
        if line.startswith(CLASSIFIER) and line != "License :: OSI Approved"
    ]
    if classifiers:
        return "; ".join(classifiers)
    return field.splitlines()[0].strip()[:LONGEST_NAME] if field else UNKNOWN


def _field(installed: Distribution, name: str) -> str:
    """A field of the metadata, or "": asking for a missing one by `[name]` is deprecated since Python 3.13."""
    return next(iter(installed.metadata.get_all(name) or ()), "")


def note_of(licence: str) -> Note:
    """Whether a licence asks for more than its own text to be passed on. Of alternatives (`OR`) the freest counts."""
    while inner := BRACKETS.search(licence):
        licence = licence.replace(inner[0], _freest(inner[1]))
    return _worst_note(_freest(licence))


def _freest(licence: str) -> str:
    ranked: tuple[Note, ...] = ("", "weak copyleft", "copyleft", "proprietary", "unknown")
    return min(re.split(r"\bOR\b", licence), key=lambda one: ranked.index(_worst_note(one)))


def _worst_note(licence: str) -> Note:
    if licence.strip() == UNKNOWN:
        return "unknown"
    if PROPRIETARY.search(licence):
        return "proprietary"
    if STRONG.search(WEAK.sub("", licence)):
        return "copyleft"
    return "weak copyleft" if WEAK.search(licence) else ""

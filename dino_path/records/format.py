"""A file format of dino_path: a schema, a version, and the lifts from earlier versions.

A change of a schema is a new version with a lift from the one before, a new field too: an older dino_path then says
that the file is newer than itself, and does not call it damaged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from dino_path.atomic import write_json
from dino_path.disk import parse_json
from dino_path.errors import DinoPathError, NewerFormat
from dino_path.sharing import without_folders

Tree = dict[str, Any]
Lift = Callable[[Tree], Tree]
R = TypeVar("R")
VERSION_KEY = "format_version"


class Record(BaseModel):
    """A file or a part of it; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def newer_format(file: Path, name: str, version: int, known: int) -> NewerFormat:
    """The refusal of a file that a later dino_path wrote."""
    return NewerFormat(
        str(file),
        f"was written by a newer dino_path ({name}, format {version}).",
        f"This one reads formats up to {known}.",
        "Update dino_path.",
    )


@dataclass(frozen=True)
class Format(Generic[R]):
    """One kind of file.

    Attributes:
        name: what messages call such a file.
        schema: what the present version holds: a `Record` or a dataclass of pydantic's.
        error: which refusal a missing or damaged file is.
        needed, remedy: the last two parts of that refusal.
        lifts: from version `oldest` to the next, and so on up to the present one.
        oldest: the first version that can be read. A file that gives no version is of this one.
        is_shared: the file is meant to be shared, so that no text in it names a folder (see `sharing`).
    """

    name: str
    schema: type[R]
    error: type[DinoPathError]
    needed: str
    remedy: str
    lifts: tuple[Lift, ...] = ()
    oldest: int = 1
    is_shared: bool = False

    @property
    def version(self) -> int:
        return self.oldest + len(self.lifts)

    @cached_property
    def _adapter(self) -> TypeAdapter[R]:
        return TypeAdapter(self.schema)

    def plain(self, record: R) -> Tree:
        """The record as written: plain values, with its version first."""
        tree = self._adapter.dump_python(record, mode="json")
        return {VERSION_KEY: self.version, **(without_folders(tree) if self.is_shared else tree)}

    def write(self, file: Path, record: R) -> None:
        """Write the file, whole or not at all."""
        write_json(file, self.plain(record))

    def read(self, file: Path) -> R:
        """The record in a file of this version or an earlier one.

        Raises:
            DinoPathError: of the kind `error`: the file is missing, damaged, or another kind of file.
            NewerFormat: a later dino_path wrote it.
        """
        record = self.find(file)
        if record is None:
            raise self.error(str(file.parent), f"no {file.name} here.", self.needed, self.remedy)
        return record

    def find(self, file: Path) -> R | None:
        """As `read`; None if there is no such file, which another process may have removed a moment ago."""
        try:
            tree = parse_json(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self.damaged(file, str(error)) from None
        return self.parse(tree, file)

    def parse(self, tree: object, file: Path) -> R:
        """The record in the content of a file, given as JSON gives it. Raises as `read` does."""
        if not isinstance(tree, dict):
            raise self.damaged(file, "no JSON object")
        version = tree.get(VERSION_KEY, self.oldest)
        if type(version) is not int or version < self.oldest:
            raise self.damaged(file, f"{VERSION_KEY} {version!r}")
        if version > self.version:
            raise newer_format(file, self.name, version, self.version)
        tree = {key: value for key, value in tree.items() if key != VERSION_KEY}
        try:
            for lift in self.lifts[version - self.oldest :]:
                tree = lift(tree)
            return self._adapter.validate_python(tree)
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
            raise self.damaged(file, "; ".join(faults[:3])) from None
        except (KeyError, TypeError, AttributeError, IndexError) as error:  # a lift looked for what is not there
            raise self.damaged(file, f"{type(error).__name__}: {error}") from None

    def damaged(self, file: Path, found: str) -> DinoPathError:
        """The refusal of a file that cannot be read as this format."""
        return self.error(str(file), f"is damaged ({' '.join(found.split())}).", self.needed, self.remedy)

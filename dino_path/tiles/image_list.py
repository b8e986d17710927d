"""The images with which a run started: names and sizes, kept in its folder so that it can resume after a repair."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection
from pathlib import Path

from dino_path.disk import parse_json
from dino_path.records.tables import IMAGE_LIST
from dino_path.tiles.images import ImageFiles

logger = logging.getLogger(__name__)

MOST_UNREADABLE = 0.01  # of a run's tiles; at least one
MOST_NAMED = 5


def most_unreadable(num_tiles: int) -> int:
    """How many of a run's tiles may be unreadable, and how many images may change unseen between two starts."""
    return max(1, int(MOST_UNREADABLE * num_tiles))


def write_image_list(file: Path, images: ImageFiles, folder: Path) -> None:
    """Keep the names below `folder` and the sizes of a run's images."""
    sizes = zip(images.paths, images.sizes, strict=True)
    IMAGE_LIST.write(file, ("path", "bytes"), ((path.relative_to(folder).as_posix(), size) for path, size in sizes))


def images_as_begun(file: Path, found: ImageFiles, folder: Path, unreadable: Collection[str]) -> ImageFiles:
    """The images of the list, in its order and under its digest, where `found` are the same but for a few.

    The order of tiles and their views depend on the number of tiles. So an image that was repaired is the same tile,
    and one that was taken away stays a tile, which is passed over like one that cannot be read. Both are said.

    Args:
        found: what is below `folder` now (or what `slides.exclude` leaves of it).
        unreadable: names of images that this run could not read: any of them may have changed, and
            `most_unreadable` others.

    Returns:
        `found` itself where it holds more than the list, or where more has changed: other tiles, for the caller to
        refuse.

    Raises:
        TileStoreError: the list is damaged.
    """
    listed = _read_image_list(file)
    now = {path.relative_to(folder).as_posix(): size for path, size in zip(found.paths, found.sizes, strict=True)}
    gone = [name for name in listed if name not in now]
    changed = [name for name, size in listed.items() if now.get(name, size) != size]
    unseen = {*gone, *changed}.difference(unreadable)
    if not now.keys() <= listed.keys() or len(unseen) > most_unreadable(len(listed)):
        return found
    for names, what in ((gone, "are gone: other images replace them"), (changed, "have changed in size")):
        if names:
            named = ", ".join(names[:MOST_NAMED]) + (", ..." if len(names) > MOST_NAMED else "")
            logger.warning(
                "of the %d images that this run started with, %d %s (%s)", len(listed), len(names), what, named
            )
    return ImageFiles([folder / name for name in listed], found.mpp, sizes=list(listed.values()))


def _read_image_list(file: Path) -> dict[str, int]:
    columns = IMAGE_LIST.read(file)
    try:
        return dict(zip(columns["path"], map(int, columns["bytes"]), strict=True))
    except (ValueError, KeyError) as error:
        raise IMAGE_LIST.damaged(file, f"{type(error).__name__}: {error}") from None


def note_unreadable(file: Path, name: str, reason: str, *, step: int) -> None:
    """Add a line about a tile. Several processes may do so: a line is one write at the file's end."""
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"tile": name, "step": step, "reason": reason}) + "\n")


def unreadable_names(file: Path) -> set[str]:
    """The tiles of which there are such lines; a line that a killed process left half written is passed over."""
    names: set[str] = set()
    for line in file.read_bytes().splitlines() if file.is_file() else ():
        try:
            names.add(str(parse_json(line)["tile"]))
        except (ValueError, KeyError, TypeError):
            continue
    return names

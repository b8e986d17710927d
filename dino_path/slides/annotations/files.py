"""Annotation files: their endings, their names in a folder, and reading them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from dino_path.errors import SlideError
from dino_path.slides.annotations.geojson import read_geojson
from dino_path.slides.annotations.outlines import MarkedObject, moved
from dino_path.slides.annotations.xml_files import read_xml

GEOJSON_ENDINGS = (".geojson", ".geojson.gz", ".json", ".json.gz")
XML_ENDINGS = (".xml", ".annotations")
OUTLINE_ENDINGS = (*GEOJSON_ENDINGS, *XML_ENDINGS)
MOST_NAMES = 5  # in a message


def has_outlines(file: Path) -> bool:
    """Whether a file's name says that it holds outlines."""
    return file.name.lower().endswith(OUTLINE_ENDINGS)


def read_objects(file: Path, *, qupath_origin: tuple[int, int]) -> list[MarkedObject]:
    """All objects of a file of outlines, in pixels of level 0, (0, 0) at its corner.

    Args:
        qupath_origin: `Slide.bounds_origin`: QuPath counts from there, other tools from the corner of level 0.

    Raises:
        DataError: the file cannot be read, or is not what its name says.
    """
    objects = read_xml(file) if file.name.lower().endswith(XML_ENDINGS) else read_geojson(file)
    return [_in_slide_frame(one, qupath_origin) for one in objects]


def find_annotation(
    folder: Path, places: Sequence[str], slide_id: str, slide_path: Path, *, setting: str
) -> Path | None:
    """A slide's file in a folder of annotations; None if there is none.

    Args:
        places: where it may lie, with {name} for the slide's id, or its file name with or without extension.
        setting: which names the folder, for the message.

    Raises:
        SlideError: several files could be meant.
    """
    files = [folder / place.format(name=name) for name in names_of(slide_id, slide_path) for place in places]
    # By inode: where upper and lower case are one, a file has two of these names.
    found = {file.stat().st_ino: file for file in files if file.is_file()}
    if slide_path.is_file():
        found.pop(slide_path.stat().st_ino, None)  # a TIFF may be a slide or a mask: never the mask of itself
    if len(found) > 1:
        raise SlideError(
            slide_path.name,
            f"{len(found)} {setting.rpartition('.')[2]} could be meant: {', '.join(sorted(map(str, found.values())))}.",
            "Each slide may have one file.",
            f"Set {setting} to a folder with only the right files.",
        )
    return next(iter(found.values()), None)


def names_of(slide_id: str, slide_path: Path) -> list[str]:
    """The names by which a slide's files are looked for."""
    return sorted({slide_id, slide_path.name, slide_path.stem, slide_path.stem.removesuffix(".ome")})


def what_lies_there(folder: Path, wanted: str) -> str:
    """A sentence that lists the files of a folder, those with names similar to `wanted` first."""
    if not folder.is_dir():
        return f"There is no folder {folder}."
    names = sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))
    if not names:
        return f"The folder {folder} is empty."
    near = difflib.get_close_matches(wanted, names, n=MOST_NAMES, cutoff=0.5)
    shown = near or names[:MOST_NAMES]
    more = f" and {len(names) - len(shown)} more" if len(names) > len(shown) else ""
    return f"In {folder} lie {', '.join(shown)}{more}."


def _in_slide_frame(one: MarkedObject, qupath_origin: tuple[int, int]) -> MarkedObject:
    if not one.counts_from_bounds or qupath_origin == (0, 0):
        return one
    moved_polygons = tuple(moved(polygon, qupath_origin) for polygon in one.polygons)
    return replace(one, polygons=moved_polygons, counts_from_bounds=False)

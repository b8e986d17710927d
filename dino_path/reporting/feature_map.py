"""A map of features, as a section of a page and as a separate page.

The section's style and script are in `feature_map.css` and `feature_map.js`. They load nothing: thumbnails are data
addresses, and all that comes from names reaches the page as text.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from dino_path import __version__
from dino_path.atomic import atomic_write
from dino_path.records.feature_map import FeatureMapRecord, map_json, unpacked

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class MapSections:
    """The parts that a page needs to show maps.

    Attributes:
        html: one section per map.
        style, script: for the page, once; `policy` allows both, and data addresses for pictures, and nothing else.
    """

    html: tuple[Markup, ...]
    style: Markup
    script: Markup

    def policy(self, *styles: str) -> str:
        """The content security policy of a page with these maps.

        Args:
            styles: of the page's style elements; none: the maps' style alone.
        """
        allowed = " ".join(_hash(style) for style in styles or (self.style,))
        return f"default-src 'none'; img-src data:; style-src {allowed}; script-src {_hash(self.script)}"


def map_sections(maps: Sequence[FeatureMapRecord]) -> MapSections:
    """The sections of these maps, with anchors `map-1`, `map-2`, ..."""
    template = _environment().get_template("feature_map.html.j2")
    sections = (
        template.render(
            map=record,
            anchor=f"map-{number}",
            drawn=_drawn(record),
            compared=[column for column in record.columns if column.alike is not None],
            made=list(_made(record)),
            data=Markup(map_json(record)),
        )
        for number, record in enumerate(maps, 1)
    )
    style, script = ((FOLDER / name).read_text(encoding="utf-8") for name in ("feature_map.css", "feature_map.js"))
    return MapSections(tuple(map(Markup, sections)), Markup(style), Markup(script))


def write_page(record: FeatureMapRecord, out: Path) -> Path:
    """Write one map as one self-contained HTML file, and return it; `records.feature_map` reads it back."""
    sections = map_sections([record])
    style = Markup((FOLDER / "feature_map_page.css").read_text(encoding="utf-8")) + sections.style
    page = _environment().get_template("feature_map_page.html.j2").render(
        title=f"{record.data}, {record.model}",
        section=sections.html[0],
        style=style,
        script=sections.script,
        policy=Markup(sections.policy(style)),
        version=__version__,
    )  # fmt: skip
    with atomic_write(out) as stream:
        stream.write(page)
    return out


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _hash(text: str) -> str:
    """The source expression that allows an inline element with this text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _drawn(record: FeatureMapRecord) -> str:
    """Which tiles, as a sentence."""
    units = "" if record.unit == "image" else f" of {record.num_units:,} {record.unit}{'s' * (record.num_units != 1)}"
    if record.num_tiles == record.num_all_tiles:
        return f"All {record.num_tiles:,} tiles{units} in {record.data}."
    evenly = "at random" if record.unit == "image" else f"as evenly as possible from each {record.unit}"
    return f"{record.num_tiles:,} of {record.num_all_tiles:,} tiles{units} in {record.data}, drawn {evenly}."


def _made(record: FeatureMapRecord) -> Iterator[str]:
    yield f"Layout: {record.method_note}; seed {record.seed}."
    yield (
        f"Neighbours: the {record.num_neighbours} tiles of other {record.unit}s with the highest cosine similarity"
        f" of features, by exact search in the full feature space."
    )
    if record.tile_um is not None:
        yield f"A tile is {record.tile_um:g} um wide."
    if record.x_level0 is not None:
        yield "Positions are the tiles' top-left corners in their slides, in pixels of level 0."
    if record.unit == "image":
        yield "The data name neither slides nor patients: neighbours may be tiles of the same slide."
    yield "Clusters: spherical k-means of the features, numbered by size. They describe the features, not the tissue."
    yield f"By chance: the value for neighbours drawn at random from the map's tiles of other {record.unit}s."
    pictures = record.pictures
    shown = len(unpacked(pictures.tiles, "u2")) if pictures.tiles else record.num_tiles
    yield (
        f"Thumbnails: {shown:,} of {record.num_tiles:,} tiles, at {pictures.edge_px} px: as many and as large as fit"
        " into a page of 15 MB."
    )
    yield from record.notes

"""Answers to the page's requests from one tile store. Nothing is written, and no path comes from the page."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dino_path.errors import DataError, SlideError, TileStoreError
from dino_path.records.slide import SlideRecord
from dino_path.slides.region import read_scaled
from dino_path.tiles.layout import StoreFolder, damaged_slide
from dino_path.tiles.pictures import read_contours
from dino_path.tiles.reading import spec_of
from dino_path.tiles.tile_table import TileTable, read_tile_table, refusal_reasons
from dino_path.tiles.writing import encode_jpeg
from dino_path.viewing.deep_zoom import JPEG_QUALITY, SQUARE_PX, DeepZoom, OpenSlides
from dino_path.viewing.layers import CLUSTERS, REFUSED, Layer, cluster_layer, heat_layer, tile_layer
from dino_path.viewing.pngs import png

if TYPE_CHECKING:  # they import torch, which a look at slides does without
    from dino_path.viewing.cohort import Neighbour
    from dino_path.viewing.model_overlays import ModelOverlays

MOST_TABLES = 32  # of tiles, in memory
HTML, CSS, JAVASCRIPT = "text/html; charset=utf-8", "text/css; charset=utf-8", "text/javascript; charset=utf-8"
JSON, JPEG, PNG = "application/json", "image/jpeg", "image/png"
PAGE = {"": ("viewer.html", HTML), "viewer.css": ("viewer.css", CSS), "viewer.js": ("viewer.js", JAVASCRIPT)}
Answer = tuple[bytes, str]  # what is sent, and its media type


class Viewer:
    """Answers requests; threads may share it.

    Attributes:
        records: of all slides of the store, in the order of their ids; the page counts them from 0.
        stage: what is being done before the model's overlays are there, for people; empty when nothing is.
        model: None until `show_model`.
    """

    def __init__(self, store: Path, overlays: Sequence[Path] = ()) -> None:
        """Look at a store and at GeoJSON files with a value per tile, each named after its slide.

        Raises:
            TileStoreError: no store, or one without slides. DataError: a file is no heat map of one of its slides.
        """
        self.folder = StoreFolder(store)
        self.config = self.folder.read_config()
        self.records = self.folder.records()
        if not self.records:
            raise TileStoreError(
                str(store),
                "has no finished slide.",
                "A tile store with at least one slide is needed.",
                "Wait until `dino-path tile` has finished one.",
            )
        self.stage, self._version = "", 0
        self.model: ModelOverlays | None = None
        self._slides = OpenSlides(self.records)
        self._zoom = DeepZoom(self._slides)
        self._heat: dict[int, list[Layer]] = {}
        for file in overlays:
            number = _slide_of(file, self.records)
            self._heat.setdefault(number, []).append(heat_layer(file, self.records[number]))
        self.table = lru_cache(maxsize=MOST_TABLES)(self._read_table)

    def show_model(self, model: ModelOverlays) -> None:
        """From now on the page shows this model's layers."""
        self._numbers = {record.slide_id: number for number, record in enumerate(self.records)}
        self.model, self.stage, self._version = model, "", self._version + 1

    def close(self) -> None:
        """Close the slides."""
        self._slides.close()

    def answer(self, path: str) -> Answer | None:
        """The response for a path below the token; None if there is none.

        Raises:
            DinoPathError: it cannot be read.
        """
        if path in PAGE:
            name, kind = PAGE[path]
            return files("dino_path.viewing").joinpath("page", name).read_bytes(), kind
        for pattern, method in ROUTES:
            if match := pattern.fullmatch(path):
                numbers = [int(text) for text in match.groups()]
                if path.startswith("slide/") and numbers[0] >= len(self.records):
                    return None
                return method(self, *numbers)
        return None

    def state(self) -> Answer:
        """The layers that are ready; the page asks again until all are."""
        state: dict[str, Any] = {"version": self._version, "stage": self.stage, "model": None}
        if self.model is not None:
            maps, cohort, extractor = self.model.maps, self.model.cohort, self.model.maps.extractor
            examples = zip(cohort.sizes_K.tolist(), cohort.examples_K.tolist(), CLUSTERS, strict=False)
            state |= {
                "model": extractor.name,
                "input": extractor.preprocessing.of_tiles(self.config.size_px, self.config.mpp).text(),
                "clusters": [{"size": size, "picture": tile, "colour": colour} for size, tile, colour in examples],
                "no_tokens": maps.no_tokens,
                "variance": [] if maps.no_tokens else [round(float(one), 3) for one in maps.colours.variance],
                "no_attention": maps.no_attention,
                "fields": maps.fields,
                "num_heads": maps.num_heads,
            }
        return _json(state)

    def slides(self) -> Answer:
        """All slides, for the list of the page."""
        return _json(
            [
                {
                    "id": record.slide_id,
                    "status": record.status,
                    "reason": record.reason,
                    "num_tiles": record.num_tiles,
                    "num_candidates": record.num_candidates,
                }
                for record in self.records
            ]
        )

    def about(self, number: int) -> Answer:
        """One slide: its size, outline of tissue, and tiling record.

        Raises:
            TileStoreError: a file of the slide is missing or damaged.
        """
        record, problem, coarsest = self.records[number], "", -1
        if record.status != "failed":
            try:
                coarsest = self._zoom.coarsest(number)
            except SlideError as error:  # its thumbnail and tiles are still there to be seen
                problem = f"{error.thing}: {error.found} {error.remedy}"
        return _json(
            {
                "width": record.width_level0,
                "height": record.height_level0,
                "mpp": record.mpp,
                "square_px": SQUARE_PX,
                "coarsest": coarsest,
                "problem": problem,
                "part": record.pictured_part,
                "contours": self.contours(number),
                "facts": _slide_facts(record),
                "no_tile": f"no tile: less than {self.config.min_tissue_fraction:.0%} tissue"
                + (", or unreadable" if record.num_unreadable else ""),
            }
        )

    def contours(self, number: int) -> list[list[list[float]]]:
        """Closed rings around tissue, and around holes in it, level-0 px."""
        record = self.records[number]
        if record.status == "failed":
            return []
        left, top = record.bounds_origin
        rings = read_contours(self.folder.contour_file(record.slide_id))
        return [[[x + left, y + top] for x, y in ring] for ring in rings]

    def thumbnail(self, number: int) -> Answer:
        """The slide, small; it needs no slide file."""
        file = self.folder.thumbnail_file(self.records[number].slide_id)
        try:
            return file.read_bytes(), JPEG
        except OSError as error:
            raise damaged_slide(file, str(error)) from None

    def square(self, number: int, zoom: int, column: int, row: int) -> Answer:
        return self._zoom.square(number, zoom, column, row), JPEG

    def layers(self, number: int) -> list[Layer]:
        """All that can be drawn over a slide as rectangles."""
        record, table = self.records[number], self.table(number)
        layers = [tile_layer(table, record)] if record.status != "failed" else []
        if self.model is not None and record.num_tiles:
            tiles = self.tiles_of(number)
            cohort = self.model.cohort
            layers.append(cluster_layer(table, cohort.clusters_N[tiles], len(cohort.sizes_K)))
        return layers + self._heat.get(number, [])

    def layers_record(self, number: int) -> Answer:
        return _json([layer.record() for layer in self.layers(number)])

    def tile(self, number: int, row: int) -> Answer | None:
        """The facts on one tile, and the most similar tiles of the store."""
        record, table = self.records[number], self.table(number)
        if row >= len(table):
            return None
        about: dict[str, Any] = {"facts": _tile_facts(table, row, record), "tile": None, "neighbours": None}
        if self.model is not None and table.kept[row]:
            tile = self._tile_of(number, row)
            cohort = self.model.cohort
            about |= {
                "tile": tile,
                "cluster": int(cohort.clusters_N[tile]) + 1,
                "neighbours": {
                    name: [self._place(one) for one in cohort.neighbours(tile, of_others=name == "others")]
                    for name in ("all", "others")
                },
            }
        return _json(about)

    def picture(self, tile: int) -> Answer | None:
        """A tile of the store."""
        if self.model is None or tile >= len(self.model.store):
            return None
        if not self.config.coordinates_only:
            return self.model.store.read_bytes(tile), JPEG
        return encode_jpeg(self.model.store.read_image(tile), JPEG_QUALITY, "420"), JPEG

    def token_colours(self, number: int, row: int) -> Answer | None:
        """The patch tokens of a kept tile as colours, one px per patch."""
        table = self.table(number)
        if self.model is None or self.model.maps.no_tokens or row >= len(table) or not table.kept[row]:
            return None
        return png(self.model.maps.colours_of(self._tile_of(number, row))), PNG

    def attention(self, number: int, x: int, y: int, field: int) -> Answer | None:
        """Attention within a square of `field` tiles around a point (level-0 px)."""
        if self.model is None or field not in self.model.maps.fields or self.records[number].status == "failed":
            return None
        with self._slides.lend(number) as slide:
            edge = spec_of(slide, self.config).size_level0 * field
            corner = (
                max(0, min(x - edge // 2, slide.width_level0 - edge)),
                max(0, min(y - edge // 2, slide.height_level0 - edge)),
            )
            edge_px = self.config.size_px * field
            image_HWC = read_scaled(slide, corner, (edge, edge), (edge_px, edge_px))
        point = ((x - corner[0]) / edge, (y - corner[1]) / edge)
        if not all(0 <= part < 1 for part in point):
            return None
        maps = self.model.maps.attention(image_HWC, field, point)
        return _json({"x": corner[0], "y": corner[1], "size": edge, "maps": maps})

    def _read_table(self, number: int) -> TileTable:
        record = self.records[number]
        if not (record.num_tiles or record.num_candidates):  # nothing was cut, and there is no table
            return TileTable.from_rows([])
        file = self.folder.table_file(record.slide_id)
        try:
            return read_tile_table(file)
        except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are ValueErrors
            raise damaged_slide(file, str(error)) from None

    def tiles_of(self, number: int) -> NDArray[np.int64]:
        """Numbers in the store of a slide's kept tiles, in the order of its table."""
        assert self.model is not None
        store, slide_id = self.model.store, self.records[number].slide_id
        place = [record.slide_id for record in store.slides].index(slide_id)
        return np.arange(store.starts[place], store.starts[place + 1])

    def _tile_of(self, number: int, row: int) -> int:
        """The number in the store of a kept tile."""
        return int(self.tiles_of(number)[np.count_nonzero(self.table(number).kept[:row])])

    def _place(self, neighbour: Neighbour) -> dict[str, Any]:
        assert self.model is not None
        store, tile = self.model.store, neighbour.tile
        return {
            "slide": self._numbers[store.slide_id(tile)],
            "id": store.slide_id(tile),
            "tile": tile,
            "x": int(store.x_level0[tile]),
            "y": int(store.y_level0[tile]),
            "size": int(store.size_level0[tile]),
            "similarity": round(neighbour.similarity, 3),
        }


ROUTES: tuple[tuple[re.Pattern[str], Callable[..., Answer | None]], ...] = tuple(
    (re.compile(pattern.replace("#", r"(\d{1,9})")), method)
    for pattern, method in (
        (r"state\.json", Viewer.state),
        (r"slides\.json", Viewer.slides),
        (r"slide/#/about\.json", Viewer.about),
        (r"slide/#/thumbnail\.jpg", Viewer.thumbnail),
        (r"slide/#/layers\.json", Viewer.layers_record),
        (r"slide/#/square/(\d{1,2})/#/#\.jpg", Viewer.square),
        (r"slide/#/tile/#\.json", Viewer.tile),
        (r"slide/#/attention/#/#/(\d)\.json", Viewer.attention),
        (r"picture/#\.jpg", Viewer.picture),
        (r"slide/#/tokens/#\.png", Viewer.token_colours),
    )
)


def _slide_of(file: Path, records: Sequence[SlideRecord]) -> int:
    """The slide whose id the file's name begins with, the longest such id.

    Raises:
        DataError: there is none.
    """
    found = [number for number, record in enumerate(records) if file.name.startswith(record.slide_id)]
    if not found:
        raise DataError(
            str(file),
            "its name does not begin with a slide id of the store.",
            f"Files named after their slides are needed, such as {records[0].slide_id}.geojson.",
            "Rename the file.",
        )
    return max(found, key=lambda number: len(records[number].slide_id))


def _json(record: Any) -> Answer:
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode(), JSON


def _slide_facts(record: SlideRecord) -> list[tuple[str, str]]:
    facts: list[tuple[str, str]] = [("Status", record.status)]
    if record.reason:
        facts.append(("Reason", record.reason))
    if record.mpp is not None:
        millimetres = [edge * record.mpp / 1000 for edge in (record.width_level0, record.height_level0)]
        facts += [
            ("Size", f"{record.width_level0:,} x {record.height_level0:,} px ({millimetres[0]:.1f} x"
                     f" {millimetres[1]:.1f} mm)"),
            ("Level 0", f"{record.mpp:.4g} um/px ({record.mpp_source})"),
            ("Tissue", f"{record.tissue_percent or 0:.1f} % of the scanned area"),
            ("Tiles", f"{record.num_tiles:,} kept of {record.num_candidates:,} with enough tissue"),
        ]  # fmt: skip
    counts = {REFUSED[reason][0]: getattr(record, f"num_{reason}") for reason in REFUSED}
    refused = ", ".join(f"{count:,} {words}" for words, count in counts.items() if count)
    if refused:
        facts.append(("Refused", refused))
    if record.patient_id:
        facts.append(("Patient", record.patient_id))
    if record.split:
        facts.append(("Split", record.split))
    return [*facts, *(("Note", flag) for flag in record.flags)]


def _tile_facts(table: TileTable, row: int, record: SlideRecord) -> list[tuple[str, str]]:
    reason = refusal_reasons(table, record.limits)[row]
    return [
        ("Tile", "kept" if not reason else f"refused: {REFUSED[reason][0]}"),
        ("Place", f"x {table.x_level0[row]:,}, y {table.y_level0[row]:,}, edge {table.size_level0[row]:,} level-0 px"),
        ("Tissue", f"{table.tissue_fraction[row]:.0%}"),
        ("Sharpness", f"{table.sharpness[row]:.4g} (at least {record.limits['min_sharpness']:g})"),
        *(
            (f"{words} area".capitalize(), f"{getattr(table, f'{reason}_fraction')[row]:.1%} (at most {limit:.0%})")
            for reason, words in (("pen", "pen"), ("black", "black"), ("dark", "dark"))
            for limit in [record.limits[f"max_{reason}_fraction"]]
        ),
    ]

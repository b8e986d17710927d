"""Which file lies where in a tile store, what a slide's record says, and which config a store was made with.

STORE/store.json                    format version, tiling config and its digest
      expected.json                 the slides that `tile` was called with: all must get a record
      slides.csv                    what became of every slide; can be edited and given back to `tile`
      contact_sheet_001.jpg         all slides, small
      slides/<slide_id>.json        the record, written last: a slide that has one is finished
      tiles/<slide_id>.tar          one JPEG per tile with enough tissue; WebDataset reads it
      tiles/<slide_id>.parquet      one row per tile: place, numbers, and whether it is kept
      thumbnails/<slide_id>.jpg     the slide, small
      overlays/<slide_id>.jpg       the slide, its tissue and tiles, and some tiles large
      contours/<slide_id>.geojson   tissue, for QuPath
      trident/, clam/               coordinate files on request (features/coordinates.py)
      index/                        large stores: where each tile lies, for memory mapping (tiles/index.py)
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from dino_path.config import TilesConfig
from dino_path.errors import ConfigError, TileStoreError
from dino_path.identity import Identity
from dino_path.run import is_abandoned, write_json
from dino_path.settings import as_plain, digest, digest_of_plain, section_from_file, section_with
from dino_path.slides.overview import Part
from dino_path.tiles.tile_table import LIMITS, limits_of
from dino_path.walk import files_like

FORMAT_VERSION = 2
# Settings that are younger than some stores: what those were made with.
BEFORE_THE_SETTING = {"jpeg_subsampling": "420"}
# What a slide may have of its own. The rest decides what tiles are, and is one for the whole store.
PER_SLIDE = (
    "tissue", "min_saturation", "mask_mpp", "mask_values", "mask_classes", "min_tissue_fraction", "min_area_um2",
    "max_hole_um2", *LIMITS,
)  # fmt: skip
FOLDERS = ("slides", "tiles", "thumbnails", "overlays", "contours")


@dataclass(frozen=True)
class SlideRecord:
    """What became of one slide; the content of `slides/<slide_id>.json`.

    Attributes:
        status: `done` has tiles; `empty` has none, for `reason`; `failed` could not be read, for `reason`.
        path, file_bytes: the slide file when it was tiled.
        content_digest, stamp: which content it had, and what tells that nobody has touched it since (see `identity`);
            empty in records of older versions until `tile` sees the slide again.
        mpp, mpp_source: microns per level-0 pixel and who said so.
        tile_mpp: true microns per pixel of the stored tiles (within `tiles.mpp_tolerance` of `tiles.mpp`).
        bounds_origin: (x, y), level-0 px, from which QuPath counts on this slide.
        pictured: left, top, width, height, level-0 px, of what thumbnail and overlay show: the part that was scanned.
            Empty in stores made before there was such a part: they show the whole slide.
        level, level_width, level_height: the pyramid level that the tiles are read from, and its size in its own px.
        read_px: edge of a tile in px of that level, before it is resampled to `tiles.size_px`.
        shrink: by how much the JPEG decoder divided (1, 2, 4 or 8) where the reader is `native`.
        mask: `otsu`, `saturation`, or the path of the mask that was given; mask_digest: of that file.
        overrides: what the slides CSV set for this slide alone (`mask`, `tiles.<setting>`), as text.
        limits: the quality limits that `num_tiles` and the counts follow from.
        tissue_percent: of the area that the scanner recorded.
        ink_percent: of what is not glass, the share that has the colour of pen ink; above 0 where there is any.
        reader: who read the tiles: `native`, or another and why (`openslide: <why>`); empty when there were none.
        jpeg_subsampling: `444` or `420`, of the tiles that were encoded anew; empty in records from before, `420`.
        num_passed_through: tiles that are the slide's own JPEG bytes, not encoded anew.
        num_candidates: tiles with enough tissue; the next five counts say why some were not kept.
        flags: what a person should look at, such as `tissue near 0 %`.
    """

    slide_id: str
    path: str
    status: Literal["done", "empty", "failed"]
    reason: str = ""
    patient_id: str | None = None
    split: str | None = None
    file_bytes: int = 0
    content_digest: str = ""
    stamp: str = ""
    mpp: float | None = None
    mpp_source: str | None = None
    tile_mpp: float | None = None
    width_level0: int = 0
    height_level0: int = 0
    bounds_origin: tuple[int, int] = (0, 0)
    pictured: tuple[int, ...] = ()
    level: int = 0
    level_width: int = 0
    level_height: int = 0
    read_px: int = 0
    shrink: int = 1
    reader: str = ""
    jpeg_subsampling: str = ""
    mask: str = ""
    mask_digest: str = ""
    overrides: dict[str, str] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    num_tiles: int = 0
    num_passed_through: int = 0
    num_candidates: int = 0
    num_pen: int = 0
    num_black: int = 0
    num_dark: int = 0
    num_blurred: int = 0
    num_unreadable: int = 0
    tissue_percent: float | None = None
    ink_percent: float | None = None
    flags: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def identity(self) -> Identity:
        """What the slide file was when it was tiled."""
        return Identity(self.stamp, self.content_digest)

    @property
    def pictured_part(self) -> Part:
        """Left, top, width and height of what the pictures show, level-0 px."""
        if not self.pictured:
            return 0, 0, self.width_level0, self.height_level0
        left, top, width, height = self.pictured
        return left, top, width, height


_FIELDS = frozenset(one.name for one in fields(SlideRecord))


@dataclass(frozen=True)
class StoreFolder:
    """The files of one tile store."""

    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "store.json"

    @property
    def expected_file(self) -> Path:
        return self.path / "expected.json"

    def record_file(self, slide_id: str) -> Path:
        return self.path / "slides" / f"{slide_id}.json"

    def tar_file(self, slide_id: str) -> Path:
        return self.path / "tiles" / f"{slide_id}.tar"

    def table_file(self, slide_id: str) -> Path:
        return self.path / "tiles" / f"{slide_id}.parquet"

    def thumbnail_file(self, slide_id: str) -> Path:
        return self.path / "thumbnails" / f"{slide_id}.jpg"

    def overlay_file(self, slide_id: str) -> Path:
        return self.path / "overlays" / f"{slide_id}.jpg"

    def contour_file(self, slide_id: str) -> Path:
        return self.path / "contours" / f"{slide_id}.geojson"

    def index_file(self, name: str) -> Path:
        return self.path / "index" / f"{name}.npy"

    @property
    def summary_file(self) -> Path:
        return self.path / "slides.csv"

    def contact_sheet_file(self, page: int) -> Path:
        return self.path / f"contact_sheet_{page:03d}.jpg"

    def record_files(self) -> list[Path]:
        """The records of all finished slides, in the order of their ids."""
        return files_like(self.path / "slides", "[!.]*.json")

    def remove_leftovers(self, slide_ids: Collection[str]) -> None:
        """Delete temporary files that killed processes left of the store's own files and of these slides."""
        files = [*self.path.glob(".*.tmp")]
        for folder in FOLDERS:
            # .<slide_id>.<extension>.<process>.tmp; an id has no dots
            temporary = (self.path / folder).glob(".*.tmp")
            files += [file for file in temporary if file.name[1:].partition(".")[0] in slide_ids]
        for file in files:
            if is_abandoned(file):
                file.unlink(missing_ok=True)

    def remove_outputs(self, slide_id: str) -> None:
        """Delete what there is of a slide that turned out to be unreadable; its record says why it has none."""
        for file in (
            self.tar_file(slide_id),
            self.table_file(slide_id),
            self.thumbnail_file(slide_id),
            self.overlay_file(slide_id),
            self.contour_file(slide_id),
        ):
            file.unlink(missing_ok=True)

    def read_config(self) -> TilesConfig:
        """The tiling config that the store was made with.

        Raises:
            TileStoreError: no store here, or one that this version cannot read.
        """
        settings = BEFORE_THE_SETTING | self._read_settings()
        return section_from_file(TilesConfig, settings, str(self.config_file))

    def _read_settings(self) -> dict[str, Any]:
        """The settings that `store.json` names: those that there were when the store was made."""
        tree = read_json(self.config_file)
        if tree.get("format_version") != FORMAT_VERSION:
            raise TileStoreError(
                str(self.path),
                f"has tile store format {tree.get('format_version')!r}.",
                f"This version of dino_path reads format {FORMAT_VERSION}.",
                "Use the version that made it, or tile again.",
            )
        settings: dict[str, Any] = tree.get("tiles", {})
        return settings

    def config_digest(self) -> str:
        """As it was when the store was made: settings that came later do not change it."""
        return str(read_json(self.config_file).get("digest") or digest(self.read_config()))

    def prepare(self, config: TilesConfig) -> TilesConfig:
        """Make the store, or check that it was made with the same config. Many tasks may do so at once.

        Quality limits may differ: they choose among the stored tiles, and the store takes the new ones over.

        Returns:
            The config to go on with: a setting that is younger than the store, and that nobody has set, is as the
            store's tiles were made.

        Raises:
            TileStoreError: other config, or a folder with something else in it.
        """
        if self.config_file.exists():
            there, named = self.read_config(), self._read_settings()
            config = _as_in_older_store(config, named)
            if there == config:
                return config
            self._refuse_other_config(there.model_copy(update=limits_of(config)), config)
            plain = {key: value for key, value in as_plain(config).items() if key in named}
        elif self.path.exists() and (not self.path.is_dir() or any(self._foreign_entries())):
            raise TileStoreError(
                str(self.path),
                "exists and is no tile store.",
                "A tile store is a folder of its own.",
                "Name an empty or new folder with --out.",
            )
        else:
            plain = as_plain(config)
        record = {"format_version": FORMAT_VERSION, "digest": digest_of_plain(plain), "tiles": plain}
        write_json(self.config_file, record)
        return config

    def _foreign_entries(self) -> list[Path]:
        return [entry for entry in self.path.iterdir() if not entry.name.startswith(".")]

    def _refuse_other_config(self, there: TilesConfig, config: TilesConfig) -> None:
        if there == config:
            return
        old, new = as_plain(there), as_plain(config)
        different = "; ".join(
            f"tiles.{key} {old.get(key)} there, {new[key]} now" for key in new if old.get(key) != new[key]
        )
        raise TileStoreError(
            str(self.path),
            f"was made with another tiling config ({different}).",
            "One store holds tiles of one config.",
            "Use another --out, or the settings in its store.json.",
        )


def _as_in_older_store(config: TilesConfig, named: Collection[str]) -> TilesConfig:
    """The config; settings that the store does not name, and that have their default, as at the store's time."""
    younger = {
        key: value
        for key, value in BEFORE_THE_SETTING.items()
        if key not in named and getattr(config, key) == TilesConfig.model_fields[key].default
    }
    return config.model_copy(update=younger)


def slide_config(config: TilesConfig, overrides: dict[str, str], slide_id: str) -> TilesConfig:
    """The settings of one slide: the store's, and what a CSV set for this slide alone.

    Raises:
        ConfigError: a setting that is unknown, impossible, or not one slide's to choose.
    """
    given = {key.removeprefix("tiles."): text for key, text in overrides.items() if key.startswith("tiles.")}
    refused = sorted(set(given).difference(PER_SLIDE))
    if refused:
        raise ConfigError(
            f"slides CSV, slide {slide_id}",
            f"tiles.{refused[0]} cannot be set for one slide.",
            f"One of {', '.join(f'tiles.{name}' for name in PER_SLIDE)} is needed.",
            "Rename or remove the column; other settings hold for the whole store.",
        )
    return section_with(config, given, f"slides CSV, slide {slide_id}") if given else config


def read_record(file: Path) -> SlideRecord:
    """A slide's record.

    Raises:
        TileStoreError: missing or damaged.
    """
    values = {key: value for key, value in read_json(file).items() if key in _FIELDS}
    try:
        values.update({key: tuple(values[key]) for key in ("flags", "bounds_origin", "pictured") if key in values})
        record = SlideRecord(**values)
    except TypeError as error:
        raise _damaged(file, str(error)) from None
    if record.status not in ("done", "empty", "failed"):
        raise _damaged(file, f"status {record.status!r}")
    return record


def write_record(folder: StoreFolder, record: SlideRecord) -> None:
    """Write a slide's record: from now on the slide is finished."""
    write_json(folder.record_file(record.slide_id), asdict(record))


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object of the store.

    Raises:
        TileStoreError: missing or damaged.
    """
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TileStoreError(
            str(file.parent), f"no {file.name} here.", "A tile store is needed.", "Make one with `dino-path tile`."
        ) from None
    except (OSError, ValueError) as error:
        raise _damaged(file, str(error)) from None
    if not isinstance(tree, dict):
        raise _damaged(file, "no JSON object")
    return tree


def damaged_slide(file: Path, found: str) -> TileStoreError:
    """The refusal of one slide's file."""
    return TileStoreError(
        str(file),
        f"is missing or damaged ({' '.join(found.split())}).",
        "The files of a slide must be as `dino-path tile` wrote them.",
        f"Delete slides/{file.stem}.json in the store and run `dino-path tile` again.",
    )


def _damaged(file: Path, found: str) -> TileStoreError:
    return TileStoreError(
        str(file),
        f"is damaged ({' '.join(found.split())}).",
        "A file as `dino-path tile` writes it is needed.",
        "Delete it and run `dino-path tile` again: it makes what is missing.",
    )

"""The files of a tile store, and the settings with which it was made.

STORE/store.json                    format version, tiling config and its digest
      expected.json                 the slides that `tile` was called with: all must get a record
      pseudonyms.json               only with --pseudonymise: what tells its key from others
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

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dino_path.atomic import remove_abandoned
from dino_path.config import TilesConfig
from dino_path.errors import ConfigError, TileStoreError
from dino_path.records.deciding_settings import deciding_settings
from dino_path.records.slide import SlideRecord, find_slide_record, write_slide_record
from dino_path.records.store import StoreRecord, read_store_record, write_store_record
from dino_path.settings import as_plain, digest_of_plain, section_from_file, section_with
from dino_path.tiles.tile_table import LIMITS, limits_of
from dino_path.walk import files_like

# The settings of the oldest stores of this format. They decide which tiles there are and which pixels they have, and so
# do younger ones, but only where they are not what was done before them: a new setting makes no store another.
FIRST_SETTINGS = (
    "mpp", "size_px", "stride_px", "mpp_tolerance", "edge", "tissue", "min_saturation", "mask_mpp",
    "min_tissue_fraction", "min_area_um2", "max_hole_um2", "mask_values", "mask_classes", "max_pen_fraction",
    "max_black_fraction", "max_dark_fraction", "min_sharpness", "sharpness_mpp", "coordinates_only", "jpeg_quality",
    "copy_native_jpeg", "reader",
)  # fmt: skip
# Of younger settings, what was done before them, where that is not what their default does.
BEFORE_THE_SETTING = {"jpeg_subsampling": "420"}
# What a slide may have of its own. The rest decides what tiles are, and is one for the whole store.
PER_SLIDE = (
    "tissue", "min_saturation", "mask_mpp", "mask_values", "mask_classes", "min_tissue_fraction", "min_area_um2",
    "max_hole_um2", *LIMITS,
)  # fmt: skip
FOLDERS = ("slides", "tiles", "thumbnails", "overlays", "contours")


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

    @property
    def pseudonyms_file(self) -> Path:
        return self.path / "pseudonyms.json"

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

    def records(self) -> list[SlideRecord]:
        """Those records, without the ones that other tasks remove meanwhile, to tile their slides anew."""
        return [record for file in self.record_files() if (record := find_slide_record(file)) is not None]

    def remove_leftovers(self) -> None:
        """Delete temporary files that killed processes left."""
        for folder in (self.path, *(self.path / name for name in FOLDERS)):
            if folder.is_dir():
                remove_abandoned(folder)

    def remove_outputs(self, slide_id: str) -> None:
        """Delete the files of a slide that turned out to be unreadable; its record keeps the reason."""
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
            TileStoreError: no store here, or a damaged one. NewerFormat: a later dino_path made it.
        """
        settings = BEFORE_THE_SETTING | read_store_record(self.config_file).tiles
        return section_from_file(TilesConfig, settings, str(self.config_file))

    def config_digest(self) -> str:
        """As it was when the store was made: settings that came later do not change it."""
        return str(read_store_record(self.config_file).digest or _digest_of(self.read_config()))

    def prepare(self, config: TilesConfig) -> TilesConfig:
        """Create the store, or check that it was made with the same settings. Many tasks may do this at once.

        Quality limits may differ: they only select among the stored tiles, and the store adopts the new ones.

        Returns:
            The config to go on with: a setting that is younger than the store, and that nobody has set, is as the
            store's tiles were made.

        Raises:
            TileStoreError: other config, or a folder with something else in it.
        """
        if self.config_file.exists():
            there, named = self.read_config(), read_store_record(self.config_file).tiles
            config = _as_in_older_store(config, named)
            if there == config:
                return config
            self._refuse_other_config(there.model_copy(update=limits_of(config)), config)
            plain = {key: value for key, value in as_plain(config).items() if key in named}
        elif self.path.exists() and (not self.path.is_dir() or any(self._foreign_entries())):
            raise TileStoreError(
                str(self.path),
                "exists and is not a tile store.",
                "A tile store needs its own folder.",
                "Name an empty or new folder with --out.",
            )
        else:
            plain = as_plain(config)
        write_store_record(self.config_file, StoreRecord(digest=_digest_of(config), tiles=plain))
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
            f"was made with other tiling settings ({different}).",
            "A store holds tiles of one set of settings.",
            "Use another --out, or the settings in its store.json.",
        )


def _digest_of(config: TilesConfig) -> str:
    return digest_of_plain(deciding_settings(config, first=FIRST_SETTINGS, before=BEFORE_THE_SETTING))


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
            "Rename or remove the column; other settings apply to the whole store.",
        )
    return section_with(config, given, f"slides CSV, slide {slide_id}") if given else config


def write_record(folder: StoreFolder, record: SlideRecord) -> None:
    """Write a slide's record: from now on the slide is finished."""
    write_slide_record(folder.record_file(record.slide_id), record)


def damaged_slide(file: Path, found: str) -> TileStoreError:
    """The refusal of one slide's file."""
    return TileStoreError(
        str(file),
        f"is missing or damaged ({' '.join(found.split())}).",
        "The files of a slide must be unchanged since `dino-path tile` wrote them.",
        f"Delete slides/{file.stem}.json in the store and run `dino-path tile` again.",
    )

"""TRIDENT's and CLAM's layouts: the files of a slide, their names and their attributes.

A further layout is a class here, its name in `LayoutName`, and its line in `layout_type`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, assert_never, get_args

from dino_path.config import TilesConfig
from dino_path.errors import SlideError
from dino_path.records.slide import SlideRecord
from dino_path.settings import read_names
from dino_path.slides.find import is_id_of_path, safe_id

LayoutName = Literal["trident", "clam"]
LAYOUTS: tuple[LayoutName, ...] = get_args(LayoutName)
Attributes = Mapping[str, str | int | float | tuple[int, int] | tuple[float, float]]

UM_PER_PX_AT_1X = 10.0  # by convention 20x is 0.5 um/px
TRIDENT_EXTENSIONS = (".ome.tif", ".ome.tiff")  # it takes each as one extension; CLAM takes only what follows the dot


@dataclass(frozen=True)
class FeatureLayout(ABC):
    """Paths of the files of a store's slides below a folder `out`, for one reading tool.

    Attributes:
        config: how the tiles were cut.
    """

    config: TilesConfig
    name: ClassVar[LayoutName]

    @staticmethod
    @abstractmethod
    def name_for_reader(slide_path: str) -> str:
        """The name by which the tool looks for the files of a slide: the slide file's, without folder or extension.

        None knows the ids that we make of paths, which hold folders, and `_` for dots and blanks.
        """

    @classmethod
    def feature_name(cls, record: SlideRecord) -> str:
        """The name of a slide's feature files: its id if the user gave one, else the name that the reader expects."""
        is_given = has_given_id(record.path, record.slide_id)
        return record.slide_id if is_given else cls.name_for_reader(record.path)

    @abstractmethod
    def feature_folder(self, out: Path, encoder: str) -> Path:
        """Folder of the features of the model of this name."""

    @abstractmethod
    def feature_file(self, out: Path, encoder: str, record: SlideRecord) -> Path:
        """The h5 file of features of a slide."""

    def tensor_file(self, feature_file: Path) -> Path | None:
        """The plain tensor of the same features; None where the tool wants none."""
        return None

    def patches_file(self, out: Path, record: SlideRecord) -> Path | None:
        """The coordinate file that belongs to the features; None if the tool needs none."""
        return None

    @abstractmethod
    def coordinate_folder(self, out: Path) -> Path:
        """Folder of coordinate files that are written without features."""

    @abstractmethod
    def coordinate_file(self, out: Path, record: SlideRecord) -> Path:
        """The coordinate file of a slide there."""

    @abstractmethod
    def has_coordinate_file(self, record: SlideRecord) -> bool:
        """Whether a slide is due such a file."""

    @abstractmethod
    def attributes(self, record: SlideRecord, *, size_level0: int) -> Attributes:
        """The attributes of `coords` in a coordinate file of one slide.

        Args:
            size_level0: edge of a tile, level-0 px.
        """

    def misread_factor(self, record: SlideRecord, size_level0: int) -> float:
        """Factor by which the tool's reader reads a slide's tiles too large; 1: correct."""
        return 1.0


class TridentLayout(FeatureLayout):
    """`<mag>x_<px>px_<overlap>px_overlap/`: `features_<encoder>/<name>.h5`, `patches/<name>_patches.h5`."""

    name = "trident"

    @staticmethod
    def name_for_reader(slide_path: str) -> str:
        name = Path(slide_path).name
        for extension in TRIDENT_EXTENSIONS:
            if name.lower().endswith(extension):
                return name[: -len(extension)]
        return Path(name).stem

    def feature_folder(self, out: Path, encoder: str) -> Path:
        return out / job_folder_name(self.config) / f"features_{encoder}"

    def feature_file(self, out: Path, encoder: str, record: SlideRecord) -> Path:
        return self.feature_folder(out, encoder) / f"{self.feature_name(record)}.h5"

    def token_folder(self, out: Path, encoder: str) -> Path:
        """Folder of patch tokens; TRIDENT defines none."""
        return out / job_folder_name(self.config) / f"tokens_{encoder}"

    def token_file(self, out: Path, encoder: str, record: SlideRecord) -> Path:
        """The h5 file of patch tokens of a slide."""
        return self.token_folder(out, encoder) / f"{self.feature_name(record)}.h5"

    def patches_file(self, out: Path, record: SlideRecord) -> Path:
        return out / job_folder_name(self.config) / "patches" / f"{self.feature_name(record)}_patches.h5"

    def coordinate_folder(self, out: Path) -> Path:
        return out / "trident" / job_folder_name(self.config)

    def coordinate_file(self, out: Path, record: SlideRecord) -> Path:
        return self.coordinate_folder(out) / "patches" / f"{self.name_for_reader(record.path)}_patches.h5"

    def has_coordinate_file(self, record: SlideRecord) -> bool:
        return record.status in ("done", "empty")

    def attributes(self, record: SlideRecord, *, size_level0: int) -> Attributes:
        return trident_attributes(record, self.config, name=self.name_for_reader(record.path), size_level0=size_level0)

    def misread_factor(self, record: SlideRecord, size_level0: int) -> float:
        """It cuts the downsample of the level that it reads to an integer.

        No attributes correct that (3.9990 is cut to 3): the ratio of magnifications settles level and edge together.
        """
        widths, heights = record.width_level0 / record.level_width, record.height_level0 / record.level_height
        downsample = (widths + heights) / 2  # OpenSlide's
        return round(size_level0 / int(downsample)) * downsample / size_level0


class ClamLayout(FeatureLayout):
    """`clam_<encoder>/`: `h5_files/<name>.h5` and `pt_files/<name>.pt`; coordinates in `clam/patches/<name>.h5`."""

    name = "clam"

    @staticmethod
    def name_for_reader(slide_path: str) -> str:
        return Path(slide_path).stem

    def feature_folder(self, out: Path, encoder: str) -> Path:
        return out / f"clam_{encoder}"

    def feature_file(self, out: Path, encoder: str, record: SlideRecord) -> Path:
        return self.feature_folder(out, encoder) / "h5_files" / f"{self.feature_name(record)}.h5"

    def tensor_file(self, feature_file: Path) -> Path:
        return feature_file.parent.with_name("pt_files") / f"{feature_file.stem}.pt"

    def coordinate_folder(self, out: Path) -> Path:
        return out / "clam"

    def coordinate_file(self, out: Path, record: SlideRecord) -> Path:
        return out / "clam" / "patches" / f"{self.name_for_reader(record.path)}.h5"

    def has_coordinate_file(self, record: SlideRecord) -> bool:
        # CLAM's extract_features_fp.py writes nothing for a slide without tiles, then stops because nothing is there.
        return record.status == "done"

    def attributes(self, record: SlideRecord, *, size_level0: int) -> Attributes:
        """The edge that is read, and the level that it is read from."""
        level_size = record.level_width, record.level_height
        return {
            "patch_size": record.read_px,
            "patch_level": record.level,
            "downsample": (record.width_level0 / record.level_width, record.height_level0 / record.level_height),
            "downsampled_level_dim": level_size,
            "level_dim": level_size,  # of `patch_level` too: CLAM writes it twice
            "name": self.name_for_reader(record.path),
            "save_path": "",  # an absolute path; nothing reads it
        }


def layout_type(name: LayoutName) -> type[FeatureLayout]:
    """The layout of this name."""
    match name:
        case "trident":
            return TridentLayout
        case "clam":
            return ClamLayout
        case _ as never:
            assert_never(never)


def layouts_of(names: Sequence[LayoutName], config: TilesConfig) -> list[FeatureLayout]:
    """The layouts of these names, for the tiles of a store."""
    return [layout_type(name)(config) for name in names]


def read_layouts(text: str) -> tuple[LayoutName, ...]:
    """Layouts from their names with commas between, each once.

    Raises:
        ConfigError: a name that is not a layout, or none.
    """
    return read_names(text, LAYOUTS, "--layout")


def has_given_id(path: str, slide_id: str) -> bool:
    """Whether a slide has an id that the user gave, such as a pseudonym: it is none that we make of its path."""
    return not is_id_of_path(slide_id, path) and slide_id != safe_id(TridentLayout.name_for_reader(path))


def refuse_shared_names(slides: Iterable[tuple[str, str | None]], layouts: Sequence[LayoutName]) -> None:
    """Check that TRIDENT and CLAM can tell the files of these slides apart.

    Args:
        slides: path of each, and the id that its files are called by; None: they are called like the slide's file.

    Raises:
        SlideError: two have one name, so that one would be read with the tiles of the other.
    """
    by_name: dict[tuple[LayoutName, str], str] = {}
    for path, given_id in slides:
        for layout in layouts:
            name = given_id or layout_type(layout).name_for_reader(path)
            other = by_name.setdefault((layout, name), path)
            if other != path:
                raise SlideError(
                    path,
                    f"its tiles would be in one {layout} file with those of {other}.",
                    f"TRIDENT and CLAM look for a slide by its file's name alone, and both are {name!r}.",
                    "Rename one file and tile it again, or tile their folders into two stores.",
                )


def job_folder_name(config: TilesConfig) -> str:
    """TRIDENT's folder for one kind of tile: `20x_256px_0px_overlap` for 256 px at 0.5 um/px."""
    return f"{UM_PER_PX_AT_1X / config.mpp:g}x_{config.size_px}px_{overlap_px(config)}px_overlap"


def overlap_px(config: TilesConfig) -> int:
    """Of neighbouring tiles, in px at the tiles' mpp; 0 for tiles that do not touch."""
    return 0 if config.stride_px is None else max(0, config.size_px - config.stride_px)


def trident_attributes(record: SlideRecord, config: TilesConfig, *, name: str, size_level0: int) -> Attributes:
    """The attributes of `coords` for one slide: sizes in px, magnifications as 10 / mpp."""
    assert record.mpp is not None
    assert record.tile_mpp is not None
    return {
        "patch_size": config.size_px,
        "patch_size_level0": size_level0,
        "level0_magnification": UM_PER_PX_AT_1X / record.mpp,
        "target_magnification": UM_PER_PX_AT_1X / record.tile_mpp,
        "overlap": overlap_px(config),
        "name": name,
        "savetodir": "",  # TRIDENT's absolute path; nothing reads it, and it would tell where we work
        "level0_width": record.width_level0,
        "level0_height": record.height_level0,
    }

"""Which file of a slide lies where in TRIDENT's and CLAM's folders, and what its name is there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from dino_path.config import TilesConfig
from dino_path.errors import SlideError
from dino_path.settings import read_names

Layout = Literal["trident", "clam"]
LAYOUTS: tuple[Layout, ...] = ("trident", "clam")

UM_PER_PX_AT_1X = 10.0  # by convention 20x is 0.5 um/px
TRIDENT_EXTENSIONS = (".ome.tif", ".ome.tiff")  # it takes each as one extension; CLAM takes only what follows the dot


def read_layouts(text: str) -> tuple[Layout, ...]:
    """Layouts from their names with commas between, each once.

    Raises:
        ConfigError: a name that is not a layout, or none.
    """
    return read_names(text, LAYOUTS, "--layout")


def name_for_reader(slide_path: str, layout: Layout) -> str:
    """The name by which TRIDENT or CLAM looks for the files of a slide: the slide file's, without folder or extension.

    Neither knows our slide ids, which hold folders, and `_` for dots and blanks.
    """
    name = Path(slide_path).name
    if layout == "trident":
        for extension in TRIDENT_EXTENSIONS:
            if name.lower().endswith(extension):
                return name[: -len(extension)]
    return Path(name).stem


def refuse_shared_names(slide_paths: Iterable[str], layouts: Sequence[Layout]) -> None:
    """Check that TRIDENT and CLAM can tell these slides apart.

    Raises:
        SlideError: two have one name, so that one would be read with the tiles of the other.
    """
    by_name: dict[tuple[Layout, str], str] = {}
    for path in slide_paths:
        for layout in layouts:
            name = name_for_reader(path, layout)
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

"""What became of one slide: `STORE/slides/<slide_id>.json`. Version 2 knows its centre and scanner."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from dino_path.errors import TileStoreError
from dino_path.identity import Identity
from dino_path.records.format import Format, Tree

Box = tuple[int, int, int, int]  # of a slide: left, top, width, height, level-0 px


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SlideRecord:
    """What became of one slide; the content of `slides/<slide_id>.json`.

    Attributes:
        status: `done` has tiles; `empty` has none, for `reason`; `failed` could not be read, for `reason`.
        path, file_bytes: the slide file when it was tiled.
        centre, scanner: who made the slide and with which scanner, as the slides CSV says; None: it does not say.
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
        jpeg_subsampling: `444` or `420`, of the tiles that were re-encoded; empty in records from before, `420`.
        num_passed_through: tiles that are the slide's own JPEG bytes, not re-encoded.
        num_candidates: tiles with enough tissue; the next five counts say why some were not kept.
        flags: what a person should look at, such as `tissue near 0 %`.
    """

    slide_id: str
    path: str
    status: Literal["done", "empty", "failed"]
    reason: str = ""
    patient_id: str | None = None
    split: str | None = None
    centre: str | None = None
    scanner: str | None = None
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
        """The identity of the slide file when it was tiled."""
        return Identity(self.stamp, self.content_digest)

    @property
    def pictured_part(self) -> Box:
        """Left, top, width and height of what the pictures show, level-0 px."""
        if not self.pictured:
            return 0, 0, self.width_level0, self.height_level0
        left, top, width, height = self.pictured
        return left, top, width, height


def _version_2_from_1(tree: Tree) -> Tree:
    return {"centre": None, "scanner": None, **tree}


SLIDE = Format(
    "slide record",
    SlideRecord,
    TileStoreError,
    "A file as `dino-path tile` writes it is needed.",
    "Delete it and run `dino-path tile` again: it makes what is missing.",
    (_version_2_from_1,),
)


def read_slide_record(file: Path) -> SlideRecord:
    """A slide's record.

    Raises:
        TileStoreError: missing, damaged, or of another slide: its id names the files that `tile` writes and deletes.
        NewerFormat: a later dino_path wrote it.
    """
    return _of_this_name(SLIDE.read(file), file)


def find_slide_record(file: Path) -> SlideRecord | None:
    """As `read_slide_record`; None if there is none: another task may remove it, to tile the slide anew."""
    record = SLIDE.find(file)
    return None if record is None else _of_this_name(record, file)


def _of_this_name(record: SlideRecord, file: Path) -> SlideRecord:
    if record.slide_id != file.stem:
        raise SLIDE.damaged(file, f"slide_id {record.slide_id!r} in a file of another name")
    return record


def write_slide_record(file: Path, record: SlideRecord) -> None:
    """Write a slide's record: from now on the slide is finished."""
    SLIDE.write(file, record)

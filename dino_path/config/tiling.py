"""Which slides take part, and how they become tiles: `slides`, `tiles`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from dino_path.config.section import Fraction, Section


class SlidesConfig(Section):
    """Which slides take part."""

    exclude: tuple[str, ...] = Field((), description="slide ids (or file names) to leave out")
    split: str | None = Field(
        None, description="pretrain only on slides whose `split` column in the slides CSV has this value"
    )
    masks: Path | None = Field(
        None,
        description="folder of tissue masks from other tools: one file of outlines or one picture per slide, named"
        " <slide_id> or <file name>; formats in tiling.md",
    )
    max_seconds: float | None = Field(
        3600,
        gt=0,
        description="a slide that has not been tiled after so long fails, and the others go on; None: no limit",
    )
    max_memory_gb: float | None = Field(
        8,
        ge=1,
        description="memory of each process that tiles, in 10^9 bytes: a slide that needs more fails, and the others go"
        " on (Linux alone); None: no limit",
    )


class TilesConfig(Section):
    """How slides become tiles. A tile store remembers this section and refuses tiles made with another."""

    mpp: float = Field(ge=0.05, le=50, description="microns per pixel of the tiles; no default: it is your choice")
    size_px: int = Field(256, ge=16, le=4096, description="edge of a tile, in pixels at `mpp`")
    stride_px: int | None = Field(None, ge=1, description="step of the grid, in pixels at `mpp`; None: `size_px`")
    mpp_tolerance: float = Field(
        0.05,
        ge=0,
        lt=0.5,
        description="a level this close to `mpp` (relative) is read unchanged, and so is the half, quarter or eighth"
        " of one; the record's `tile_mpp` gives the actual value",
    )
    edge: Literal["drop", "pad"] = Field(
        "drop",
        description="tiles that cross the slide's edge: `drop` leaves them out, `pad` fills them with the slide's"
        " background colour, which counts as no tissue",
    )
    tissue: Literal["otsu", "saturation"] = Field(
        "otsu",
        description="threshold of the tissue mask: `otsu` on the log of the saturation, or the fixed `saturation`",
    )
    min_saturation: float = Field(
        0.06,
        ge=0,
        le=1,
        description="HSV saturation of tissue: the threshold of `saturation`, the lower bound for `otsu`",
    )
    mask_mpp: float = Field(8.0, gt=0, description="microns per pixel of the tissue mask")
    min_tissue_fraction: Fraction = Field(0.5, description="tiles with less tissue are not kept")
    min_area_um2: float = Field(2_000.0, ge=0, description="smaller pieces of tissue are dropped")
    max_hole_um2: float = Field(10_000.0, ge=0, description="smaller holes in the tissue are filled")
    mask_values: tuple[int, ...] | None = Field(
        None, description="values that mean tissue in mask pictures from other tools; None: all but 0"
    )
    mask_classes: tuple[str, ...] | None = Field(
        None,
        description="classes of outlines from other tools that mean tissue; None: all areas, with or without a"
        " class, except QuPath's `Ignore*`",
    )
    max_pen_fraction: Fraction = Field(
        0.05, description="tiles with more pen ink are not kept; 1 for green and blue special stains"
    )
    max_black_fraction: Fraction = Field(0.25, description="tiles with more black are not kept")
    max_dark_fraction: Fraction = Field(
        1.0, description="tiles with more of their area as dark as folded tissue are not kept; 1: off"
    )
    min_sharpness: float = Field(
        0.0,
        ge=0,
        description="tiles less sharp (variance of the Laplacian at `sharpness_mpp`, grey levels squared) are not kept",
    )
    sharpness_mpp: float = Field(
        1.0,
        gt=0,
        description="microns per pixel at which sharpness is measured; coarser tiles are measured at their own",
    )
    coordinates_only: bool = Field(
        False, description="store no pixels: training and embedding read the tiles from the slides"
    )
    jpeg_quality: int = Field(90, ge=50, le=100, description="JPEG quality of the stored tiles")
    jpeg_subsampling: Literal["auto", "444", "420"] = Field(
        "auto",
        description="colour resolution of re-encoded tiles: full (`444`), or halved in both directions (`420`,"
        " smaller files); `auto`: halved only if the slide's own JPEG tiles are",
    )
    copy_native_jpeg: bool = Field(
        True,
        description="if a tile is one of the slide's own JPEG tiles, store its bytes unchanged, without loss",
    )
    reader: Literal["auto", "openslide"] = Field(
        "auto", description="`auto`: JPEG tiles directly from the file, if their pixels agree with OpenSlide's"
    )

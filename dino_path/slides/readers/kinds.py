"""Which files have a reader, by the extension of their name; and which of these readers is an extra to install."""

from __future__ import annotations

from typing import Literal

ReaderName = Literal["openslide", "tifffile", "slideio", "wsidicom"]
Extra = Literal["slideio", "wsidicom"]

# Read by OpenSlide or tifffile, which are always there. What a file truly is, its first bytes say: see opening.py.
OPENED = (
    ".svs", ".tif", ".tiff", ".btf", ".tf8", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif", ".czi",
    ".dcm", ".dicom", ".qptiff",
)  # fmt: skip
# Read once the extra is installed, and else refused with the command that installs it.
NEEDS_EXTRA: dict[str, Extra] = {".vsi": "slideio"}

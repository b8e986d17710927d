"""How many microns one level-0 pixel measures, and who says so."""

from __future__ import annotations

from collections.abc import Mapping

from dino_path.errors import SlideError

SMALLEST_MPP, LARGEST_MPP = 0.05, 5.0  # beyond these no scanner works: the number is a mistake or another unit
LARGEST_ANISOTROPY = 0.01  # relative difference of mpp in x and y that we take for rounding
MICRONS_PER_UNIT = {"inch": 25_400.0, "centimeter": 10_000.0}

# Properties that hold microns per pixel (x, y), in order of trust. OpenSlide fills the first pair for most vendors.
MPP_PROPERTIES = (
    ("ome:PhysicalSizeX", "ome:PhysicalSizeY"),
    ("openslide.mpp-x", "openslide.mpp-y"),
    ("aperio.MPP", "aperio.MPP"),
    (
        "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_X",
        "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_Y",
    ),
    ("slideio:resolution-x", "slideio:resolution-y"),
    ("wsidicom:mpp-x", "wsidicom:mpp-y"),
)
FROM_CSV, FROM_TIFF, FROM_OBJECTIVE = "slides CSV", "tiff.XResolution", "objective power"


def find_mpp(name: str, properties: Mapping[str, str], *, given: float | None) -> tuple[float, str]:
    """Microns per level-0 pixel, and its source.

    The chain: what the user gave, the vendor's properties, the TIFF resolution with its unit, and the objective power
    (10 / power, an estimate that is flagged by its source). TIFF resolutions beyond any scanner (72 dpi is a common
    default of writers) are passed over; every other implausible value is refused.

    Raises:
        SlideError: no source has it, or it is implausible, or the pixels are not square.
    """
    if given is not None:
        return _plausible(name, given, FROM_CSV), FROM_CSV
    for key_x, key_y in MPP_PROPERTIES:
        mpp_x, mpp_y = _number(properties, key_x), _number(properties, key_y)
        if mpp_x is not None:
            return _plausible(name, _square(name, mpp_x, mpp_y or mpp_x, key_x), key_x), key_x
    unit = MICRONS_PER_UNIT.get(properties.get("tiff.ResolutionUnit", ""))
    per_unit_x, per_unit_y = _number(properties, "tiff.XResolution"), _number(properties, "tiff.YResolution")
    if unit and per_unit_x:
        mpp_x, mpp_y = unit / per_unit_x, unit / (per_unit_y or per_unit_x)
        if SMALLEST_MPP <= mpp_x <= LARGEST_MPP:
            return _plausible(name, _square(name, mpp_x, mpp_y, FROM_TIFF), FROM_TIFF), FROM_TIFF
    power = _number(properties, "openslide.objective-power") or _number(properties, "aperio.AppMag")
    if power:
        return _plausible(name, 10 / power, FROM_OBJECTIVE), FROM_OBJECTIVE
    raise SlideError(
        name,
        "the file does not give the microns per pixel.",
        "Vendor properties, a TIFF resolution between 0.05 and 5 um/px, or an objective power is needed.",
        "List the slide in a CSV with the columns path,mpp and tile that CSV.",
    )


def _number(properties: Mapping[str, str], key: str) -> float | None:
    """A positive number, decimal comma or point; None when missing or anything else (scanners write 0 and text)."""
    try:
        value = float(properties[key].replace(",", "."))
    except (KeyError, ValueError):
        return None
    return value if 0 < value < float("inf") else None


def _square(name: str, mpp_x: float, mpp_y: float, source: str) -> float:
    if abs(mpp_x / mpp_y - 1) > LARGEST_ANISOTROPY:
        raise SlideError(
            name,
            f"its pixels are not square ({source} says {mpp_x:g} um in x and {mpp_y:g} um in y).",
            f"Sides that differ by less than {LARGEST_ANISOTROPY:.0%} are needed.",
            "If the file is wrong, give the true mpp in the slides CSV (columns path,mpp).",
        )
    return (mpp_x + mpp_y) / 2


def _plausible(name: str, mpp: float, source: str) -> float:
    if not SMALLEST_MPP <= mpp <= LARGEST_MPP:
        raise SlideError(
            name,
            f"{source} says {mpp:g} um/px at level 0.",
            f"A value from {SMALLEST_MPP:g} to {LARGEST_MPP:g} um/px is needed: no slide scanner is outside this"
            f" range.",
            "Give the true mpp in the slides CSV (columns path,mpp).",
        )
    return mpp

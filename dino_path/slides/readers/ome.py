"""What the OME-XML of a TIFF says of its image: physical pixel size, and what its channels are. Text only.

Source: OME data model 2016-06 (`Pixels@PhysicalSizeX`, `Channel@Name`, `Channel@IlluminationType`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from xml.etree import ElementTree

MICRONS_PER_UNIT = {
    "m": 1e6, "dm": 1e5, "cm": 1e4, "mm": 1e3, "\u00b5m": 1.0, "\u03bcm": 1.0, "um": 1.0, "nm": 1e-3, "\u00c5": 1e-4,
    "pm": 1e-6, "in": 25_400.0,
}  # fmt: skip
COLOUR_NAMES = ({"red", "r"}, {"green", "g"}, {"blue", "b"})
SIGNS_OF_FLUORESCENCE = ("Fluor", "EmissionWavelength", "ExcitationWavelength")


@dataclass(frozen=True)
class OmeImage:
    """One `Image` of the XML.

    Attributes:
        name: such as "label image"; empty without one.
        properties: `ome:PhysicalSizeX` and `ome:PhysicalSizeY` in um, as text, where the XML has them in a unit of
            length.
        channel_names: one for each channel; empty text where a channel has none.
        is_fluorescence: a channel names its dye or a wavelength, or the lamp that excites it.
    """

    name: str
    properties: Mapping[str, str]
    channel_names: tuple[str, ...]
    is_fluorescence: bool

    @property
    def colour_order(self) -> tuple[int, int, int] | None:
        """Which channels are red, green and blue by their names; None when the names say something else, or nothing."""
        names = [name.strip().lower() for name in self.channel_names]
        places = [[i for i, name in enumerate(names) if name in spellings] for spellings in COLOUR_NAMES]
        if len(names) != 3 or any(len(found) != 1 for found in places):
            return None
        return places[0][0], places[1][0], places[2][0]


def ome_image(xml: str, size: tuple[int, int]) -> OmeImage:
    """The first image of this (width, height) in the XML; one that says nothing when there is none.

    Raises:
        ElementTree.ParseError: this is no XML.
    """
    for image in ElementTree.fromstring(xml.strip().encode()).iterfind("{*}Image"):
        pixels = image.find("{*}Pixels")
        if pixels is not None and (pixels.get("SizeX"), pixels.get("SizeY")) == (str(size[0]), str(size[1])):
            channels = pixels.findall("{*}Channel")
            return OmeImage(
                image.get("Name", ""),
                _physical_size(pixels),
                tuple(channel.get("Name", "") for channel in channels),
                any(_is_fluorescence(channel) for channel in channels),
            )
    return OmeImage("", {}, (), False)


def _physical_size(pixels: ElementTree.Element) -> dict[str, str]:
    found = {}
    for axis in "XY":
        value, unit = pixels.get(f"PhysicalSize{axis}", ""), pixels.get(f"PhysicalSize{axis}Unit", "\u00b5m")
        try:
            found[f"ome:PhysicalSize{axis}"] = str(float(value) * MICRONS_PER_UNIT[unit])
        except (ValueError, KeyError):  # none, or in a unit that is no length, such as "pixel"
            continue
    return found


def _is_fluorescence(channel: ElementTree.Element) -> bool:
    lamp = channel.get("IlluminationType", "") + channel.get("ContrastMethod", "")
    return any(channel.get(sign) for sign in SIGNS_OF_FLUORESCENCE) or "fluorescence" in lamp.lower()

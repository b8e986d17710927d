"""Annotations in XML: the file is parsed here, without trusting it, and its root says which tool wrote it."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, ParseError, TreeBuilder, XMLParser, parse

from dino_path.errors import DataError
from dino_path.slides.annotations.asap import asap_objects
from dino_path.slides.annotations.imagescope import imagescope_objects
from dino_path.slides.annotations.outlines import MarkedObject


class _WithoutDoctype(TreeBuilder):
    """Refuses a DOCTYPE: no tool writes one, and entities, by which a small file grows huge, need one."""

    def doctype(self, name: str, pubid: str, system: str) -> None:
        raise ValueError("it has a DOCTYPE, which annotation files never need")


def read_xml(file: Path) -> list[MarkedObject]:
    """All objects of an XML file of ASAP, ImageScope or HALO.

    Raises:
        DataError: the file cannot be read, or none of these tools wrote it.
    """
    try:
        root: Element = parse(file, XMLParser(target=_WithoutDoctype())).getroot()
        match root.tag:
            case "ASAP_Annotations":
                return asap_objects(root)
            case "Annotations":
                return imagescope_objects(root)
        raise ValueError(f"its root is <{root.tag}>")
    except (OSError, ParseError, ValueError, KeyError) as error:
        raise DataError(
            str(file),
            f"is not an annotation XML file that can be read ({type(error).__name__}:"
            f" {' '.join(str(error).split())[:150]}).",
            "A file of ASAP (root <ASAP_Annotations>), ImageScope or HALO (root <Annotations>) is needed, in level-0"
            " pixels.",
            "Export the annotations from one of them, or as GeoJSON from QuPath.",
        ) from None

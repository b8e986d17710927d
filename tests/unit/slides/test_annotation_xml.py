from pathlib import Path

import numpy as np
import pytest

from dino_path.errors import DataError
from dino_path.slides.annotations.files import read_objects
from dino_path.slides.annotations.outlines import MarkedObject
from dino_path.slides.annotations.painting import paint_polygons


def read(tmp_path: Path, text: str, name: str = "a.xml") -> list[MarkedObject]:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return read_objects(tmp_path / name, qupath_origin=(1000, 1000))  # for none of these tools


def asap(*annotations: str) -> str:
    return (
        f"<?xml version='1.0'?><ASAP_Annotations><Annotations>{''.join(annotations)}</Annotations></ASAP_Annotations>"
    )


def asap_annotation(group: str, points: list[tuple[str, str]], kind: str = "Polygon") -> str:
    coordinates = "".join(
        f'<Coordinate Order="{order}" X="{x}" Y="{y}" />' for order, (x, y) in reversed([*enumerate(points)])
    )
    return f'<Annotation Type="{kind}" PartOfGroup="{group}"><Coordinates>{coordinates}</Coordinates></Annotation>'


def layer(name: str, *regions: str, attributes: str = "") -> str:
    inside = f"<Attributes>{attributes}</Attributes><Regions>{''.join(regions)}</Regions>"
    return f'<Annotation Name="{name}">{inside}</Annotation>'


def region(points: list[tuple[float, float]], kind: str, negative: int = 0, tag: str = "Vertex", text: str = "") -> str:
    vertices = "".join(f'<{tag} X="{x}" Y="{y}"/>' for x, y in points)
    return f'<Region Type="{kind}" NegativeROA="{negative}" Text="{text}"><Vertices>{vertices}</Vertices></Region>'


SQUARE = [(10.0, 20.0), (30.0, 20.0), (30.0, 40.0), (10.0, 40.0)]


def test_asap_is_read_in_the_order_that_it_states_with_decimal_commas_and_points_alike(tmp_path: Path) -> None:
    for point in (",", "."):
        points = [(f"{x:.2f}".replace(".", point), f"{y:.2f}".replace(".", point)) for x, y in SQUARE]
        tumour, no_class, dot, line = read(
            tmp_path,
            asap(
                asap_annotation("Tumour", points),
                asap_annotation("None", points, "Spline"),
                asap_annotation("Tumour", points[:1], "Dot"),
                asap_annotation("None", points[:2], "Measurement"),
            ),
        )
        assert (tumour.class_name, no_class.class_name) == ("Tumour", None)
        assert tumour.polygons[0].rings[0].tolist() == [list(point) for point in SQUARE]
        assert (dot.kind, line.kind, no_class.kind) == ("point", "line", "area")


def test_the_layers_of_imagescope_are_the_classes_and_negative_regions_are_cut_out(tmp_path: Path) -> None:
    text = (
        '<Annotations MicronsPerPixel="0.252">'
        + layer(
            "Tumour",
            region([(0, 0), (40, 0), (40, 40), (0, 40)], "0"),
            region(SQUARE, "0", negative=1),
            region([(0, 0), (9, 9)], "4"),
        )
        + layer("", region(SQUARE, "1"), attributes='<Attribute Name="CaP" Id="0" Value=""/>')
        + layer("", region(SQUARE, "0"), attributes='<Attribute Name="Description" Id="0" Value="stroma"/>')
        + layer("", region(SQUARE, "0", text="fat"))
        + "</Annotations>"
    )
    objects = read(tmp_path, text)
    assert [one.class_name for one in objects] == ["Tumour"] * 3 + ["CaP", "stroma", "fat"]
    assert [one.kind for one in objects] == ["area", "area", "line", "area", "area", "area"]
    tumour = [polygon for one in objects[:3] for polygon in one.polygons]
    raster = paint_polygons(tumour, (0, 0), (1, 1), (50, 50))
    assert raster[30, 20] == 0
    assert raster[10, 20] == 255
    assert (raster > 0).sum() == pytest.approx(1600 - 400, abs=90)


def test_halo_gives_rectangles_and_ellipses_by_two_corners(tmp_path: Path) -> None:
    corners = [(100.0, 200.0), (300.0, 260.0)]
    text = (
        "<Annotations>"
        + layer(
            "Layer 1",
            region(corners, "Rectangle", tag="V"),
            region(corners, "Ellipse", tag="V"),
            region([(0, 0), (50, 0), (0, 50)], "Polygon", tag="V"),
            region(corners, "Ruler", tag="V"),
            region(corners[:1], "Pin", tag="V"),
        )
        + "</Annotations>"
    )
    objects = read(tmp_path, text, "a.annotations")
    assert [one.kind for one in objects] == ["area", "area", "area", "line", "point"]
    areas = [one.polygons[0].area for one in objects[:3]]
    assert areas == pytest.approx([200 * 60, np.pi * 100 * 30, 1250], rel=0.01)
    assert objects[1].polygons[0].bounds == pytest.approx((100, 200, 300, 260))


BOMB = "<!DOCTYPE x [<!ENTITY a 'lol'><!ENTITY b '&a;&a;&a;&a;&a;&a;'>]><Annotations>&b;</Annotations>"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "ParseError"),
        ("<Annotations>", "ParseError"),
        ("<annotations/>", "its root is <annotations>"),  # Hamamatsu's .ndpa counts in nanometres from the centre
        (asap('<Annotation Type="Polygon"><Coordinates><Coordinate X="1"/></Coordinates></Annotation>'), "KeyError"),
        (asap(asap_annotation("A", [("x", "1")])), "could not convert"),
        (asap(asap_annotation("A", [("nan", "1"), ("1", "1"), ("2", "3")])), "not finite"),
        (BOMB, "DOCTYPE"),
        ("<!DOCTYPE x SYSTEM 'file:///etc/hostname'><Annotations/>", "DOCTYPE"),
    ],
)
def test_what_is_no_annotation_and_what_might_do_harm_is_refused_by_name(tmp_path: Path, text: str, found: str) -> None:
    with pytest.raises(DataError, match=rf"a\.xml: is not an annotation XML file(?s:.*){found}"):
        read(tmp_path, text)


def test_files_of_asap_and_imagescope_as_they_are_published(shared_data: Path) -> None:
    folder = shared_data / "slides-odd" / "annotations"
    (asap_object,) = read_objects(folder / "example.xml", qupath_origin=(0, 0))
    left, top, right, bottom = asap_object.polygons[0].bounds
    assert 0 < left < right < 1472  # its slide has 1472 x 690 pixels
    assert 0 < top < bottom < 690
    tcga = read_objects(folder / "TCGA-EJ-5518-01Z-00-DX1.xml", qupath_origin=(0, 0))
    assert "CaP" in {one.class_name for one in tcga}
    first = tcga[0].polygons[0]
    assert first.area == pytest.approx(29046449.6, rel=0.001)  # as the file itself says

import json
import math
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from slide_files import tissue_image, write_slide_file

from dino_path.config import TilesConfig
from dino_path.errors import SlideError
from dino_path.slides.masks import find_mask, mask_digest, read_mask
from dino_path.slides.overview import Overview, read_overview
from dino_path.slides.slide import Slide
from dino_path.slides.tissue import TissueMask, tissue_mask
from dino_path.tiles.pictures import tissue_geojson

PX = 8  # level-0 px per pixel of the overview


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slide]:
    """1024 x 768 px at 0.5 um/px."""
    with Slide.open(write_slide_file(tmp_path_factory.mktemp("slide") / "a.tif", [tissue_image()])) as one:
        yield one


@pytest.fixture(scope="module")
def overview(slide: Slide) -> Overview:
    """128 x 96 px."""
    return read_overview(slide, mpp=0.5 * PX)


Read = Callable[..., np.ndarray]


@pytest.fixture
def read(tmp_path: Path, slide: Slide, overview: Overview) -> Read:
    """Read a mask from a picture, from GeoJSON geometries with their classes, or from bytes."""

    def read(
        content: np.ndarray | list | bytes,
        name: str = "m.png",
        values: tuple[int, ...] | None = None,
        classes: tuple[str, ...] | None = None,
    ) -> np.ndarray:
        file = tmp_path / name
        if isinstance(content, np.ndarray):
            cv2.imwrite(str(file), content)
        elif isinstance(content, bytes):
            file.write_bytes(content)
        else:
            features = [
                {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}
                for name, geometry in content
            ]
            file.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        return read_mask(file, slide, overview, values=values, classes=classes)

    return read


def polygon(*rings: object) -> dict:
    return {"type": "Polygon", "coordinates": [np.asarray(ring).tolist() for ring in rings]}


def square(x: float, y: float, edge: float) -> list:
    return [[x, y], [x + edge, y], [x + edge, y + edge], [x, y + edge], [x, y]]


def half_tissue(height: int, width: int, tissue: int = 255) -> np.ndarray:
    picture = np.zeros((height, width), np.uint8)
    picture[:, : width // 2] = tissue
    return picture


@pytest.mark.parametrize("shape", [(768, 1024), (96, 128), (24, 32), (77, 102), (3, 4)])
def test_a_picture_of_any_size_covers_the_whole_slide(read: Read, shape: tuple[int, int]) -> None:
    tissue = read(half_tissue(*shape))
    assert tissue.shape == (96, 128)
    assert tissue.dtype == np.bool_
    edge = round(128 * (shape[1] // 2) / shape[1])
    assert tissue[:, :edge].all()
    assert not tissue[:, edge:].any()


def test_a_pixel_is_tissue_when_at_least_half_of_it_is(read: Read) -> None:
    picture = np.zeros((96 * 4, 128 * 4), np.uint8)
    picture[0:4, 0:2] = 255  # half of pixel (0, 0)
    picture[0:4, 4:6] = 255
    picture[0, 4] = 0  # 7 of 16 of pixel (0, 1)
    tissue = read(picture)
    assert tissue[0, 0]
    assert tissue.sum() == 1


def test_what_the_scanner_did_not_record_is_no_tissue(tmp_path: Path, slide: Slide, overview: Overview) -> None:
    covered = overview.covered.copy()
    covered[:10] = False
    cv2.imwrite(str(tmp_path / "m.png"), np.full((96, 128), 255, np.uint8))
    partly = Overview(overview.rgb, covered, overview.px_level0)
    np.testing.assert_array_equal(
        read_mask(tmp_path / "m.png", slide, partly, values=None, classes=None), partly.covered
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_values_choose_the_labels_that_are_tissue(read: Read, dtype: type) -> None:
    labels = np.repeat(np.arange(8, dtype=dtype), 16)[None].repeat(96, axis=0)
    for values, expected in ((None, [1, 2, 3, 4, 5, 6, 7]), ((1,), [1]), ((0, 7), [0, 7]), ((70_000, -1), [])):
        found = np.unique(labels[read(labels, values=values)])
        assert found.tolist() == expected


def test_grey_pictures_may_have_three_channels_and_colours_mean_tissue_unless_values_are_given(read: Read) -> None:
    grey = half_tissue(96, 128, tissue=2)
    np.testing.assert_array_equal(read(np.dstack([grey] * 3), values=(2,)), grey == 2)
    coloured = np.dstack([grey * 0, grey * 100, grey * 0])
    np.testing.assert_array_equal(read(coloured), grey == 2)
    with pytest.raises(SlideError, match=r"is a colour picture, for which tiles\.mask_values=\[2\] has no meaning"):
        read(coloured, values=(2,))


def test_transparent_pixels_are_no_tissue(read: Read) -> None:
    opaque = half_tissue(96, 128)
    white = np.full_like(opaque, 255)
    np.testing.assert_array_equal(read(np.dstack([white, white, white, opaque])), opaque == 255)


@pytest.mark.parametrize("shape", [(1024, 768), (96, 96), (96, 132)])
def test_a_picture_of_another_shape_is_refused(read: Read, shape: tuple[int, int]) -> None:
    with pytest.raises(SlideError, match=r"differs in shape from a\.tif \(1024 x 768\)"):
        read(half_tissue(*shape))


def test_rounding_of_the_shape_by_a_pixel_or_two_percent_is_accepted(read: Read) -> None:
    for shape in ((11, 16), (13, 16), (960, 1300)):
        assert read(half_tissue(*shape)).any()


@pytest.mark.parametrize("damage", ["empty", "header", "truncated", "text"])
def test_a_damaged_picture_is_refused_by_name(tmp_path: Path, slide: Slide, overview: Overview, damage: str) -> None:
    file = tmp_path / "m.png"
    noise = np.random.default_rng(0).integers(0, 255, (96, 128), np.uint8)
    whole = cv2.imencode(".png", noise)[1].tobytes()
    contents = {"empty": b"", "header": whole[:33], "truncated": whole[: len(whole) // 2], "text": b"x" * 100}
    file.write_bytes(contents[damage])
    with pytest.raises(SlideError, match=r"m\.png: the mask cannot be read"):
        read_mask(file, slide, overview, values=None, classes=None)


@pytest.mark.parametrize("size", [(40_000, 30_000), (4_000_000, 3_000_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_too_large_for_memory_is_refused_before_it_is_decoded(read: Read, size: tuple[int, int]) -> None:
    small = cv2.imencode(".png", np.zeros((3, 4), np.uint8))[1].tobytes()
    with pytest.raises(SlideError, match=f"the mask has {size[0]} x {size[1]} pixels"):
        read(small[:16] + struct.pack(">II", *size) + small[24:])


@pytest.mark.parametrize("name", ["m.svg", "m.gz", "m"])
def test_other_file_types_are_refused(read: Read, name: str) -> None:
    with pytest.raises(SlideError, match="is not a mask format"):
        read(b"", name=name)


def test_masks_of_grandqc_need_values_because_0_is_tissue_there(read: Read) -> None:
    labels = half_tissue(96, 128, tissue=1).astype(np.uint16)  # its tissue masks have 16 bits
    for name in ("a.tif_MASK.png", "a.tif_mask.png"):
        with pytest.raises(SlideError, match=r"named as GrandQC(?s:.*)tiles\.mask_values to \[0\]"):
            read(labels, name=name)
    np.testing.assert_array_equal(read(labels, name="a.tif_MASK.png", values=(0,)), labels == 0)
    assert read(labels, name="a_mask.png").any()


def test_a_polygon_has_its_area_to_within_a_sixth_of_a_pixel_along_its_edge(read: Read) -> None:
    angle = np.linspace(0, 2 * np.pi, 200)
    circle = np.stack([500.3 + 300 * np.cos(angle), 390.7 + 300 * np.sin(angle)], axis=1)
    tissue = read([("Tissue", polygon(circle))], name="m.geojson")
    perimeter_px = 2 * math.pi * 300 / PX
    assert tissue.sum() == pytest.approx(math.pi * (300 / PX) ** 2, abs=perimeter_px / 6)
    rows, columns = np.nonzero(tissue)
    assert (columns.mean() + 0.5) * PX == pytest.approx(500.3, abs=PX / 4)
    assert (rows.mean() + 0.5) * PX == pytest.approx(390.7, abs=PX / 4)


def test_holes_stay_open_and_other_polygons_may_fill_them(read: Read) -> None:
    ring = polygon(square(80, 80, 400), square(160, 160, 160))
    tissue = read([("A", ring)], name="m.geojson")
    assert tissue.sum() == 50**2 - 20**2
    assert not tissue[20:40, 20:40].any()
    filled = read([("A", ring), ("B", polygon(square(160, 160, 160)))], name="m.geojson")
    assert filled.sum() == 50**2


def test_thirds_of_a_pixel_from_three_polygons_add_up(read: Read) -> None:
    thirds = [("A", polygon([[x, 0], [x + 8 / 3, 0], [x + 8 / 3, 8], [x, 8]])) for x in (80, 80 + 8 / 3, 80 + 16 / 3)]
    assert read(thirds, name="m.geojson")[0, 10]


def test_the_strips_in_which_a_mask_is_made_leave_no_seam(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    angle = np.linspace(0, 2 * np.pi, 60)
    star = np.stack([500 + (300 * np.cos(3 * angle)) * np.cos(angle), 390 + 300 * np.sin(2 * angle)], axis=1)
    whole = read([("A", polygon(star))], name="m.geojson")
    monkeypatch.setattr("dino_path.slides.masks.STRIP_PX", 128 * 16 * 7)
    in_strips = read([("A", polygon(star))], name="m.geojson")
    assert (in_strips != whole).mean() < 0.002  # cv2 rounds where it clips a line at a raster's edge
    assert (in_strips != whole).sum(axis=1).max() <= 2


def test_classes_choose_the_objects_that_are_tissue(read: Read) -> None:
    objects = [("Tissue", polygon(square(0, 0, 80))), ("Pen", polygon(square(160, 0, 80)))]
    objects.append((None, polygon(square(320, 0, 80))))
    assert read(objects, name="m.geojson").sum() == 300
    assert read(objects, name="m.geojson", classes=("Tissue",)).sum() == 100
    with pytest.raises(SlideError, match=r"(?s)none of its 3 areas.*Tumour.*classes are: \(none\), Pen, Tissue"):
        read(objects, name="m.geojson", classes=("Tumour",))


def test_a_file_without_objects_says_that_there_is_no_tissue(read: Read) -> None:
    assert not read([], name="m.geojson").any()
    assert not read([], name="m.geojson", classes=("Tissue",)).any()
    line = {"type": "LineString", "coordinates": [[1, 1], [9, 9]]}
    with pytest.raises(SlideError, match="it has no areas, only 2 x line, 1 x point"):
        read([("A", line), ("A", line), (None, {"type": "Point", "coordinates": [1, 1]})], name="m.geojson")


def test_a_missing_mask_is_named_with_the_names_looked_for_and_what_lies_there(
    tmp_path: Path, slide: Slide, overview: Overview
) -> None:
    for name in ("b.png", "a_tissue.png", *(f"other{n}.png" for n in range(9))):
        (tmp_path / name).touch()
    with pytest.raises(SlideError) as refusal:
        read_mask(tmp_path / "a_tif.png", slide, overview, values=None, classes=None)
    message = str(refusal.value)
    assert "a_tif.png: the mask does not exist" in message
    assert "a_tissue.png" in message
    assert re.search(r"lie a_tissue\.png, .* and \d+ more\.", message)
    assert "must be named a or a.tif or a_tif" in message
    with pytest.raises(SlideError, match="There is no folder"):
        read_mask(tmp_path / "none" / "a.png", slide, overview, values=None, classes=None)


def test_areas_to_be_ignored_are_cut_out_and_tissue_within_them_is_kept(read: Read) -> None:
    objects = [
        ("Ignore*", polygon(square(80, 80, 240))),
        (None, polygon(square(160, 160, 80))),  # smaller, so it lies on top, whatever the order in the file
        ("Tissue", polygon(square(0, 0, 400))),
    ]
    tissue = read(objects, name="m.geojson")
    assert tissue.sum() == pytest.approx(50**2 - 30**2 + 10**2, abs=62)  # cv2 paints an outline's own pixels too
    assert not tissue[12:18, 12:18].any()
    assert tissue[21:29, 21:29].all()
    assert read(objects, name="m.geojson", classes=("Tissue",)).sum() == pytest.approx(50**2 - 30**2, abs=62)
    assert read(objects, name="m.geojson", classes=("Ignore*",)).sum() == 30**2
    with pytest.raises(SlideError, match=r"none of its 1 areas means tissue"):
        read(objects[:1], name="m.geojson")


def test_polygons_beside_the_slide_and_what_is_no_geojson_are_refused(read: Read) -> None:
    with pytest.raises(SlideError, match=r"none of its polygons lies on a\.tif"):
        read([("A", polygon(square(5000, 5000, 80)))], name="m.geojson")
    with pytest.raises(SlideError, match="is not GeoJSON"):
        read(b"<xml/>", name="m.geojson")


def test_artefacts_of_grandqc_are_not_taken_for_tissue(read: Read) -> None:
    artefacts = [("Fold", polygon(square(0, 0, 80))), ("OOF", polygon(square(160, 0, 80)))]
    with pytest.raises(SlideError, match="GrandQC's list of artefacts"):
        read(artefacts, name="m.geojson")
    assert read([*artefacts, ("Tissue", polygon(square(0, 0, 80)))], name="m.geojson").any()


def test_contours_that_we_wrote_give_the_mask_that_they_were_made_from(read: Read, overview: Overview) -> None:
    rng = np.random.default_rng(0)
    tissue = cv2.GaussianBlur(rng.random((96, 128)), (0, 0), 4) > 0.5  # blobs with holes
    written = json.dumps(
        tissue_geojson("a", TissueMask(tissue, overview, source="otsu", threshold=0.1), (0, 0))
    ).encode()
    again = read(written, name="m.geojson", classes=("Tissue",))
    assert (again & tissue).sum() / (again | tissue).sum() > 0.98


@pytest.mark.parametrize(
    "place",
    [
        "s1__my_slide.png",
        "my.slide.geojson",
        "my.slide.svs.geojson",
        "my.slide_contours.geojson",
        "contours_geojson/my.slide.geojson",
        "tis_det_mask/my.slide.svs_MASK.png",
        "mask_qc/my.slide.svs_mask.png",
        "my.slide.svs_MASK.png",
        "my.slide.svs/my.slide.svs_mask_use.png",
        "my.slide.tif",
        "my.slide_mask.tiff",
        "my.slide_Mask.tif",
        "my.slide.json",
        "my.slide.geojson.gz",
        "s1__my_slide.xml",
        "my.slide.annotations",
    ],
)
def test_a_mask_is_found_by_the_slides_name_or_as_the_tools_name_it(tmp_path: Path, place: str) -> None:
    assert find_mask(tmp_path, "s1__my_slide", Path("s1/my.slide.svs")) is None
    (tmp_path / place).parent.mkdir(exist_ok=True)
    (tmp_path / place).touch()
    (tmp_path / "my.png").touch()
    (tmp_path / "my.slide2.png").touch()
    assert find_mask(tmp_path, "s1__my_slide", Path("s1/my.slide.svs")) == tmp_path / place


def test_a_slide_is_not_its_own_mask(tmp_path: Path) -> None:
    (tmp_path / "a.tif").touch()
    assert find_mask(tmp_path, "a", tmp_path / "a.tif") is None
    (tmp_path / "a_mask.tif").touch()
    assert find_mask(tmp_path, "a", tmp_path / "a.tif") == tmp_path / "a_mask.tif"


def test_names_without_ome_tif_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.geojson").touch()
    assert find_mask(tmp_path, "a_ome", Path("a.ome.tif")) == tmp_path / "a.geojson"


def test_two_masks_of_one_slide_are_refused_unless_they_are_one_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "a.svs.png").symlink_to(tmp_path / "a.png")
    assert find_mask(tmp_path, "a", Path("a.svs")) is not None
    (tmp_path / "a.geojson").touch()
    with pytest.raises(SlideError, match=r"2 masks could be meant: .*a\.geojson, .*a\.(svs\.)?png"):
        find_mask(tmp_path, "a", Path("a.svs"))


def test_the_digest_follows_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "m.png").write_bytes(b"abc")
    assert mask_digest(tmp_path / "m.png") == "ba7816bf8f01cfea"
    with pytest.raises(SlideError, match="cannot be read"):
        mask_digest(tmp_path / "none.png")


@pytest.mark.slow
def test_the_mask_of_a_real_section_lies_on_its_tissue(shared_data: Path) -> None:
    file = shared_data / "slides/p2_0039_section1_tissue_mask_ds32.png"
    with Slide.open(shared_data / "slides/p2_0039_section1.tif") as slide:
        found = tissue_mask(slide, TilesConfig(mpp=0.5))
        given = read_mask(file, slide, found.overview, values=(255,), classes=None)
    picture = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE) == 255
    assert given.mean() == pytest.approx(picture.mean(), abs=0.005)
    assert (found.tissue & given).sum() / (found.tissue | given).sum() > 0.9

import pytest

from dino_path.errors import SlideError
from dino_path.slides.resolution import find_mpp

VENDOR = {"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.2501", "openslide.objective-power": "20"}
TIFF = {"tiff.ResolutionUnit": "centimeter", "tiff.XResolution": "20000", "tiff.YResolution": "20000"}


def test_what_the_user_gives_overrules_the_file() -> None:
    assert find_mpp("a.svs", VENDOR, given=0.5) == (0.5, "slides CSV")


def test_vendor_properties_come_before_tiff_tags_and_objective_power() -> None:
    assert find_mpp("a.svs", VENDOR | TIFF, given=None) == (pytest.approx(0.25005), "openslide.mpp-x")


def test_aperio_mpp_is_read_where_openslide_gives_none_even_with_a_decimal_comma() -> None:
    assert find_mpp("a.svs", {"aperio.MPP": "0,2520"} | TIFF, given=None) == (pytest.approx(0.252), "aperio.MPP")


@pytest.mark.parametrize(("unit", "per_unit", "mpp"), [("centimeter", "20000", 0.5), ("inch", "50800", 0.5)])
def test_tiff_resolution_counts_with_its_unit(unit: str, per_unit: str, mpp: float) -> None:
    tags = {"tiff.ResolutionUnit": unit, "tiff.XResolution": per_unit, "tiff.YResolution": per_unit}
    assert find_mpp("a.tif", tags, given=None) == (pytest.approx(mpp), "tiff.XResolution")


def test_a_tiff_resolution_without_unit_is_not_believed() -> None:
    with pytest.raises(SlideError, match="does not give"):
        find_mpp("a.tif", TIFF | {"tiff.ResolutionUnit": "none"}, given=None)


def test_72_dpi_is_a_writers_default_and_passed_over_for_the_objective_power() -> None:
    tags = {"tiff.ResolutionUnit": "inch", "tiff.XResolution": "72", "openslide.objective-power": "40"}
    assert find_mpp("a.tif", tags, given=None) == (0.25, "objective power")


def test_no_source_at_all_is_refused_and_the_remedy_names_the_csv() -> None:
    with pytest.raises(SlideError, match=r"(?s)a\.svs.*columns path,mpp"):
        find_mpp("a.svs", {"openslide.mpp-x": "0", "aperio.MPP": "unknown"}, given=None)


@pytest.mark.parametrize("mpp", ["0.04", "5.1", "250"])
def test_an_implausible_mpp_is_refused(mpp: str) -> None:
    with pytest.raises(SlideError, match=r"0\.05 to 5 um/px"):
        find_mpp("a.svs", {"openslide.mpp-x": mpp, "openslide.mpp-y": mpp}, given=None)


def test_an_implausible_mpp_from_the_user_is_refused_too() -> None:
    with pytest.raises(SlideError, match="slides CSV says 40 um/px"):
        find_mpp("a.svs", VENDOR, given=40.0)


def test_pixels_that_are_not_square_are_refused_beyond_one_per_cent() -> None:
    properties = {"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.2524"}
    assert find_mpp("a.svs", properties, given=None)[0] == pytest.approx(0.2512)
    with pytest.raises(SlideError, match="not square"):
        find_mpp("a.svs", properties | {"openslide.mpp-y": "0.26"}, given=None)

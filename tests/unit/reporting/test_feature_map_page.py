"""The map of features as a page: self-contained, safe whatever names say, of use with a mouse and with a keyboard."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from chromium import Page
from made_up_map import made_up_map

from dino_path.errors import DataError, NewerFormat
from dino_path.records.feature_map import FEATURE_MAP, read_feature_map, unpacked
from dino_path.reporting.feature_map import map_sections, write_page

MAP = "document.querySelector('.feature-map').featureMap"
EVIL = "</script><script>document.title='hurt'</script><img src=x onerror=\"document.title='hurt'\">&amp;{{7*7}}"
STYLE = (Path(__file__).parents[3] / "dino_path/reporting/feature_map.css").read_text(encoding="utf-8")
# Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as protanopes, deuteranopes and tritanopes see it.
VISIONS = [
    np.eye(3),
    np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
]


def open_map(tab: Page, file: Path, *, height: int = 1400) -> None:
    """Show a map, drawn."""
    tab.errors.clear()
    tab.requests.clear()
    tab.window(1200, height)
    tab.open(file)
    tab.settle()


@pytest.fixture
def page(tab: Page, tmp_path: Path) -> Iterator[Page]:
    """A fresh map of 400 tiles; afterwards nothing may have gone wrong, and nothing may have been asked for."""
    file = write_page(made_up_map(), tmp_path / "map.html")
    open_map(tab, file)
    yield tab
    assert tab.errors == []
    assert tab.requests == [file.resolve().as_uri()]


def state(page: Page, name: str) -> object:
    return page.run(f"{MAP}.state.{name}")


def text(page: Page, selector: str) -> str:
    return str(page.run(f"document.querySelector('{selector}').innerText"))


# --- the file -----------------------------------------------------------------------------------------------------


def test_the_page_holds_the_record_and_gives_it_back(tmp_path: Path) -> None:
    record = made_up_map(classes=(EVIL, "stroma", "\u2028fat"))
    file = write_page(record, tmp_path / "map.html")
    assert read_feature_map(file) == record
    assert unpacked(read_feature_map(file).x_level0 or "", "i4")[:3].tolist() == [0, 256, 512]


def test_what_is_no_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="damaged"):
        read_feature_map(tmp_path / "nowhere.html")
    (tmp_path / "other.html").write_text("<p>another page</p>")
    with pytest.raises(DataError, match="dino-path map"):
        read_feature_map(tmp_path / "other.html")
    page = write_page(made_up_map(), tmp_path / "map.html").read_text()
    (tmp_path / "newer.html").write_text(page.replace(f'"format_version":{FEATURE_MAP.version}', '"format_version":99'))
    with pytest.raises(NewerFormat):
        read_feature_map(tmp_path / "newer.html")


def test_the_page_names_no_address_and_allows_only_its_own_script(tmp_path: Path) -> None:
    page = write_page(made_up_map(), tmp_path / "map.html").read_text()
    without_svg = page.replace("http://www.w3.org/2000/svg", "")
    assert re.findall(r"https?://|\bsrc=[\"'](?!data:)|@import|url\(", without_svg) == []
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "unsafe" not in policy[1]


def test_two_maps_on_one_page_have_anchors_of_their_own() -> None:
    sections = map_sections([made_up_map(20), made_up_map(30)])
    ids = re.findall(r'\bid="([^"]+)"', "".join(sections.html))
    assert len(ids) == len(set(ids)) == 6


def colours(scheme: str) -> dict[str, str]:
    light, dark = STYLE.split("@media screen and (prefers-color-scheme: dark)", 1)
    part = light if scheme == "light" else dark.split("}", 1)[0]
    return dict(re.findall(r"--fm-([\w-]+): (#[0-9a-f]{6})", part))


def linear(colour: str) -> np.ndarray:
    value = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio."""
    light = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) + 0.05 for colour in (one, other))
    return light[1] / light[0]


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE Lab of linear sRGB."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = np.clip(rgb, 0, 1) @ to_xyz.T / [0.95047, 1, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_contrast_and_differ_for_colour_blind_eyes_too(scheme: str) -> None:
    palette = colours(scheme)
    for name in [*map(str, range(8)), "others", "edge"]:
        assert contrast(palette[name], palette["card"]) >= 3, f"{name}: WCAG 1.4.11"
    for name in ("ink", "soft", "accent"):
        assert contrast(palette[name], palette["card"]) >= 4.5, f"{name}: WCAG 1.4.3"
    points = np.stack([linear(palette[str(number)]) for number in range(8)])
    for vision in VISIONS:
        seen = lab(points @ vision.T)
        apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[~np.eye(8, dtype=bool)]
        assert apart.min() > 20  # ten times what is just seen


# --- in a browser -------------------------------------------------------------------------------------------------


def test_names_reach_the_page_as_text(tab: Page, tmp_path: Path) -> None:
    record = made_up_map(60, classes=(EVIL, "stroma"), num_slides=3, slide_names=(EVIL, "b", "c"))
    record = record.model_copy(update={"model": EVIL, "data": EVIL, "notes": (EVIL,)})
    open_map(tab, write_page(record, tmp_path / "map.html"))
    tab.run(f"{MAP}.select(0)")
    tab.settle()
    assert "hurt" not in str(tab.run("document.title")).replace(EVIL, "")
    assert tab.run("document.querySelectorAll('img').length") == 0
    assert EVIL in text(tab, ".fm-legend")
    assert EVIL in text(tab, ".fm-detail")
    assert EVIL in text(tab, "h2")
    assert tab.errors == []


def test_hovering_shows_the_tile_and_clicking_its_neighbours_of_other_slides(page: Page) -> None:
    x, y = page.run(f"{MAP}.where(7)")
    page.mouse("mouseMoved", x, y)
    page.settle()
    tile = state(page, "hovered")
    assert isinstance(tile, int)
    assert tile >= 0
    tip = text(page, ".fm-tip")
    assert f"slide-{tile % 5}" in tip
    assert f"x {256 * tile:,}, y {512 * tile:,} px" in tip

    page.click(x, y)
    assert state(page, "selected") == tile
    items = page.run("[...document.querySelectorAll('.fm-detail li')].map(item => item.innerText)")
    listed = page.run(
        "[...document.querySelectorAll('.fm-detail li button')].map(button => Number(button.dataset.tile))"
    )
    expected = [number % 400 for number in range(tile + 1, tile + 16) if number % 400 % 5 != tile % 5][:10]
    assert listed == expected
    assert f"slide-{tile % 5}\n" not in "\n".join(items)
    assert "cosine 0.997" in items[0]
    same = sum(number % 3 == tile % 3 for number in expected)
    assert f"{same} of 10 have its class" in text(page, ".fm-detail h4")

    page.run("document.querySelector('.fm-detail li button').click()")
    assert state(page, "selected") == expected[0]
    page.run("[...document.querySelectorAll('.fm-detail button')].find(one => one.innerText === 'Back').click()")
    assert state(page, "selected") == tile


def test_a_thumbnail_is_the_tiles_own(page: Page) -> None:
    page.run(f"{MAP}.select(30)")  # second row, seventh column of the sheet
    page.run("new Promise(done => setTimeout(done, 300))")
    shown = page.run(
        "(() => { const one = document.querySelector('.fm-tile canvas');"
        " return [...one.getContext('2d').getImageData(one.width / 2, one.height / 2, 1, 1).data]; })()"
    )
    colour = np.random.default_rng(0).integers(60, 220, (24, 24, 3))[1, 6][::-1]  # OpenCV writes BGR
    assert np.abs(np.array(shown[:3]) - colour).max() < 12


def test_the_keyboard_walks_from_tile_to_tile_and_opens_neighbours(page: Page) -> None:
    page.run("document.querySelector('.fm-over').focus()")
    page.key("ArrowRight")
    first = state(page, "hovered")
    assert first != -1
    page.key("ArrowRight")
    second = state(page, "hovered")
    assert page.run(f"{MAP}.where({second})[0] > {MAP}.where({first})[0]")
    assert f"slide slide-{int(str(second)) % 5}" in str(page.run("document.querySelector('.fm-live').textContent"))
    page.key("Enter")
    assert state(page, "selected") == second
    assert page.run("document.querySelectorAll('.fm-detail li').length") == 10
    assert page.run("document.activeElement === document.querySelector('.fm-detail h3')")
    page.key("Tab")
    assert page.run("document.activeElement === document.querySelector('.fm-detail li button')")
    page.run("document.querySelector('.fm-over').focus()")
    scale = page.run(f"{MAP}.state.scale")
    page.key("+")
    assert page.run(f"{MAP}.state.scale") > scale
    page.key("0")
    assert page.run(f"{MAP}.state.scale") == pytest.approx(scale)
    page.run("document.querySelector('.fm-detail li button').focus()")
    page.key("Escape")
    assert state(page, "selected") == -1
    assert page.run("document.activeElement === document.querySelector('.fm-over')")
    assert page.run("document.querySelector('.fm-detail').hidden")
    names = page.run(
        "[...document.querySelectorAll('.feature-map :is(button, input, canvas[tabindex])')].map(one =>"
        " one.getAttribute('aria-label') || one.innerText || one.labels?.[0]?.innerText || '')"
    )
    assert all(str(name).strip() for name in names)


def test_the_legend_and_the_search_choose_what_is_shown(page: Page) -> None:
    assert state(page, "numLit") == 400
    page.run("document.querySelectorAll('.fm-legend button')[1].click()")
    assert state(page, "numLit") == 133
    assert page.run("document.querySelectorAll('.fm-legend button')[1].ariaPressed") == "true"
    page.run("document.querySelector('.fm-all').click()")
    assert state(page, "numLit") == 400
    page.run(
        "(() => { const one = document.querySelector('.fm-search'); one.value = 'SLIDE-2';"
        " one.dispatchEvent(new Event('input')); })()"
    )
    assert state(page, "numLit") == 80
    assert text(page, ".fm-found") == "80 tiles of 1 slides"
    page.run("document.querySelectorAll('.feature-map input[type=radio]')[1].click()")
    assert state(page, "column") == "slide"
    assert page.run("document.querySelectorAll('.fm-legend li').length") == 5


def test_the_wheel_scrolls_the_page_until_the_map_is_clicked_and_then_zooms(page: Page) -> None:
    x, y = page.run(f"{MAP}.where(7)")
    scale = page.run(f"{MAP}.state.scale")
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-240)
    assert page.run(f"{MAP}.state.scale") == scale
    page.click(x, y)
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-240)
    page.settle()
    assert page.run(f"{MAP}.state.scale") > scale
    assert page.run(f"{MAP}.where(7)") == pytest.approx([x, y], abs=2)  # what is under the pointer stays there


def test_narrow_dark_and_printed_it_is_whole(page: Page) -> None:
    page.window(420, 900, scheme="dark")
    assert page.run("document.documentElement.scrollWidth") == 420
    corner = "[...document.querySelector('.fm-points').getContext('2d').getImageData(1, 1, 1, 1).data].slice(0, 3)"
    assert page.run(corner) == [0x1F, 0x1C, 0x26]
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run(corner) == [255, 255, 255]
    page.run("dispatchEvent(new Event('afterprint'))")
    page.window(800, 900, media="print")
    assert page.run("getComputedStyle(document.querySelector('.fm-bar')).display") == "none"


def test_fifty_thousand_tiles_are_drawn_at_an_interactive_rate(tab: Page, tmp_path: Path) -> None:
    file = write_page(made_up_map(50_000, num_slides=200), tmp_path / "map.html")
    open_map(tab, file, height=900)
    tab.call("Performance.enable", timeDomain="threadTicks")  # what others do on the machine does not count
    tab.run(f"{MAP}.frame()")
    before_s = tab.cpu_s()
    tab.run(f"Array.from({{length: 30}}, () => {MAP}.frame()).length")
    per_frame_ms = (tab.cpu_s() - before_s) / 30 * 1000
    print(f"{per_frame_ms:.1f} ms of CPU for a frame of 50,000 tiles")  # noqa: T201
    assert per_frame_ms < 33
    assert tab.errors == []

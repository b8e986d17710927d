"""The viewer's page in a real browser: no error, no foreign address, and zoom, hover and click do what they should."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from chromium import Page
from frozen_models import write_guide

from dino_path.tiles.store import TileStore
from dino_path.viewing.model_overlays import load_model_overlays
from dino_path.viewing.server import ViewerServer
from dino_path.viewing.viewer import Viewer

pytestmark = pytest.mark.slow
READY = "document.body.dataset.version === '1' && document.body.dataset.loading === '0'"


@pytest.fixture(scope="module")
def address(view_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    viewer = Viewer(view_store)
    folder = write_guide(tmp_path_factory.mktemp("models") / "vit", mpp=0.5)
    overlays = load_model_overlays(
        str(folder), TileStore.open(view_store), None, num_clusters=3, device=torch.device("cpu"), allow_other_mpp=False
    )
    viewer.show_model(overlays)
    with ViewerServer(viewer.answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.address
        server.shutdown()
        thread.join()
    viewer.close()


@pytest.fixture
def page(address: str, tab: Page) -> Iterator[Page]:
    """The viewer, opened again; whatever a test does, no error may come and nobody else may be asked."""
    tab.errors.clear()
    tab.requests.clear()
    tab.window(1200, 800)
    tab.open(address)
    tab.wait_for(READY)
    yield tab
    assert tab.errors == []
    assert [one for one in tab.requests if not one.startswith((address, "data:", "blob:"))] == []


def place_of(page: Page, x: float, y: float) -> tuple[float, float]:
    """The position of a level-0 point in the window."""
    left, top = page.run(f"(() => {{ const r = canvas.getBoundingClientRect(); const [x, y] = toCss({x}, {y});"
                         " return [r.left + x, r.top + y]; })()")  # fmt: skip
    return left, top


def test_the_slide_is_shown_with_its_tissue_and_tiles(page: Page) -> None:
    assert page.run("document.querySelector('#slides').selectedOptions[0].textContent") == "a (61 tiles)"
    assert page.run("[...document.querySelectorAll('#layers > div > label')].map((one) => one.textContent.trim())") == [
        "Tiles", "Clusters of features",
    ]  # fmt: skip
    pixels = "pen.getImageData(0, 0, canvas.width, canvas.height)"
    (red, green, blue), glass = page.run(
        f"(() => {{ const all = {pixels}; return [[420, 600], [60, 60]].map((place) => {{"
        " const [x, y] = toCss(...place).map(Math.round), first = 4 * (y * all.width + x);"
        " return [...all.data.slice(first, first + 3)]; }); })()"
    )
    assert red > green + 40
    assert blue > green
    assert min(glass) > 230


def test_hover_tells_why_a_tile_was_refused_and_where_there_is_none(page: Page) -> None:
    for x, y, text in (
        (350, 300, "refused, pen ink: pen fraction 0.25 (max_pen_fraction is 0.05)"),
        (550, 550, "kept: share of tissue 1"),
        (60, 60, "no tile: less than"),
    ):
        page.mouse("mouseMoved", *place_of(page, x, y))
        page.wait_for(f"document.getElementById('tooltip').textContent.startsWith({text!r})")
        assert not page.run("document.getElementById('tooltip').hidden")


def test_the_wheel_zooms_about_the_pointer_and_asks_for_finer_squares(page: Page) -> None:
    x, y = place_of(page, 350, 300)
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-600)
    page.wait_for("view.scale > 2")
    assert place_of(page, 350, 300) == pytest.approx((x, y), abs=4)  # pointers are at whole px
    page.wait_for("document.body.dataset.loading === '0'")
    assert any("/square/0/0/0.jpg" in one for one in page.requests)


def test_a_drag_moves_the_slide_and_chooses_nothing(page: Page) -> None:
    x, y = place_of(page, 500, 400)
    page.drag((x, y), (x - 60, y - 30))
    assert place_of(page, 500, 400) == pytest.approx((x - 60, y - 30), abs=2)
    assert page.run("chosen") is None


def test_a_click_shows_the_tile_and_its_neighbours_and_leads_to_another_slide_and_back(page: Page) -> None:
    page.click(*place_of(page, 550, 550))
    page.wait_for("document.querySelectorAll('.neighbours li').length === 12")
    assert "kept" in page.run("document.getElementById('tile').textContent")
    page.run("(() => { const s = document.querySelector('#tile select'); s.value = 'others';"
             " s.dispatchEvent(new Event('change')); })()")  # fmt: skip
    assert page.run("[...document.querySelectorAll('.neighbours button')].every((one) => one.title.startsWith('b,'))")
    page.run("document.querySelector('.neighbours button').click()")
    page.wait_for("document.body.dataset.slide === '1' && chosen && chosen.slide === 1")
    page.run("document.getElementById('back').click()")
    page.wait_for("document.body.dataset.slide === '0'")
    assert page.run("document.getElementById('back').disabled")


def test_attention_is_drawn_where_one_clicks(page: Page) -> None:
    page.run("document.getElementById('show-attention').click()")
    page.click(*place_of(page, 550, 550))
    page.wait_for("attention && attention.map")
    assert page.run("attention.size") == 64
    page.run("(() => { const s = document.getElementById('attention-field'); s.value = '2';"
             " s.dispatchEvent(new Event('change')); })()")  # fmt: skip
    page.wait_for("attention.size === 128 && attention.map")
    page.run("(() => { const s = document.getElementById('attention-show'); s.value = 'mass';"
             " s.dispatchEvent(new Event('change')); })()")  # fmt: skip
    page.wait_for("document.getElementById('attention-note').textContent.startsWith('60 % of the attention lies on')")


def test_patches_are_coloured_when_few_tiles_are_in_view(page: Page) -> None:
    page.run("document.getElementById('show-tokens').click()")
    page.wait_for("[...pictures.kept.keys()].some((one) => one.includes('/tokens/'))")
    page.wait_for("document.body.dataset.loading === '0'")
    assert "principal components" in page.run("document.getElementById('tokens-note').textContent")


def test_all_can_be_done_with_keys(page: Page) -> None:
    page.run("canvas.focus()")
    before = page.run("view.scale")
    for key in ("+", "ArrowDown", "Enter"):
        page.key(key)
    page.wait_for("document.querySelectorAll('.neighbours li').length === 12")
    assert page.run("view.scale") > before
    assert page.run("document.getElementById('status').textContent").startswith("Tile kept")
    page.key("0")
    assert page.run("view.scale") == pytest.approx(before)


def test_every_control_and_picture_has_a_name(page: Page) -> None:
    page.click(*place_of(page, 550, 550))
    page.wait_for("document.querySelectorAll('.neighbours li').length === 12")
    assert page.run("[...document.images].every((one) => one.alt)")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "checkbox", "combobox", "slider", "application", "img", "image"}
    named = [node for node in nodes if node.get("role", {}).get("value") in roles and not node["ignored"]]
    assert len(named) > 20
    assert [node for node in named if not node["name"]["value"]] == []


CONTRAST = """(() => {
  const numbers = (colour) => colour.match(/[0-9.]+/g).map(Number);
  const light = (colour) => numbers(colour).slice(0, 3).map((c) => c / 255)
    .map((c) => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const under = (one) => { for (; one; one = one.parentElement) {
    const colour = getComputedStyle(one).backgroundColor;
    if (numbers(colour)[3] !== 0) return colour; } return 'rgb(255, 255, 255)'; };
  const texts = [...document.querySelectorAll('body *')].filter((one) => one.checkVisibility()
    && [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  return Math.min(...texts.map((one) => { const [a, b] = [light(getComputedStyle(one).color), light(under(one))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); }));
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_readable_in_light_and_dark(page: Page, scheme: str) -> None:
    page.window(1200, 800, scheme=scheme)
    page.click(*place_of(page, 550, 550))
    page.wait_for("document.querySelectorAll('.neighbours li').length === 12")
    assert page.run(CONTRAST) >= 4.5


def test_a_narrow_window_scrolls_down_and_not_sideways(page: Page) -> None:
    page.window(420, 800)
    page.wait_for("stage.clientWidth <= 420")
    assert page.run("document.documentElement.scrollWidth <= 420")
    assert page.run("stage.clientHeight > 300")

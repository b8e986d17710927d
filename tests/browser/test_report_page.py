"""The report in a real browser, opened from the disk: hovers, drags, clicks and keys do what they should."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "reporting"))

from devtools import Tab, open_tab
from made_up import write_evaluation, write_examples, write_run, write_store
from made_up_map import made_up_map

from dino_path.reporting.feature_map import write_page
from dino_path.reporting.report import write_report

pytestmark = pytest.mark.slow
READY = "document.documentElement.classList.contains('ready')"
LOSS = ".curves .plot"  # the first one
AS_OPENED = """(() => {document.getElementById('viewer').close(); document.activeElement.blur(); scrollTo(0, 0);
document.querySelectorAll('.run').forEach((box) => {box.checked = true;});
document.getElementById('log-scale').checked = false;
Object.assign(shown, {smoothing: 0, log: false, over: 'step', range: null}); shown.hidden.clear(); drawCurves();})()"""
BACKGROUND_OF = """(() => {const rgb = (e) => getComputedStyle(e).backgroundColor.match(/[\\d.]+/g).map(Number);
for (let e = %s; e; e = e.parentElement) {const c = rgb(e); if (c.length < 4 || c[3] > 0.99) return c.slice(0, 3);}
return [255, 255, 255];})()"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    runs = [write_run(folder / "vits16"), write_run(folder / "lower", seed=1, momentum=0.99)]
    write_evaluation(runs[0] / "eval" / "results.json")
    write_examples(runs[0] / "eval")
    maps = [write_page(made_up_map(), folder / "map.html")]
    return write_report(runs, folder / "report.html", store=write_store(folder / "store"), maps=maps)


@pytest.fixture(scope="module")
def browser(page: Path) -> Iterator[Tab]:
    with open_tab() as tab:
        tab.show(page, width=1200)
        tab.wait_for(READY)
        yield tab


@pytest.fixture
def tab(browser: Tab) -> Tab:
    """The page, opened once, as it was when it was opened."""
    browser.window(width=1200)
    browser.ask(AS_OPENED)
    browser.problems.clear()
    return browser


def data(selector: str, what: str) -> str:
    return f"document.querySelector({selector!r}).{what}"


def test_nothing_is_complained_of_and_nothing_is_asked_from_outside(browser: Tab, page: Path) -> None:
    tab = browser
    assert tab.problems == []
    assert {address for address in tab.requests if not address.startswith(("data:", "blob:"))} == {page.as_uri()}
    assert tab.ask("document.querySelectorAll('.plot .main-svg').length") >= tab.ask(
        "document.querySelectorAll('.plot').length"
    )
    blocked = "fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'blocked')"
    assert tab.ask(blocked) == "blocked"
    assert any("Content Security Policy" in problem for problem in tab.problems)


def test_a_hover_tells_the_values_of_every_run(tab: Tab) -> None:
    x, y = tab.middle_of(LOSS)
    tab.mouse("mouseMoved", x, y)
    tab.wait_for("document.querySelectorAll('.curves .hoverlayer .legend text').length > 1")
    said = tab.ask("[...document.querySelectorAll('.curves .hoverlayer text')].map((e) => e.textContent).join(' ')")
    assert "vits16" in said
    assert "lower" in said
    tab.mouse("mouseMoved", *tab.middle_of(".plot.intervals"))
    x, y = tab.ask("(() => {const b = document.querySelector('.plot.intervals .point').getBoundingClientRect();"
                   "return [b.x + b.width / 2, b.y + b.height / 2]})()")  # fmt: skip
    tab.mouse("mouseMoved", x, y)
    tab.wait_for("document.querySelector('.plot.intervals .hovertext') !== null")
    assert "0.900 (0.870 to 0.930)" in tab.ask(data(".plot.intervals .hovertext", "textContent"))


def test_a_drag_zooms_all_curves_and_a_key_or_button_shows_all_again(tab: Tab) -> None:
    x, y = tab.middle_of(LOSS)
    whole = tab.ask(data(LOSS, "layout.xaxis.range"))
    tab.drag((x - 80, y), (x + 20, y))
    tab.wait_for(f"{data(LOSS, 'layout.xaxis.range')}[1] < {whole[1]} - 100")
    ranges = tab.ask("[...document.querySelectorAll('.curves .plot')].map((e) => e.layout.xaxis.range)")
    assert all(one == pytest.approx(ranges[0]) for one in ranges)
    assert whole[0] < ranges[0][0] < ranges[0][1] < whole[1]
    heights = tab.ask(data(LOSS, "layout.yaxis.range"))
    visible = [
        value
        for line in tab.ask(data(LOSS, "data"))
        for step, value in zip(line["x"], line["y"], strict=True)
        if ranges[0][0] <= step <= ranges[0][1]
    ]
    assert heights[0] < min(visible) < max(visible) < heights[1]
    assert heights[1] - heights[0] < 1.3 * (max(visible) - min(visible)), "and no higher than what one sees"
    is_whole = f"Math.abs({data(LOSS, 'layout.xaxis.range')}[1] - {whole[1]}) < 1"
    tab.ask(data(LOSS, "focus()"))
    tab.press("0")
    tab.wait_for(is_whole)
    tab.drag((x - 80, y), (x + 20, y))
    tab.wait_for(f"!({is_whole})")
    tab.click("#reset")
    tab.wait_for(is_whole)
    assert tab.problems == []


def test_runs_can_be_hidden_smoothed_and_drawn_on_a_log_scale(tab: Tab) -> None:
    number = f"{data(LOSS, 'data')}.length"
    assert tab.ask(number) == 2
    tab.click(".run[value='1']")
    tab.wait_for(f"{number} === 1")
    raw = tab.ask(data(LOSS, "data[0].y"))
    set_to = (
        "(() => {const e = document.getElementById('smoothing'); e.value = 0.9; e.dispatchEvent(new Event('input'))})()"
    )
    tab.ask(set_to)
    smooth, total, weight = tab.ask(data(LOSS, "data[1].y")), 0.0, 0.0
    for value, drawn in zip(raw, smooth, strict=True):
        total, weight = 0.9 * total + 0.1 * value, 0.9 * weight + 0.1
        assert drawn == pytest.approx(total / weight)
    tab.click("#log-scale")
    tab.wait_for(f"{data(LOSS, 'layout.yaxis.type')} === 'log'")
    assert tab.ask("document.getElementById('smoothing-value').textContent") == "0.9"
    tab.ask(
        "(() => {const e = document.getElementById('over'); e.value = 'tiles'; e.dispatchEvent(new Event('change'))})()"
    )
    assert tab.ask(data(LOSS, "data[0].x[0]")) == 10 * 64
    assert tab.problems == []


def test_labels_of_axes_do_not_repeat(tab: Tab) -> None:
    labels: list[list[str]] = tab.ask(
        "[...document.querySelectorAll('.plot')].flatMap((e) => ['x', 'y'].map((axis) =>"
        " [...e.querySelectorAll(`.${axis}tick text`)].map((t) => t.textContent)))"
    )
    assert sum(map(bool, labels)) > 20
    assert [one for one in labels if len(set(one)) < len(one)] == []


def test_a_click_in_the_map_of_features_opens_neighbours_from_other_slides(tab: Tab) -> None:
    tab.middle_of(".fm-over")  # scrolls it into the window
    x, y = tab.ask("document.querySelector('.feature-map').featureMap.where(7)")
    for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
        tab.mouse(kind, x, y, clicks=int(kind != "mouseMoved"))
    tab.wait_for("document.querySelectorAll('.fm-detail li').length === 10")
    tile = tab.ask("document.querySelector('.feature-map').featureMap.state.selected")
    listed = tab.ask("[...document.querySelectorAll('.fm-detail li button')].map((e) => Number(e.dataset.tile))")
    assert listed == [one % 400 for one in range(tile + 1, tile + 16) if one % 400 % 5 != tile % 5][:10]
    assert tab.problems == []


def test_pictures_enlarge_on_click_and_close_by_key(tab: Tab) -> None:
    tab.click(".gallery .enlarge")
    tab.wait_for(data("#viewer", "open"))
    assert tab.ask(data("#viewer p", "textContent")).startswith("case-")
    assert tab.ask(data("#viewer img", "alt")).startswith("Tissue contour and kept tiles")
    tab.press("Escape")
    tab.wait_for(f"!{data('#viewer', 'open')}")
    assert tab.ask("document.activeElement.className") == "enlarge", "the keyboard is where it was"
    assert tab.problems == []


def test_arrow_keys_read_the_values_aloud(tab: Tab) -> None:
    tab.ask(f"{data(LOSS, 'focus()')}")
    for _ in range(2):
        tab.press("ArrowRight")
    first_y = tab.ask(data(LOSS, "data[0].y[1]"))
    assert tab.ask(data("#live", "textContent")) == f"vits16: {float(f'{first_y:.4g}'):.3f} at 20"
    tab.press("ArrowDown")
    assert tab.ask(data("#live", "textContent")).startswith("lower: ")


def test_slides_are_found_by_name(tab: Tab) -> None:
    tab.ask(data("#find-slide", "focus()"))
    tab.call("Input.insertText", text="090")
    tab.wait_for("[...document.getElementById('slide-rows').rows].filter((row) => !row.hidden).length === 1")
    assert tab.ask(data("#found-slides", "textContent")) == "1 of 5"


@pytest.mark.parametrize("is_dark", [False, True])
def test_text_has_contrast_in_light_and_dark(tab: Tab, is_dark: bool) -> None:
    browser = tab
    browser.window(width=1200, is_dark=is_dark)
    texts = ("p.soft", ".verdict", "h2", "nav a", "th", "td", ".ci", "figcaption b", ".place", ".query .other b",
             "small", ".status.failed", ".trouble p", "summary", "tr.baseline td", "footer", ".warning a")  # fmt: skip
    weak = {}
    for selector in texts:
        element = f"document.querySelector({selector!r})"
        colour = browser.ask(f"getComputedStyle({element}).color.match(/[\\d.]+/g).map(Number).slice(0, 3)")
        ratio = contrast(colour, browser.ask(BACKGROUND_OF % element))
        if ratio < 4.5:
            weak[selector] = round(ratio, 2)
    assert weak == {}, "WCAG 2.1 AA asks for 4.5"
    ink = "#a39cb0" if is_dark else "#625d6d"
    browser.wait_for(f"document.querySelector('.curves .plot').layout.xaxis.color === '{ink}'")
    fills = browser.ask(
        "getComputedStyle(document.querySelector('.curves .xtick text')).fill.match(/[\\d.]+/g).map(Number)"
    )
    assert contrast(fills[:3], browser.ask(BACKGROUND_OF % "document.querySelector('.curves .plot')")) > 4.5


def test_a_narrow_window_has_readable_labels_and_tables_that_say_they_scroll(tab: Tab) -> None:
    browser = tab
    browser.window(width=420)
    browser.wait_for("document.querySelector('.plot.intervals').layout.width < 420")
    assert browser.ask("document.documentElement.scrollWidth") <= 420, "the page itself does not scroll sideways"
    sizes = browser.ask(
        "[...document.querySelectorAll('.plot text')].map((e) => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(size for size in sizes if size) >= 11
    wide = browser.ask("[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth + 1).map("
                       "(e) => [e.className, e.tabIndex, getComputedStyle(e, '::before').content])")  # fmt: skip
    assert wide
    for name, tab_index, said in wide:
        assert ("wide" in name, tab_index) == (True, 0)
        assert "scroll sideways" in said


def test_every_picture_and_chart_has_words_and_every_control_a_name(tab: Tab) -> None:
    tree: list[dict[str, Any]] = tab.call("Accessibility.getFullAXTree")["nodes"]
    nameless = [
        (node["role"]["value"], node.get("backendDOMNodeId"))
        for node in tree
        if not node["ignored"]
        and node["role"]["value"] in ("image", "button", "slider", "checkbox", "combobox", "searchbox", "link")
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []
    charts = tab.ask("[...document.querySelectorAll('.plot')].map((e) => [e.tabIndex, e.getAttribute('aria-label'),"
                     " document.getElementById(e.getAttribute('aria-describedby')).textContent])")  # fmt: skip
    assert all(index == 0 and label.startswith("Chart: ") and says for index, label, says in charts)


def test_printed_pages_hold_charts_that_fit_and_all_that_was_folded(tab: Tab, tmp_path: Path) -> None:
    tab.ask("window.dispatchEvent(new Event('beforeprint'))")
    assert tab.ask("[...document.querySelectorAll('details')].every((e) => e.open)")
    tab.ask("window.dispatchEvent(new Event('afterprint'))")
    assert not tab.ask("[...document.querySelectorAll('details')].every((e) => e.open)")
    tab.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert tab.problems == []


def test_without_scripts_the_numbers_are_there_in_words(browser: Tab, page: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.show(page, width=1200)
        height = browser.ask("document.querySelector('.says').getBoundingClientRect().height")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)
    assert height > 10


def contrast(one: list[float], other: list[float]) -> float:
    """As WCAG 2.1 defines it, of two colours from 0 to 255."""
    lights = []
    for colour in (one, other):
        linear = [v / 12.92 if (v := c / 255) <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for c in colour]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)

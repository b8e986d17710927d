"""The report in a real browser, opened from the disk: hovers, drags, clicks and keys do what they should."""

from pathlib import Path
from typing import Any

import pytest
from chromium import Page
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
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    runs = [write_run(folder / "vits16"), write_run(folder / "lower", seed=1, momentum=0.99)]
    write_evaluation(runs[0] / "eval" / "results.json")
    write_examples(runs[0] / "eval")
    maps = [write_page(made_up_map(), folder / "map.html")]
    return write_report(runs, folder / "report.html", store=write_store(folder / "store"), maps=maps)


@pytest.fixture(scope="module")
def opened(tab: Page, file: Path) -> Page:
    """The page, opened once."""
    tab.window(1200, 900)
    tab.open(file)
    tab.wait_for(READY)
    return tab


@pytest.fixture
def page(opened: Page) -> Page:
    """The page as it was when it was opened."""
    opened.window(1200, 900)
    opened.run(AS_OPENED)
    opened.errors.clear()
    return opened


def data(selector: str, what: str) -> str:
    return f"document.querySelector({selector!r}).{what}"


def test_nothing_is_complained_of_and_nothing_is_asked_from_outside(opened: Page, file: Path) -> None:
    assert opened.errors == []
    assert {address for address in opened.requests if not address.startswith("blob:")} == {file.as_uri()}
    assert opened.run("document.querySelectorAll('.plot .main-svg').length") >= opened.run(
        "document.querySelectorAll('.plot').length"
    )
    blocked = "fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'blocked')"
    assert opened.run(blocked) == "blocked"
    assert any("Content Security Policy" in problem for problem in opened.errors)


def test_a_hover_tells_the_values_of_every_run(page: Page) -> None:
    x, y = page.middle_of(LOSS)
    page.mouse("mouseMoved", x, y)
    page.wait_for("document.querySelectorAll('.curves .hoverlayer .legend text').length > 1")
    said = page.run("[...document.querySelectorAll('.curves .hoverlayer text')].map((e) => e.textContent).join(' ')")
    assert "vits16" in said
    assert "lower" in said
    page.mouse("mouseMoved", *page.middle_of(".plot.intervals"))
    x, y = page.run("(() => {const b = document.querySelector('.plot.intervals .point').getBoundingClientRect();"
                   "return [b.x + b.width / 2, b.y + b.height / 2]})()")  # fmt: skip
    page.mouse("mouseMoved", x, y)
    page.wait_for("document.querySelector('.plot.intervals .hovertext') !== null")
    assert "0.900 (0.870 to 0.930)" in page.run(data(".plot.intervals .hovertext", "textContent"))


def test_a_drag_zooms_all_curves_and_a_key_or_button_shows_all_again(page: Page) -> None:
    x, y = page.middle_of(LOSS)
    whole = page.run(data(LOSS, "layout.xaxis.range"))
    page.drag((x - 80, y), (x + 20, y))
    page.wait_for(f"{data(LOSS, 'layout.xaxis.range')}[1] < {whole[1]} - 100")
    ranges = page.run("[...document.querySelectorAll('.curves .plot')].map((e) => e.layout.xaxis.range)")
    assert all(one == pytest.approx(ranges[0]) for one in ranges)
    assert whole[0] < ranges[0][0] < ranges[0][1] < whole[1]
    heights = page.run(data(LOSS, "layout.yaxis.range"))
    visible = [
        value
        for line in page.run(data(LOSS, "data"))
        for step, value in zip(line["x"], line["y"], strict=True)
        if ranges[0][0] <= step <= ranges[0][1]
    ]
    assert heights[0] < min(visible) < max(visible) < heights[1]
    assert heights[1] - heights[0] < 1.3 * (max(visible) - min(visible)), "and no higher than what one sees"
    is_whole = f"Math.abs({data(LOSS, 'layout.xaxis.range')}[1] - {whole[1]}) < 1"
    page.run(data(LOSS, "focus()"))
    page.key("0")
    page.wait_for(is_whole)
    page.drag((x - 80, y), (x + 20, y))
    page.wait_for(f"!({is_whole})")
    page.click(*page.middle_of("#reset"))
    page.wait_for(is_whole)
    assert page.errors == []


def test_runs_can_be_hidden_smoothed_and_drawn_on_a_log_scale(page: Page) -> None:
    number = f"{data(LOSS, 'data')}.length"
    assert page.run(number) == 2
    page.click(*page.middle_of(".run[value='1']"))
    page.wait_for(f"{number} === 1")
    raw = page.run(data(LOSS, "data[0].y"))
    set_to = (
        "(() => {const e = document.getElementById('smoothing'); e.value = 0.9; e.dispatchEvent(new Event('input'))})()"
    )
    page.run(set_to)
    smooth, total, weight = page.run(data(LOSS, "data[1].y")), 0.0, 0.0
    for value, drawn in zip(raw, smooth, strict=True):
        total, weight = 0.9 * total + 0.1 * value, 0.9 * weight + 0.1
        assert drawn == pytest.approx(total / weight)
    page.click(*page.middle_of("#log-scale"))
    page.wait_for(f"{data(LOSS, 'layout.yaxis.type')} === 'log'")
    assert page.run("document.getElementById('smoothing-value').textContent") == "0.9"
    page.run(
        "(() => {const e = document.getElementById('over'); e.value = 'tiles'; e.dispatchEvent(new Event('change'))})()"
    )
    assert page.run(data(LOSS, "data[0].x[0]")) == 10 * 64
    assert page.errors == []


def test_labels_of_axes_do_not_repeat(page: Page) -> None:
    labels: list[list[str]] = page.run(
        "[...document.querySelectorAll('.plot')].flatMap((e) => ['x', 'y'].map((axis) =>"
        " [...e.querySelectorAll(`.${axis}tick text`)].map((t) => t.textContent)))"
    )
    assert sum(map(bool, labels)) > 20
    assert [one for one in labels if len(set(one)) < len(one)] == []


def test_a_click_in_the_map_of_features_opens_neighbours_from_other_slides(page: Page) -> None:
    page.middle_of(".fm-over")  # scrolls it into the window
    page.click(*page.run("document.querySelector('.feature-map').featureMap.where(7)"))
    page.wait_for("document.querySelectorAll('.fm-detail li').length === 10")
    tile = page.run("document.querySelector('.feature-map').featureMap.state.selected")
    listed = page.run("[...document.querySelectorAll('.fm-detail li button')].map((e) => Number(e.dataset.tile))")
    assert listed == [one % 400 for one in range(tile + 1, tile + 16) if one % 400 % 5 != tile % 5][:10]
    assert page.errors == []


def test_pictures_enlarge_on_click_and_close_by_key(page: Page) -> None:
    page.click(*page.middle_of(".gallery .enlarge"))
    page.wait_for(data("#viewer", "open"))
    assert page.run(data("#viewer p", "textContent")).startswith("case-")
    assert page.run(data("#viewer img", "alt")).startswith("Tissue contour and kept tiles")
    page.key("Escape")
    page.wait_for(f"!{data('#viewer', 'open')}")
    assert page.run("document.activeElement.className") == "enlarge", "the keyboard is where it was"
    assert page.errors == []


def test_arrow_keys_read_the_values_aloud(page: Page) -> None:
    page.run(f"{data(LOSS, 'focus()')}")
    for _ in range(2):
        page.key("ArrowRight")
    first_y = page.run(data(LOSS, "data[0].y[1]"))
    assert page.run(data("#live", "textContent")) == f"vits16: {float(f'{first_y:.4g}'):.3f} at 20"
    page.key("ArrowDown")
    assert page.run(data("#live", "textContent")).startswith("lower: ")


def test_slides_are_found_by_name(page: Page) -> None:
    page.run(data("#find-slide", "focus()"))
    page.call("Input.insertText", text="090")
    page.wait_for("[...document.getElementById('slide-rows').rows].filter((row) => !row.hidden).length === 1")
    assert page.run(data("#found-slides", "textContent")) == "1 of 5"


@pytest.mark.parametrize("is_dark", [False, True])
def test_text_has_contrast_in_light_and_dark(page: Page, is_dark: bool) -> None:
    page.window(1200, 900, scheme="dark" if is_dark else "light")
    texts = ("p.soft", ".verdict", "h2", "nav a", "th", "td", ".ci", "figcaption b", ".place", ".query .other b",
             "small", ".status.failed", ".trouble p", "summary", "tr.baseline td", "footer", ".warning a")  # fmt: skip
    weak = {}
    for selector in texts:
        element = f"document.querySelector({selector!r})"
        colour = page.run(f"getComputedStyle({element}).color.match(/[\\d.]+/g).map(Number).slice(0, 3)")
        ratio = contrast(colour, page.run(BACKGROUND_OF % element))
        if ratio < 4.5:
            weak[selector] = round(ratio, 2)
    assert weak == {}, "WCAG 2.1 AA asks for 4.5"
    ink = "#a39cb0" if is_dark else "#625d6d"
    page.wait_for(f"document.querySelector('.curves .plot').layout.xaxis.color === '{ink}'")
    fills = page.run(
        "getComputedStyle(document.querySelector('.curves .xtick text')).fill.match(/[\\d.]+/g).map(Number)"
    )
    assert contrast(fills[:3], page.run(BACKGROUND_OF % "document.querySelector('.curves .plot')")) > 4.5


def test_a_narrow_window_has_readable_labels_and_tables_that_say_they_scroll(page: Page) -> None:
    page.window(420, 900)
    page.wait_for("document.querySelector('.plot.intervals').layout.width < 420")
    assert page.run("document.documentElement.scrollWidth") <= 420, "the page itself does not scroll sideways"
    sizes = page.run(
        "[...document.querySelectorAll('.plot text')].map((e) => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(size for size in sizes if size) >= 11
    wide = page.run("[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth + 1).map("
                       "(e) => [e.className, e.tabIndex, getComputedStyle(e, '::before').content])")  # fmt: skip
    assert wide
    for name, tab_index, said in wide:
        assert ("wide" in name, tab_index) == (True, 0)
        assert "scroll sideways" in said


def test_every_picture_and_chart_has_words_and_every_control_a_name(page: Page) -> None:
    tree: list[dict[str, Any]] = page.call("Accessibility.getFullAXTree")["nodes"]
    nameless = [
        page.call("DOM.getOuterHTML", backendNodeId=node["backendDOMNodeId"])["outerHTML"]
        for node in tree
        if not node["ignored"]
        and node["role"]["value"] in ("image", "button", "slider", "checkbox", "combobox", "searchbox", "link")
        and not node.get("name", {}).get("value")
    ]
    assert nameless == []
    charts = page.run("[...document.querySelectorAll('.plot')].map((e) => [e.tabIndex, e.getAttribute('aria-label'),"
                     " document.getElementById(e.getAttribute('aria-describedby')).textContent])")  # fmt: skip
    assert all(index == 0 and label.startswith("Chart: ") and says for index, label, says in charts)


def test_printed_pages_hold_charts_that_fit_and_all_that_was_folded(page: Page, tmp_path: Path) -> None:
    page.run("window.dispatchEvent(new Event('beforeprint'))")
    assert page.run("[...document.querySelectorAll('details')].every((e) => e.open)")
    page.run("window.dispatchEvent(new Event('afterprint'))")
    assert not page.run("[...document.querySelectorAll('details')].every((e) => e.open)")
    page.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert page.errors == []


def test_without_scripts_the_numbers_are_there_in_words(opened: Page, file: Path) -> None:
    opened.window(1200, 900)  # waits for frames by a script
    opened.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        opened.open(file)
        height = opened.run("document.querySelector('.says').getBoundingClientRect().height")
    finally:
        opened.call("Emulation.setScriptExecutionDisabled", value=False)
    assert height > 10


def contrast(one: list[float], other: list[float]) -> float:
    """As WCAG 2.1 defines it, of two colours from 0 to 255."""
    lights = []
    for colour in (one, other):
        linear = [v / 12.92 if (v := c / 255) <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for c in colour]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)

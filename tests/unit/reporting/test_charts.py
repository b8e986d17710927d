"""Charts: numbers become positions, long curves are thinned, and nothing from outside gets into the SVG as markup."""

import math
import re
from xml.etree import ElementTree

import pytest

from dino_path.reporting.charts import (
    MAX_POINTS,
    Frame,
    Interval,
    Line,
    format_number,
    interval_chart,
    line_chart,
    ticks,
)


def points(svg: str) -> list[tuple[float, float]]:
    [curve] = list(ElementTree.fromstring(svg).iter("polyline"))
    return [tuple(map(float, pair.split(","))) for pair in curve.attrib["points"].split()]  # type: ignore[misc]


def test_a_frame_maps_data_to_px_with_y_upwards() -> None:
    frame = Frame(x_range=(0, 10), y_range=(-1, 1), left=5, top=20, width=100, height=50)
    assert (frame.x(0), frame.x(10)) == (5, 105)
    assert (frame.y(1), frame.y(-1), frame.y(0)) == (20, 70, 45)


def test_a_curve_runs_over_the_whole_width_and_falls_where_the_numbers_fall() -> None:
    drawn = points(line_chart([Line("run", [1, 2, 3], [5.0, 4.0, 1.0])], title="loss"))
    assert [x for x, _ in drawn] == [46, 207, 368]
    assert drawn[0][1] < drawn[1][1] < drawn[2][1]


def test_long_curves_are_averaged_in_buckets_and_the_band_keeps_the_extremes() -> None:
    y = [0.0] * 10_000
    y[5_000] = 100.0
    svg = line_chart([Line("run", list(range(10_000)), y)], title="spike")
    assert len(points(svg)) <= MAX_POINTS
    [band] = list(ElementTree.fromstring(svg).iter("polygon"))
    tops = [float(pair.split(",")[1]) for pair in band.attrib["points"].split()]
    assert max(tops) - min(tops) > 100, "the one spike must be seen"


def test_values_that_are_not_finite_are_left_out() -> None:
    drawn = points(line_chart([Line("run", [1, 2, 3, 4], [1.0, math.nan, math.inf, 2.0])], title="loss"))
    assert len(drawn) == 2
    assert line_chart([Line("run", [1], [math.nan])], title="loss") == ""
    assert line_chart([], title="loss") == ""


def test_a_constant_and_a_single_point_can_be_drawn() -> None:
    for x, y in (([1.0, 2.0], [3.0, 3.0]), ([1.0], [0.0])):
        assert all(math.isfinite(v) for pair in points(line_chart([Line("run", x, y)], title="t")) for v in pair)


def test_the_reference_line_is_inside_the_chart_even_where_the_curve_is_far() -> None:
    svg = line_chart([Line("run", [1, 2], [1.0, 1.1])], title="loss", reference=("ln K", 8.3))
    [line] = [e for e in ElementTree.fromstring(svg).iter("line") if e.attrib["class"] == "reference"]
    assert 10 <= float(line.attrib["y1"]) <= 138


def test_intervals_lie_where_their_numbers_are() -> None:
    rows = [Interval("ours", 0.9, 0.85, 0.95, "own"), Interval("lonely", 0.5, None, None, "other")]
    root = ElementTree.fromstring(interval_chart(rows, title="accuracy"))
    centres = [float(circle.attrib["cx"]) for circle in root.iter("circle")]
    [whisker] = [line for line in root.iter("line") if line.attrib["class"] == "whisker"]
    assert centres[0] > centres[1]
    assert float(whisker.attrib["x1"]) < centres[0] < float(whisker.attrib["x2"])
    assert float(whisker.attrib["x2"]) - centres[0] == pytest.approx(centres[0] - float(whisker.attrib["x1"]), abs=0.11)


def test_the_baseline_runs_through_as_a_band() -> None:
    rows = [Interval("ours", 0.9, 0.85, 0.95, "own"), Interval("base", 0.8, 0.75, 0.85, "baseline")]
    root = ElementTree.fromstring(interval_chart(rows, title="accuracy"))
    [band] = list(root.iter("rect"))
    assert float(band.attrib["height"]) == 60


def test_names_cannot_bring_markup() -> None:
    hostile = "<script>alert(1)</script>"
    for svg in (
        line_chart([Line(hostile, [1, 2], [1.0, 2.0])], title=hostile, reference=(hostile, 1.0)),
        interval_chart([Interval(hostile, 0.5, None, None, "own")], title=hostile),
    ):
        assert "<script" not in svg
        ElementTree.fromstring(svg)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (3, 97, [25, 50, 75]), (0.996, 1, [0.996, 0.997, 0.998, 0.999, 1])],
)
def test_ticks_are_round_numbers_inside_the_range(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (1234, "1234"),
        (12_000, "12k"),
        (2_500_000, "2.5M"),
        (5e-4, "5e-4"),
        (-3.14159, "-3.14"),
    ],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert format_number(value) == text


def test_every_label_of_a_chart_is_short() -> None:
    svg = line_chart([Line("run", list(range(0, 125_000, 1000)), [1e-6 * i for i in range(125)])], title="lr")
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    assert labels
    assert all(len(label) <= 6 for label in labels)

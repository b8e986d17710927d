"""Charts: numbers reach the page as they are, long curves are thinned, and nothing from outside becomes markup."""

import json
import math

import pytest

from dino_path.reporting.charts import (
    MAX_POINTS,
    Interval,
    Line,
    Series,
    buckets,
    common_axis,
    data_for_page,
    format_number,
    fraction_chart,
    interval_chart,
    line_chart,
)


def test_a_short_curve_keeps_every_point() -> None:
    chart = line_chart([Line("run", [1, 2, 3], [5.0, 4.0, 1.0])], title="loss", reference=("ln K", 8.3))
    assert chart is not None
    assert chart["lines"] == [{"label": "run", "x": [1, 2, 3], "y": [5.0, 4.0, 1.0]}]
    assert chart["reference"] == {"label": "ln K", "value": 8.3}
    assert chart["summary"] == "run: 5 at step 1, 1 at step 3; lowest 1, highest 5"


def test_long_curves_are_averaged_in_buckets_and_the_band_keeps_the_extremes() -> None:
    y = [0.0] * 10_000
    y[5_000] = 100.0
    thin = buckets(Line("run", list(range(10_000)), y))
    assert len(thin.x) == len(thin.mean) == MAX_POINTS
    assert max(thin.high) == 100, "the one spike must be seen"
    assert max(thin.mean) == 10
    assert thin.x[:2] == [4.5, 14.5]
    chart = line_chart([Line("run", list(range(10_000)), y)], title="spike")
    assert chart is not None
    assert max(chart["lines"][0]["high"]) == 100


def test_values_that_are_not_finite_are_left_out_and_a_run_without_any_keeps_its_place() -> None:
    chart = line_chart([Line("a", [1], [math.nan]), Line("b", [1, 2, 3], [1.0, math.inf, 2.0])], title="loss")
    assert chart is not None
    assert [line["x"] for line in chart["lines"]] == [[], [1, 3]], "the second run has the second colour"
    assert line_chart([Line("run", [1], [math.nan])], title="loss") is None
    assert line_chart([], title="loss") is None


def test_intervals_come_with_chance_and_with_all_numbers_in_words() -> None:
    rows = [Interval("ours", 0.9, 0.85, 0.95, "own"), Interval("lonely", 0.5, None, None, "other")]
    chart = interval_chart(rows, title="accuracy", axis=(0.1, 1.0), chance=0.25)
    assert chart is not None
    assert (chart["axis"], chart["chance"]) == ([0.1, 1.0], 0.25)
    assert chart["rows"][1] == {"label": "lonely", "value": 0.5, "low": None, "high": None, "kind": "other"}
    assert chart["summary"] == "ours: 0.900 (0.850 to 0.950); lonely: 0.500; chance: 0.250"
    assert interval_chart([], title="accuracy", axis=(0, 1), chance=None) is None


def test_fractions_keep_the_places_of_what_was_not_measured() -> None:
    chart = fraction_chart([Series("ours", [None, (0.8, 0.7, 0.9)])], ["1 %", "10 %"], title="few", chance=0.5)
    assert chart is not None
    assert chart["series"][0]["points"] == [None, [0.8, 0.7, 0.9]]
    assert chart["summary"] == "ours, 10 %: 0.800 (0.700 to 0.900)"
    assert fraction_chart([Series("ours", [None])], ["1 %"], title="few", chance=0.5) is None


def test_an_axis_holds_all_values_and_ends_soon_after_0_and_1() -> None:
    assert common_axis([0.2, 0.7]) == pytest.approx((0.17, 0.73))
    assert common_axis([0.0, 1.0]) == (-0.02, 1.02)
    low, high = common_axis([0.5])
    assert low < 0.5 < high


def test_names_cannot_end_the_script_that_holds_the_numbers() -> None:
    hostile = "</script><script>alert(1)</script><!--"
    text = data_for_page(line_chart([Line(hostile, [1, 2], [1.0, 2.0])], title=hostile))
    assert not {"<", ">", "&"}.intersection(text)
    assert json.loads(text)["lines"][0]["label"] == hostile


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

"""Charts as plain numbers: the page draws them with Plotly (`report.js`), `figures` with matplotlib."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

MAX_POINTS = (
    1000  # of one curve in the page: a chart is 400 px wide, and zooming in tenfold still shows each point's own
)

Spec = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One curve; values that are not finite are left out."""

    label: str
    x: Sequence[float]
    y: Sequence[float]

    def finite(self) -> list[tuple[float, float]]:
        pairs = zip(self.x, self.y, strict=True)
        return [(x, y) for x, y in pairs if math.isfinite(x) and math.isfinite(y)]


@dataclass(frozen=True)
class Interval:
    """One row of an interval chart: a value and its 95 % confidence interval, None where there is none."""

    label: str
    value: float
    low: float | None
    high: float | None
    kind: Literal["own", "baseline", "other"]


@dataclass(frozen=True)
class Series:
    """One model over ordered categories: (value, low, high) in each; None where it was not measured."""

    label: str
    points: Sequence[tuple[float, float | None, float | None] | None]


@dataclass(frozen=True)
class Buckets:
    """A curve of at most MAX_POINTS points: means of neighbouring values, with the lowest and highest of each."""

    x: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


def buckets(line: Line) -> Buckets:
    """The curve for drawing, averaged over buckets if it has more than MAX_POINTS points."""
    pairs = line.finite()
    size = max(1, math.ceil(len(pairs) / MAX_POINTS))
    groups = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    ys = [[y for _, y in group] for group in groups]
    return Buckets(
        x=[_short(sum(x for x, _ in group) / len(group)) for group in groups],
        mean=[_short(sum(values) / len(values)) for values in ys],
        low=[_short(min(values)) for values in ys],
        high=[_short(max(values)) for values in ys],
    )


def line_chart(lines: Sequence[Line], *, title: str, reference: tuple[str, float] | None = None) -> Spec | None:
    """Curves over the step, one place for each run; None where no run has a value.

    Args:
        reference: label and height of a dashed line.
    """
    drawn = [buckets(line) for line in lines]
    if not any(one.x for one in drawn):
        return None
    return {
        "kind": "lines",
        "title": title,
        "lines": [
            {"label": line.label, "x": one.x, "y": one.mean, **_band(one)}
            for line, one in zip(lines, drawn, strict=True)
        ],
        "reference": None if reference is None else {"label": reference[0], "value": reference[1]},
        "summary": summary(lines),
    }


def interval_chart(
    rows: Sequence[Interval], *, title: str, axis: tuple[float, float], chance: float | None
) -> Spec | None:
    """Values with their intervals, one below the other; the supervised network's interval runs through as a band.

    Args:
        axis: what it spans: the same in all charts of one measure.
        chance: what guessing gives, drawn as a dashed line.
    """
    if not rows:
        return None
    said = "; ".join(f"{row.label}: {_with_interval(row.value, row.low, row.high)}" for row in rows)
    return {
        "kind": "intervals",
        "title": title,
        "rows": [{"label": r.label, "value": r.value, "low": r.low, "high": r.high, "kind": r.kind} for r in rows],
        "axis": list(axis),
        "chance": chance,
        "summary": said + ("" if chance is None else f"; chance: {chance:.3f}"),
    }


def fraction_chart(
    series: Sequence[Series], categories: Sequence[str], *, title: str, chance: float | None
) -> Spec | None:
    """Values with their intervals over ordered categories, one line per series; neighbours stand side by side."""
    if not any(point for one in series for point in one.points):
        return None
    said = [
        f"{one.label}, {category}: {_with_interval(*point)}"
        for one in series
        for category, point in zip(categories, one.points, strict=True)
        if point is not None
    ]
    return {
        "kind": "fractions",
        "title": title,
        "categories": list(categories),
        "series": [
            {"label": one.label, "points": [None if p is None else list(p) for p in one.points]} for one in series
        ],
        "chance": chance,
        "summary": "; ".join(said),
    }


def common_axis(ends: Sequence[float]) -> tuple[float, float]:
    """A range that holds all values of a measure between 0 and 1, with some air."""
    low, high = min(ends), max(ends)
    air = 0.06 * (high - low) or 0.05
    return max(-0.02, low - air), min(1.02, high + air)


def summary(lines: Sequence[Line]) -> str:
    """The curves in words: start, end and range of each."""
    said = []
    for line in lines:
        if pairs := line.finite():
            ys = [y for _, y in pairs]
            said.append(
                f"{line.label}: {format_number(ys[0])} at step {format_number(pairs[0][0])}, {format_number(ys[-1])} at"
                f" step {format_number(pairs[-1][0])}; lowest {format_number(min(ys))}, highest"
                f" {format_number(max(ys))}"
            )
    return ". ".join(said)


def format_number(value: float) -> str:
    """Three digits, and a unit letter for thousands and millions."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * size or (unit == "M" and abs(value) >= size):
            return f"{value / size:.3g}{unit}"
    if value != 0 and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}" if abs(value) >= 1000 else f"{value:.3g}"


def data_for_page(value: object) -> Markup:
    """JSON that is safe inside a script element: no name in it can end the element."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _band(one: Buckets) -> Spec:
    """The lowest and highest values, where a bucket holds several."""
    return {"low": one.low, "high": one.high} if one.low != one.high else {}


def _short(value: float) -> float:
    """Seven digits: more than a chart shows, and half the bytes."""
    return float(f"{value:.7g}")


def _with_interval(value: float, low: float | None, high: float | None) -> str:
    return f"{value:.3f}" + ("" if low is None or high is None else f" ({low:.3f} to {high:.3f})")

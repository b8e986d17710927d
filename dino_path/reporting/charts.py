"""Charts as inline SVG: small, sharp at any size, and coloured by the page's style sheet (light and dark)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup, escape

MAX_POINTS = 240
NUM_TICKS = 4


@dataclass(frozen=True)
class Line:
    """One curve; values that are not finite are left out."""

    label: str
    x: Sequence[float]
    y: Sequence[float]


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
class Frame:
    """A linear map from data to the px of a drawing whose plot area lies inside the margins."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: float
    top: float
    width: float
    height: float

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + self.width * (value - low) / (high - low)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.top + self.height * (1 - (value - low) / (high - low))


@dataclass(frozen=True)
class _Bucket:
    x: float
    mean: float
    low: float
    high: float


def line_chart(
    lines: Sequence[Line], *, title: str, width_px: int = 380, reference: tuple[str, float] | None = None
) -> Markup:
    """Curves over the step. Long ones are averaged in buckets, whose spread is a pale band.

    Args:
        width_px: of the drawing before the page scales it.
        reference: label and height of a dashed line.
    """
    drawn = [(line.label, buckets) for line in lines if (buckets := _buckets(line))]
    if not drawn:
        return Markup("")
    buckets_of_all = [bucket for _, buckets in drawn for bucket in buckets]
    xs = [x for line in lines for x in line.x if math.isfinite(x)]
    ys = [y for bucket in buckets_of_all for y in (bucket.low, bucket.high)]
    if reference is not None:
        ys.append(reference[1])
    frame = Frame(
        x_range=_widened(min(xs), max(xs), margin=0),
        y_range=_widened(min(ys), max(ys), margin=0.06),
        left=46, top=10, width=width_px - 58, height=128,
    )  # fmt: skip
    parts = [_y_grid(frame), _x_labels(frame)]
    if reference is not None:
        parts.append(_reference_line(frame, *reference))
    parts += [_curve(frame, buckets, slot % 6, label) for slot, (label, buckets) in enumerate(drawn)]
    return _svg(width_px, 164, title, parts)


def interval_chart(rows: Sequence[Interval], *, title: str) -> Markup:
    """Values with their intervals, one below the other; the baseline's interval runs through as a band."""
    if not rows:
        return Markup("")
    ends = [end for row in rows for end in (row.low, row.value, row.high) if end is not None]
    row_px = 30
    frame = Frame(
        x_range=_widened(min(ends), max(ends), margin=0.08),
        y_range=(0, len(rows)),
        left=250, top=8, width=440, height=row_px * len(rows),
    )  # fmt: skip
    parts = [_x_grid(frame)]
    parts += [_baseline_band(frame, row) for row in rows if row.kind == "baseline"]
    parts += [_interval(frame, row, frame.top + row_px * (index + 0.5)) for index, row in enumerate(rows)]
    return _svg(760, frame.top + frame.height + 26, title, parts)


def fraction_chart(series: Sequence[Series], categories: Sequence[str], *, title: str, width_px: int = 520) -> Markup:
    """Values with their intervals over ordered categories, one line per series; neighbours stand side by side."""
    ends = [end for one in series for point in one.points if point for end in point if end is not None]
    if not ends:
        return Markup("")
    frame = Frame(
        x_range=(-0.5, len(categories) - 0.5),
        y_range=_widened(min(ends), max(ends), margin=0.06),
        left=46, top=10, width=width_px - 58, height=190,
    )  # fmt: skip
    bottom = frame.top + frame.height
    parts = [_y_grid(frame)]
    parts.append(f'<line class="axis" x1="{frame.left}" x2="{frame.left + frame.width}" y1="{bottom}" y2="{bottom}"/>')
    parts += [
        f'<text x="{frame.x(place):.1f}" y="{bottom + 15}" text-anchor="middle">{escape(category)}</text>'
        for place, category in enumerate(categories)
    ]
    for slot, one in enumerate(series):
        shift = 0.5 * ((slot + 0.5) / len(series) - 0.5)
        parts.append(_series(frame, one, shift, slot % 6, categories))
    return _svg(width_px, bottom + 24, title, parts)


def _series(frame: Frame, one: Series, shift: float, slot: int, categories: Sequence[str]) -> str:
    parts, line = [], []
    for place, point in enumerate(one.points):
        if point is None:
            continue
        value, low, high = point
        x, y = frame.x(place + shift), frame.y(value)
        line.append(f"{x:.1f},{y:.1f}")
        hint = f"{one.label}, {categories[place]}: {value:.3f}"
        whisker = ""
        if low is not None and high is not None:
            hint += f" ({low:.3f} to {high:.3f})"
            whisker = (
                f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.y(low):.1f}" y2="{frame.y(high):.1f}"/>'
            )
        circle = f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
        parts.append(f"<g><title>{escape(hint)}</title>{whisker}{circle}</g>")
    return f'<g class="slot{slot}"><polyline class="curve thin" points="{" ".join(line)}"/>{"".join(parts)}</g>'


def format_number(value: float) -> str:
    """Three digits, and a unit letter for thousands and millions."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if abs(value) >= 10 * size or (unit == "M" and abs(value) >= size):
            return f"{value / size:.3g}{unit}"
    if value != 0 and abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}" if abs(value) >= 1000 else f"{value:.3g}"


def ticks(low: float, high: float, count: int = NUM_TICKS) -> list[float]:
    """About `count` round numbers between low and high."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _buckets(line: Line) -> list[_Bucket]:
    pairs = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    per_bucket = max(1, math.ceil(len(pairs) / MAX_POINTS))
    buckets = []
    for start in range(0, len(pairs), per_bucket):
        group = pairs[start : start + per_bucket]
        ys = [y for _, y in group]
        buckets.append(_Bucket(sum(x for x, _ in group) / len(group), sum(ys) / len(ys), min(ys), max(ys)))
    return buckets


def _widened(low: float, high: float, *, margin: float) -> tuple[float, float]:
    """The range with some air; a range of zero width becomes one around the value."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        half = abs(low) * 0.1 or 0.5
        return low - half, high + half
    return low - margin * (high - low), high + margin * (high - low)


def _curve(frame: Frame, buckets: Sequence[_Bucket], slot: int, label: str) -> str:
    middle = " ".join(f"{frame.x(b.x):.1f},{frame.y(b.mean):.1f}" for b in buckets)
    band = ""
    if any(b.high > b.low for b in buckets):
        upper = [f"{frame.x(b.x):.1f},{frame.y(b.high):.1f}" for b in buckets]
        lower = [f"{frame.x(b.x):.1f},{frame.y(b.low):.1f}" for b in reversed(buckets)]
        band = f'<polygon class="band slot{slot}" points="{" ".join(upper + lower)}"/>'
    last = buckets[-1]
    dot = f'<circle class="dot slot{slot}" cx="{frame.x(last.x):.1f}" cy="{frame.y(last.mean):.1f}" r="2.6"/>'
    hint = f"<title>{escape(label)}: {format_number(last.mean)} at step {format_number(last.x)}</title>"
    return f'<g>{hint}{band}<polyline class="curve slot{slot}" points="{middle}"/>{dot}</g>'


def _reference_line(frame: Frame, label: str, value: float) -> str:
    y, right = frame.y(value), frame.left + frame.width
    text_y = y - 4 if y - 4 > frame.top + 8 else y + 11
    return (
        f'<line class="reference" x1="{frame.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="hint" x="{right}" y="{text_y:.1f}" text-anchor="end">{escape(label)}</text>'
    )


def _y_grid(frame: Frame) -> str:
    parts = []
    for value in ticks(*frame.y_range):
        y = frame.y(value)
        parts.append(
            f'<line class="grid" x1="{frame.left}" x2="{frame.left + frame.width}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(f'<text x="{frame.left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{format_number(value)}</text>')
    return "".join(parts)


def _x_labels(frame: Frame) -> str:
    baseline = frame.top + frame.height
    labels = [
        f'<text x="{frame.x(value):.1f}" y="{baseline + 15}" text-anchor="middle">{format_number(value)}</text>'
        for value in ticks(*frame.x_range)
    ]
    right = frame.left + frame.width
    return f'<line class="axis" x1="{frame.left}" x2="{right}" y1="{baseline}" y2="{baseline}"/>' + "".join(labels)


def _x_grid(frame: Frame) -> str:
    bottom = frame.top + frame.height
    parts = []
    for value in ticks(*frame.x_range, count=6):
        x = frame.x(value)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{bottom}"/>')
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{format_number(value)}</text>')
    return "".join(parts)


def _baseline_band(frame: Frame, row: Interval) -> str:
    x, height = frame.x(row.value), frame.height
    line = f'<line class="reference pink" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{frame.top + height}"/>'
    if row.low is None or row.high is None:
        return line
    left, right = frame.x(row.low), frame.x(row.high)
    size = f'width="{right - left:.1f}" height="{height}"'
    return f'<rect class="baseline-band" x="{left:.1f}" y="{frame.top}" {size}/>{line}'


def _interval(frame: Frame, row: Interval, y: float) -> str:
    label = row.label if len(row.label) <= 38 else f"{row.label[:18]} … {row.label[-17:]}"
    x = frame.x(row.value)
    right = x
    parts = [f'<text class="row-label" x="{frame.left - 14}" y="{y + 4:.1f}" text-anchor="end">{escape(label)}</text>']
    hint = f"{row.label}: {row.value:.3f}"
    if row.low is not None and row.high is not None:
        left, right = frame.x(row.low), frame.x(row.high)
        hint += f" ({row.low:.3f} to {row.high:.3f})"
        parts.append(f'<line class="whisker" x1="{left:.1f}" x2="{right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
    parts.append(f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="5"/>')
    parts.append(f'<text class="value" x="{right + 10:.1f}" y="{y + 4:.1f}">{row.value:.3f}</text>')
    return f'<g class="{row.kind}"><title>{escape(hint)}</title>{"".join(parts)}</g>'


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> Markup:
    head = f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'
    return Markup(head + "".join(parts) + "</svg>")

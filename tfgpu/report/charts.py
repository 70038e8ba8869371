"""Line charts as geometry: what the template draws as SVG, and the same in words.

Drawn without matplotlib: the text of a chart stays text, which a screen reader reads and a browser
scales, and the colours follow those of the page.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 12, 10, 38
_LOG_FROM = 1000.0
"""Ratio of the largest to the smallest value from which the axis is logarithmic."""
STYLES = 6
"""Kinds of lines, told apart by colour and by their dashes."""

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Series:
    """A line.

    Attributes:
        name: For the legend.
        points: (x, y), by x; y that is not finite leaves a gap.
        band: (x, lowest, highest) around it.
    """

    name: str
    points: Sequence[tuple[float, float | None]]
    band: Sequence[tuple[float, float, float]] = ()


@dataclasses.dataclass(frozen=True)
class Line:
    """A series as it is drawn.

    Attributes:
        name: For the legend.
        style: Which colour and dashes, from 0 to `STYLES` - 1.
        paths: Of `points` attributes of polylines.
        dots: Points with no neighbour to draw a line to.
        band: The `points` attribute of a polygon; "" for none.
    """

    name: str
    style: int
    paths: tuple[str, ...]
    dots: tuple[Point, ...]
    band: str


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart, ready to be drawn.

    Attributes:
        title: What is shown.
        x_label: Of the horizontal axis.
        logarithmic: Whether the vertical axis is.
        lines: The series.
        x_ticks: (position, label).
        y_ticks: (position, label).
        words: The same in sentences, one a series.
    """

    title: str
    x_label: str
    logarithmic: bool
    lines: tuple[Line, ...]
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    words: tuple[str, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = _LEFT
    right: int = WIDTH - _RIGHT
    top: int = _TOP
    bottom: int = HEIGHT - _BOTTOM


def line_chart(title: str, series: Sequence[Series], *, x_label: str = "epoch") -> Chart | None:
    """Lays out a chart; None where there is no point to show.

    Args:
        title: What is shown.
        series: The lines.
        x_label: Of the horizontal axis.
    """
    series = [each for each in series if any(_is_finite(y) for _, y in each.points)]
    if not series:
        return None
    xs = [float(x) for each in series for x, y in each.points if _is_finite(y)]
    ys = [float(y) for each in series for _, y in each.points if y is not None and _is_finite(y)]
    ys += [v for each in series for _, low, high in each.band for v in (low, high)]
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > _LOG_FROM
    x_low, x_high = min(xs), max(xs)
    if x_low == x_high:
        x_low, x_high = x_low - 0.5, x_high + 0.5
    y_low, y_high, y_values = _log_axis(ys) if logarithmic else _linear_axis(min(ys), max(ys))

    def place(x: float, y: float) -> Point:
        y = math.log10(y) if logarithmic else y
        return (
            round(_LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - _LEFT - _RIGHT), 1),
            round(_TOP + (y_high - y) / (y_high - y_low) * (HEIGHT - _TOP - _BOTTOM), 1),
        )

    lines = []
    for number, each in enumerate(series):
        paths, dots = _runs_of(each.points)
        upper = [place(x, high) for x, _, high in each.band]
        lower = [place(x, low) for x, low, _ in reversed(each.band)]
        lines.append(
            Line(
                name=each.name,
                style=number % STYLES,
                paths=tuple(_points([place(*point) for point in path]) for path in paths),
                dots=tuple(place(*point) for point in dots),
                band=_points(upper + lower),
            )
        )
    whole = all(x == int(x) for x in xs)
    x_values = [v for v in _ticks(x_low, x_high, 8) if not whole or v == int(v)]
    return Chart(
        title=title,
        x_label=x_label,
        logarithmic=logarithmic,
        lines=tuple(lines),
        x_ticks=tuple((place(x, ys[0])[0], figure(x)) for x in x_values),
        y_ticks=tuple((place(x_low, y)[1], figure(y)) for y in y_values),
        words=tuple(_in_words(each, x_label) for each in series),
    )


def figure(value: float | None, digits: int = 4) -> str:
    """A number for people: four significant digits, thousands apart; "-" for none."""
    if value is None or not math.isfinite(value):
        return "-"
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1e7 or abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _runs_of(points: Sequence[tuple[float, float | None]]) -> tuple[list[list[Point]], list[Point]]:
    """Points in runs without a gap, and those that are alone."""
    runs: list[list[Point]] = [[]]
    for x, y in points:
        if y is not None and math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if len(run) > 1], [run[0] for run in runs if len(run) == 1]


def _points(places: Sequence[Point]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)


def _ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from `low` to `high`: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(k * power for k in (1, 2, 5, 10) if k * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    # Rounded: 3 * 0.1 is not 0.3.
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def _linear_axis(low: float, high: float) -> tuple[float, float, list[float]]:
    if low == high:
        margin = abs(low) * 0.1 or 0.5
        low, high = low - margin, high + margin
    margin = (high - low) * 0.04
    low, high = low - margin, high + margin
    return low, high, _ticks(low, high, 6)


def _log_axis(values: Sequence[float]) -> tuple[float, float, list[float]]:
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    every = -(-(high - low) // 6)
    return float(low), float(high), [10.0**power for power in range(low, high + 1, every)]


def _in_words(series: Series, x_label: str) -> str:
    known = [(x, y) for x, y in series.points if y is not None and math.isfinite(y)]
    (first_x, first), (last_x, last) = known[0], known[-1]
    if len(known) == 1:
        return f"{series.name}: {figure(first)} at {x_label} {figure(first_x)}."
    low_x, low = min(known, key=lambda point: point[1])
    high_x, high = max(known, key=lambda point: point[1])
    return (
        f"{series.name}: {figure(first)} at {x_label} {figure(first_x)}, {figure(last)} at "
        f"{x_label} {figure(last_x)}; lowest {figure(low)} at {figure(low_x)}, highest "
        f"{figure(high)} at {figure(high_x)}."
    )

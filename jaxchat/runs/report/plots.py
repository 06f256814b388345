"""Plots as inline SVG: lines over an axis, marks with intervals, bars (layer 4).

Colours and fonts come from the page's style sheet by class, so that one drawing serves light, dark
and print. Every drawing has a title and a description for whoever does not see it, and is the same,
byte for byte, for the same numbers. Coordinates are pixels of the drawing's own frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from jaxchat.runs.report.elements import words

WIDTH, HEIGHT = 360, 220  # of a plot of lines
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 12, 38  # margins, which hold the axes' numbers
ROW = 15  # height of a mark in a plot of marks, or of a bar
LABELS = 172  # the most that names beside marks and bars take
BODY = 262  # width of what they stand beside
LETTER = 6.4  # width of a letter of the axes, roughly
NAME_LETTER = 7.0  # and of a name

Show = Callable[[float], str]


@dataclass(frozen=True)
class Series:
    """Points (xs[i], ys[i]); `style` is the class that colours them, `mark` line, faint or dots."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]  # None: missing
    style: str
    mark: str = "line"

    @property
    def points(self) -> list[tuple[float, float]]:
        """The points, without those that are missing."""
        return [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if y is not None]


@dataclass(frozen=True)
class Axis:
    """A range of numbers over a range of pixels, and how they are told."""

    label: str
    low: float
    high: float
    start: float
    end: float
    show: Show
    whole: bool = False  # only integers are told

    def at(self, value: float) -> float:
        """The pixel of a value."""
        span = (self.high - self.low) or 1.0
        return self.start + (value - self.low) / span * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values within the range."""
        found = ticks(self.low, self.high, most)
        return [value for value in found if not self.whole or value.is_integer()]


@dataclass(frozen=True)
class Mark:
    """A value with its interval in a plot of marks."""

    name: str
    style: str
    value: float
    low: float
    high: float
    told: str


@dataclass(frozen=True)
class Bar:
    """A length with its name and how it is told."""

    name: str
    style: str
    value: float
    told: str


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` + 1 multiples of 1, 2 or 5 times a power of ten from `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def short(value: float) -> str:
    """A number on an axis: `0.25`, `150`, `1.5k`, `20M`, `11B`."""
    for unit, scale in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= scale:
            return f"{value / scale:.4g}{unit}"
    return f"{value:.4g}"


def line_plot(
    key: str,
    title: str,
    series: Sequence[Series],
    x_label: str,
    *,
    show: Show = short,
    from_zero: bool = False,
    steep: bool = False,
) -> str:
    """Lines and dots over a common x axis that begins at 0.

    `key` is unique in the page. `from_zero`: the y axis begins at 0. `steep`: the y axis leaves out
    what lies above it in the first twentieth of the x axis, where a loss falls from its start.
    """
    series = [one for one in series if one.points]
    if not series:
        return ""
    x = Axis(
        x_label, 0.0, max(p[0] for s in series for p in s.points) or 1.0, LEFT, WIDTH - RIGHT, short
    )
    x = replace(x, whole=all(float(p[0]).is_integer() for s in series for p in s.points))
    low, high = _range([p for s in series for p in s.points], x, from_zero, steep)
    y = Axis("", low, high, HEIGHT - BOTTOM, TOP, show)
    width, height = WIDTH - LEFT - RIGHT + 4, HEIGHT - TOP - BOTTOM + 4
    parts = [
        _grid(x, y),
        f'<clipPath id="{key}-clip"><rect x="{LEFT}" y="{TOP - 4}" width="{width}" '
        f'height="{height}"/></clipPath><g clip-path="url(#{key}-clip)">',
        *(_drawn(s, x, y) for s in series),
        "</g>",
    ]
    return _svg(key, WIDTH, HEIGHT, title, _described(series, x, y), parts)


def _range(
    points: Sequence[tuple[float, float]], x: Axis, from_zero: bool, steep: bool
) -> tuple[float, float]:
    """The y axis: what the points take, and a little room."""
    settled = [py for px, py in points if px > x.high / 20] if steep else []
    ys = [py for _, py in points]
    low, high = min(ys), max(settled or ys)
    low = 0.0 if from_zero else low
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return (low if from_zero else low - room), high + room


def _grid(x: Axis, y: Axis) -> str:
    """Axes: faint lines, numbers, and what x is."""
    lines, numbers = [], []
    for value in y.ticks():
        at = _px(y.at(value))
        lines.append(f'<path class="rule" d="M{LEFT} {at}H{WIDTH - RIGHT}"/>')
        numbers.append(
            f'<text x="{LEFT - 6}" y="{at}" dy=".33em" text-anchor="end">'
            f"{words(y.show(value))}</text>"
        )
    for value in x.ticks():
        px, told = x.at(value), x.show(value)
        half = LETTER * len(told) / 2
        # the last number stays within the drawing
        anchor, to = ("end", WIDTH - 2.0) if px + half > WIDTH - 1 else ("middle", px)
        lines.append(f'<path class="rule" d="M{_px(px)} {HEIGHT - BOTTOM}v4"/>')
        numbers.append(
            f'<text x="{_px(to)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="{anchor}">'
            f"{words(told)}</text>"
        )
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = (
        f'<text class="label" x="{_px(middle)}" y="{HEIGHT - 5}" text-anchor="middle">'
        f"{words(x.label)}</text>"
    )
    base = f'<path class="axis" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>'
    return "".join([*lines, base, *numbers, label])


def _drawn(series: Series, x: Axis, y: Axis) -> str:
    at = [(_px(x.at(px)), _px(y.at(py))) for px, py in series.points]
    path = "M" + "L".join(f"{px} {py}" for px, py in at)
    line = f'<path class="line {series.mark} {series.style}" d="{path}"/>'
    if series.mark != "dots" and len(at) > 1:
        return line
    dots = "".join(
        f'<circle class="dot {series.style}" cx="{px}" cy="{py}" r="3"><title>'
        f"{words(f'{series.name}: {y.show(vy)} at {x.show(vx)}')}</title></circle>"
        for (px, py), (vx, vy) in zip(at, series.points, strict=True)
    )
    return line + dots


def _described(series: Iterable[Series], x: Axis, y: Axis) -> str:
    told = []
    for one in series:
        (x0, y0), (x1, y1) = one.points[0], one.points[-1]
        ys = [py for _, py in one.points]
        told.append(
            f"{one.name}: from {_exact(y0)} at {x.show(x0)} to {_exact(y1)} at {x.show(x1)}, "
            f"lowest {_exact(min(ys))}, highest {_exact(max(ys))}."
        )
    return f"x: {x.label}. " + " ".join(told)


def mark_plot(
    key: str,
    title: str,
    rows: Sequence[tuple[str, Sequence[Mark]]],
    *,
    show: Show,
    low: float = 0.0,
    high: float = 1.0,
    chance: Sequence[float] = (),
) -> str:
    """Marks with intervals, a group of them beside each name; `chance[i]` is a tick in group i."""
    rows = [(name, marks) for name, marks in rows if marks]
    if not rows:
        return ""
    left = _names_width(name for name, _ in rows)
    x = Axis("", low, high, left, left + BODY - 22, show)
    parts, y = [], 24.0
    marks_from = y
    body = []
    for number, (name, marks) in enumerate(rows):
        height = ROW * len(marks)
        body.append(_name(name, left, y + height / 2))
        if chance:
            at = _px(x.at(chance[number]))
            body.append(
                f'<path class="chance" d="M{at} {_px(y + 1)}v{height - 2}"><title>guessing: '
                f"{words(show(chance[number]))}</title></path>"
            )
        for place, mark in enumerate(marks):
            body.append(_marked(mark, x, y + ROW * (place + 0.5)))
        y += height + 9
    for value in x.ticks(4):
        at = _px(x.at(value))
        parts.append(f'<path class="rule" d="M{at} {marks_from - 6}V{_px(y)}"/>')
        parts.append(f'<text x="{at}" y="12" text-anchor="middle">{words(show(value))}</text>')
    told = [
        f"{name}: " + ", ".join(f"{m.name + ' ' if m.name else ''}{m.told}" for m in marks) + "."
        for name, marks in rows
    ]
    return _svg(key, left + BODY, y + 2, title, " ".join(told), [*parts, *body])


def _marked(mark: Mark, x: Axis, y: float) -> str:
    low, high = _px(x.at(mark.low)), _px(x.at(mark.high))
    name = f"{mark.name}: " if mark.name else ""
    return (
        f'<g class="mark {mark.style}"><title>{words(name + mark.told)}</title>'
        f'<path class="whisker" d="M{low} {_px(y)}H{high}"/>'
        f'<circle class="dot" cx="{_px(x.at(mark.value))}" cy="{_px(y)}" r="4"/></g>'
    )


def bar_plot(key: str, title: str, bars: Sequence[Bar]) -> str:
    """Bars from zero, each with its name before and its value behind it."""
    if not bars:
        return ""
    most = max(bar.value for bar in bars) or 1.0
    room = LETTER * max(len(bar.told) for bar in bars) + 12
    left = _names_width(bar.name for bar in bars)
    x = Axis("", 0.0, most, left, left + BODY - room, short)
    parts, y = [], 4.0
    for bar in bars:
        end = max(x.at(bar.value), left + 1.5)
        parts.append(_name(bar.name, left, y + ROW / 2))
        parts.append(
            f'<rect class="bar {bar.style}" x="{_px(left)}" y="{_px(y)}" '
            f'width="{_px(end - left)}" height="{ROW}" rx="2"/>'
            f'<text x="{_px(end + 7)}" y="{_px(y + ROW / 2)}" dy=".35em">{words(bar.told)}</text>'
        )
        y += ROW + 9
    told = ", ".join(f"{bar.name} {bar.told}" for bar in bars)
    return _svg(key, left + BODY, y - 5, title, told + ".", parts)


def _names_width(names: Iterable[str]) -> float:
    return min(NAME_LETTER * max(map(len, names)) + 16, LABELS)


def _name(name: str, left: float, y: float) -> str:
    most = int((left - 12) / NAME_LETTER)
    told = name if len(name) <= most else name[: most - 1] + "…"
    return (
        f'<text class="name" x="{_px(left - 12)}" y="{_px(y)}" dy=".35em" text-anchor="end">'
        f"{words(told)}</text>"
    )


def _svg(
    key: str, width: float, height: float, title: str, described: str, parts: Iterable[str]
) -> str:
    return (
        f'<svg class="plot" viewBox="0 0 {_px(width)} {_px(height)}" role="img" '
        f'aria-labelledby="{key}-title {key}-desc"><title id="{key}-title">{words(title)}</title>'
        f'<desc id="{key}-desc">{words(described)}</desc>{"".join(parts)}</svg>'
    )


def _px(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _exact(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"

"""Plots as inline SVG: lines over an axis, marks with intervals, bars.

Colours and fonts come from the page's style sheet by class, so that one drawing serves light, dark
and print. Every drawing has a title and a description for screen readers, and is the same, byte for
byte, for the same numbers. Coordinates are pixels of the drawing's own frame.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jaxchat.runs.report.document import pixels as _px
from jaxchat.runs.report.document import tag, words
from jaxchat.runs.tables import number, short

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
    """A range of numbers over a range of pixels."""

    label: str
    low: float
    high: float
    start: float
    end: float
    show: Show  # how a number is written
    whole: bool = False  # only integers are written
    log: bool = False  # equal ratios are equal distances

    def at(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (self._placed(one) for one in (self.low, self.high, value))
        return self.start + (value - low) / ((high - low) or 1.0) * (self.end - self.start)

    def _placed(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self, most: int = 5) -> list[float]:
        """Round values within the range."""
        if self.log:
            return log_ticks(self.low, self.high, most)
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
    text: str


@dataclass(frozen=True)
class Bar:
    """A length with its name, and the text behind it."""

    name: str
    style: str
    value: float
    text: str


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` + 1 multiples of 1, 2 or 5 times a power of ten from `low` to `high`."""
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def log_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most about `most` powers of ten from `low` to `high`, or also 2 and 5 times those."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1, 2, 5), (1, 3), (1,)):
        every = (m * 10.0**power for power in range(first, last + 1) for m in steps)
        found = [value for value in every if low * (1 - 1e-9) <= value <= high * (1 + 1e-9)]
        if len(found) <= most + 1:
            break
    stride = -(-len(found) // (most + 1)) or 1
    return [float(f"{value:.12g}") for value in found[::stride]]


def line_plot(
    key: str,
    title: str,
    series: Sequence[Series],
    x_label: str,
    *,
    show: Show = short,
    from_zero: bool = False,
    steep: bool = False,
    log_x: Show | None = None,
) -> str:
    """Lines and dots over a common x axis that begins at 0.

    `key` is unique in the page. The y axis has what the points take, and a little room;
    `from_zero`: it begins at 0. `steep`: it leaves out what lies above it in the first twentieth of
    the x axis, where a loss falls from its start. `log_x`: the x axis is logarithmic, has what the
    points take, and its numbers are written so.
    """
    series = [one for one in series if one.points]
    if not series:
        return ""
    points = [point for one in series for point in one.points]
    x = _x_axis(x_label, [px for px, _ in points], log_x)
    ys = [py for _, py in points]
    settled = [py for px, py in points if px > x.high / 20] if steep else ys
    low, high = 0.0 if from_zero else min(ys), max(settled or ys)
    room = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    y = Axis("", low if from_zero else low - room, high + room, HEIGHT - BOTTOM, TOP, show)
    clip = tag("rect", x=LEFT, y=TOP - 4, width=x.end - x.start + 4, height=y.start - y.end + 4)
    drawn = (_drawn(one, x, y) for one in series)
    path = tag("clipPath", clip, id=f"{key}-clip")
    lines = tag("g", *drawn, clip_path=f"url(#{key}-clip)")
    return _svg(key, WIDTH, HEIGHT, title, _described(series, x, y), [_grid(x, y), path, lines])


def _x_axis(label: str, xs: Sequence[float], log: Show | None) -> Axis:
    """From 0 to the last point; a logarithmic one around all points."""
    if log is not None:
        return Axis(label, min(xs) / 1.15, max(xs) * 1.15, LEFT, WIDTH - RIGHT, log, log=True)
    whole = all(float(x).is_integer() for x in xs)
    return Axis(label, 0.0, max(xs) or 1.0, LEFT, WIDTH - RIGHT, short, whole)


def _grid(x: Axis, y: Axis) -> str:
    """Axes: faint lines, numbers, and what x is."""
    lines, numbers = [], []
    for value in y.ticks():
        at = y.at(value)
        lines.append(tag("path", class_="rule", d=f"M{LEFT} {_px(at)}H{WIDTH - RIGHT}"))
        numbers.append(_text(y.show(value), x=LEFT - 6, y=at, dy=".33em", text_anchor="end"))
    for value in x.ticks():
        at, shown = x.at(value), x.show(value)
        # the last number stays within the drawing
        ends = at + LETTER * len(shown) / 2 > WIDTH - 1
        anchor, to = ("end", WIDTH - 2.0) if ends else ("middle", at)
        lines.append(tag("path", class_="rule", d=f"M{_px(at)} {HEIGHT - BOTTOM}v4"))
        numbers.append(_text(shown, x=to, y=HEIGHT - BOTTOM + 16, text_anchor=anchor))
    base = tag("path", class_="axis", d=f"M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}")
    middle = (LEFT + WIDTH - RIGHT) / 2
    label = _text(x.label, class_="label", x=middle, y=HEIGHT - 5, text_anchor="middle")
    return "".join([*lines, base, *numbers, label])


def _drawn(series: Series, x: Axis, y: Axis) -> str:
    at = [(x.at(px), y.at(py)) for px, py in series.points]
    path = "M" + "L".join(f"{_px(px)} {_px(py)}" for px, py in at)
    line = tag("path", class_=f"line {series.mark} {series.style}", d=path)
    if series.mark != "dots" and len(at) > 1:
        return line
    dots = []
    for (px, py), (vx, vy) in zip(at, series.points, strict=True):
        hint = tag("title", words(f"{series.name}: {y.show(vy)} at {x.show(vx)}"))
        dots.append(tag("circle", hint, class_=f"dot {series.style}", cx=px, cy=py, r=3))
    return line + "".join(dots)


def _described(series: Iterable[Series], x: Axis, y: Axis) -> str:
    sentences = []
    for one in series:
        (x0, y0), (x1, y1) = one.points[0], one.points[-1]
        ys = [py for _, py in one.points]
        sentences.append(
            f"{one.name}: from {number(y0)} at {x.show(x0)} to {number(y1)} at {x.show(x1)}, "
            f"lowest {number(min(ys))}, highest {number(max(ys))}."
        )
    return f"x: {x.label}. " + " ".join(sentences)


def mark_plot(
    key: str,
    title: str,
    rows: Sequence[tuple[str, Sequence[Mark]]],
    *,
    show: Show,
    chance: Sequence[float] = (),
) -> str:
    """Marks from 0 to 1 with intervals, a group by each name; `chance[i]` is a tick in group i."""
    rows = [(name, marks) for name, marks in rows if marks]
    if not rows:
        return ""
    left = _names_width(name for name, _ in rows)
    x = Axis("", 0.0, 1.0, left, left + BODY - 22, show)
    top = y = 24.0
    body = []
    for index, (name, marks) in enumerate(rows):
        height = ROW * len(marks)
        body.append(_name(name, left, y + height / 2))
        if chance:
            hint = tag("title", f"guessing: {words(show(chance[index]))}")
            path = f"M{_px(x.at(chance[index]))} {_px(y + 1)}v{height - 2}"
            body.append(tag("path", hint, class_="chance", d=path))
        for place, mark in enumerate(marks):
            at, hint = y + ROW * (place + 0.5), f"{mark.name}: {mark.text}".removeprefix(": ")
            whisker = f"M{_px(x.at(mark.low))} {_px(at)}H{_px(x.at(mark.high))}"
            inside = (
                tag("title", words(hint)),
                tag("path", class_="whisker", d=whisker),
                tag("circle", class_="dot", cx=x.at(mark.value), cy=at, r=4),
            )
            body.append(tag("g", *inside, class_=f"mark {mark.style}"))
        y += height + 9
    scale = []
    for value in x.ticks(4):
        at = x.at(value)
        scale.append(tag("path", class_="rule", d=f"M{_px(at)} {top - 6}V{_px(y)}"))
        scale.append(_text(show(value), x=at, y="12", text_anchor="middle"))
    described = [
        f"{name}: " + ", ".join(f"{m.name} {m.text}".lstrip() for m in marks) + "."
        for name, marks in rows
    ]
    return _svg(key, left + BODY, y + 2, title, " ".join(described), [*scale, *body])


def bar_plot(key: str, title: str, bars: Sequence[Bar]) -> str:
    """Bars from zero, each with its name before and its text behind it."""
    if not bars:
        return ""
    most = max(bar.value for bar in bars) or 1.0
    room = LETTER * max(len(bar.text) for bar in bars) + 12
    left = _names_width(bar.name for bar in bars)
    x = Axis("", 0.0, most, left, left + BODY - room, short)
    parts, y = list[str](), 4.0
    for bar in bars:
        end = max(x.at(bar.value), left + 1.5)
        style = f"bar {bar.style}"
        parts += [
            _name(bar.name, left, y + ROW / 2),
            tag("rect", class_=style, x=left, y=y, width=end - left, height=ROW, rx=2),
            _text(bar.text, x=end + 7, y=y + ROW / 2, dy=".35em"),
        ]
        y += ROW + 9
    described = ", ".join(f"{bar.name} {bar.text}" for bar in bars)
    return _svg(key, left + BODY, y - 5, title, described + ".", parts)


def _names_width(names: Iterable[str]) -> float:
    return min(NAME_LETTER * max(map(len, names)) + 16, LABELS)


def _name(name: str, left: float, y: float) -> str:
    most = int((left - 12) / NAME_LETTER)
    shown = name if len(name) <= most else name[: most - 1] + "…"
    return _text(shown, class_="name", x=left - 12, y=y, dy=".35em", text_anchor="end")


def _text(text: str, **attributes: str | float) -> str:
    return tag("text", words(text), **attributes)


def _svg(
    key: str, width: float, height: float, title: str, described: str, parts: Iterable[str]
) -> str:
    return tag(
        "svg",
        tag("title", words(title), id=f"{key}-title"),
        tag("desc", words(described), id=f"{key}-desc"),
        *parts,
        class_="plot",
        viewBox=f"0 0 {_px(width)} {_px(height)}",
        role="img",
        aria_labelledby=f"{key}-title {key}-desc",
    )

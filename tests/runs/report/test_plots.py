"""Plots: every point is where its numbers say."""

import re
from xml.etree import ElementTree

import pytest

from jaxchat.runs.report import plots
from jaxchat.runs.report.plots import Bar, Mark, Series, line_plot, mark_plot, ticks
from jaxchat.runs.tables import short


def points(svg: str, style: str) -> list[tuple[float, float]]:
    """The points of the line of that class, in pixels."""
    tree = ElementTree.fromstring(svg)
    (path,) = [p for p in tree.iter("path") if p.get("class") == style]
    numbers = re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path.get("d") or "")
    return [(float(x), float(y)) for x, y in numbers]


def axis(svg: str, anchor: str) -> dict[str, float]:
    """What numbers of an axis say -> where they stand; x: anchor "middle", y: "end"."""
    place = "x" if anchor == "middle" else "y"
    return {
        text.text or "": float(text.get(place) or "")
        for text in ElementTree.fromstring(svg).iter("text")
        if text.get("text-anchor") == anchor and text.get("class") is None
    }


def test_points_are_where_the_axes_say() -> None:
    svg = line_plot(
        "k", "Loss", [Series("base", [0, 500, 1_000], [4.0, 3.0, 2.0], "base")], "tokens"
    )
    x, y = axis(svg, "middle"), axis(svg, "end")
    start, half, end = points(svg, "line line base")
    # 3 is a tick of y; 400 and 600 are ticks of x, and 500 is between them
    assert half == pytest.approx(((x["400"] + x["600"]) / 2, y["3"]), abs=0.02)
    assert start == pytest.approx((x["0"], y["4"]), abs=0.02)
    assert end[1] == pytest.approx(y["2"], abs=0.02)
    assert (start[0], end[0]) == (plots.LEFT, plots.WIDTH - plots.RIGHT)


def test_a_steep_start_does_not_flatten_the_rest() -> None:
    xs, ys = list(range(0, 1_001, 10)), [11.0] + [3.0 - i / 100 for i in range(100)]
    series = [Series("base", xs, ys, "base")]
    flat = points(line_plot("k", "t", series, "x"), "line line base")
    steep = points(line_plot("k", "t", series, "x", steep=True), "line line base")
    assert abs(flat[-1][1] - flat[10][1]) < 0.15 * plots.HEIGHT
    assert abs(steep[-1][1] - steep[10][1]) > 0.6 * plots.HEIGHT
    assert steep[0][1] < 0, "the start is above the frame, which clips it"


def test_missing_points_are_left_out_and_nothing_is_drawn_of_nothing() -> None:
    svg = line_plot("k", "t", [Series("a", [1, 2, 3], [1.0, None, 3.0], "a")], "x")
    assert len(points(svg, "line line a")) == 2
    assert line_plot("k", "t", [Series("a", [1], [None], "a")], "x") == ""
    assert line_plot("k", "t", [], "x") == ""
    assert mark_plot("k", "t", [("task", [])], show=short) == ""


def test_one_point_or_equal_values_are_drawn_all_the_same() -> None:
    for xs, ys in (([5.0], [2.0]), ([1.0, 2.0], [0.0, 0.0]), ([0.0], [0.0])):
        svg = line_plot("k", "t", [Series("a", xs, ys, "a", "dots")], "x")
        assert len(list(ElementTree.fromstring(svg).iter("circle"))) == len(xs)
        assert "nan" not in svg


def test_marks_and_whiskers_are_where_the_axis_says() -> None:
    mark = Mark("rl", "rl", 0.5, 0.25, 1.0, "50.0% [25.0, 100.0]")
    svg = mark_plot("k", "t", [("task", [mark])], show=lambda v: f"{v:.2f}", chance=[0.25])
    tree, x = ElementTree.fromstring(svg), axis(svg, "middle")
    (dot,) = tree.iter("circle")
    assert float(dot.get("cx") or "") == pytest.approx((x["0.00"] + x["1.00"]) / 2, abs=0.02)
    paths = {path.get("class"): path.get("d") or "" for path in tree.iter("path")}
    low, high = re.match(r"M([\d.]+) [\d.]+H([\d.]+)", paths["whisker"]).groups()  # type: ignore[union-attr]
    quarter = x["0.00"] + (x["1.00"] - x["0.00"]) / 4
    assert (float(low), float(high)) == pytest.approx((quarter, x["1.00"]), abs=0.02)
    assert float(paths["chance"].split()[0][1:]) == pytest.approx(quarter, abs=0.02)
    assert "task: rl 50.0% [25.0, 100.0]." in svg


def test_bars_are_as_long_as_their_values() -> None:
    svg = plots.bar_plot("k", "t", [Bar("a", "base", 10.0, "10s"), Bar("b", "mid", 2.5, "2s")])
    widths = [float(r.get("width") or "") for r in ElementTree.fromstring(svg).iter("rect")]
    assert widths[0] == pytest.approx(4 * widths[1], rel=1e-3)


def test_words_in_a_plot_cannot_leave_it() -> None:
    bad = '"><script>&'
    svg = line_plot("k", bad, [Series(bad, [0, 1], [0, 1], "a", "dots")], bad)
    svg += mark_plot("l", bad, [(bad, [Mark(bad, "a", 0.5, 0.4, 0.6, bad)])], show=short)
    svg += plots.bar_plot("m", bad, [Bar(bad, "a", 1.0, bad)])
    tree = ElementTree.fromstring(f"<x>{svg}</x>")
    assert not list(tree.iter("script"))
    assert bad in [title.text for title in tree.iter("title")]


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [
        (0, 1, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (2.28, 2.74, [2.3, 2.4, 2.5, 2.6, 2.7]),
        (0, 11.2e9, [0, 5e9, 1e10]),
        (0.1, 0.3, [0.1, 0.15, 0.2, 0.25, 0.3]),
        (-0.3, 0.3, [-0.2, 0.0, 0.2]),
        (7, 7, [7]),
    ],
)
def test_ticks_are_round_and_within(low: float, high: float, want: list[float]) -> None:
    assert ticks(low, high) == want


def test_numbers_on_axes_are_short() -> None:
    printed = [short(v) for v in (0, 0.25, 150, 1_500, 20_000, 1.5e6, 11.2e9, -2_000)]
    assert printed == ["0", "0.25", "150", "1.5k", "20k", "1.5M", "11.2B", "-2k"]


def test_on_a_logarithmic_axis_equal_ratios_are_equal_distances() -> None:
    series = [Series("d", [1e12, 1e13, 1e14], [1.0, 0.9, 0.8], "a")]
    svg = line_plot("k", "t", series, "FLOPs", log_x=lambda v: f"{v:.0e}")
    (x0, _), (x1, _), (x2, _) = points(svg, "line line a")
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.02)
    x = axis(svg, "middle")
    assert x0 == pytest.approx(x["1e+12"], abs=0.02)
    assert x1 == pytest.approx(x["1e+13"], abs=0.02)


@pytest.mark.parametrize(
    ("low", "high", "want"),
    [
        (0.9e12, 1.1e13, [1e12, 2e12, 5e12, 1e13]),
        (4e11, 2e14, [1e12, 3e12, 1e13, 3e13, 1e14]),
        (1e3, 1e15, [1e3, 1e6, 1e9, 1e12, 1e15]),
        (3.1, 3.2, []),
    ],
)
def test_ticks_of_a_logarithmic_axis_are_few(low: float, high: float, want: list[float]) -> None:
    found = plots.log_ticks(low, high)
    assert found == want

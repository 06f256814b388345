"""What is read of ladders and said of two: figures, remarks, refusals, reports."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from ladder_records import write_ladder

from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.runs.ladder import document, results, tables


def conclusion(root: Path, degree: int = 1) -> str:
    a, b = (results.read_ladder(root, name) for name in ("a", "b"))
    (variant,) = results.compare(a, [b], degree)["variants"]
    return tables.conclusion("a", variant)


def test_a_gain_is_concluded_with_its_interval(tmp_path: Path) -> None:
    write_ladder(tmp_path, "a")
    write_ladder(tmp_path, "b", gain=2.0, depths=(1, 2), overrides=["run.preset=modern"])
    said = conclusion(tmp_path)
    assert said.startswith("b needs fewer FLOPs than a for the same bits per byte: multiplier ")
    low, high = (float(x) for x in said.partition("[")[2].partition("]")[0].split(", "))
    assert 1.8 < low < 2.0 < high < 2.2
    write_ladder(tmp_path / "2", "a")
    write_ladder(tmp_path / "2", "b", gain=0.5, depths=(2, 3))
    assert "b needs more FLOPs than a" in conclusion(tmp_path / "2")


@pytest.mark.parametrize(
    ("b", "said"),
    [
        ({"noise": 0.02}, "No difference between b and a can be shown: multiplier"),
        ({"seeds": (0,)}, "without an interval, which takes 2 seeds or more of both"),
        (
            {"gain": 1e6},
            "no multiplier of b: each of its rungs has fewer bits per byte than any of a's",
        ),
    ],
)
def test_what_noise_hides_is_not_concluded(tmp_path: Path, b: dict[str, object], said: str) -> None:
    write_ladder(tmp_path, "a")
    write_ladder(tmp_path, "b", **b)  # type: ignore[arg-type]
    assert said in conclusion(tmp_path)


def test_several_variants_are_corrected_for_all_their_comparisons(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_ladder(tmp_path, name)
    a, b, c = (results.read_ladder(tmp_path, name) for name in "abc")
    one, two = results.compare(a, [b]), results.compare(a, [b, c])
    assert (one["comparisons"], two["comparisons"]) == (4, 8)
    assert one["level"] == pytest.approx(1 - 0.05 / 4)

    def width(compared: results.Record) -> float:
        found = compared["variants"][0]["multipliers"][1]
        return float(found["high"] - found["low"])

    assert width(two) > width(one)


def test_different_text_or_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    write_ladder(tmp_path, "a")
    write_ladder(tmp_path, "b", text={"sha256": "c" * 64, "bytes": 1, "tokens": 1})
    write_ladder(tmp_path, "empty", missing=9)
    write_ladder(tmp_path, "short", depths=(1,))
    a, b, empty, short = (results.read_ladder(tmp_path, n) for n in ("a", "b", "empty", "short"))
    with pytest.raises(ConfigError, match=r"different text; .* --text and the other's file"):
        results.compare(a, [b])
    with pytest.raises(ArtifactError, match="the ladder empty has no complete run"):
        results.compare(a, [empty])
    with pytest.raises(ArtifactError, match="short is no baseline: a frontier needs rungs of two"):
        results.compare(short, [a])


def test_times_of_other_machines_are_not_compared(tmp_path: Path) -> None:
    write_ladder(tmp_path, "a")
    write_ladder(tmp_path, "b", depths=(2,))
    write_ladder(tmp_path, "c", depths=(2,), devices=["gpu: H100"])
    a, b, c = (results.read_ladder(tmp_path, name) for name in "abc")
    same, other = (results.compare(a, [x])["variants"][0]["multipliers"][0] for x in (b, c))
    assert same["time"] == pytest.approx(1, abs=0.1)
    assert other["time"] is None
    assert other["value"] == pytest.approx(1, abs=0.1)


def test_a_reader_is_warned(tmp_path: Path) -> None:
    place = write_ladder(tmp_path, "a", missing=2, git={"commit": "1", "dirty": True})
    shown = results.to_json(results.read_ladder(tmp_path, "a"))
    assert shown["missing"] == ["a-d2-s2", "a-d3-s2"]
    assert shown["notes"] == [
        "Not complete: a-d2-s2, a-d3-s2.",
        "Repeated text: depth 3 read its training text more than once.",
        "Some runs were made with changes that no commit has.",
    ]
    assert [rung["seeds"] for rung in shown["rungs"]] == [3, 2, 2]
    damaged = results.rung_file(place, "a-d1-s0")
    damaged.write_text("{")
    assert "a-d1-s0" in results.read_ladder(tmp_path, "a").missing


def test_reports_have_tables_plots_and_the_method(tmp_path: Path) -> None:
    write_ladder(tmp_path, "a")
    write_ladder(tmp_path, "b", gain=1.5, overrides=["run.preset=modern"])
    ladders = [results.read_ladder(tmp_path, name) for name in "ab"]
    page, text = document.write_ladder(ladders[0])
    assert text.read_text().startswith("# `a`\n")
    assert page.read_text().count("<svg") == 2
    compared = results.compare(ladders[0], ladders[1:])
    page, text = document.write_comparison(ladders, compared, tmp_path / "out")
    assert (page.name, text.name) == ("compare_a_b.html", "compare_a_b.md")
    for said in ("b needs fewer FLOPs", "| b       | all", "Bonferroni", "run.preset", "modern"):
        assert said in text.read_text()
    html = page.read_text()
    body = html.partition("<main>")[2].partition("</main>")[0]
    drawn = list(ElementTree.fromstring(f"<main>{body}</main>").iter("svg"))
    assert len(drawn) == 2
    dots = [dot.get("class") for dot in drawn[0].iter("circle")]
    assert (dots.count("dot a"), dots.count("dot b")) == (9, 9), "a dot a run"
    assert "<script" not in html


def test_a_depth_trained_once_is_a_rung_of_one_seed_without_a_deviation(tmp_path: Path) -> None:
    for name, gain in (("a", 1.0), ("b", 2.0)):
        write_ladder(tmp_path, name, gain=gain, depths=(1, 2, 3, 4), once=(4,))
    a, b = (results.read_ladder(tmp_path, name) for name in "ab")
    assert not a.missing
    last = results.to_json(a)["rungs"][-1]
    assert (last["depth"], last["seeds"], last["deviation"]) == (4, 1, None)
    (variant,) = results.compare(a, [b])["variants"]
    third, fourth = variant["multipliers"][2:4]
    assert third["low"] < 2.0 < third["high"]
    assert fourth["verdict"] == "below", "its FLOPs times 2 are beyond a's rungs"

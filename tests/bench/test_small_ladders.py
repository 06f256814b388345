"""The small ladders: their page has what their records say, and pairs are at equal FLOPs."""

import re
import subprocess
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
import small_ladders
from ladder_records import write_ladder

from jaxchat.runs.ladder import recipe, results

SCRIPT = Path(small_ladders.__file__).with_name("small_ladders.sh")


def test_the_page_and_the_plot_are_those_of_the_records():
    ladders = small_ladders.there()
    page = small_ladders.PAGE.read_text("utf-8")
    between = page.partition(small_ladders.BEGIN)[2].partition(small_ladders.END)[0]
    assert between.strip() == small_ladders.made(ladders)
    first = small_ladders.COMPARED[0]
    image = small_ladders.drawn([ladders[name] for name in (first[1], *first[2])])
    assert small_ladders.PLOT.read_text("utf-8") == image
    drawn = ElementTree.fromstring(image)
    count = sum(len(ladders[name].runs) for name in (first[1], *first[2]))
    assert len(drawn.findall(".//{*}circle")) == count


def test_every_ladder_was_measured_on_one_text_and_made_with_what_the_script_says(tmp_path):
    """The recipes that `small_ladders.sh` gives to `jaxchat ladder run` are the recorded ones."""
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\nshift 4\necho "$@"\n')
    python.chmod(0o755)
    said = subprocess.run(
        ["sh", SCRIPT, "HOME"], env={"PYTHON": str(python), "PATH": "/bin:/usr/bin"},
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    given = {words[0]: words for words in map(str.split, said.splitlines())}
    ladders = small_ladders.there()
    assert given.keys() >= ladders.keys()
    for name, ladder in ladders.items():
        words = given[name]
        sets = [after for word, after in pairwise(words) if word == "--set"]
        assert ladder.record["overrides"] == sets
        for key in ("depths", "seeds"):
            asked = words[words.index(f"--{key}") + 1]
            assert ",".join(map(str, ladder.record[key])) == asked
        assert "/" not in ladder.record["settings"]["data.folder"], "no path of a machine"
    assert len({ladder.text for ladder in ladders.values()}) == 1


def test_pairs_are_compared_at_equal_flops_by_the_slope(tmp_path):
    """Of a power law, another recipe with other FLOPs on the same frontier differs by nothing."""
    write_ladder(tmp_path, "a", noise=0.0)
    write_ladder(tmp_path, "b", gain=2.0, noise=0.0)
    a, b = (results.read_ladder(tmp_path, name) for name in "ab")
    slope = results.frontier_of(a, 1).slope(0.0)
    assert slope == pytest.approx(-0.05)
    pairs, ratios = small_ladders.pairs_of(a, b, slope)
    assert ratios == [1.0] * 9
    assert all(v / w == pytest.approx(2**-0.05) for found in pairs.values() for v, w in found)
    costlier = [{**run, "flops": 2 * run["flops"]} for run in b.runs]
    b = results.Ladder(b.place, b.record, tuple(costlier))
    pairs, ratios = small_ladders.pairs_of(a, b, slope)
    assert ratios == [2.0] * 9
    assert all(v == pytest.approx(w) for found in pairs.values() for v, w in found)


def test_a_variant_with_a_run_missing_has_no_pairs_that_count(tmp_path):
    write_ladder(tmp_path, "a")
    write_ladder(tmp_path, "b", missing=1)
    a, b = (results.read_ladder(tmp_path, name) for name in "ab")
    assert "| not complete |" in small_ladders.pair_table(a, [b])
    write_ladder(tmp_path / "2", "a")
    write_ladder(tmp_path / "2", "other", gain=2.0)  # its name is the seed of its noise
    a, b = (results.read_ladder(tmp_path / "2", name) for name in ("a", "other"))
    shown = small_ladders.pair_table(a, [b])
    found = re.search(r"\| ([\d.]+) \[([\d.]+), ([\d.]+)\] \| fewer bits than", shown)
    assert 1.8 < float(found[2]) < float(found[1]) < float(found[3]) < 2.2


def test_records_are_kept_from_a_home(tmp_path, monkeypatch):
    write_ladder(tmp_path / "home", "a", missing=2)
    monkeypatch.setattr(small_ladders, "HOME", tmp_path / "kept")
    small_ladders.keep(tmp_path / "home")
    kept = results.read_ladder(tmp_path / "kept", "a")
    assert recipe.names(tmp_path / "kept") == ["a"]
    assert len(kept.runs) == 7

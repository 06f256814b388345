"""The recipe of a ladder: what it derives, and what it refuses."""

import shlex
from pathlib import Path

import pytest

from jaxchat.config import loading
from jaxchat.config.loading import CONFIGS
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.paths import read_json, write_json
from jaxchat.runs import run_dir
from jaxchat.runs.ladder import recipe
from jaxchat.runs.ladder.recipe import Recipe
from jaxchat.runs.report import reproduce

TEXT = {"held_out_bytes": 1_000_000}


def of(
    *overrides: str, depths: tuple[int, ...] = (1, 2), name: str = "l", **more: object
) -> Recipe:
    return Recipe(name, "cpu", overrides, depths, (0, 1), **more)  # type: ignore[arg-type]


def test_steps_and_width_follow_from_the_depth_although_the_tier_fixes_them() -> None:
    first, second, third, _ = of("run.preset=modern", "run.data_ratio=2").configs()
    assert [c.name for c in (first, second, third)] == ["l-d1-s0", "l-d2-s0", "l-d1-s1"]
    assert (first.model.n_embd, first.model.n_head) == (128, 1), "not the tier's 128 and 2"
    assert first.base.steps < second.base.steps
    assert first.base.steps == third.base.steps != 250
    assert first.base.batch_tokens == 2_048, "what is no matter of depth is the tier's"
    assert first.optim.warmdown_ratio == 0.4
    assert (second.depth, third.seed) == (2, 1)


def test_what_is_set_for_the_ladder_is_not_derived() -> None:
    for config in of(
        "base.steps=7", "model.n_embd=64", "model.n_head=2", "model.n_kv_head=2"
    ).configs():
        assert (config.base.steps, config.model.n_embd) == (7, 64)


def test_backout_is_off_where_the_middle_layer_is_the_last() -> None:
    """There it only scales what the norm scales back; above 1 it turns every feature's sign."""
    july = of("run.preset=modern", "run.data_ratio=2", depths=(1, 2, 3))
    assert [c.model.backout for c in july.configs()[:3]] == [False, False, True]
    asked = of("run.preset=modern", "run.data_ratio=2", "model.backout=true", depths=(1, 2, 3))
    assert all(c.model.backout for c in asked.configs())
    assert not any(c.model.backout for c in of("base.steps=7", depths=(1, 2, 3)).configs())


def test_a_depth_trained_once_has_the_first_seed_alone_and_comes_last() -> None:
    ladder = of("base.steps=7", depths=(1, 2, 3), once=(3,))
    assert ladder.rungs == [(1, 0), (2, 0), (1, 1), (2, 1), (3, 0)]
    with pytest.raises(ConfigError, match="--once has 4, and --depths 1,2; what is trained once"):
        of("base.steps=7", once=(4,)).configs()


def test_a_rung_is_what_an_ordinary_command_would_make() -> None:
    for config in of("run.preset=modern", "run.data_ratio=2").configs():
        words = shlex.split(reproduce.command(config, CONFIGS))
        settings = [word for word in words[4:] if word != "--set"]
        assert words[:4] == ["python", "run_speedrun.py", "--tier", "cpu"]
        assert loading.load(loading.find_tier("cpu"), settings) == config


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("run.seed=3", r"run.seed is set; a ladder sets it .* use NAME, --depths and --seeds"),
        ("run.depth=3", "run.depth is set"),
        ("base.batch_tokens=100", "no multiple of model.sequence_len"),
        ("base.batch_tokens=524288", "depth 1 trains for no whole step of 524,288 tokens; raise"),
        ("optim.warmdown_ratio=0", "optim.warmdown_ratio is 0; a ladder compares models whose"),
        ("base.step=1", "did you mean 'steps'"),
        ("mid.mixture={astrology=1}", "there is no task 'astrology'"),
    ],
)  # fmt: skip
def test_a_recipe_that_cannot_be_compared_is_one_sentence(override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        of("run.data_ratio=1", override).configs()


def test_another_recipe_under_the_same_name_is_refused_and_says_what_differs(
    tmp_path: Path,
) -> None:
    recipe.freeze(tmp_path, of("base.steps=7"), TEXT)
    recipe.freeze(tmp_path, of("base.steps=7"), TEXT)
    recipe.freeze(tmp_path, of("base.steps=7", "base.micro_rows=4", "base.keep=1"), TEXT)
    for other, text, said in (
        (
            of("base.steps=8"),
            TEXT,
            r"\(base.steps 7, not 8\); give that one again, or another name",
        ),
        (of("base.steps=7", depths=(1, 2, 3)), TEXT, r"\(depths 1,2, not 1,2,3\)"),
        (of("base.steps=7", once=(2,)), TEXT, r"\(once none, not 2\)"),
        (of("base.steps=7"), {"held_out_bytes": 5}, r"\(another held-out text\)"),
        (of("base.steps=7", "run.preset=modern"), TEXT, r"\(run.preset classic, not modern; "),
    ):
        with pytest.raises(ConfigError, match=said):
            recipe.freeze(tmp_path, other, text)


def test_a_ladder_from_before_once_was_an_option_resumes(tmp_path: Path) -> None:
    ladder = of("base.steps=7")
    recipe.freeze(tmp_path, ladder, TEXT)
    record = recipe.folder(tmp_path, "l") / recipe.RECORD
    written = read_json(record)
    assert written.pop("once") == []
    write_json(record, written)
    recipe.freeze(tmp_path, ladder, TEXT)


def test_a_run_that_is_none_of_the_ladders_is_not_overwritten(tmp_path: Path) -> None:
    ours = of("base.steps=7")
    run_dir.write_config(run_dir.folder(tmp_path, "l-d2-s0"), ours.config(2, 0))
    recipe.freeze(tmp_path, ours, TEXT)
    foreign = of("base.steps=9", name="m")
    run_dir.write_config(run_dir.folder(tmp_path, "m-d2-s0"), of(name="m").config(2, 0))
    with pytest.raises(ConfigError, match="the run m-d2-s0 is there already with other settings"):
        recipe.freeze(tmp_path, foreign, TEXT)
    assert not recipe.folder(tmp_path, "m").exists()


def test_a_name_is_a_folder_and_a_missing_ladder_names_those_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the ladder's name is '../up'; it names a folder"):
        recipe.folder(tmp_path, "../up")
    with pytest.raises(ArtifactError, match=r"no ladder 'a' in .*\. Make one with: jaxchat ladder"):
        recipe.find(tmp_path, "a")
    recipe.freeze(tmp_path, of("base.steps=7"), TEXT)
    with pytest.raises(ArtifactError, match="the ladders there are l"):
        recipe.find(tmp_path, "a")
    (recipe.folder(tmp_path, "l") / recipe.RECORD).write_text("[]")
    with pytest.raises(ArtifactError, match="is no ladder of format"):
        recipe.read_record(recipe.folder(tmp_path, "l"))

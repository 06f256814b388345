"""Stages are skipped when complete and done again when what they depend on changed."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from jaxchat.config import loading
from jaxchat.config.schema import ImportedConfig, RunConfig
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.paths import read_json
from jaxchat.runs.runner import Context, input_hash, read_done, run_stages, write_imported
from jaxchat.runs.stages import STAGES, Stage
from jaxchat.train.profiling.request import Request


def config(seed: int = 0) -> RunConfig:
    """A configuration; only its seed matters here."""
    return loading.from_document({"run": {"name": "x", "depth": 2, "seed": seed}}, "test")


class Kitchen:
    """Two stages, the second made from the first, and a list of what was cooked."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.cooked: list[str] = []
        self.flavour = "plain"
        self.fails = False

    def stages(self) -> tuple[Stage, ...]:
        return (
            Stage("dough", "dough", self.make("dough"), lambda c: (c.seed,)),
            Stage("bread", "bread", self.make("bread"), lambda c: ("oven",), ("dough",)),
        )

    def make(self, name: str) -> Any:
        def run(context: Context) -> dict[str, Any]:
            folder = context.folder(name)
            (folder / "half").write_text("begun")
            if self.fails:
                raise OSError(28, "No space left on device")
            self.cooked.append(name)
            return {"artifact": f"{name} {self.flavour} {context.config.seed}"}

        return run

    def run(self, seed: int = 0, **options: Any) -> list[str]:
        """Runs the stages; returns the names of those that ran."""
        self.cooked = []
        run_stages(self.stages(), Context(config(seed), self.root), **options)
        return self.cooked


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path)


def test_complete_stages_are_skipped(kitchen: Kitchen) -> None:
    assert kitchen.run() == ["dough", "bread"]
    assert kitchen.run() == []


def test_changed_settings_do_a_stage_and_what_follows_again(kitchen: Kitchen) -> None:
    kitchen.run(seed=0)
    assert kitchen.run(seed=1) == ["dough", "bread"]


def test_the_same_artefact_again_leaves_what_follows_alone(kitchen: Kitchen) -> None:
    kitchen.run()
    assert kitchen.run(force=["dough"]) == ["dough"]


def test_another_artefact_does_what_follows_again(kitchen: Kitchen) -> None:
    kitchen.run()
    kitchen.flavour = "rye"
    assert kitchen.run(force=["dough"]) == ["dough", "bread"]


def test_a_stage_that_fails_is_not_complete_and_keeps_what_it_began(kitchen: Kitchen) -> None:
    kitchen.fails = True
    with pytest.raises(OSError, match="No space"):
        kitchen.run()
    assert read_done(kitchen.root, "dough") is None
    half = kitchen.root / "dough" / "half"
    half.write_text("from before")
    kitchen.fails = True
    with pytest.raises(OSError, match="No space"):
        kitchen.run(seed=1)
    assert half.read_text() == "begun", "what was begun with other settings was not dropped"


def test_what_was_begun_with_the_same_inputs_is_still_there(kitchen: Kitchen) -> None:
    kitchen.fails = True
    with pytest.raises(OSError, match="No space"):
        kitchen.run()
    (kitchen.root / "dough" / "checkpoint").write_text("step 7")
    kitchen.fails = False
    kitchen.run()
    assert (kitchen.root / "dough" / "checkpoint").read_text() == "step 7"


def test_force_drops_what_was_begun(kitchen: Kitchen) -> None:
    kitchen.run()
    (kitchen.root / "dough" / "checkpoint").write_text("step 7")
    kitchen.run(force=["dough"])
    assert not (kitchen.root / "dough" / "checkpoint").exists()


def test_a_forced_stage_killed_while_its_folder_is_deleted_is_not_complete(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    kitchen.run()

    def killed(path: object, *args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            kitchen.run(force=["dough"])
    assert kitchen.run() == ["dough"]
    assert sorted(path.name for path in kitchen.root.iterdir()) == ["bread", "dough"]


def test_a_stage_that_reads_a_part_is_done_again_only_when_that_part_is_another(
    tmp_path: Path,
) -> None:
    made = {"flour": "1", "salt": "1"}
    ran: list[str] = []

    def make(name: str) -> Any:
        return lambda context: ran.append(name) or {"artifact": str(made), "parts": dict(made)}

    stages = (
        Stage("shop", "shop", make("shop"), lambda c: ()),
        Stage("bread", "bread", make("bread"), lambda c: (), ("shop:flour",)),
        Stage("soup", "soup", make("soup"), lambda c: (), ("shop:salt",)),
        Stage("meal", "meal", make("meal"), lambda c: (), ("shop",)),
    )
    run_stages(stages, Context(config(), tmp_path))
    ran.clear()
    made["salt"] = "2"
    run_stages(stages, Context(config(), tmp_path), force=["shop"])
    assert ran == ["shop", "soup", "meal"]


def test_the_base_model_does_not_depend_on_conversations(tmp_path: Path) -> None:
    """What takes hours is not done again for a line in a file of one's own talks."""
    ran: list[str] = []
    talks = "1"

    def make(name: str) -> Any:
        def run(context: Context) -> dict[str, Any]:
            ran.append(name)
            parts = {"text": "1", "mid": "1", "sft": talks}
            read = name in ("data", "rows", "sft", "rl")
            return {"artifact": talks if read else name, "parts": parts}

        return run

    stages = [dataclasses.replace(one, run=make(one.name)) for one in STAGES]
    stages[0] = dataclasses.replace(stages[0], outdated=lambda context: talks == "2")
    run_stages(stages, Context(config(), tmp_path))
    ran.clear()
    talks = "2"
    run_stages(stages, Context(config(), tmp_path))
    assert ran == ["data", "rows", "sft", "rl", "eval"]


def test_a_run_opened_later_depends_on_the_same_as_when_it_ran(tmp_path: Path) -> None:
    """Its configuration comes from JSON then, with its keys in another order."""
    mixture = {"spelling": 1.0, "identity": 2.0}
    run = {"run": {"name": "x", "depth": 2}, "mid": {"mixture": mixture, "conversations": 9}}
    ran = loading.from_document(run, "test")
    for stage in STAGES[:-1]:
        contexts = [
            Context(one, tmp_path) for one in (ran, loading.from_json(loading.to_json(ran)))
        ]
        for context in contexts:
            context.done = {one.name: {"results": {"artifact": "x"}} for one in STAGES}
        assert input_hash(stage, contexts[0]) == input_hash(stage, contexts[1]), stage.name


def test_only_some_stages(kitchen: Kitchen) -> None:
    assert kitchen.run(only=["dough"]) == ["dough"]
    assert kitchen.run(only=["bread"]) == ["bread"]


def test_a_stage_whose_input_is_missing_is_refused_by_name(kitchen: Kitchen) -> None:
    with pytest.raises(ConfigError, match="the stage bread needs dough"):
        kitchen.run(only=["bread"])


def test_a_stage_made_with_other_settings_does_not_feed_the_named_ones(kitchen: Kitchen) -> None:
    kitchen.run(seed=0)
    with pytest.raises(ConfigError, match="the stage bread needs dough, not complete with these"):
        kitchen.run(seed=1, only=["bread"])


@pytest.mark.parametrize("option", ["only", "force"])
def test_an_unknown_stage_is_refused_with_the_known_ones(kitchen: Kitchen, option: str) -> None:
    with pytest.raises(ConfigError, match=r"no stage 'cake'; the stages are dough, bread\."):
        kitchen.run(**{option: ["cake"]})
    assert kitchen.cooked == []


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "other"}', '{"format": "jaxchat-stage-1"}']
)
def test_a_damaged_record_is_one_sentence_that_names_it(kitchen: Kitchen, text: str) -> None:
    kitchen.run()
    path = kitchen.root / "dough" / "done.json"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=r"done\.json"):
        kitchen.run()
    assert path.read_text() == text, "the evidence is gone"


def test_a_record_tells_settings_time_and_results(kitchen: Kitchen) -> None:
    kitchen.run(seed=3)
    record = read_json(kitchen.root / "dough" / "done.json")
    assert record["settings"] == [3]
    assert record["results"] == {"artifact": "dough plain 3"}
    assert record["seconds"] >= 0


@pytest.mark.parametrize(
    "change",
    [
        "mesh.fsdp=2", "mesh.tensor=2", "mesh.host_devices=8", "base.micro_rows=2",
        "mid.save_every=7", "sft.keep=3", "base.keep_every=5", "base.spike=3", "mid.rollbacks=2",
        "rl.micro_rows=2", "compute.loss_chunk_rows=64", "compute.lean_relu2=true",
        "hardware.devices=4",
    ],
)  # fmt: skip
def test_how_a_stage_is_computed_and_saved_does_not_begin_it_anew(change: str) -> None:
    assert changed(change) <= {"report"}


@pytest.mark.parametrize(
    ("change", "stages"),
    [
        ("base.batch_tokens=4096", {"base"}),
        ("base.steps=7", {"base"}),
        ("sft.lr_scale=0.5", {"rows", "sft"}),
        ("rl.temperature=0.5", {"rl"}),
        ("sft.loss_group=4", {"rows", "sft"}),
        ("rl.loss_group=4", {"rl"}),
        ("rl.top_k=50", {"rl", "eval"}),  # which samples as it does
        ("compute.fp8=true", {"base", "mid", "sft", "rl"}),
        ("run.seed=1", {"tokenizer", "rows", "base", "mid", "sft", "rl", "eval"}),
    ],
)
def test_what_a_stage_learns_begins_it_anew(change: str, stages: set[str]) -> None:
    assert changed(change) == stages | {"report"}


def changed(change: str) -> set[str]:
    """The stages whose own settings another setting changes."""
    tier = Path(__file__).parent.parent.parent / "configs" / "tier_cpu.toml"
    found = []
    for overrides in ([], [change]):
        context = Context(loading.load(tier, overrides), Path())
        context.done = {stage.name: {"results": {"artifact": "same"}} for stage in STAGES}
        found.append({stage.name: input_hash(stage, context) for stage in STAGES})
    return {name for name in found[0] if found[0][name] != found[1][name]}


def test_a_stage_that_is_skipped_says_that_it_is_not_profiled(tmp_path: Path, capsys: Any) -> None:
    stages = [
        Stage(name, name, lambda _: {"artifact": "x"}, lambda _: ()) for name in ("data", "base")
    ]
    run_stages(stages, Context(config(), tmp_path))
    capsys.readouterr()
    run_stages(stages, Context(config(), tmp_path, [Request(10, 13)]))
    assert capsys.readouterr().out.splitlines() == [
        "[1/2] data: complete, skipped",
        "[2/2] base: complete, skipped; not profiled (do it again with --force base)",
    ]


IMPORTED = ("data", "tokenizer", "rows", "base", "mid", "sft", "rl", "eval")


def imported(root: Path, stage: str, **options: Any) -> tuple[list[str], Context]:
    """Runs the stages of a run that began with an imported model; what ran, and the context."""
    ran: list[str] = []

    def make(name: str) -> Any:
        return lambda context: ran.append(name) or {"artifact": name}

    stages = [
        dataclasses.replace(one, run=make(one.name)) for one in STAGES if one.name in IMPORTED
    ]
    began = ImportedConfig(stage, "weights", "tokenizer")
    chosen = dataclasses.replace(config(), imported=began)
    if not (root / stage).exists():
        for name in ("tokenizer", stage):
            write_imported(root, chosen, name, name, {})
    if "model" in options:
        chosen = dataclasses.replace(chosen, model=options.pop("model"))
    context = Context(chosen, root)
    run_stages(stages, context, **options)
    return ran, context


@pytest.mark.parametrize(
    ("stage", "expected"),
    [
        ("base", ["data", "rows", "mid", "sft", "rl", "eval"]),
        ("mid", ["data", "rows", "sft", "rl", "eval"]),
        ("sft", ["data", "rows", "rl", "eval"]),
        ("rl", ["data", "rows", "eval"]),
    ],
)
def test_a_run_continues_from_an_imported_model(tmp_path: Path, stage: str, expected: Any) -> None:
    ran, context = imported(tmp_path, stage)
    assert ran == expected
    assert set(context.done) == {*expected, "tokenizer", stage}
    assert imported(tmp_path, stage)[0] == []


def test_an_imported_stage_is_complete_without_those_before_it(tmp_path: Path) -> None:
    ran, context = imported(tmp_path, "sft", only=[])
    assert ran == []
    assert set(context.done) == {"tokenizer", "sft"}


@pytest.mark.parametrize("stage", ["tokenizer", "base", "mid"])
def test_an_imported_stage_cannot_be_forced(tmp_path: Path, stage: str) -> None:
    with pytest.raises(ConfigError, match=f"{stage} cannot be forced"):
        imported(tmp_path, "mid", force=[stage])


def test_settings_of_another_model_are_refused(tmp_path: Path) -> None:
    other = dataclasses.replace(config().model, n_layer=3)
    with pytest.raises(ConfigError, match="is not that of these settings"):
        imported(tmp_path, "mid", model=other)

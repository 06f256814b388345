"""The main command's edges; what it trains is tested where the stages are."""

import importlib.util
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from disk import remount

from jaxchat.cli import main
from jaxchat.config import loading
from jaxchat.config.schema import MODELS
from jaxchat.config.task_names import CALLING, GENERATED, GRADED_CALLS
from jaxchat.errors import ConfigError
from jaxchat.runs import run_dir
from jaxchat.runs.plan.plan import make_plan
from jaxchat.runs.stages import STAGES
from jaxchat.signals import REQUEUE
from jaxchat.tasks import EVERYDAY_WORDS, TASKS, make_tasks
from jaxchat.tasks.gsm8k import parse_solution
from jaxchat.train import session

ROOT = Path(__file__).parent.parent.parent
SCRIPT = ROOT / "run_speedrun.py"
TIERS = [
    "cpu", "100", "300", "gpt2", "1000", "best_40", "best_100", "best_300", "tpu_v5e8",
    "best_1000", "one_gpu_24gb", "one_gpu_80gb",
]  # fmt: skip
HEAVY = {"jax", "flax", "grain", "optax", "orbax", "tiktoken", "numpy", "rich"}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("run_speedrun", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def speedrun(*arguments, **options):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        capture_output=True, text=True, check=False, **options,
    )  # fmt: skip


@pytest.mark.parametrize("arguments", [["--help"], ["--tier", "100", "--plan"]])
def test_nothing_heavy_is_imported_before_it_is_needed(arguments):
    code = (
        f"import runpy, sys\nsys.argv = ['run_speedrun.py', *{arguments!r}]\n"
        f"try: runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\nexcept SystemExit: pass\n"
        f"print('loaded', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_the_table_of_contents_is_the_pipeline(script):
    assert script.STAGES is STAGES
    assert [stage.name for stage in STAGES if stage.trained] == list(MODELS)
    assert all(stage.description for stage in STAGES)


def test_help_tells_the_code_that_a_scheduler_is_to_requeue(script, capsys):
    for program in (script.main, main.main):
        with pytest.raises(SystemExit):
            program(["--help"])
        assert f"  {REQUEUE}   stopped by SIGTERM or SIGUSR1" in capsys.readouterr().out


def test_the_list_of_tiers_says_what_each_costs_and_how_its_figures_are_known(script, capsys):
    assert script.main(["--tier", "list"]) == 0
    out = capsys.readouterr().out
    rows = {line.split()[0]: line for line in out.splitlines()[1 : 1 + len(TIERS)]}
    assert list(rows) == TIERS
    for tier in TIERS:
        assert rows[tier].endswith(loading.about(loading.tiers()[tier]).expected)
        total = make_plan(loading.load(loading.tiers()[tier]))
        dollars = sum(part.dollars for part in (*total.stages, *total.evaluation))
        assert f"${dollars:,.0f} " in rows[tier]
        assert f"\n  {tier}: " in out, "every tier has its evidence"


def test_a_tier_of_ones_own_need_not_say_what_to_expect(tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text('[run]\nname = "mine"\ndepth = 2\n')
    assert loading.about(own).expected == "not known"
    own.write_text('[about]\nexpcted = "CORE 0.3"\n[run]\nname = "mine"\ndepth = 2\n')
    for read in (loading.about, loading.load):
        with pytest.raises(ConfigError, match=r"mine\.toml \[about\].*did you mean 'expected'"):
            read(own)


def test_every_config_is_a_tier_and_can_be_planned(script, capsys):
    tiers = list(loading.tiers())
    assert tiers == TIERS
    assert len(tiers) == len(list((ROOT / "configs").glob("*.toml")))
    for tier in tiers:
        assert script.main(["--tier", tier, "--plan"]) == 0
        out = capsys.readouterr().out
        assert out.startswith(f"{tier}: ")
        assert "Memory per device" in out


@pytest.mark.parametrize("tier", TIERS)
def test_every_config_says_how_and_what_for(script, tier):
    head = loading.tiers()[tier].read_text().partition("\n[run]")[0]
    assert f"# Command   python run_speedrun.py --tier {tier}\n" in head
    for word in ("Hardware", "Time", "Cost", "Metrics"):
        assert f"# {word:<9} " in head


def test_plan_takes_overrides_and_writes_nothing(script, tmp_path, capsys):
    arguments = ["--tier", "100", "--plan", "--home", str(tmp_path / "home")]
    assert script.main([*arguments, "--set", "run.depth=26"]) == 0
    assert "1,081,999,360 parameters" in capsys.readouterr().out
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--tier", "2000"],
            f"there is no tier '2000'; the tiers are {', '.join(TIERS)}.",
        ),
        (["--tier", "cpu", "--set", "base.step=3"], "did you mean 'steps'?"),
        (["--tier", "cpu", "--set", "base.steps"], "not of the form table.key=value"),
        (["--tier", "cpu", "--set", "run.name=../up"], "run.name is '../up'"),
        (["--tier", "cpu", "--profile", "0:3"], "--profile starts at step 0"),
        (["--tier", "cpu", "--profile", "eval:1:3"], "those that train are base, mid, sft, rl."),
    ],
)
def test_what_does_not_exist_is_one_sentence_and_2(script, arguments, said, tmp_path, capsys):
    assert script.main([*arguments, "--home", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("mid.mixture={arithmetic=1,astrology=1}", "there is no task 'astrology'; the tasks are"),
        ("mid.mixture={gsm8k=1}", "there is no task 'gsm8k'"),
        ("sft.mixture={identty=1}", "(sft.mixture names it)."),
        ('eval.tasks=["mmmlu"]', "there is no task 'mmmlu'"),
        ('rl.task="gsm9k"', "(rl.task names it)."),
        ('eval.tasks=["smoltalk"]', "no answers to check; take it out of eval.tasks"),
        ('rl.task="smoltalk"', "no answers to check; take it out of rl.task"),
        ('rl.task="humaneval"', "humaneval has no problems to train on"),
        (
            "tokenizer.tool_tokens=false",
            "rl.task has arithmetic; eval.tasks has arithmetic, counting",
        ),
        ("sft.epochs={smalltalk=1}", "there is no dataset of conversations 'smalltalk'"),
        ('sft.epochs={"gone.jsonl"=1}', "gone.jsonl does not exist; mid.epochs or sft.epochs"),
        ("sft.batch_tokens=1000", "sft.batch_tokens is 1,000, no multiple of model.sequence_len"),
        ('data.persona="gone.toml"', "gone.toml cannot be read"),
        ('data.persona="bad.toml"', "bad.toml is not valid TOML"),
        ('data.persona="key.toml"', "did you mean 'answers'?"),
    ],
)
def test_a_plan_refuses_what_the_run_refuses(script, setting, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.toml").write_text("name = Ada")
    (tmp_path / "key.toml").write_text("[answer]\nwho_are_you = 'Ada.'")
    arguments = ["--tier", "cpu", "--plan", "--home", str(tmp_path / "home"), "--set", setting]
    assert script.main(arguments) == 2
    captured = capsys.readouterr()
    assert said in captured.err
    assert captured.err.count("\n") == 1
    assert not captured.out


def test_the_tasks_that_call_the_calculator_are_named():
    """Those that a tokenizer without tokens of tools cannot train."""
    tasks = {**make_tasks(GENERATED, 0, EVERYDAY_WORDS), "gsm8k": None}
    row = {"question": "How much?", "answer": "It is <<4/2=2>>2.\n#### 2"}
    for name, task in tasks.items():
        if task is None:
            parts = parse_solution(row["answer"])
        else:
            problems = [task.problem("train", index) for index in range(5)]
            parts = [part for problem in problems for part in problem.solution]
        calls = any(part["type"] == "python" for part in parts)
        assert calls == (name in CALLING), name
    assert set(GRADED_CALLS) == set(CALLING) - {"gsm8k"}


def test_a_recipe_without_tools_needs_no_tokens_for_them(script, tmp_path, capsys):
    settings = [
        "tokenizer.tool_tokens=false", "run.preset=september", "rl.steps=0",
        "mid.mixture={identity=1,spelling=1}", "sft.mixture={choice=1}", 'eval.tasks=["choice"]',
    ]  # fmt: skip
    arguments = ["--tier", "cpu", "--plan", "--home", str(tmp_path)]
    for setting in settings:
        arguments += ["--set", setting]
    assert script.main(arguments) == 0
    assert "september" in capsys.readouterr().out


def test_a_plan_refuses_bad_lines_folders_and_stages(script, tmp_path, capsys):
    talks = tmp_path / "talks.jsonl"
    talks.write_text('{"messages": []}\n')
    plan = ["--tier", "cpu", "--plan", "--home", str(tmp_path / "home")]
    assert script.main([*plan, "--set", f'sft.epochs={{"{talks}"=1}}']) == 1
    assert "1 of 1 lines are no conversations" in capsys.readouterr().err
    assert script.main([*plan, "--data-dir", str(tmp_path / "gone")]) == 2
    assert "gone is no folder" in capsys.readouterr().err
    assert script.main([*plan, "--stages", "base,sleep"]) == 2
    assert "there is no stage 'sleep'" in capsys.readouterr().err


def test_a_plan_of_a_run_that_has_its_data_needs_no_files(script, tmp_path, capsys):
    done = tmp_path / "runs" / "cpu" / "data"
    done.mkdir(parents=True)
    plan = ["--tier", "cpu", "--plan", "--home", str(tmp_path)]
    setting = ["--set", 'data.persona="gone.toml"']
    assert script.main([*plan, *setting]) == 2
    (done / "done.json").write_text("{}")
    assert script.main([*plan, *setting]) == 0


def test_from_the_command_to_the_jitted_step_are_six_frames(script, tmp_path, monkeypatch):
    """A whole base stage up to its first step, in whose place stands one that notes who called."""
    frames = []

    def step(state, batch):
        ours = (str(ROOT / "jaxchat"), str(SCRIPT))
        stack = traceback.extract_stack()[:-1]
        frames.extend(frame.name for frame in stack if frame.filename.startswith(ours))
        raise ConfigError("this step only notes who called it.")

    monkeypatch.setattr(session, "make_train_step", lambda *_: step)
    monkeypatch.setattr(script.processes, "start_jax", lambda *_: None)  # the test runner has
    (tmp_path / "a.txt").write_text("the cat sat on the mat and saw the dog\n\n" * 500)
    command = ["--tier", "cpu", "--home", str(tmp_path), "--data-dir", str(tmp_path / "a.txt")]
    for setting in (
        "run.depth=1", "model.n_embd=16", "model.n_head=1", "model.n_kv_head=1",
        "model.sequence_len=64", "tokenizer.vocab_size=280", "base.steps=2",
        "base.batch_tokens=512", "base.micro_rows=1", "base.eval_rows=8", "mid.conversations=200",
        "sft.conversations=200", "data.words=50",
    ):  # fmt: skip
        command += ["--set", setting]
    assert script.main([*command, "--stages", "data,tokenizer,rows,base"]) == 2
    assert frames == ["main", "run_stages", "run_base", "fit", "train"]


def test_the_tasks_that_a_plan_knows_are_those_there_are():
    assert tuple(TASKS) == GENERATED


@pytest.mark.parametrize("option", [("--stages", "base,sleep"), ("--force", "sleep")])
def test_a_stage_that_does_not_exist_is_one_sentence(option, tmp_path):
    done = speedrun("--tier", "cpu", "--home", tmp_path, *option)
    assert done.returncode == 2
    assert "there is no stage 'sleep'; the stages are data, tokenizer," in done.stderr


def test_a_tier_whose_data_has_no_server_says_what_to_do(tmp_path):
    offline = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "no_proxy": "*"}
    done = speedrun("--tier", "100", "--home", tmp_path, env=offline)
    assert done.returncode == 1
    assert done.stdout == "[1/9] text\n"
    assert "Without a network: --offline uses" in done.stderr
    assert "--data-dir your own files" in done.stderr


def test_a_home_that_cannot_be_written_is_said_at_once(tmp_path):
    (tmp_path / "file").write_text("")
    done = speedrun("--tier", "cpu", "--home", tmp_path / "file" / "home")
    assert done.returncode == 1
    assert done.stdout == ""
    home, file = tmp_path / "file" / "home", tmp_path / "file"
    assert done.stderr.startswith(f"jaxchat: {home} cannot be used: {file} is a file, where a ")
    assert done.stderr.count("\n") == 1


def test_a_home_that_may_only_be_read_is_said_at_once(small_disk):
    remount(small_disk, "ro")
    done = speedrun("--tier", "cpu", "--home", small_disk / "home")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"jaxchat: {small_disk / 'home'} cannot be used (Read-only file")
    assert done.stderr.count("\n") == 1


def test_a_full_disk_is_one_sentence_and_leaves_no_half_artefact(small_disk):
    done = speedrun("--tier", "cpu", "--home", small_disk, "--set", "data.max_chars=1000000")
    assert done.returncode == 1
    assert f"the disk of {small_disk}" in done.stderr
    assert "is full; free some space" in done.stderr
    assert "Traceback" not in done.stderr
    left = [path.name for path in (small_disk / "runs" / "cpu" / "data").iterdir()]
    assert left == ["begun.json"]


def test_a_run_that_another_process_works_on_is_refused(tmp_path):
    with run_dir.locked(run_dir.folder(tmp_path, "cpu")):
        done = speedrun("--tier", "cpu", "--home", tmp_path)
    assert done.returncode == 1
    assert f"another process (number {os.getpid()}) works on the run" in done.stderr

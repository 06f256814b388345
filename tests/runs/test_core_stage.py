"""CORE as a part of a run: its bundle fetched, missing, late, another; killed in the middle."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finished_run import DOCUMENT, finish_run, random_params, tiny_tokenizer
from hub_replica import BUNDLE, TASKS, bundle_url, write_bundle
from hub_server import HubServer

from jaxchat.config import loading
from jaxchat.config.schema import MeshConfig
from jaxchat.errors import ArtifactError, ConfigError
from jaxchat.evals.core import evaluate
from jaxchat.evals.core.bundle import read_bundle
from jaxchat.evals.core.evaluate import evaluate_saved
from jaxchat.evals.model import EvalModel
from jaxchat.evals.saved import core_folder, core_results
from jaxchat.model.capabilities import evaluation_compute
from jaxchat.parallel.mesh import make_mesh, param_shardings, put
from jaxchat.runs import runner
from jaxchat.runs.eval_stages import Bench, core_of, fetch_bundle, find_bundle
from jaxchat.runs.opening import load_model
from jaxchat.runs.report.files import gather_run, read_report, summary, write_report, write_run
from jaxchat.runs.runner import Network
from jaxchat.runs.stages import STAGES

LABELS = ["because", "kitchen", "pronouns", "copying"]


@pytest.fixture
def server(tmp_path):
    with HubServer() as running:
        path = write_bundle(tmp_path / "eval_bundle.zip")
        running.add(BUNDLE, {"eval_bundle.zip": path.read_bytes()})
        yield running


@pytest.fixture
def config(server):
    """A run on a dataset's text, which fetches CORE's bundle from the server."""
    settings = [
        "data.source=fineweb_edu",
        f"eval.bundle_url={bundle_url(server)}",
        "eval.vocabularies_url=none",
    ]
    return loading.from_document(loading.apply_overrides(DOCUMENT, settings), "tiny")


@pytest.fixture
def run(tmp_path, config):
    """A run that is complete, evaluated as if CORE had never been."""
    return finish_run(tmp_path / "home", config, tiny_tokenizer())


@pytest.fixture
def evaluated(monkeypatch):
    """The tasks that are evaluated from now on; a label in `stop` ends the process there."""
    done, stop, real = [], set(), evaluate._evaluate_task

    def watched(model, task, **options):
        if task.label in stop:
            raise KeyboardInterrupt
        done.append(task.label)
        return real(model, task, **options)

    monkeypatch.setattr(evaluate, "_evaluate_task", watched)
    return done, stop


def evaluation(context):
    """The evaluation stage, of CORE alone."""
    return {"artifact": "scores", "models": {"base": core_of(Bench(context), "base")}}


def run_again(run, config, network=runner.DEFAULT_NETWORK):
    """What the run has evaluated after its command was given again."""
    stages = [
        stage if stage.name != "eval" else dataclasses.replace(stage, run=evaluation)
        for stage in STAGES
        if stage.name != "report"
    ]
    context = runner.Context(config, run, network=network)
    runner.run_stages(stages, context)
    return context.done["eval"]["results"].get("models", {}).get("base", {})


def home_of(run):
    return run.parents[1]


def test_a_bundle_that_comes_later_runs_core_alone_and_once(run, config, evaluated, capsys):
    done, _ = evaluated
    assert "core" not in run_again(run, config)
    capsys.readouterr()
    shutil.copytree(TASKS, home_of(run) / "eval_bundle")
    core = run_again(run, config)["core"]
    printed = capsys.readouterr().out
    assert done == LABELS
    assert core["name"] == "CORE of 4 of 22 tasks, not comparable"
    assert printed.count("complete, skipped") == len(STAGES) - 2, "more than the evaluation ran"
    assert run_again(run, config)["core"] == core
    assert done == LABELS
    assert "evaluation: complete, skipped" in capsys.readouterr().out


def test_another_bundle_runs_only_the_tasks_that_differ(run, config, evaluated):
    done, _ = evaluated
    shutil.copytree(TASKS, home_of(run) / "eval_bundle")
    first = run_again(run, config)["core"]
    done.clear()
    task = home_of(run) / "eval_bundle" / "eval_data" / "text" / "copying.jsonl"
    task.write_text("".join(task.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ArtifactError, match=r"copying\.jsonl has changed"):
        run_again(run, config)
    (home_of(run) / "eval_bundle.json").unlink()  # as it says, to take it as it is
    second = run_again(run, config)["core"]
    assert done == ["copying"]
    assert second["bundle"] != first["bundle"]
    assert second["tasks"]["copying"]["problems"] == first["tasks"]["copying"]["problems"] - 1
    shutil.rmtree(home_of(run) / "eval_bundle")
    assert run_again(run, config)["core"] == second, "a bundle that is gone took its result along"


def test_stopped_in_the_middle_it_does_no_task_twice(run, config, evaluated):
    done, stop = evaluated
    shutil.copytree(TASKS, home_of(run) / "eval_bundle")
    stop.add("pronouns")
    with pytest.raises(KeyboardInterrupt):
        run_again(run, config)
    assert done == LABELS[:2]
    stop.clear()
    whole = run_again(run, config)["core"]
    assert done == LABELS
    assert sorted(whole["tasks"]) == sorted(LABELS)
    (path,) = core_results(core_folder(run, "base"))
    kept_there = json.loads(path.read_text())
    assert kept_there["core"] == whole["core"]


def test_it_is_fetched_with_the_data_and_never_again(server, run, config):
    context = runner.Context(config, run)
    assert find_bundle(context) is None
    bundle = fetch_bundle(context)
    assert bundle is not None
    assert [task.label for task in bundle.tasks] == LABELS
    asked = len(server.asked)
    assert asked
    assert fetch_bundle(context) == bundle
    assert len(server.asked) == asked


@pytest.mark.parametrize(
    ("settings", "offline", "said"),
    [
        ([], True, "--offline forbids fetching it"),
        (["eval.bundle_url=none"], False, "eval.bundle_url is none"),
        (["eval.bundle_url={url}.not"], False, "answers 404"),
        (["eval.bundle_url=http://127.0.0.1:9/x.zip"], False, "cannot be reached"),
    ],
)
def test_without_a_bundle_a_line_says_how_to_add_it_and_the_run_continues(
    server, run, config, capsys, settings, offline, said
):
    document = json.loads(loading.to_json(config))
    for setting in settings:
        document["eval"]["bundle_url"] = setting.partition("=")[2].format(url=bundle_url(server))
    asking = loading.from_json(json.dumps(document))
    context = runner.Context(asking, run, network=Network(offline=offline))
    context.done = {"base": {"results": {"artifact": "base"}}}
    assert core_of(Bench(context), "base") == {}
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("CORE is left out")
    assert said in line
    assert "jaxchat eval core --download adds it" in line
    assert "--data-dir" not in line, "advice that does not fit a bundle"
    assert "--refresh" not in line, "advice that does not fit a bundle"
    if offline:
        assert not server.asked
    assert fetch_bundle(context) is None
    assert not capsys.readouterr().out, "it is said twice"
    found = gather_run(run)
    assert "jaxchat eval core --download" not in found["core_missing"], "base was not evaluated yet"


def test_where_the_report_has_core_nothing_says_it_is_left_out(run, config, capsys):
    bundle = home_of(run) / "eval_bundle"
    shutil.copytree(TASKS, bundle)
    run_again(run, config)
    shutil.rmtree(bundle)
    capsys.readouterr()
    context = runner.Context(config, run, network=Network(offline=True))
    assert fetch_bundle(context) is None
    assert not capsys.readouterr().out
    assert "CORE of 4 of 22" in gather_run(run)["metrics"][0]["name"]


def test_an_own_bundle_that_is_gone_takes_nothing_along(run, config, tmp_path, capsys):
    own = tmp_path / "own"
    shutil.copytree(TASKS, own)
    settings = dataclasses.replace(config.eval, bundle=str(own))
    config = dataclasses.replace(config, eval=settings)
    core = run_again(run, config)["core"]
    own.rename(tmp_path / "elsewhere")
    assert run_again(run, config)["core"] == core
    assert "evaluation: complete, skipped" in capsys.readouterr().out
    with pytest.raises(
        ArtifactError, match=r"^eval\.bundle is .*/own, which does not exist"
    ) as printed:
        find_bundle(runner.Context(config, run))
    assert "--bundle" not in str(printed.value)
    own.mkdir()
    with pytest.raises(
        ArtifactError, match=r"^eval\.bundle is .*/own, which cannot be used"
    ) as printed:
        find_bundle(runner.Context(config, run))
    assert "--bundle" not in str(printed.value), "run_speedrun.py has no such option"


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"weights": "base", "tasks": []}'])
def test_a_damaged_result_is_left_out_with_a_line(run, config, capsys, text):
    path = core_folder(run, "base") / "result.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    write_run(run)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{path} is left out of the report: it is no result of jaxchat eval")


@pytest.mark.parametrize("source", ["machine", "folder"])
def test_a_run_without_a_datasets_text_never_asks_for_it(server, run, config, capsys, source):
    folder = "somewhere" if source == "folder" else ""
    data = dataclasses.replace(config.data, source=source, folder=folder)
    context = runner.Context(dataclasses.replace(config, data=data), run)
    assert fetch_bundle(context) is None
    assert not server.asked
    assert not capsys.readouterr().out


def test_too_few_examples_a_task_are_refused_before_anything_is_trained(run, config):
    shutil.copytree(TASKS, home_of(run) / "eval_bundle")
    few = dataclasses.replace(config, base=dataclasses.replace(
        config.base, core_every=10, core_examples=3))  # fmt: skip
    with pytest.raises(ConfigError, match=r"base\.core_examples is 3, and CORE shows up to 3"):
        fetch_bundle(runner.Context(few, run))


def test_the_report_says_how_to_add_core_and_has_what_eval_core_found(run, config):
    record = json.loads((run / "eval" / "done.json").read_text())
    record["results"]["models"] = {"base": {"bits_per_byte": 2.0}}
    (run / "eval" / "done.json").write_text(json.dumps(record))
    found = write_run(run)
    assert "`jaxchat eval core --download` fetches it" in found["core_missing"]
    for name in ("report.md", "report.html"):
        assert "CORE was not measured" in (run / name).read_text()

    tokenizer, mesh = tiny_tokenizer(), make_mesh(MeshConfig())
    params = load_model(run, "base", config.model)
    evaluate_saved(
        core_folder(run, "base"),
        EvalModel(
            lambda: put(params, param_shardings(mesh, params)), config.model, tokenizer,
            evaluation_compute(config.compute, config.model, jnp.float32), mesh, "base",
        ),
        read_bundle(TASKS),
    )  # fmt: skip
    found = write_run(run)
    assert not found["core_missing"]
    name = "CORE of 4 of 22 tasks, not comparable"
    assert [row["name"] for row in found["metrics"]] == [name, "bits per byte"]
    assert f"### CORE of base: {name}" in (run / "report.md").read_text()
    assert name in (run / "report.html").read_text()
    assert name in summary(found)
    # the run's own report has it, too
    context = runner.Context(config, run)
    context.done = {s.name: runner.read_done(run, s.name) for s in STAGES if s.name != "report"}
    write_report(config, run, context.done)
    assert read_report(run / "report.json")["core"] == found["core"]


def test_core_is_the_same_on_one_device_and_on_eight(config):
    params, tokenizer, bundle = random_params(3, config), tiny_tokenizer(), read_bundle(TASKS)
    found = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = make_mesh(MeshConfig(), devices)
        laid = put(params, param_shardings(mesh, params))
        model = EvalModel(lambda laid=laid: laid, config.model, tokenizer, mesh=mesh)
        found.append(evaluate.evaluate_core(model, bundle))
    one, eight = ([j for task in result.tasks for j in task.judged] for result in found)
    assert [j.prediction for j in one] == [j.prediction for j in eight]
    np.testing.assert_allclose(
        [loss for j in eight for loss in j.losses], [loss for j in one for loss in j.losses],
        rtol=0, atol=1e-5,
    )  # fmt: skip

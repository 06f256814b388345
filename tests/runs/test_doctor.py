"""`jaxchat doctor`: what it finds here, and why a tier cannot run."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hub_replica
import jax
import pytest

from jaxchat.cli.main import main
from jaxchat.config import loading, memory
from jaxchat.data import registry
from jaxchat.data.download.hub import Hub, open_hub
from jaxchat.data.download.transfer import download
from jaxchat.data.download.web import RetryPolicy, Web
from jaxchat.runs.doctor import sources, tier
from jaxchat.runs.doctor.speed import Speed, in_turns, measure_speed
from jaxchat.runs.plan import plan

DEAD = "http://127.0.0.1:9"  # the discard port: nothing listens
TIER_100 = loading.load(loading.tiers()["100"])
H100 = tier.Here("gpu", "NVIDIA H100 80GB HBM3", 8, 78.6e9)


@pytest.fixture(autouse=True)
def cache_of_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the command from moving the cache of compiled programs, which all tests share."""
    monkeypatch.setattr("jaxchat.parallel.launch_env.configure_jax", lambda mesh, cache: None)


def examine(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict]:
    """The exit code, and the report of --json."""
    code = main(["doctor", "--json", *map(str, arguments)])
    return code, json.loads(capsys.readouterr().out)


def by_name(report: dict) -> dict[str, dict]:
    return {check["name"]: check for check in report["checks"]}


# ---------------------------------------------------------------------------- the command


def test_the_small_tier_can_run_here(tmp_path, capsys):
    assert main(["doctor", "--no-bench", "--home", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "BAD" not in out
    names = "python packages tokenizer cuda devices processor attention compiler sandbox home"
    for name in (*names.split(), "tier", "memory", "disk", "data"):
        assert f"\nok   {name} " in f"\n{out}"
    assert "8 x cpu: cpu" in out
    assert "runs: none" in " ".join(out.split())  # a long folder breaks the line there
    assert out.endswith("\nTier cpu can run here.\n")
    assert all(len(line) <= 100 for line in out.splitlines())


def test_a_tier_for_gpus_cannot_run_on_a_cpu_without_network(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", DEAD)
    # whatever this machine has left, the tier's 71 GB would fit
    roomy = shutil.disk_usage(tmp_path)._replace(free=10**12)
    monkeypatch.setattr("shutil.disk_usage", lambda path: roomy)
    code, report = examine(capsys, "-n", "--tier", "100", "--home", tmp_path)
    assert code == 1
    assert not report["can_run"]
    without_gpu, without_data = report["problems"]
    assert "8 x NVIDIA H100 80GB, and JAX sees no GPU" in without_gpu
    assert without_data.startswith("259 files of fineweb_edu, arc_challenge, arc_easy, gsm8k, ")
    assert "(Connection refused)" in without_data
    assert without_data.endswith(
        "run: jaxchat data download fineweb_edu --shards 240 && jaxchat data download "
        "arc_challenge arc_easy gsm8k humaneval mmlu smoltalk"
    )
    assert by_name(report)["smoltalk"]["facts"]["answers"] is False


def test_a_home_that_cannot_be_written_is_a_problem(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    code, report = examine(capsys, "-n", "--home", tmp_path / "file" / "home")
    assert code == 1
    (problem,) = report["problems"]
    assert "cannot be used" in problem
    assert by_name(report)["home"]["problems"] == [problem]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--tier", "2000"],
            f"there is no tier '2000'; the tiers are {', '.join(loading.tiers())}.",
        ),
        (["--set", "base.step=3"], "did you mean 'steps'?"),
    ],
)
def test_what_does_not_exist_is_a_usage_error(arguments, said, tmp_path, capsys):
    assert main(["doctor", "--home", str(tmp_path), *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_step_that_the_devices_cannot_share_is_a_problem(tmp_path, capsys):
    code, report = examine(capsys, "-n", "--home", tmp_path, "--set", "base.batch_tokens=2560")
    assert code == 1
    assert report["problems"][0].startswith("a step of 10 rows does not divide by the 8 devices")


# ---------------------------------------------------------------------------- memory and disk


def test_a_tier_fits_on_what_it_is_meant_for():
    check = tier.check_memory(TIER_100, H100)
    assert not check.problems
    assert check.facts["predicted_bytes"]["base"] == plan.make_plan(TIER_100).memory.peak
    assert not tier.lacks_gpu(TIER_100, H100)


def test_of_a_smaller_card_it_says_the_micro_rows_that_fit():
    card = replace(H100, memory_bytes=22e9)
    base, mid = tier.check_memory(TIER_100, card).problems
    assert base.startswith("base needs 67.7 GB of each device with base.micro_rows=32")
    rows = int(base.partition("--set base.micro_rows=")[2].partition(":")[0])
    again = loading.load(
        loading.tiers()["100"], [f"base.micro_rows={rows}", f"mid.micro_rows={rows}"]
    )
    assert not tier.check_memory(again, card).problems
    more = loading.load(loading.tiers()["100"], [f"base.micro_rows={2 * rows}"])
    assert tier.check_memory(more, card).problems
    assert mid.startswith("mid needs 67.7 GB")


def test_where_not_even_a_row_fits_it_says_so():
    problems = tier.check_memory(TIER_100, replace(H100, memory_bytes=4e9)).problems
    assert len(problems) == 3
    assert all("take a smaller tier" in problem for problem in problems)


def test_devices_of_a_cpu_share_what_is_free():
    here = tier.find_here()
    assert here.devices == len(jax.devices()) == 8
    assert here.configured(TIER_100).hardware.compute_bytes == memory.WIDE
    assert 0 < here.memory_bytes * 8 < 1e15


def test_what_is_there_already_needs_no_disk(tmp_path, monkeypatch):
    config = loading.load(loading.tiers()["cpu"])
    need = sum(plan.plan_disk(config).values())

    def with_free(size: float) -> tuple[str, ...]:
        usage = type("Usage", (), {"free": size})
        monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
        return tier.check_disk(config, tmp_path).problems

    assert not with_free(need)
    (problem,) = with_free(need - 1e6)
    assert problem.startswith(f"{tmp_path} has ")
    kept = tmp_path / "runs" / "cpu" / "base"
    kept.mkdir(parents=True)
    (kept / "weights").write_bytes(bytes(1_100_000))
    assert not with_free(need - 1e6)
    assert with_free(need - 2e6)


@pytest.mark.slow
def test_a_disk_that_is_too_small_is_found(tmp_path, capsys):
    """A real one, where this user may mount it."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        code, report = examine(capsys, "-n", "--home", tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert code == 1
    assert report["problems"][0].startswith(f"{tmp_path} has 2.1 MB free, and the tier takes 57.9")


# ---------------------------------------------------------------------------- datasets


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a replica that has problems but no text."""
    folder = tmp_path_factory.mktemp("replica")
    hub_replica.build(folder)
    for path in (folder / registry.SOURCES["fineweb_edu"].repo).iterdir():
        path.unlink()
    with hub_replica.served(folder) as server:
        yield server.url


def hub_at(root: Path, endpoint: str, offline: bool = False) -> Hub:
    web = Web(policy=RetryPolicy(tries=1, first_tries=1, stall=2.0))
    return Hub(root, web, endpoint=endpoint, offline=offline)


def test_a_source_that_answers_is_no_problem_and_one_that_is_not_there_is(tmp_path, hub):
    checks = {c.name: c for c in sources.check_sources(TIER_100, hub_at(tmp_path, hub))}
    assert not checks["gsm8k"].problems
    assert checks["gsm8k"].facts["answers"] is True
    (problem,) = checks["fineweb_edu"].problems
    assert problem.startswith("241 files of fineweb_edu cannot be had (")
    assert "404" in problem
    assert not list(tmp_path.iterdir()), "it must download nothing"


def test_what_is_here_needs_no_network(tmp_path, hub):
    asked = hub_at(tmp_path, hub)
    source = registry.SOURCES["gsm8k"]
    list(download(asked.files(source), asked.web))
    for later in (hub_at(tmp_path, DEAD), hub_at(tmp_path, DEAD, offline=True)):
        checks = {c.name: c for c in sources.check_sources(TIER_100, later)}
        assert not checks["gsm8k"].problems
        assert checks["gsm8k"].text.startswith("2 of 2 files here")
        assert checks["mmlu"].problems
    (problem,) = checks["mmlu"].problems
    assert "--offline or HF_HUB_OFFLINE" in problem
    assert "gsm8k" not in problem


def test_asking_goes_through_the_environments_proxy(tmp_path, hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    source = registry.SOURCES["gsm8k"]
    direct = sources.ask(open_hub(tmp_path, policy=sources.RETRY_POLICY), source)
    assert direct is not None
    assert not direct.refused
    monkeypatch.setenv("http_proxy", DEAD)
    proxied = sources.ask(open_hub(tmp_path, policy=sources.RETRY_POLICY), source)
    assert proxied is not None
    assert proxied.refused == "Connection refused"


# ---------------------------------------------------------------------------- speed


@pytest.mark.slow
def test_a_real_step_is_timed(optax_promotion, monkeypatch):
    """Of a smaller model than the doctor's: under the tests' compilation that takes minutes."""
    tiny = {"sequence_len": 32, "n_embd": 32, "n_head": 1, "n_kv_head": 1}
    tables = {"run": {"depth": 1}, "model": tiny, "tokenizer": {"vocab_size": 300}}
    monkeypatch.setattr("jaxchat.runs.doctor.speed.SMALL", {"cpu": tables})
    monkeypatch.setattr("jaxchat.runs.doctor.speed.PRODUCT", {"cpu": 256})
    speed = measure_speed("cpu", seconds=0.0)
    assert speed.turns == 3
    assert 0 < speed.share < 1
    assert speed.tokens_per_second > 1
    doubled = replace(speed, matmul_flops=2 * speed.matmul_flops)
    assert doubled.share == pytest.approx(speed.share / 2)


def test_turns_tell_rates():
    done = []

    def pause(seconds: float):
        def once() -> None:
            done.append(seconds)
            time.sleep(seconds)

        return once

    slow, fast = in_turns(pause(0.1), pause(0.001), 0.0)
    assert len(slow) == len(fast) == 3
    assert (slow < 10).all()
    assert (fast > 2 * slow).all()
    assert done.count(0.001) > done.count(0.1) > 3


def test_time_follows_from_the_rate():
    speed = Speed(1e6, 400e12, 800e12, 3)
    training = tier.check_time(TIER_100, H100, speed).facts["training_seconds"]
    halved = tier.check_time(TIER_100, replace(H100, devices=4), speed).facts["training_seconds"]
    assert halved == pytest.approx(2 * training)
    meant = replace(TIER_100.hardware, peak_flops=400e12, utilization=1.0)
    assert training == pytest.approx(plan.make_plan(replace(TIER_100, hardware=meant)).seconds)

"""The files in launch/ agree with each other and with the code; real schedulers are not needed."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from jaxchat.signals import REQUEUE

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCH = ROOT / "launch"
CLUSTER = Path(__file__).parent / "slurm_cluster.sh"
# that of the environment, which need not be on PATH
BIN = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
SHELLCHECK = shutil.which("shellcheck", path=BIN)


@pytest.fixture(scope="module")
def job():
    """The Job that the JobSet makes."""
    document = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    (replicated,) = document["spec"]["replicatedJobs"]
    return document, replicated


def test_the_jobset_starts_as_many_processes_as_it_tells_them(job):
    _, replicated = job
    spec = replicated["template"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert spec["completionMode"] == "Indexed"
    assert int(given["JAXCHAT_PROCESSES"]) == spec["parallelism"] == spec["completions"]
    assert "JAXCHAT_PROCESS=$JOB_COMPLETION_INDEX " in container["args"][0]


def test_the_jobsets_coordinator_is_its_first_pod(job):
    document, replicated = job
    (container,) = replicated["template"]["spec"]["template"]["spec"]["containers"]
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    name = document["metadata"]["name"]
    host, port = given["JAXCHAT_COORDINATOR"].split(":")
    assert host == f"{name}-{replicated['name']}-0-0.{name}"
    assert document["spec"]["network"]["enableDNSHostnames"] is True
    ports = [entry["containerPort"] for entry in container["ports"]]
    assert ports == [int(port), int(port) + 1]


def test_the_pods_need_no_rights_and_have_time_to_save(job):
    _, replicated = job
    pod = replicated["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert pod["terminationGracePeriodSeconds"] >= 120
    assert pod["restartPolicy"] == "Never"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_all_start_again_after_the_code_for_that():
    slurm = (LAUNCH / "slurm.sh").read_text()
    assert re.search(rf"^REQUEUE={REQUEUE}\b", slurm, re.MULTILINE)
    sky = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert sky["resources"]["job_recovery"]["recover_on_exit_codes"] == [REQUEUE]


def skypilot_run(tmp_path: Path, nodes: str, rank: int) -> str:
    """The arguments and environment of the program that SkyPilot's `run` starts."""
    sky = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    program = tmp_path / ".venv" / "bin" / "python"
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text('#!/bin/sh\necho "$@" "$JAXCHAT_COORDINATOR" "$JAXCHAT_PROCESSES" '
                       '"$JAXCHAT_PROCESS" "$JAXCHAT_HOME"\n')  # fmt: skip
    program.chmod(0o755)
    env = os.environ | sky["envs"] | {
        "SKYPILOT_NODE_IPS": nodes, "SKYPILOT_NUM_NODES": str(nodes.count("\n") + 1),
        "SKYPILOT_NODE_RANK": str(rank), "HOME": "/home/you",
    }  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", sky["run"]],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_skypilots_nodes_get_their_numbers(tmp_path):
    given = skypilot_run(tmp_path, "10.0.0.4\n10.0.0.5", 1)
    assert given == "run_speedrun.py --tier 100 10.0.0.4:7600 2 1 /home/you/jaxchat"


def test_the_image_is_given_all_that_is_copied_into_it():
    text = (LAUNCH / "Containerfile").read_text()
    copied = {
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE)
        for source in line.split()[:-1]
    }
    allowed = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[:1] == "!"
    }
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)
    assert re.search(r"^USER [1-9]\d*$", text, re.MULTILINE)
    assert all(":" in image for image in re.findall(r"^FROM (\S+)", text, re.MULTILINE))


def test_what_is_installed_elsewhere_stays_a_checkout():
    """Configurations are beside the package, and run_speedrun.py takes the package beside it.

    A copy in site-packages has no tier, and the sources beside the script lack their extension.
    """
    container = (LAUNCH / "Containerfile").read_text()
    for text in (container, (LAUNCH / "skypilot.yaml").read_text()):
        (install,) = re.findall(r"pip install (.*)'\.\[", text)
        assert "--editable " in install
    build, image = re.findall(r"^WORKDIR (.*)$", container, re.MULTILINE)
    assert build == image
    assert f"\nCOPY --from=build {build} {build}\n" in container


def scripts(job) -> dict[str, str]:
    """Every shell script that starts a run, those within YAML too."""
    files = [
        LAUNCH / "slurm.sh",
        LAUNCH / "tpu.sh",
        CLUSTER,
        ROOT / "bench" / "gpu.sh",
        ROOT / ".ci" / "run",
    ]
    sky = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    (container,) = job[1]["template"]["spec"]["template"]["spec"]["containers"]
    return {
        **{path.name: path.read_text() for path in files},
        **{f"skypilot.yaml, {part}": f"#!/bin/bash\n{sky[part]}" for part in ("setup", "run")},
        "jobset.yaml": "#!{}\n{}\n".format(container["command"][0], container["args"][0]),
    }


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed")
def test_the_scripts_are_clean(job):
    for name, script in scripts(job).items():
        done = subprocess.run(
            [SHELLCHECK, "--exclude=SC1091", "-"],  # a file that is there only on the node
            input=script, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{name}: {done.stdout}"

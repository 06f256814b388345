"""Reinforcement learning by several processes, for test_processes.py.

As a program, `python rl_together.py FOLDER DEVICES`, it is one of those that launch/local.py
starts, and writes what came out to FOLDER/result_N.json. Alone, it has all devices for itself.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import jax

from jaxchat.parallel.launch_env import connect_devices

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "train"))
from tiny_rl import CONFIG, lively_params, tiny_job

from jaxchat.checkpoints.save import fingerprint
from jaxchat.config.schema import MeshConfig
from jaxchat.inference.replicas import MultiHostEngine
from jaxchat.parallel.mesh import make_mesh
from jaxchat.runs import processes
from jaxchat.train.grpo import train_rl
from jaxchat.train.metrics import read_metrics

TIMES = ("time", "sample_seconds", "train_seconds", "rollout_tokens_per_second")


def main(folder: Path, devices: int) -> None:
    jax.config.update("jax_num_cpu_devices", devices)
    with processes.joined(folder) as group:
        connect_devices(group)
        job = tiny_job(folder, replace(CONFIG, steps=6, micro_rows=1))
        engine = MultiHostEngine.over(group, job.engine)
        params = lively_params()
        result = train_rl(replace(job, engine=engine, mesh=make_mesh(MeshConfig())), params)
        group.gather(None)  # the log is whole
        log = read_metrics(folder / "metrics.jsonl")
        kept = [{k: v for k, v in record.items() if k not in TIMES} for record in log]
        found = {"params": fingerprint(result.params), "rewards": result.rewards, "log": kept}
        (folder / f"result_{group.index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

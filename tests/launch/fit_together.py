"""A stage of several processes, one of which lacks memory, for test_processes.py.

As a program, `python fit_together.py FOLDER`, it is one of those that launch/local.py starts.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from jaxchat.parallel.launch_env import connect_devices

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "train"))
from tiny_training import CLASSIC, TRAIN, random_params, tiny_job

from jaxchat.checkpoints.save import fingerprint
from jaxchat.config.schema import MeshConfig
from jaxchat.parallel.mesh import make_mesh
from jaxchat.runs import processes
from jaxchat.train.first_step import FirstStep
from jaxchat.train.loop import fit


class Short(FirstStep):
    """Process 1 has no memory for more than one row a device."""

    def _reserve(self, state: Any, batch: Any) -> str | None:
        short = jax.process_index() == 1 and batch["tokens"].shape[1] > jax.device_count()
        return "RESOURCE_EXHAUSTED: short" if short else super()._reserve(state, batch)


def main(folder: Path) -> None:
    from jaxchat.train import session

    session.FirstStep = Short  # type: ignore[misc]
    jax.config.update("jax_num_cpu_devices", 2)
    with processes.joined(folder) as group:
        connect_devices(group)
        if group.leads:
            tiny_job(folder)  # writes the rows
        group.gather(None)
        mesh, found = make_mesh(MeshConfig()), {}
        for name, rows in (("halved", 2), ("plain", 1)):
            train = replace(TRAIN, steps=2, micro_rows=rows)
            job = replace(tiny_job(folder, mesh=mesh, train=train), folder=folder / name)
            result = fit(job, random_params(CLASSIC))
            found[name] = [result.micro_rows, fingerprint(result.params)]
        (folder / f"result_{group.index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

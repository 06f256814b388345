"""Trains as tiny_training.py does in bounded memory, for test_oom.py: XLA may find none for a step.

`python short_of_memory.py FOLDER ROWS BYTES`; BYTES more than now may be mapped, 0: any number.
"""

import re
import resource
import sys
from dataclasses import replace
from pathlib import Path

import jax
from tiny_training import CLASSIC, TRAIN, T, random_params, tiny_job, write_tiny_rows

from jaxchat.checkpoints.save import fingerprint
from jaxchat.train.loop import fit

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 1)
    # Else an evaluation is given its memory while the last step still has its own.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    folder, rows, more = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    if not (folder / "rows").exists():
        write_tiny_rows(folder / "rows", 5_000)  # Grain takes 0.3 ms to shuffle an index of 50
    train = replace(TRAIN, steps=2, batch_tokens=8_192 * T, micro_rows=rows)
    job, params = tiny_job(folder, train=train), random_params(CLASSIC)
    if more:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        mapped = int(re.search(r"VmSize:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]
        resource.setrlimit(resource.RLIMIT_AS, (mapped + more,) * 2)
    result = fit(job, params)
    print("result", result.micro_rows, fingerprint(result.params))

"""The step of tier tpu_v5e8, with fewer layers, compiled for a v5e-8 by XLA's own TPU compiler.

Optional: it needs the wheel `libtpu` (`pip install "jax[tpu]"`, 0.2 GB), and is skipped where that
is not installed. Nothing runs on a TPU, and none is looked for:

    JAX_PLATFORMS=cpu python -m pytest tests/train/compiled/test_tpu_compiles.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxchat.config import loading
from jaxchat.train.compiled.targets import TARGETS

pytest.importorskip("libtpu", reason="libtpu is not installed: no TPU program is compiled here")

ROOT = Path(__file__).parents[3]
LAYERS, WIDTH, HEADS, ROWS, TIME = 2, 768, 6, 4, 2_048
SMALLER = [
    f"run.depth={LAYERS}", f"model.n_embd={WIDTH}",
    f"model.n_head={HEADS}", f"model.n_kv_head={HEADS}",
]  # fmt: skip
# No TPU is looked for, and this process, which may have loaded the library, does not lock it.
ALONE = {
    "JAX_PLATFORMS": "cpu",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def test_the_step_of_a_v5e_compiles_with_splash_attention_and_fits():
    changes = [word for change in SMALLER for word in ("--set", change)]
    command = ["doctor", "--tier", "tpu_v5e8", *changes, "--compile", "v5e-8", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "jaxchat", *command],
        cwd=ROOT, capture_output=True, text=True, timeout=1_500,
        env={**os.environ, **ALONE},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    counts, config = found["counts"], loading.load(loading.find_tier("tpu_v5e8"), SMALLER)
    turns = config.base.batch_tokens // (8 * ROWS * TIME)
    assert counts["attention_calls"] == 3 * LAYERS * turns, "forward, dk and dv, dq"
    assert found["fits"]
    assert found["memory_bytes"] <= TARGETS["v5e-8"].memory
    layers, head = LAYERS * 12 * WIDTH**2, WIDTH * config.model.vocab_size
    products = 6 * (layers + head) * config.base.batch_tokens / 8
    assert counts["product_flops"] == pytest.approx(products, rel=0.05), "and the optimizer's"

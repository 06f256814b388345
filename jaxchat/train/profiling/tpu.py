"""FLOPs of what a TPU's programs have: products as convolutions, and splash attention's kernels."""

from __future__ import annotations

import re

Shape = tuple[int, ...]

_LABELS = re.compile(r"dim_labels=(\w+)_(\w+)->(\w+)")
_WINDOW = re.compile(r"window=\{([^}]*)\}")
# Kernels of jax.experimental.pallas.ops.tpu.splash_attention, and their products of a block: scores
# and values; scores, their gradient and dk, dv; scores, their gradient and dq.
_SPLASH = {"splash_mha_fwd": 2, "splash_mha_dkv": 4, "splash_mha_dq": 3}
BLOCKS, QUERIES = 0, 2  # operands: [_,blocks of queries,blocks of keys] in either order, [B,H,T,K]


def splash_products(name: str) -> int:
    """Products of a block that a kernel of splash attention makes; 0 for any other instruction."""
    return next((number for prefix, number in _SPLASH.items() if name.startswith(prefix)), 0)


def attention_flops(name: str, blocks: Shape, queries: Shape) -> int:
    """Those of whole blocks: the kernel skips the ones that no query sees, not parts of others."""
    if len(queries) != 4 or len(blocks) != 3:
        return 0
    batch, heads, time, size = queries
    rows, seen = max(blocks[1:]), min(blocks[1:])
    visited = sum(min(row + 1, seen) for row in range(rows))
    scores = visited * (time // rows) ** 2
    return 2 * splash_products(name) * batch * heads * scores * size


def convolution_flops(left: Shape, kernel: Shape, result: Shape, attributes: str) -> int:
    """Multiplications and additions of values, not of the zeros between or beside them.

    A sum over a batch is a window over it, a batch of products a window that meets one value at
    each step.
    """
    labels = _LABELS.search(attributes)
    if labels is None:
        return 0
    of_left, of_kernel, of_result = (labels[n] for n in (1, 2, 3))
    window = _WINDOW.search(attributes)
    fields = dict(field.split("=") for field in window[1].split()) if window else {}
    taps = 1
    for number, axis in enumerate(sorted(set(of_left) - {"b", "f"})):
        options = {name: value.split("x")[number] for name, value in fields.items()}
        taps *= _taps(left[of_left.index(axis)], result[of_result.index(axis)], options)
    outputs = result[of_result.index("b")] * result[of_result.index("f")]
    return 2 * outputs * kernel[of_kernel.index("i")] * taps


def _taps(values: int, steps: int, window: dict[str, str]) -> int:
    """How often a window along an axis of `values` meets one of them in all its `steps`."""
    size, stride = int(window["size"]), int(window.get("stride", 1))
    between, apart = int(window.get("lhs_dilate", 1)), int(window.get("rhs_dilate", 1))
    before = int(window.get("pad", "0_0").split("_")[0])
    places = (step * stride + tap * apart - before for step in range(steps) for tap in range(size))
    return sum(place % between == 0 and 0 <= place // between < values for place in places)

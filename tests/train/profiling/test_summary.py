"""The figures of a profile's page, from times that are easy to do by hand."""

from pathlib import Path

import pytest

from jaxchat.train.profiling.breakdown import Breakdown, OperationTime
from jaxchat.train.profiling.classes import ELEMENTWISE, MATMUL, Operation
from jaxchat.train.profiling.summary import Profile, render, to_json

MS = 1_000_000  # nanoseconds
PRODUCT = Operation("dot.1", MATMUL, 2 * 10**12, "jit(step)/mlp/dot_general", "model/gpt.py:7")
SUM = Operation("fusion.2", ELEMENTWISE, 0, "jit(step)/add", "model/gpt.py:9")
# Two steps of 10 ms by the clock: in each half a millisecond of gaps, and one before the next.
PARTS = Breakdown(
    module="jit_step",
    steps=(9.0 * MS, 9.0 * MS),
    total=20.0 * MS,
    operations=(
        OperationTime(PRODUCT, share=13.0 * MS, busy=16.0 * MS, count=4),
        OperationTime(SUM, share=4.0 * MS, busy=6.0 * MS, count=6),
    ),
    within=1.0 * MS,
    between=2.0 * MS,
)
FACTS = {
    "stage": "base", "start": 3, "device_kind": "NVIDIA H100 80GB HBM3", "devices": 2,
    "step_tokens": 1_000_000, "flops_per_token": 6_000_000,
}  # fmt: skip
PROFILE = Profile(Path("trace"), FACTS, "gpu:0", ("gpu:0", "gpu:1"), True, PARTS)


PAGE = """\
base, from step 3, 2 executions of jit_step on gpu:0 of 2
2 x NVIDIA H100 80GB HBM3, 1,000,000 tokens a step

a step          10.0 ms with host gaps, 9.0 to 9.0 ms without
tokens          100,000,000 a second
achieved        400.0 TFLOP/s in matrix products, 4.0 TFLOP a step
of the model    300.0 TFLOP/s on each device, MFU 30.3% of the bf16 peak

where a step goes               ms   share    busy ms     FLOP/s
matmul                         6.5   65.0%        8.0    615.4 T
elementwise, sums              2.0   20.0%        3.0
gaps within steps              0.5    5.0%
host gaps                      1.0   10.0%
all                           10.0  100.0%

      ms  share     FLOP/s  source line
     6.5  65.0%    615.4 T  model/gpt.py:7
     2.0  20.0%             model/gpt.py:9
"""


def lines(text):
    return [line.split() for line in text.splitlines()]


def test_the_figures_of_the_page_are_of_one_step():
    *sections, operations = render(PROFILE).split("\n\n")
    assert lines("\n\n".join(sections)) == lines(PAGE)
    assert [line.split()[:3] for line in operations.splitlines()[1:]] == [
        ["6.5", "65.0%", "2"],
        ["2.0", "20.0%", "3"],
    ]
    assert render(PROFILE, top=1).splitlines()[-1].split() == ["2.0", "20.0%", "1", "others"]


def test_the_json_has_the_figures_of_the_page():
    found = to_json(PROFILE)
    assert found["step_ms"] == 10.0
    assert found["tokens_per_second"] == 1e8
    assert found["product_flops_per_step"] == 4e12
    assert found["model_flops_per_second"] == pytest.approx(3e14)
    assert found["classes"][MATMUL] == {"ms": 6.5, "busy_ms": 8.0, "flops": 8 * 10**12}
    assert (found["gaps_within_ms"], found["gaps_between_ms"]) == (0.5, 1.0)
    assert [one["runs"] for one in found["operations"]] == [2, 3]

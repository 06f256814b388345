"""A trace of an H100 with command buffers is read. h100/ is cut from three steps of depth 20.

Of the trace, the kernels of eleven instructions and the launches were kept, without the machine's
names; of the HLO, those instructions and what they call, the loops, and the operands as parameters.
"""

from pathlib import Path

import pytest

from jaxchat.errors import ArtifactError
from jaxchat.train.profiling.classes import ATTENTION, MATMUL
from jaxchat.train.profiling.hlo import parse
from jaxchat.train.profiling.order import in_order
from jaxchat.train.profiling.summary import Profile, read_profile
from jaxchat.train.profiling.trace import Event, read_events

FOLDER = Path(__file__).parent / "h100"


@pytest.fixture(scope="module")
def profile() -> Profile:
    return read_profile(FOLDER)


def test_steps_are_separated_by_their_launches(profile: Profile) -> None:
    # the last kernels of the steps were cut off, of the last most
    assert len(profile.breakdown.steps) == 3
    assert profile.breakdown.step / 1e6 == pytest.approx(447.4, abs=0.1)


def test_kernels_of_libraries_have_class_flops_and_source(profile: Profile) -> None:
    found = {o.operation.name: o for o in profile.breakdown.operations}
    logits = found["custom-call.306"]  # 4 chunks of 2 micro-batches in each of 3 steps
    assert (logits.operation.kind, logits.count) == (MATMUL, 24)
    assert logits.operation.flops == 2 * 8192 * 1280 * 32768
    assert logits.operation.source == "jaxchat/losses.py:103"
    backward = found["dot_product_attention_bwd.160"]  # three kernels, once a micro-batch
    assert (backward.operation.kind, backward.count) == (ATTENTION, 6)
    kinds = profile.breakdown.by_class()
    assert kinds[MATMUL][0] / 3e6 == pytest.approx(8.6, abs=0.1)
    assert kinds[ATTENTION][0] / 3e6 == pytest.approx(3.0, abs=0.1)


def test_an_empty_trace_is_said_to_be_one(tmp_path: Path) -> None:
    path = tmp_path / "x.xplane.pb"
    path.write_bytes(b"")
    with pytest.raises(ArtifactError, match="no operation that XLA ran"):
        read_events(path)


TWO_FUSIONS = """HloModule jit_step, is_scheduled=true

ENTRY %main (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %add_fusion.1 = f32[4]{0} fusion(%p), kind=kLoop, calls=%a
  ROOT %mul_fusion.2 = f32[4]{0} fusion(%add_fusion.1), kind=kLoop, calls=%b
}
"""


@pytest.mark.parametrize(
    ("kernels", "want"),
    [
        (["add_fusion_1", "mul_fusion_2"], ["add_fusion.1", "mul_fusion.2"]),
        (["mul_fusion_2", "add_fusion_1"], ["mul_fusion_2", "add_fusion_1"]),  # another order
        (["add_fusion_1"], ["add_fusion_1"]),  # one is missing
    ],
)
def test_kernels_that_do_not_fit_the_schedule_keep_their_names(
    kernels: list[str], want: list[str]
) -> None:
    events = [
        Event(name, n, n + 1, "Stream #1", "jit_step", 0, name, in_buffer=True)
        for n, name in enumerate(kernels)
    ]
    assert [event.op for event in in_order(events, parse(TWO_FUSIONS))] == want

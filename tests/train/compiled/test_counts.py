"""What is counted in a program's text, on one written by hand with the totals beside it."""

import json

import pytest

from jaxchat.train.compiled.counts import Counts, count
from jaxchat.train.compiled.parts import (
    EMBEDDINGS,
    LOSS,
    MLP,
    NORMS,
    OPTIMIZER,
    QKV,
    REST,
    SAMPLING,
)

PROGRAM = """HloModule jit_step, is_scheduled=true

FileNames
1 "/x/jaxchat/model/gpt.py"
2 "/x/jaxchat/model/loss.py"
3 "/x/jaxchat/optim/muon.py"
4 "/x/jaxchat/train/step.py"

FunctionNames
1 "Block.__call__"
2 "_forward"
3 "orthogonalize"
4 "MLP.__call__"
5 "GPT.__call__"
6 "Embedding.__call__"
7 "loss_and_grads.<locals>.add"
8 "step"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1}
2 {file_name_id=2 function_name_id=2 line=2}
3 {file_name_id=3 function_name_id=3 line=3}
4 {file_name_id=1 function_name_id=4 line=4}
5 {file_name_id=1 function_name_id=5 line=5}
6 {file_name_id=1 function_name_id=6 line=6}
7 {file_name_id=4 function_name_id=7 line=7}
8 {file_name_id=4 function_name_id=8 line=8}

StackFrames
1 {file_location_id=5 parent_frame_id=1}
2 {file_location_id=1 parent_frame_id=2}
3 {file_location_id=4 parent_frame_id=3}
4 {file_location_id=2 parent_frame_id=1}
5 {file_location_id=3 parent_frame_id=1}
6 {file_location_id=6 parent_frame_id=2}
7 {file_location_id=7 parent_frame_id=1}
8 {file_location_id=8 parent_frame_id=1}

%taken (p.0: f32[64,32], p.1: s32[]) -> bf16[8,32] {
  %p.0 = f32[64,32]{1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %flat = f32[64,32]{1,0} bitcast(%p.0)
  %part = f32[8,32]{1,0} dynamic-slice(%flat, %p.1, %p.1), dynamic_slice_sizes={8,32}
  ROOT %narrow = bf16[8,32]{1,0} convert(%part)
}

%placed (q.0: bf16[64,32], q.1: bf16[8,32], q.2: s32[]) -> bf16[64,32] {
  %q.0 = bf16[64,32]{1,0} parameter(0)
  %q.1 = bf16[8,32]{1,0} parameter(1)
  %q.2 = s32[] parameter(2)
  %twice = bf16[8,32]{1,0} add(%q.1, %q.1)
  ROOT %update = bf16[64,32]{1,0} dynamic-update-slice(%q.0, %twice, %q.2, %q.2)
}

%multiplied (r.0: bf16[8,32], r.1: bf16[32,16]) -> bf16[8,16] {
  %r.0 = bf16[8,32]{1,0} parameter(0)
  %r.1 = bf16[32,16]{1,0} parameter(1)
  ROOT %dot = bf16[8,16]{1,0} dot(%r.0, %r.1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%body (b: (s32[], f32[64,32], bf16[64,32], bf16[32,16])) -> (s32[], f32[64,32], bf16[64,32]) {
  %b = (s32[], f32[64,32]{1,0}, bf16[64,32]{1,0}, bf16[32,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %table = f32[64,32]{1,0} get-tuple-element(%b), index=1
  %out = bf16[64,32]{1,0} get-tuple-element(%b), index=2
  %w = bf16[32,16]{1,0} get-tuple-element(%b), index=3
  %rows = bf16[8,32]{1,0} fusion(%table, %i), kind=kLoop, calls=%taken, \
metadata={op_name="jit(step)/while/body/jvp(GPT)/wte/take" stack_frame_id=6}
  %hidden = bf16[8,16]{1,0} fusion(%rows, %w), kind=kCustom, calls=%multiplied, \
metadata={op_name="jit(step)/while/body/jvp(GPT)/h_0/mlp/c_fc/dot_general" stack_frame_id=3}
  %hidden.remat = bf16[8,16]{1,0} fusion(%rows, %w), kind=kCustom, calls=%multiplied
  %square = bf16[8,16]{1,0} multiply(%hidden, %hidden), \
metadata={op_name="jit(step)/while/body/jvp(GPT)/h_0/mlp/square" stack_frame_id=3}
  %put = bf16[64,32]{1,0} fusion(%out, %rows, %i), kind=kLoop, calls=%placed, \
metadata={op_name="jit(step)/while/body/transpose(jvp(GPT))/h_0/add_any" stack_frame_id=2}
  ROOT %next = (s32[], f32[64,32]{1,0}, bf16[64,32]{1,0}) tuple(%i, %table, %put)
}

%condition (c: (s32[])) -> pred[] {
  %c = (s32[]) parameter(0)
  ROOT %true = pred[] constant(true)
}

ENTRY %main (a: f32[64,32], k: bf16[32,16], g: f32[16,16], f: f8e4m3fn[8,32]) -> f32[] {
  %a = f32[64,32]{1,0} parameter(0)
  %k = bf16[32,16]{1,0} parameter(1)
  %g = f32[16,16]{1,0} parameter(2)
  %f = f8e4m3fn[8,32]{1,0} parameter(3)
  %whole-start = (f32[16,16]{1,0}, f32[32,16]{1,0}) all-gather-start(%g), dimensions={0}
  %loop = (s32[], f32[64,32]{1,0}, bf16[64,32]{1,0}) while(%a), condition=%condition, \
body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %attended = (bf16[2,4,8,16]{3,2,1,0}, u8[0]{0}) custom-call(%q4, %q4, %q4), \
custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config":{\
"intermediate_tensor_shape":{"element_type":"BF16","dimensions":["2","4","8","8"]},\
"mask_type":"CAUSAL","sliding_window_length":0}}
  %scaled = (f32[8,16]{1,0}, s8[128]{0}) custom-call(%f, %k), \
custom_call_target="__cublas$lt$matmul$f8", backend_config={"gemm_backend_config":{\
"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"]}}}
  %whole-done = f32[32,16]{1,0} all-gather-done(%whole-start)
  %summed = f32[16,16]{1,0} all-reduce(%g), to_apply=%condition
  %nll = f32[16]{0} exponential(%g), \
metadata={op_name="jit(step)/jvp()/exp" stack_frame_id=4}
  %added = f32[16,16]{1,0} add(%g, %g), \
metadata={op_name="jit(step)/while/body/add" stack_frame_id=7}
  %updated = f32[16,16]{1,0} subtract(%g, %added), \
metadata={op_name="jit(step)/sub" stack_frame_id=5}
  %turned = bf16[32,16]{1,0} negate(%k), \
metadata={op_name="jit(step)/jvp(GPT)/h_0/attn/neg" stack_frame_id=2}
  %other = f32[16]{0} copy(%nll)
  ROOT %scalar = f32[] bitcast(%other)
}
""".replace("\\\n", "")


@pytest.fixture(scope="module")
def counts() -> Counts:
    return count(PROGRAM)


def test_products_and_attention_are_counted_as_often_as_they_run(counts):
    one = 2 * 8 * 16 * 32
    assert (counts.products, counts.product_flops) == (3 * 2 + 1, 7 * one)  # two in the loop, fp8
    assert (counts.fp8_products, counts.fp8_flops) == (1, one)
    assert (counts.recomputed, counts.recomputed_flops) == (3, 3 * one)
    assert counts.attention_calls == 1


def test_elementwise_bytes_are_those_of_what_is_taken_and_what_is_written(counts):
    table, rows, hidden, matrix = 64 * 32 * 4, 8 * 32 * 2, 8 * 16 * 2, 16 * 16 * 4
    taken, out, kernel = 8 * 32 * 4, 64 * 32 * 2, 32 * 16 * 2
    sides = {
        EMBEDDINGS: (3, 3 * (taken + 4 + rows)),  # part of the table, an index, the rows
        MLP: (3, 3 * 3 * hidden),  # an operand twice, the square
        NORMS: (3, 3 * (rows + 4 + rows)),  # the update in place
        LOSS: (1, matrix + 64),
        OPTIMIZER: (2, 3 * matrix + 3 * matrix),
        QKV: (1, 2 * kernel),
        REST: (1, 2 * 64),
    }
    assert counts.parts == sides
    assert counts.fine == sum(size for _, size in sides.values())
    assert counts.kernels == sum(number for number, _ in sides.values())
    whole = 3 * (table - taken) + 3 * (2 * out - rows)
    assert counts.naive == counts.fine + whole


def test_collectives_are_given_with_the_work_between_their_start_and_end(counts):
    gathered, summed = counts.collectives
    assert (gathered.name, gathered.size, gathered.times) == ("whole-start", 32 * 16 * 4, 1)
    assert gathered.kernels == 5 * 3 + 2
    assert gathered.flops >= 7 * 2 * 8 * 16 * 32
    assert (summed.size, summed.kernels) == (16 * 16 * 4, 0)


def test_all_kernels_are_counted_and_naive_bytes_by_part(counts):
    assert counts.launches == counts.kernels + counts.products + counts.attention_calls
    assert sum(counts.naive_parts.values()) == counts.naive
    table, taken = 64 * 32 * 4, 8 * 32 * 4
    assert counts.naive_parts[EMBEDDINGS] - counts.parts[EMBEDDINGS][1] == 3 * (table - taken)


SCATTERS = """HloModule jit_decode_steps, is_scheduled=true

FileNames
1 "/x/jaxchat/inference/sampling.py"

FunctionNames
1 "sample"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%replaced (old: bf16[], new: bf16[]) -> bf16[] {
  %old = bf16[] parameter(0)
  ROOT %new = bf16[] parameter(1)
}

%summed (one: bf16[], two: bf16[]) -> bf16[] {
  %one = bf16[] parameter(0)
  %two = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%one, %two)
}

%written (p.0: bf16[64,32], p.1: s32[8], p.2: bf16[8,32]) -> bf16[64,32] {
  %p.0 = bf16[64,32]{1,0} parameter(0)
  %p.1 = s32[8]{0} parameter(1)
  %p.2 = bf16[8,32]{1,0} parameter(2)
  ROOT %put = bf16[64,32]{1,0} scatter(%p.0, %p.1, %p.2), to_apply=%replaced
}

%added (q.0: bf16[64,32], q.1: s32[8], q.2: bf16[8,32]) -> bf16[64,32] {
  %q.0 = bf16[64,32]{1,0} parameter(0)
  %q.1 = s32[8]{0} parameter(1)
  %q.2 = bf16[8,32]{1,0} parameter(2)
  ROOT %more = bf16[64,32]{1,0} scatter(%q.0, %q.1, %q.2), to_apply=%summed
}

ENTRY %main (cache: bf16[64,32], at: s32[8], rows: bf16[8,32]) -> bf16[64,32] {
  %cache = bf16[64,32]{1,0} parameter(0)
  %at = s32[8]{0} parameter(1)
  %rows = bf16[8,32]{1,0} parameter(2)
  %first = bf16[64,32]{1,0} fusion(%cache, %at, %rows), kind=kInput, calls=%written
  %drawn = s32[8]{0} negate(%at), metadata={op_name="jit(decode_steps)/neg" stack_frame_id=1}
  ROOT %second = bf16[64,32]{1,0} fusion(%first, %drawn, %rows), kind=kInput, calls=%added
}
"""


def test_a_scatter_writes_what_it_is_given_and_reads_of_the_rest_what_it_adds_to():
    counts = count(SCATTERS)
    rows, numbers = 8 * 32 * 2, 8 * 4
    in_place, added = 2 * rows + numbers, 3 * rows + numbers
    assert counts.parts == {REST: (2, in_place + added), SAMPLING: (1, 2 * numbers)}
    assert counts.naive_parts[REST] == 2 * (2 * 64 * 32 * 2 + rows + numbers)


def test_counts_are_json(counts):
    found = json.loads(json.dumps(counts.to_json()))
    assert found["products"] == 7
    assert found["parts"][MLP]["kernels"] == 3
    assert found["collectives"][0]["size"] == 2048


def test_what_is_no_hlo_text_is_refused():
    with pytest.raises(ValueError, match="this is no HLO text"):
        count("module @jit_step {}")

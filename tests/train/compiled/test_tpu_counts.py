"""What is counted in a TPU's program: products are convolutions, and part of the memory is near."""

import pytest

from jaxchat.train.compiled.counts import Counts, count
from jaxchat.train.profiling import tpu

PROGRAM = """HloModule jit_step, is_scheduled=true

%multiplied (r.0: bf16[4,64,32], r.1: bf16[32,16,1]) -> bf16[4,64,16] {
  %r.0 = bf16[4,64,32]{2,1,0:T(8,128)(2,1)} parameter(0)
  %r.1 = bf16[32,16,1]{1,0,2:T(8,128)(2,1)S(1)} parameter(1)
  %product = bf16[4,64,16]{2,1,0:T(8,128)(2,1)} convolution(%r.0, %r.1), window={size=1}, \
dim_labels=0bf_io0->0bf
  ROOT %tanh.0 = bf16[4,64,16]{2,1,0:T(8,128)(2,1)} tanh(%product)
}

%body (b: (s32[], bf16[4,64,32], bf16[32,16,1])) -> (s32[], bf16[4,64,32], bf16[32,16,1]) {
  %b = (s32[]{:T(128)}, bf16[4,64,32]{2,1,0:T(8,128)(2,1)}, bf16[32,16,1]{1,0,2}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%b), index=0
  %x = bf16[4,64,32]{2,1,0:T(8,128)(2,1)} get-tuple-element(%b), index=1
  %w = bf16[32,16,1]{1,0,2:T(8,128)(2,1)} get-tuple-element(%b), index=2
  %near-start = (bf16[32,16,1]{1,0,2:T(8,128)(2,1)}, bf16[32,16,1]{1,0,2:T(8,128)(2,1)S(1)}, \
u32[]{:S(2)}) copy-start(%w)
  %near = bf16[32,16,1]{1,0,2:T(8,128)(2,1)S(1)} copy-done(%near-start)
  %y = bf16[4,64,16]{2,1,0:T(8,128)(2,1)} fusion(%x, %near), kind=kOutput, calls=%multiplied
  %room = bf16[4,64,16]{2,1,0:T(8,128)(2,1)S(1)} custom-call(), custom_call_target="AllocateBuffer"
  %kept = bf16[4,64,16]{2,1,0:T(8,128)(2,1)S(1)} negate(%y)
  ROOT %next = (s32[]{:T(128)}, bf16[4,64,32]{2,1,0}, bf16[32,16,1]{1,0,2}) tuple(%i, %x, %w)
}

%condition (c: (s32[], bf16[4,64,32], bf16[32,16,1])) -> pred[] {
  %eight = s32[]{:T(128)} constant(8)
  %c = (s32[]{:T(128)}, bf16[4,64,32]{2,1,0}, bf16[32,16,1]{1,0,2}) parameter(0)
  %at = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%at, %eight), direction=LT
}

ENTRY %main (a: (s32[], bf16[4,64,32], bf16[32,16,1])) -> f32[] {
  %a = (s32[]{:T(128)}, bf16[4,64,32]{2,1,0}, bf16[32,16,1]{1,0,2}) parameter(0)
  %loop = (s32[]{:T(128)}, bf16[4,64,32]{2,1,0}, bf16[32,16,1]{1,0,2}) while(%a), \
condition=%condition, body=%body
  %blocks = s8[1,4,4]{2,1,0} constant({...})
  %q = bf16[2,3,2048,128]{3,2,1,0:T(8,128)(2,1)} iota(), iota_dimension=0
  %splash_mha_fwd_residuals.8 = (f32[4,512,128]{2,1,0:T(8,128)}, \
bf16[2,3,2048,128]{3,2,1,0:T(8,128)(2,1)S(1)}) custom-call(%blocks, %blocks, %q, %q, %q), \
custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 512}"
}}, metadata={op_name="jit(step)/h_0/attn/pallas_call"}
  ROOT %scalar = f32[] constant(0)
}
""".replace("\\\n", "")


@pytest.fixture(scope="module")
def counts() -> Counts:
    return count(PROGRAM)


def test_products_run_as_often_as_the_loops_condition_says(counts):
    assert (counts.products, counts.product_flops) == (8, 8 * 2 * 4 * 64 * 32 * 16)
    assert counts.tanh == 0, "no library of a TPU lacks it"


def test_attention_is_counted_by_the_blocks_that_it_visits(counts):
    visited = (1 + 2 + 3 + 4) * 512 * 512
    assert counts.attention_calls == 1
    assert counts.attention_flops == 2 * 2 * 2 * 3 * visited * 128
    q, scratch = 2 * 3 * 2048 * 128 * 2, 4 * 512 * 128 * 4
    assert counts.attention_bytes == 3 * q + 2 * 16 + scratch, "without the near result"


def test_copies_into_the_near_memory_run_beside_and_what_lies_in_it_takes_no_time(counts):
    assert counts.kernels == 8 + 1, "a negation in each turn, the iota"
    assert counts.fine == 8 * 4 * 64 * 16 * 2 + 2 * 3 * 2048 * 128 * 2


@pytest.mark.parametrize(
    ("left", "kernel", "result", "attributes", "inner"),
    [
        ((8, 32), (32, 16), (8, 16), "dim_labels=bf_io->bf", 32),
        ((4, 8, 32), (16, 32, 1), (4, 8, 16), "window={size=1}, dim_labels=0bf_oi0->0bf", 4 * 32),
        # a sum over the axis 0, and a product for each of it
        ((4, 16, 8), (4, 8, 6), (16, 6, 1), "window={size=4}, dim_labels=0bf_0io->bf0", 4 * 8),
        (
            (3, 8, 32), (3, 32, 16), (3, 8, 16),
            "window={size=3 stride=2 lhs_dilate=3}, dim_labels=0bf_0io->0bf", 3 * 32,
        ),
        (
            (3, 8, 32), (3, 32, 16), (3, 8, 16),
            "window={size=3 pad=1_1 rhs_reversal=1}, dim_labels=0bf_0io->0bf", 7 * 32,
        ),
    ],
    ids=["plain", "rows", "sum", "batch", "padded"],
)  # fmt: skip
def test_a_convolution_is_the_product_that_it_stands_for(left, kernel, result, attributes, inner):
    """`inner` multiplications for each row and column of a result."""
    labels = attributes.rpartition("->")[2]
    outputs = result[labels.index("b")] * result[labels.index("f")]
    assert tpu.convolution_flops(left, kernel, result, attributes) == 2 * outputs * inner


def test_attention_of_windows_visits_fewer_blocks():
    queries = (1, 1, 2048, 128)
    whole, windowed = (
        tpu.attention_flops("splash_mha_dq.1", (1, 4, seen), queries) for seen in (4, 2)
    )
    assert windowed / whole == 7 / 10
    assert tpu.attention_flops("splash_mha_dkv.1", (1, 2, 4), queries) / windowed == 4 / 3
    assert tpu.attention_flops("splash_mha_fwd.1", (), queries) == 0
    assert tpu.splash_products("fusion.1") == 0

"""Optimised HLO text is read as XLA writes it: shapes, source lines, FLOPs."""

import inspect

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from jaxchat.train.profiling.hlo import Module, parse

N = 24


def product(x: jax.Array, w: jax.Array) -> jax.Array:
    return jnp.tanh(x @ w)


def looped(x: jax.Array, w: jax.Array) -> jax.Array:
    def body(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
        return product(x, w), None

    return lax.scan(body, x, w)[0]


@pytest.fixture(scope="module")
def module() -> Module:
    """5 products of [8,24] and [24,24] in a loop, as XLA compiles them here."""
    x, w = jnp.ones((8, N)), jnp.ones((5, N, N))
    return parse(jax.jit(looped).lower(x, w).compile().as_text())


def test_a_compiled_program_is_read_whole(module: Module) -> None:
    assert module.name == "jit_looped"
    entry = module.computations[module.entry]
    assert [i.shapes for i in entry if i.opcode == "parameter"] == [((8, N),), ((5, N, N),)]
    loops = [i for i in entry if i.opcode == "while"]
    assert len(loops) == 1
    assert len(loops[0].called) == 2, "a loop has a condition and a body"
    assert set(loops[0].called) < set(module.computations)
    known = set(module.by_name)
    missing = [i.name for i in module.by_name.values() if not known.issuperset(i.operands)]
    assert not missing or all(
        module.by_name[n].opcode in ("parameter", "constant") for n in missing
    )


def test_a_product_knows_its_flops_and_its_source_line(module: Module) -> None:
    body = next(i for i in module.by_name.values() if i.opcode == "while").called
    products = [
        i for name in body for i in module.computations[name] if module.flops(i) and i.opcode
    ]
    assert [module.flops(i) for i in products] == [2 * 8 * N * N]
    dot = next(i for i in module.by_name.values() if i.opcode == "dot")
    line = inspect.getsourcelines(product)[1] + 1
    frame = dot.frames[0]
    assert (frame.file, frame.line) == (__file__, line)
    caller = inspect.getsourcelines(looped)[1]
    assert [f.line for f in dot.frames[1:3]] == [caller + 2, caller + 4]
    assert "dot_general" in dot.op_name


def test_loops_count_nothing_since_their_body_is_timed(module: Module) -> None:
    loop = next(i for i in module.by_name.values() if i.opcode == "while")
    assert module.flops(loop) == 0
    assert any(module.flops(i) for i in module.inside(loop) if i is not loop)


def one(*instructions: str) -> Module:
    body = "\n".join(f"  {line}" for line in instructions)
    return parse(
        f"HloModule m, is_scheduled=true\n\nENTRY %main (p: f32[]) -> f32[] {{\n{body}\n}}\n"
    )


def test_a_product_that_cublas_makes_is_counted() -> None:
    module = one(
        "%a = bf16[768,2304]{1,0} parameter(0)",
        "%b = bf16[8192,768]{1,0} parameter(1)",
        "ROOT %gemm.1 = (bf16[2304,8192]{0,1}, s8[4194304]{0}) custom-call(%a, %b), "
        'custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{'
        '"dot_dimension_numbers":{"lhs_batch_dimensions":[],"lhs_contracting_dimensions":["0"],'
        '"rhs_batch_dimensions":[],"rhs_contracting_dimensions":["1"]}}}',
    )
    call = module.by_name["gemm.1"]
    assert call.target == "__cublas$lt$matmul"
    assert module.flops(call) == 2 * 2304 * 8192 * 768


@pytest.mark.parametrize(
    ("kind", "mask", "products_of_scores"),
    [
        ("", '"mask_type":"NO_MASK"', 2 * 16),
        ("", '"mask_type":"CAUSAL"', 2 * 10),
        ("", '"mask_type":"CAUSAL","sliding_window_length":2', 2 * 7),
        ("Backward", '"mask_type":"CAUSAL"', 5 * 10),
    ],
)
def test_attention_of_cudnn_counts_the_scores_that_are_seen(
    kind: str, mask: str, products_of_scores: int
) -> None:
    module = one(
        "%q = bf16[2,4,3,8]{3,2,1,0} parameter(0)",
        "ROOT %f = (bf16[2,3,4,8]{3,1,2,0}, u8[0]{0}) custom-call(%q, %q, %q), "
        f'custom_call_target="__cudnn$fmhaSoftmax{kind}", backend_config={{'
        '"cudnn_fmha_backend_config":{"intermediate_tensor_shape":{"element_type":"BF16",'
        f'"dimensions":["2","3","4","4"],"tuple_shapes":[]}},{mask}}}}}',
    )
    assert module.flops(module.by_name["f"]) == 2 * products_of_scores * 2 * 3 * 8


def test_types_with_layouts_and_comments_are_read() -> None:
    module = one(
        "p = f32[2,3]{1,0} parameter(0)",
        "q = (s32[], f32[2,3]{1,0:T(8,128)}, /*index=2*/pred[]) custom-call(f32[2,3]{1,0} %p), "
        'custom_call_target="x", metadata={op_name="jit(f)/a(b)/c" '
        "stack_frame_id=7}",
    )
    call = module.by_name["q"]
    assert call.shapes == ((), (2, 3), ())
    assert (call.opcode, call.operands, call.op_name) == ("custom-call", ("p",), "jit(f)/a(b)/c")
    assert call.frames == (), "there is no table that has it"
    assert module.flops(call) == 0


@pytest.mark.parametrize("metadata", ["", ', metadata={op_name="jit(f)/add"}'])
def test_an_instruction_without_a_stack_has_no_frames(metadata: str) -> None:
    module = one(f"ROOT p = f32[2,3]{{1,0}} parameter(0){metadata}")
    assert module.by_name["p"].frames == ()
    assert module.by_name["p"].op_name == ("jit(f)/add" if metadata else "")


def test_what_is_no_hlo_is_refused() -> None:
    with pytest.raises(ValueError, match="does not begin with HloModule"):
        parse('{"format": "something else"}')

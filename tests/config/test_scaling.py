"""The dial against nanochat's numbers, worked out by hand from its formulas."""

import math

import jax
import pytest

from jaxchat.config.derive import (
    count_params,
    derive_horizon,
    derive_model,
    flops_per_token,
    has_value_embedding,
    windows,
)
from jaxchat.config.schema import ModelConfig
from jaxchat.errors import ConfigError
from jaxchat.model import gpt


def test_classic_d20_is_the_100_dollar_model() -> None:
    model = derive_model(20, "classic", 65_536)
    assert (model.n_embd, model.n_head, model.head_dim, model.sequence_len) == (1280, 10, 128, 2048)
    counts = count_params(model)
    assert counts["total"] == 560_988_160
    # 6 * (all but the embedding) + 12 * layers * width * context
    assert flops_per_token(model) == 6 * (560_988_160 - 83_886_080) + 12 * 20 * 1280 * 2048
    horizon = derive_horizon(model, "classic", 20.0)
    assert (horizon.batch_tokens, horizon.steps) == (524_288, 21_400)
    assert horizon.tokens == 11_219_763_200
    optim = horizon.optim
    assert (optim.matrix_lr, optim.embedding_lr, optim.unembedding_lr) == (0.02, 0.2, 0.004)
    assert (optim.weight_decay, optim.grad_clip) == (0.0, 1.0)
    assert (optim.warmup_steps, optim.warmdown_ratio, optim.final_lr_frac) == (0, 0.2, 0.0)
    assert (optim.momentum_start, optim.momentum, optim.momentum_warmup_steps) == (0.85, 0.95, 300)
    assert not (optim.normuon)
    assert not (optim.cautious_decay)
    assert not (optim.renormalize)


@pytest.mark.parametrize(("depth", "total"), [(26, 1_081_999_360), (32, 1_879_048_192)])
def test_classic_tiers_have_their_parameter_counts(depth: int, total: int) -> None:
    assert count_params(derive_model(depth, "classic", 65_536))["total"] == total


def test_modern_d12_is_the_reference_itself() -> None:
    model = derive_model(12, "modern", 32_768)
    assert (model.n_embd, model.n_head) == (768, 6)
    assert count_params(model) == {
        "wte": 25_165_824,
        "lm_head": 25_165_824,
        "matrices": 84_935_088,  # 12 layers of 12 * 768^2, and 6 gates of 12 x 6
        "value_embeds": 150_994_944,  # on 6 layers
        "scalars": 50,  # 12 + 12, 24 + 1 of smear, 1 of backout
        "total": 286_261_730,
    }
    horizon = derive_horizon(model, "modern", 12.0)
    assert (horizon.batch_tokens, horizon.steps) == (524_288, 2_520)
    optim = horizon.optim
    assert (optim.matrix_lr, optim.embedding_lr, optim.unembedding_lr) == (0.02, 0.3, 0.008)
    assert (optim.scalar_lr, optim.grad_clip) == (0.5, 0.0)
    assert optim.weight_decay == pytest.approx(0.28)
    assert (optim.warmup_steps, optim.warmdown_ratio, optim.final_lr_frac) == (40, 0.65, 0.05)
    assert (optim.momentum, optim.momentum_end, optim.momentum_warmup_steps) == (0.97, 0.9, 400)


def test_modern_d24_doubles_the_batch() -> None:
    model = derive_model(24, "modern", 32_768)
    counts = count_params(model)
    assert counts["matrices"] == 679_478_976  # 24 * 12 * 1536^2 + 12 gates of 12 x 12
    assert counts["matrices"] + counts["lm_head"] == 729_810_624
    # SSSL six times: 18 windows of 512 and 6 of 2048; the smear gate multiplies too
    assert flops_per_token(model) == 6 * (729_810_624 + 24) + 12 * 1536 * (18 * 512 + 6 * 2048)
    horizon = derive_horizon(model, "modern", 12.0)
    # 12 * 729,810,624 tokens: 6.6286 times d12's, and 6.6286 ** 0.383 = 2.06 rounds to 2
    assert horizon.batch_tokens == 2**20
    assert horizon.steps == 8_352
    assert horizon.optim.matrix_lr == pytest.approx(0.02 * math.sqrt(2))
    assert horizon.optim.embedding_lr == pytest.approx(0.3 * math.sqrt(2))
    assert horizon.optim.unembedding_lr == pytest.approx(0.008 * math.sqrt(2))
    assert horizon.optim.scalar_lr == pytest.approx(0.5 * math.sqrt(2))
    assert horizon.optim.weight_decay == pytest.approx(0.0597384, rel=1e-5)


def test_the_batch_grows_with_the_horizon_to_the_power_of_power_lines() -> None:
    # d32: 12 * 1,728,055,808 tokens are 15.695 times d12's, and 15.695 ** 0.383 = 2.87 = 2 ** 1.52
    model = derive_model(32, "modern", 32_768)
    assert derive_horizon(model, "modern", 12.0).batch_tokens == 2**21
    # d30: 1,490,065,920 scaling parameters, 13.53 ** 0.383 = 2.71 = 2 ** 1.44
    model = derive_model(30, "modern", 32_768)
    assert derive_horizon(model, "modern", 12.0).batch_tokens == 2**20


def test_the_ratio_lengthens_the_run_and_leaves_the_scaled_batch() -> None:
    model = derive_model(24, "modern", 32_768)
    short, long = (derive_horizon(model, "modern", ratio) for ratio in (8.0, 16.0))
    assert short.steps == 8 * 729_810_624 // 2**20
    assert long.steps == 16 * 729_810_624 // 2**20
    # reference and target grow together, so batch, rates and decay do not move
    assert (short.batch_tokens, short.optim) == (long.batch_tokens, long.optim)


@pytest.mark.parametrize(("depth", "width", "heads"), [(1, 128, 1), (5, 384, 3), (13, 896, 7)])
def test_modern_rounds_an_odd_width_up_to_whole_heads(depth: int, width: int, heads: int) -> None:
    model = derive_model(depth, "modern", 300)
    assert (model.n_embd, model.n_head, model.head_dim) == (width, heads, 128)


@pytest.mark.parametrize(("depth", "width", "heads"), [(1, 64, 1), (3, 192, 2), (7, 448, 4)])
def test_classic_keeps_an_odd_width(depth: int, width: int, heads: int) -> None:
    model = derive_model(depth, "classic", 300)
    assert (model.n_embd, model.n_head) == (width, heads)


def test_classic_refuses_a_depth_whose_width_its_heads_do_not_divide() -> None:
    with pytest.raises(ConfigError, match=r"depth 5 .* width 320 .* 3 heads .*even depth"):
        derive_model(5, "classic", 300)


def real_count(model: ModelConfig) -> int:
    shapes = jax.eval_shape(lambda: gpt.init_params(jax.random.key(0), model))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@pytest.mark.parametrize("preset", ["classic", "modern"])
@pytest.mark.parametrize("depth", [1, 2, 3, 4, 7])
def test_counted_parameters_are_those_the_model_has(preset: str, depth: int) -> None:
    model = derive_model(depth, preset, 300)
    assert count_params(model)["total"] == real_count(model)


def test_counted_parameters_are_right_for_grouped_and_narrow_models() -> None:
    switches = {
        "value_embeds": True, "residual_scalars": True, "smear": True, "backout": True,
    }  # fmt: skip
    narrow = ModelConfig(
        vocab_size=300, sequence_len=32, n_layer=3, n_head=4, n_kv_head=2, n_embd=16, **switches
    )
    assert count_params(narrow)["total"] == real_count(narrow)


def test_the_last_layer_has_a_value_embedding_and_every_second_before_it() -> None:
    assert [has_value_embedding(layer, 5) for layer in range(5)] == [True, False] * 2 + [True]
    assert [has_value_embedding(layer, 4) for layer in range(4)] == [False, True] * 2


def test_windows_are_tiled_rounded_up_to_128_and_end_with_a_full_one() -> None:
    model = derive_model(6, "modern", 300, sequence_len=2048)
    assert windows(model) == (512, 512, 512, 2048, 512, 2048)
    # a quarter of 600 is 150: two tiles of 128
    assert windows(derive_model(2, "modern", 300, sequence_len=600)) == (256, 600)
    assert windows(derive_model(2, "modern", 300, sequence_len=64)) == (64, 64)

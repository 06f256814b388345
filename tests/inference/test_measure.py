"""What the engine's benchmark counts, against counts by hand."""

from types import SimpleNamespace

import jax
import pytest

from jaxchat.config.derive import windows
from jaxchat.config.machine import memory_bandwidth
from jaxchat.config.schema import ModelConfig
from jaxchat.inference import measure as measuring
from jaxchat.inference.measure import cache_bytes, device_bandwidth, measure, weight_bytes
from jaxchat.model.gpt import init_params


def test_a_row_sees_its_window_of_the_cache():
    config = ModelConfig(
        vocab_size=64, sequence_len=512, n_layer=2, n_head=4, n_kv_head=2, n_embd=32,
        window_pattern="SL",
    )  # fmt: skip
    short = windows(config)[0]
    assert short < 300 < windows(config)[1]
    a_position = 2 * 2 * 8 * 4  # keys and values, of 2 heads of 8 floats
    assert cache_bytes(config, 9, 4) == 2 * 10 * a_position
    assert cache_bytes(config, 300, 4) == (short + 1 + 301) * a_position


def test_a_step_reads_all_weights_but_the_tables(config):
    params = init_params(jax.random.key(0), config)
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    wide = config.n_kv_head * config.head_dim
    tables = config.vocab_size * (config.n_embd + wide * sum(k.startswith("v") for k in params)) * 4
    assert weight_bytes(params) == total - tables


def test_figures_belong_together(params, config, tokenizer):
    reading = measure(
        params, config, tokenizer, batch=4, prompt=20, tokens=30, bandwidth=1e9, repeats=1,
    )  # fmt: skip
    steps = reading.decode_tokens_per_second / 4
    read = reading.weight_bytes + reading.cache_bytes
    assert reading.mbu == pytest.approx(read * steps / 1e9)
    assert reading.bytes_per_token == pytest.approx(read / 4)
    assert reading.cache_bytes == 4 * cache_bytes(config, 35, 4)
    assert reading.first_token_seconds > 0
    assert reading.prefill_tokens_per_second > 0


@pytest.mark.parametrize(
    ("kind", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", 3.35e12),
        ("NVIDIA H100 PCIe", 2.0e12),
        ("NVIDIA H200", 4.8e12),
        ("NVIDIA A100-SXM4-40GB", 1.555e12),
        ("NVIDIA A100-SXM4-80GB", 2.039e12),
        ("TPU v5 lite", 0.819e12),
        ("TPU v6 lite", 1.638e12),
        ("cpu", None),
    ],
)
def test_bandwidths_of_known_cards(kind, bandwidth):
    assert memory_bandwidth(kind) == bandwidth


def test_the_bandwidth_is_the_data_sheets_or_else_measured(monkeypatch):
    monkeypatch.setattr(measuring, "MEASURED_BYTES", 1 << 20)
    bandwidth, source = device_bandwidth()
    assert bandwidth > 0
    assert source == "measured by a sum"
    card = SimpleNamespace(device_kind="NVIDIA H200")
    monkeypatch.setattr(jax, "devices", lambda: [card])
    assert device_bandwidth() == (4.8e12, "NVIDIA H200's data sheet")

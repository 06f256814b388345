"""The screening: its statistics on simulated runs, its rows, its prototypes, and its page."""

import json
import math
import re
import sys

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import screen
import screen_plan
import screen_table
from screen_pairs import difference
from screen_plan import COMPARED, STEPS, SWITCHES, Choice, Row, chosen, rows
from screen_prototypes import crop, prototype
from whole_model import features, shaken

from jaxchat.model import gpt
from jaxchat.optim.optimizer import make_optimizer
from jaxchat.optim.param_groups import parameter_table
from jaxchat.optim.stacking import stack

BASE = {1: 2.5, 2: 2.3}


def simulated(rng, true=0.0, noise=0.004, common=0.008, seeds=3, depths=(1, 2)):
    """(variant, baseline) by depth; the noise that both of a pair have in common is `common`."""
    pairs = {}
    for depth in depths:
        shared = common * rng.standard_normal(seeds)
        own = noise / math.sqrt(2) * rng.standard_normal((2, seeds))
        ln = math.log(BASE[depth]) + shared
        pairs[depth] = list(zip(np.exp(ln + true + own[0]), np.exp(ln + own[1]), strict=True))
    return pairs


def test_a_difference_by_hand():
    pairs = {1: [(math.e**0.01, 1), (math.e**0.03, 1)], 2: [(math.e**0.05, 1), (math.e**0.05, 1)]}
    found = difference(pairs)
    assert found.mean == pytest.approx((0.02 + 0.05) / 2)
    assert (found.freedom, found.pairs) == (2, 4)
    assert found.deviation == pytest.approx(0.01)  # (1 + 1) 1e-4 over 2 degrees
    assert found.error == pytest.approx(0.01 * math.sqrt((1 / 2 + 1 / 2) / 4))
    assert found.half(1) == pytest.approx(4.3027 * found.error, rel=1e-4)  # t of 2 degrees, 95%
    assert found.half(12) > 2 * found.half(1)


def test_all_intervals_hold_together_as_often_as_is_said():
    rng = np.random.default_rng(0)
    count, rounds = 12, 300
    truth = np.linspace(-0.02, 0.02, count)
    # every variant has noise of its own size: none is pooled over them
    noise = np.geomspace(0.001, 0.01, count)
    held = 0
    for _ in range(rounds):
        found = [difference(simulated(rng, t, n)) for t, n in zip(truth, noise, strict=True)]
        held += all(abs(f.mean - t) <= f.half(count) for f, t in zip(found, truth, strict=True))
    assert 0.92 * rounds <= held <= 0.985 * rounds


def test_equal_recipes_are_seldom_found_different_and_large_differences_nearly_always():
    rng = np.random.default_rng(1)
    same = [difference(simulated(rng)).verdict(12) for _ in range(600)]
    assert same.count("unclear") >= 0.99 * len(same)
    # the difference that the page says is found with 80% power: 2.8 deviations of a pair
    for sign, verdict in ((1, "worse"), (-1, "better")):
        found = [difference(simulated(rng, sign * 2.8 * 0.004)).verdict(12) for _ in range(300)]
        assert 0.72 * len(found) <= found.count(verdict) <= 0.88 * len(found)


def test_pairs_are_sharper_than_independent_runs():
    rng = np.random.default_rng(2)
    paired = [difference(simulated(rng)) for _ in range(200)]
    shuffled = []
    for _ in range(200):
        pairs = simulated(rng)
        shuffled.append(difference({d: [(v, f[n - 1][1]) for n, (v, _) in enumerate(f)]
                                    for d, f in pairs.items()}))  # fmt: skip
    deviations = [np.mean([f.deviation for f in each]) for each in (paired, shuffled)]
    assert deviations[1] > 2 * deviations[0]


def test_what_cannot_be_concluded_is_not():
    assert difference({1: [(2.0, 3.0)], 2: [(2.0, 3.0)]}).verdict(1) == "unclear"
    assert difference({1: [(math.inf, 3.0), (2.0, 3.0)]}).verdict(1) == "diverged"


def walk(value, stop=None):
    """All rows with their bits by value(row)."""
    bits, made = {}, []
    for row in rows(bits):
        if row.key not in bits:
            if len(made) == stop:
                break
            bits[row.key] = value(row)
            if row.variant == "baseline":
                bits["tail", row.depth, row.seed] = value(row) * (1 + 1e-5 * row.seed)
            made.append(row)
    return bits, made


def by_name(row):
    """Rates at s = 0.5 are best; `smear` and `cropped` differ from the baseline."""
    if row.seed == 100:
        _, scale, adam, decay = row.variant.split()
        return 2 + abs(math.log2(float(scale)) + 1) + abs(math.log(float(adam))) + float(decay)
    shift = {"smear": 0.1, "cropped": -0.1}.get(row.variant, 0.0)
    return 2 + shift + 1e-3 * math.sin(99 * row.seed + len(row.variant) + row.depth)


def test_the_rows_are_those_of_the_page():
    made = walk(by_name)[1]
    keys = [row.key for row in made]
    assert len(keys) == len(set(keys))
    for name in COMPARED:
        if name not in ("tail", "powers"):
            assert {(name, d, s) for d in STEPS for s in (0, 1, 2)} <= set(keys)
    assert [key for key in keys if key[0] == "powers"] == [("powers", 1, s) for s in range(6)]
    # tuned first, then the baseline, whole and half
    first = [row.variant for row in made if row.seed != 100][:12]
    assert first == ["baseline"] * 6 + ["half"] * 6
    assert all(row.seed == 100 for row in made[: len(made) - sum(r.seed != 100 for r in made)])
    # two switches are confirmed, with the baseline, before what is dear
    fresh = [row.variant for row in made if row.seed in (3, 4, 5) and row.depth == 2]
    assert sorted(set(fresh)) == ["baseline", "cropped", "smear"]
    assert keys.index(("smear", 1, 3)) < keys.index(("powers", 1, 0))
    page = screen_table.PAGE.read_text("utf-8")
    listed = re.findall(r"^\| \d+ \| `(\w+)` \|", page, re.M)
    assert tuple(listed) == COMPARED


def test_stopped_anywhere_the_rest_is_the_same():
    made = walk(by_name)[1]
    for stop in (0, 3, 40):
        assert walk(by_name, stop)[1] == made[:stop]


def test_rates_are_sought_beyond_the_end_of_the_grid():
    def at_16(row):
        return abs(math.log2(float(row.variant.split()[1])) - 4) if row.seed == 100 else 2.0

    bits, made = walk(at_16)
    assert chosen("september", bits).scale == 16
    assert chosen("september", {}) is None
    tried = [row.variant.split()[1] for row in made
             if row.seed == 100 and row.variant.startswith("classic")]  # fmt: skip
    assert tried[:8] == ["0.25", "0.5", "1", "2", "4", "8", "16", "32"]


def test_every_row_is_a_configuration_with_the_rates_that_it_says():
    made = {row.key: row.config() for row in walk(by_name)[1]}
    best = Choice(0.5, 1.0, 0.0)
    base, narrow = made["baseline", 2, 0], (1 / 6) ** -1.0
    assert base.optim.matrix_lr == pytest.approx(0.01)
    assert (base.preset, base.model.smear, base.model.n_embd) == ("september", False, 128)
    assert made["smear", 1, 2].model.smear
    assert made["uniform", 1, 0].model.value_embeds_std == 0
    assert made["fourth", 1, 0].optim.embedding_lr == pytest.approx(2 * base.optim.embedding_lr)
    assert not made["five", 1, 0].tokenizer.tool_tokens
    assert made["vocab16k", 2, 0].model.vocab_size == 16_384
    assert made["half", 1, 0].base.steps == 128
    # `powers` has at width 128 what the baseline has, and at 256 what its powers make of it
    july = made["powers", 1, 0]
    for width, same in ((128, True), (256, False)):
        groups = []
        for config in (july, made["wide", 1, 0]):
            model = Row("x", 1, 0, (f"model.n_embd={width}",)).config().model
            groups.append({g.label: g.rate for g in parameter_table(model, config.optim)})
        assert (groups[0]["head"] == pytest.approx(groups[1]["head"], rel=1e-4)) is same
        assert (groups[0]["embedding"] == pytest.approx(groups[1]["embedding"], rel=1e-4)) is same
    table = {g.label: g.rate for g in parameter_table(base.model, base.optim)}
    assert table["head"] == pytest.approx(0.008 * best.scale * narrow)
    assert set(SWITCHES) < set(COMPARED)


def test_cropping_loses_what_does_not_fit():
    sizes = [9, 4, 3, 12]
    ids = np.concatenate([[0, *range(10 * n + 1, 10 * n + s)] for n, s in enumerate(sizes)])
    starts = np.cumsum([0, *sizes])
    made = crop(ids.astype(np.uint16), starts, 8)
    # 4 and 3 fit, then the shortest is cut to what is left: 1 token of 9; then 12 is cut to 8
    assert made.tolist() == [[0, 11, 12, 13, 0, 21, 22, 0], [0, *range(31, 38)]]


def test_attention_within_documents_is_that_of_each_alone():
    config = Row("x", 2, 0, ('run.preset="september"', "model.sequence_len=24")).config().model
    params = gpt.init_params(jax.random.key(0), config)
    params = shaken(params, 1, 0.02)
    tokens = np.random.default_rng(1).integers(0, 999, (2, 24), np.int32)
    cut = tokens.copy()
    cut[:, 10] = 1000
    plain = gpt.features
    with prototype("documents", 1000) as compute:
        within = jax.jit(lambda x: gpt.features(params, x, config, compute))
        found, whole = (np.asarray(within(x)) for x in (cut, tokens))
        assert np.allclose(features(params, tokens, config), whole, atol=1e-5)
        assert np.allclose(features(params, cut[:, 10:], config), found[:, 10:], atol=1e-5)
        across = np.asarray(features(params, cut, config))
        assert not np.allclose(across[:, 10:], found[:, 10:], atol=1e-2)
    assert gpt.features is plain


@pytest.mark.usefixtures("optax_promotion")
def test_embeddings_move_every_fourth_step():
    config = Row("x", 1, 0, ('run.preset="september"',)).config()
    params = gpt.init_params(jax.random.key(0), config.model)
    with prototype("fourth", 0):
        optimizer = make_optimizer(config.model, config.optim, 8)
    view = jax.jit(stack)(params)
    state, moved, update = jax.jit(optimizer.init)(view), [], jax.jit(optimizer.update)
    ones = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), view)
    for _ in range(8):
        updates, state = update(ones, state, view)
        moved.append([bool(np.any(updates[name][leaf])) for name, leaf in
                      (("wte", "embedding"), ("lm_head", "kernel"))])  # fmt: skip
    assert [embedding for embedding, _ in moved] == [False, False, False, True] * 2
    assert all(head for _, head in moved)


def test_a_row_is_made_and_resumed(tmp_path, monkeypatch, capsys, optax_promotion):
    words = "the quick brown fox jumps over the lazy dog and comes home late".split()
    for shard in range(2):
        texts = [" ".join(words[i % 7 :] * (1 + i % 3)) for i in range(shard, shard + 90)]
        pq.write_table(pa.table({"text": texts}), tmp_path / f"shard_{shard}.parquet")
    small = ("tokenizer.vocab_size=280", "model.sequence_len=16", "model.n_embd=32")
    monkeypatch.setattr(screen_plan, "COMMON", (
        *small, "model.n_head=1", "model.n_kv_head=1", "base.batch_tokens=32", "base.micro_rows=2",
    ))  # fmt: skip
    monkeypatch.setattr(screen, "VOCAB", 280)
    monkeypatch.setitem(STEPS, 1, 20)
    results = tmp_path / "results.jsonl"
    monkeypatch.setattr(screen, "RESULTS", results)
    settings = Choice().settings("september")
    made = [Row(name, 1, 0, settings) for name in ("baseline", "documents", "cropped")]
    for count in (2, 3):
        monkeypatch.setattr(screen, "rows", lambda bits, count=count: iter(made[:count]))
        monkeypatch.setattr(sys, "argv", ["x", "--text", str(tmp_path), "--work", str(tmp_path)])
        screen.main()
        assert capsys.readouterr().out.count("bits per byte") == (2 if count == 2 else 1)
    records = screen.read_results()
    assert [r["variant"] for r in records] == ["baseline", "documents", "cropped"]
    assert {r["steps"] for r in records} == {20}
    assert len({r["bits_per_byte"] for r in records}) == 3
    assert records[0]["tail"] != records[0]["bits_per_byte"]
    bits = screen.bits_of(records)
    assert bits["tail", 1, 0] == records[0]["tail"]
    results.write_text(json.dumps({**records[0], "settings": ["other"]}) + "\n")
    with pytest.raises(SystemExit, match="other settings"):
        screen.main()


def test_the_page_has_the_tables_and_the_results_are_of_registered_rows():
    records = screen.read_results()
    page = screen_table.PAGE.read_text("utf-8")
    made = page.partition(screen_table.BEGIN)[2].partition(screen_table.END)[0].strip()
    records = records[: int(made.split()[0])]  # later rows may have come since
    assert made == screen_table.tables(records)
    bits = screen.bits_of(records)
    settings = {(r["variant"], r["depth"], r["seed"]): r["settings"] for r in records}
    seen = set()
    for row in rows(bits):
        if row.key not in bits:
            break
        assert settings[row.key] == list(row.settings)
        seen.add(row.key)
    assert seen == set(settings)

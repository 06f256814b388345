"""The arithmetic of docs/scaling.md: its tables are what the module says."""

import re
from pathlib import Path

import pytest
from scaling_nodes import (
    NETWORKS,
    NODES,
    exchange_seconds,
    exchanged_bytes,
    plan_nodes,
)
from scaling_nodes import table as make_table

from jaxchat.config import loading

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
TIERS = ("100", "300", "1000")


def config(tier):
    return loading.load(loading.tiers()[tier], [])


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_the_tables_of_the_page_are_those_of_the_module(tier, network):
    text = PAGE.read_text("utf-8")
    found = re.search(rf"<!-- {tier}, {re.escape(network.name)} -->\n(.*?)\n\n", text, re.S)
    assert found, f"no table for tier {tier} over {network.name}"
    assert found[1] == make_table(config(tier), network)


def test_one_device_exchanges_each_value_once_and_more_fill_up_the_stacks():
    model = config("100").model
    values = exchanged_bytes(model, 1) / 4
    assert values == pytest.approx(561e6, rel=0.001)
    # 20 queries, 40 keys and values, 20 and 20 and 20 others: on 8 devices 24, 40, 24, 24, 24
    width = model.n_embd**2
    assert exchanged_bytes(model, 8) / 4 - values == 4 * (1 + 1 + 4 + 4) * width


def test_a_ring_moves_everything_twice_but_its_own_part():
    fast, slow = NETWORKS
    assert exchange_seconds(450e9, 1, fast) == pytest.approx(2 * 7 / 8)
    assert exchange_seconds(12.5e9, 2, slow) == pytest.approx(2 * 7 / 8 / 36 + 2 * 1 / 2)


def test_more_nodes_compute_faster_in_proportion():
    plans = [plan_nodes(config("100"), nodes, NETWORKS[0]) for nodes in NODES]
    for plan in plans:
        assert plan.compute * plan.nodes == pytest.approx(plans[0].compute)
        assert plan.rows * plan.nodes == plans[0].rows
        assert plan.together <= plan.apart

"""Predicted step times on several nodes of 8 GPUs: arithmetic, measured nowhere (docs/scaling.md).

A step computes, then reduce-scatters the gradients and all-gathers the updates, once for any
number of micro-batches (`jaxchat/optim/zero.py`). Together they move the bytes of one all-reduce.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxchat.config.derive import count_params, flops_per_token
from jaxchat.config.schema import ModelConfig, RunConfig

NODE = 8  # GPUs
NODES = (1, 2, 8, 32)
VALUE_BYTES = 4  # gradients and updates are float32


@dataclass(frozen=True)
class Network:
    """Bytes a second in one direction: of a GPU to its node, and of a node to the others."""

    name: str
    inside: float
    between: float


NVLINK = 450e9  # an H100's, half of the 900 GB/s specified for both directions
NETWORKS = (
    Network("400 Gb/s a GPU (InfiniBand)", NVLINK, NODE * 400e9 / 8),
    Network("100 Gb/s a node (Ethernet)", NVLINK, 100e9 / 8),
)


@dataclass(frozen=True)
class NodePlan:
    """One line of the table. Seconds of a step."""

    nodes: int
    rows: float  # of a batch, for each GPU; less than 1: it does not fit
    exchanged: float  # bytes
    compute: float
    exchange: float

    @property
    def apart(self) -> float:
        """Where nothing of the exchange is hidden behind the computation."""
        return self.compute + self.exchange

    @property
    def together(self) -> float:
        """Where all of it is."""
        return max(self.compute, self.exchange)


def exchanged_bytes(model: ModelConfig, devices: int) -> int:
    """Of gradients, and again of updates: stacks are filled up to a multiple of the devices."""
    width, layers = model.n_embd, model.n_layer
    queries = width * model.n_head * model.head_dim
    keys = width * model.n_kv_head * model.head_dim
    # (matrices, values of each): queries; keys and values; attention's output; the two of the MLP
    stacks = [(layers, queries), (2 * layers, keys), (layers, queries)]
    stacks += [(layers, 4 * width * width)] * 2
    rest = count_params(model)["total"] - sum(count * size for count, size in stacks)
    filled = sum(math.ceil(count / devices) * devices * size for count, size in stacks)
    return VALUE_BYTES * (filled + rest)


def exchange_seconds(size: float, nodes: int, network: Network) -> float:
    """Seconds of a ring in each node, then one over the nodes for the nodes' sums."""

    def ring(ways: int, bandwidth: float) -> float:
        return 2 * (ways - 1) / ways * size / bandwidth

    return ring(NODE, network.inside) + ring(nodes, network.between)


def plan_nodes(config: RunConfig, nodes: int, network: Network) -> NodePlan:
    """A step of pretraining, at the utilization of `[hardware]`."""
    hardware, devices = config.hardware, nodes * NODE
    flops = flops_per_token(config.model) * config.base.batch_tokens
    exchanged = exchanged_bytes(config.model, devices)
    return NodePlan(
        nodes=nodes,
        rows=config.base.batch_tokens / config.model.sequence_len / devices,
        exchanged=exchanged,
        compute=flops / (devices * hardware.peak_flops * hardware.utilization),
        exchange=exchange_seconds(exchanged, nodes, network),
    )


def table(config: RunConfig, network: Network) -> str:
    """The Markdown table of docs/scaling.md for a tier."""
    lines = [
        "| nodes | rows a GPU | exchanged | compute | exchange | a step | tokens/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for nodes in NODES:
        plan = plan_nodes(config, nodes, network)
        rates = [config.base.batch_tokens / s for s in (plan.apart, plan.together)]
        lines.append(
            f"| {nodes} | {plan.rows:g} | {plan.exchanged / 1e9:.1f} GB | {1e3 * plan.compute:,.0f}"
            f" ms | {1e3 * plan.exchange:,.0f} ms | {1e3 * plan.together:,.0f} to "
            f"{1e3 * plan.apart:,.0f} ms | {rates[0] / 1e6:.2f} to {rates[1] / 1e6:.2f}M |"
        )
    return "\n".join(lines)

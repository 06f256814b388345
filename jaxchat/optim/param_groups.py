"""The parameter table: one row for every group, and every parameter in exactly one row.

A row has a group's optimizer, rate, betas and decay. Betas and decays are nanochat's (of November
2025 for `classic`, of July and September 2026 for `modern`), and so are the rules of the width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import jax

from jaxchat.config.schema import ModelConfig, OptimConfig


@dataclass(frozen=True)
class Group:
    """One row: the hyperparameters of all parameters whose path matches `pattern`."""

    label: str
    pattern: str
    kind: str  # "muon" or "adamw"
    rate: float
    beta1: float = 0.8
    beta2: float = 0.95
    decay: float = 0.0


def parameter_table(model: ModelConfig, optim: OptimConfig) -> tuple[Group, ...]:
    """The rows for a model; the rates of head and embeddings are multiplied by (D / 768) ** p.

    Their powers p are settings: -0.5 both, or as in muP -1 and 0.
    """
    width = model.n_embd / 768
    head = optim.unembedding_lr * width**optim.head_width_power
    embedding = optim.embedding_lr * width**optim.embedding_width_power
    modern = optim.groups == "modern"
    return (
        Group(
            "head", r"lm_head/.*", "adamw", head,
            beta2=0.96 if modern else 0.95, decay=0.01 if modern else 0.0,
        ),
        Group(
            "embedding", r"wte/.*", "adamw", embedding,
            beta2=0.995 if modern else 0.95, decay=0.001 if modern else 0.0,
        ),
        Group(
            "value_embedding", r"value_embeds_\d+/.*", "adamw", embedding * 0.5,
            beta2=0.995, decay=0.01,
        ),
        Group("residual", r"resid_lambdas", "adamw", optim.scalar_lr * 0.01, decay=0.05),
        Group("x0", r"x0_lambdas", "adamw", optim.scalar_lr, beta1=0.96),
        Group("smear", r"(smear|backout).*", "adamw", 0.2),
        Group("matrix", r"h(_\d+)?/.*", "muon", optim.matrix_lr),
    )  # fmt: skip


def label_params(params: Any, table: tuple[Group, ...]) -> Any:
    """A tree like `params` of group labels. Raises ValueError for a parameter in no or two rows."""

    def label(path: tuple[Any, ...], leaf: Any) -> str:
        del leaf
        name = "/".join(str(key.key) for key in path)
        labels = [group.label for group in table if re.fullmatch(group.pattern, name)]
        if len(labels) != 1:
            raise ValueError(
                f"the parameter {name} is in {len(labels)} rows of the parameter table {labels}; "
                "it must be in exactly one (jaxchat/optim/param_groups.py)."
            )
        return labels[0]

    return jax.tree_util.tree_map_with_path(label, params)

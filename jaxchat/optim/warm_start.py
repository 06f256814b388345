"""Starting a stage's optimizer with what the optimizer of the stage before has averaged (layer 1).

Averages of gradients, and of their squares, are carried over, with AdamW's count of them, which
corrects their bias. Schedules start anew: they are functions of the new stage's own steps.
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from jaxchat.optim.muon import MomentumState, NorMuonState

_AVERAGES = (optax.ScaleByAdamState, MomentumState, NorMuonState)


def carry_over(fresh: Any, before: Any) -> Any:
    """The optimizer's state `fresh`, with the averages of `before`.

    Both are states of `optim.chain.make_optimizer` for the same model on the same mesh; their
    chains may differ, by a decay or clipping. An average that only `fresh` has stays as it is.
    """
    found = {_place(path, state): state for path, state in _states(before)[0] if _averages(state)}
    leaves, tree = _states(fresh)
    carried = [_carried(state, found.get(_place(path, state))) for path, state in leaves]
    return jax.tree.unflatten(tree, carried)


def _averages(state: Any) -> bool:
    return isinstance(state, _AVERAGES)


def _states(optimizer_state: Any) -> tuple[list[tuple[Any, Any]], Any]:
    return jax.tree_util.tree_flatten_with_path(optimizer_state, is_leaf=_averages)


def _place(path: tuple[Any, ...], state: Any) -> tuple[str, ...]:
    """The parameters' group, by its label, and which average it is: the same in every chain."""
    labels = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
    return (*labels, type(state).__name__)


def _carried(fresh: Any, before: Any) -> Any:
    if before is None or not _averages(fresh):
        return fresh
    if isinstance(before, MomentumState):
        return MomentumState(fresh.steps, before.momentum)
    return before

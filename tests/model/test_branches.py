"""A branch of a row is computed as it would be in a row of its own."""

import jax
import numpy as np
import pytest
from model_variants import CLASSIC, MODERN, lively_params
from whole_model import features

from jaxchat.model.branches import branch_features

TRUNK, BRANCHES = 140, (3, 1, 6)  # positions of the trunk; tokens of each branch


@pytest.mark.parametrize("config", [CLASSIC, MODERN], ids=["classic", "modern"])
def test_branches_are_as_in_rows_of_their_own(config):
    """Behind trunks of one token, of some, of more than a short window, and full ones."""
    params, rng = lively_params(config), np.random.default_rng(0)
    lengths = np.array([1, 20, 131, TRUNK], np.int32)
    trunk = rng.integers(0, config.vocab_size, (len(lengths), TRUNK), np.int32)
    tokens, branch, positions = [trunk], [], []
    for number, size in enumerate(BRANCHES):
        # before each branch the trunk's last token, for smear
        copy = trunk[np.arange(len(lengths)), lengths - 1][:, None]
        tokens += [copy, rng.integers(0, config.vocab_size, (len(lengths), size), np.int32)]
        branch += [-1] + [number] * size
        positions.append(lengths[:, None] + np.arange(-1, size, dtype=np.int32))
    branch = np.tile(np.array(branch, np.int32), (len(lengths), 1))
    tokens, positions = np.concatenate(tokens, axis=1), np.concatenate(positions, axis=1)
    found = jax.jit(branch_features, static_argnames="config")(
        params, tokens, lengths, branch, positions, config
    )

    for row, length in enumerate(lengths):
        for number in range(len(BRANCHES)):
            at = TRUNK + np.flatnonzero(branch[row] == number)
            alone = np.zeros(TRUNK + max(BRANCHES), np.int32)  # one shape: compiled once
            alone[: length + len(at)] = [*tokens[row, :length], *tokens[row, at]]
            want = features(params, alone[None], config)[0]
            np.testing.assert_allclose(found[row, :length], want[:length], atol=1e-4)
            np.testing.assert_allclose(found[row, at], want[length : length + len(at)], atol=1e-4)

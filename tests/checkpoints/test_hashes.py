"""Hashes that stand in files which users have are the same in every version."""

import jax.numpy as jnp

from jaxchat.checkpoints.save import fingerprint, hash_params

WEIGHTS = {
    "b": {"kernel": jnp.arange(-3.0, 3.0).reshape(2, 3)},
    "a": jnp.array([1, 0, 7], jnp.int32),
    "c": jnp.array(0.5, jnp.bfloat16),
}


def test_a_checkpoint_of_another_version_has_the_fingerprint_of_this_one():
    assert (
        fingerprint(WEIGHTS) == "d9a99d8a68c1c35c8efd7bc3ceb643a459c506ed131e21048b7d7c3e60c87d62"
    )


def test_weights_of_another_version_have_the_hash_of_this_one():
    assert (
        hash_params(WEIGHTS) == "a479c9595bdf4adcc36031dfc1588fe1bff82144069cd54cb9b2ef7692d7065d"
    )

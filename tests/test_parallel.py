"""Devices: meshes, global arrays, the per-device form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import attacks, parallel, randomness


def test_more_devices_than_there_are():
    with pytest.raises(ValueError, match="parallel.devices = 9: only 8 cpu devices are present"):
        parallel.mesh(9)


def test_a_batch_is_split_and_a_state_is_copied():
    mesh = parallel.mesh()
    batch = parallel.global_batch(mesh, {"x": np.arange(16.0).reshape(16, 1)})
    assert [shard.data.shape for shard in batch["x"].addressable_shards] == [(2, 1)] * 8
    state = parallel.replicate(mesh, jnp.arange(3))
    assert [shard.data.shape for shard in state.addressable_shards] == [(3,)] * 8


def test_a_replicated_state_can_be_donated_without_losing_the_original():
    mesh = parallel.mesh()
    original = jnp.arange(3.0)
    step = parallel.compile(lambda s, b: s + b.sum(), mesh, arguments="rb", results="r", donate=(0,))
    step(parallel.replicate(mesh, original), parallel.global_batch(mesh, np.ones((8,), np.float32)))
    assert original.tolist() == [0.0, 1.0, 2.0]


def test_a_copy_to_all_devices_compiles_once():
    """And not once a call: the trainer and every checkpoint that is restored ask for it."""
    parallel.replicate(parallel.mesh(), {"a": jnp.arange(7.0), "b": jnp.arange(5)})
    compiled = parallel._copy_program(parallel.mesh())._cache_size()
    parallel.replicate(parallel.mesh(), {"a": jnp.arange(7.0) + 1, "b": jnp.arange(5) + 1})
    assert compiled >= 1 and parallel._copy_program(parallel.mesh())._cache_size() == compiled


def test_pmap_equals_jit():
    weights = jax.random.normal(jax.random.key(3), (12, 4))
    logits_fn = jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, weights)
    images = jax.random.uniform(jax.random.key(4), (16, 2, 2, 3))
    labels = jnp.arange(16) % 4
    attack = attacks.pgd(norm="l2", epsilon=0.3, step_size=0.1, steps=3)

    def keys():
        return randomness.example_keys(0, jnp.arange(16), randomness.EVALUATION_ATTACK)

    split = parallel.split((keys(), images, labels), 8)
    found = parallel.pmap(attack)(split[0], logits_fn, split[1], split[2], 0.5)
    expected = jax.jit(attack)(keys(), logits_fn, images, labels, 0.5)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=1e-6)


def test_keys_name_examples_and_not_places():
    keys = randomness.example_keys(0, jnp.array([5, 9]), randomness.TRAIN_ATTACK, step=3)
    again = randomness.example_keys(jax.random.key(0), jnp.array([9, 5]), randomness.TRAIN_ATTACK, step=3)
    assert jax.random.key_data(keys)[0].tolist() == jax.random.key_data(again)[1].tolist()
    other = randomness.example_keys(0, jnp.array([5]), randomness.TRAIN_ATTACK, step=4)
    assert jax.random.key_data(other)[0].tolist() != jax.random.key_data(keys)[0].tolist()

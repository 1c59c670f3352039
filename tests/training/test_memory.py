"""What a step keeps: nothing of attack steps that are over, less under a policy, moments in bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import config

from robust_vit import attacks, models, randomness
from robust_vit.training import experiment, optimizer, programs, remat


@functools.cache
def model():
    module = models.build(
        "vit", image_size=8, channels=1, patch_size=4, width=16, depth=1, heads=2, num_classes=10, pooling="mean"
    )
    return module, models.init(module, jax.random.key(0))


IMAGES = jnp.asarray(np.random.default_rng(0).random((16, 8, 8, 1)), jnp.float32)


def test_the_attacks_memory_does_not_grow_with_its_steps():
    """Each step's activations are free before the next: one loop, whose carry is an image."""
    logits_fn = models.logits_fn(*model())
    keys = randomness.example_keys(0, jnp.arange(16), randomness.TRAIN_ATTACK)

    def needed(steps):
        attack = attacks.pgd(norm="linf", epsilon=0.1, step_size=0.05, steps=steps, keep="last")
        return jax.jit(attack).lower(keys, logits_fn, IMAGES, jnp.zeros(16, int)).compile().memory_analysis()

    few, many = needed(2), needed(50)
    assert many.temp_size_in_bytes <= few.temp_size_in_bytes + 1024
    assert few.temp_size_in_bytes > IMAGES.nbytes  # it does keep activations within a step


@pytest.mark.parametrize("policy", [pytest.param("dots", marks=pytest.mark.slow), "dots_no_batch"])
def test_a_policy_keeps_less_and_changes_nothing(policy):
    module, variables = model()
    other = remat.kept(module, policy)
    assert remat.kept(module, "") is module and other.clone(drop_path=0.1).module.drop_path == 0.1

    def loss(module, variables):
        return jnp.sum(module.apply(variables, IMAGES, train=True) ** 2)

    def kept(module):
        """Numbers between the pass and its gradient: residuals are what the pull-back holds beside the weights."""
        pull_back = jax.vjp(lambda v: module.apply(v, IMAGES, train=True), variables)[1]
        weights = sum(leaf.size for leaf in jax.tree.leaves(variables))
        return sum(leaf.size for leaf in jax.tree.leaves(pull_back)) - weights

    assert kept(other) < kept(module)
    ours, theirs = (jax.grad(functools.partial(loss, one))(variables) for one in (other, module))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


@pytest.mark.parametrize("name", optimizer.OPTIMIZERS)
def test_the_moment_may_be_kept_in_bfloat16(name):
    params = {"kernel": jnp.linspace(-1, 1, 64).reshape(8, 8)}
    grads = {"kernel": jnp.cos(params["kernel"])}
    found = {}
    for moment in ("float32", "bfloat16"):
        tx = optimizer.build(name, weight_decay=0.1, moment=moment)
        updates, state = tx.update(grads, tx.init(params), params)
        updates, state = tx.update(grads, state, params)
        dtypes = sorted(str(leaf.dtype) for leaf in jax.tree.leaves(state) if leaf.ndim)
        found[moment] = updates["kernel"], dtypes
    assert found["bfloat16"][1][0] == "bfloat16" and set(found["float32"][1]) == {"float32"}
    assert found["bfloat16"][1][1:] == found["float32"][1][1:]  # Adam's mean of squares stays as it is
    assert found["bfloat16"][0].dtype == jnp.float32
    np.testing.assert_allclose(found["bfloat16"][0], found["float32"][0], rtol=0.02, atol=0.02)


def test_a_configuration_turns_them_on():
    made = experiment.build(
        config(optimizer__moment="bfloat16", training__remat_policy="dots", model__dtype="bfloat16")
    )
    state = programs.abstract_state(made)
    dtypes = {jax.tree_util.keystr(path): leaf.dtype for path, leaf in jax.tree_util.tree_leaves_with_path(state)}
    assert all(dtype == jnp.float32 for name, dtype in dtypes.items() if name.startswith(".params"))  # the masters
    means = [dtype for name, dtype in dtypes.items() if ".mu" in name]
    assert means and all(dtype == jnp.bfloat16 for dtype in means)
    program = str(jax.make_jaxpr(made.step)(*programs.abstract_arguments(made)))
    assert "bf16" in program and ("remat" in program or "checkpoint" in program)
    with pytest.raises(ValueError, match="training.remat_policy = 'dot': must be one of , dots, dots_no_batch"):
        experiment.build(config(training__remat_policy="dot"))

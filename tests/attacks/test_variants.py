"""Registered attacks give the same images compiled, eager, and mapped over devices (`chex.variants`).

Which keywords make an attack cheap is said in `test_attack_contract.CHEAP`.
"""

import chex
import jax
import jax.numpy as jnp
import pytest
from absl.testing import parameterized
from conftest import tiny_apply, tiny_weights
from test_attack_contract import APART, EPSILON, build, first_norm

from robust_vit import attacks
from robust_vit.attacks import norms

SHAPE, CLASSES = (3, 4, 4, 1), 3


def problem():
    """keys [B], logits_fn, images [B,H,W,C], labels [B]; the keys are fresh at every call."""
    logits_fn = jax.tree_util.Partial(tiny_apply, tiny_weights(0, 16, CLASSES))
    images = jax.random.uniform(jax.random.key(1), SHAPE)
    return jax.random.split(jax.random.key(2), SHAPE[0]), logits_fn, images, jnp.argmax(logits_fn(images), axis=-1)


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    @parameterized.parameters(*(name for name in attacks.names() if name not in APART))
    def test_one_attack_however_it_is_run(self, name):
        norm = first_norm(name)
        attack, (_, _, images, _) = build(name, norm), problem()
        adversarial = self.variant(attack)(*problem())
        chex.assert_trees_all_equal_shapes_and_dtypes(adversarial, images)
        chex.assert_tree_all_finite(adversarial)
        chex.assert_trees_all_close(adversarial, jax.jit(attack)(*problem()), atol=1e-5)
        assert jnp.all(norms.get(norm).distance(jnp.asarray(adversarial), images) <= EPSILON[norm] + 1e-6)


@pytest.mark.parametrize("name", [name for name in attacks.names() if name not in APART])
def test_the_clean_images_and_the_weights_are_left_as_they_are(name):
    arguments, again = problem(), problem()
    build(name, first_norm(name))(*arguments)
    chex.assert_trees_all_equal(arguments[1:], again[1:])


@pytest.mark.parametrize("name", [name for name in attacks.names() if name not in APART])
def test_one_trace_serves_every_batch_of_a_shape(name):
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(build(name, first_norm(name)), n=1))
    for _ in range(3):
        run(*problem())

"""Debug mode: what a compiled attack would take in silence stops it, and what is fine is attacked as ever."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.tree_util import Partial

from robust_vit import attacks
from robust_vit.evaluation import debug

B, K = 4, 3


def linear(weights, images):
    return images.reshape(images.shape[0], -1) @ weights


@pytest.fixture(scope="module")
def attack():
    return attacks.pgd(norm="linf", epsilon=0.1, steps=2)


@pytest.fixture(scope="module")
def looking(attack):
    return debug.checked(attack)


def inputs(**changes):
    rng = np.random.default_rng(0)
    given = {
        "logits_fn": Partial(linear, jnp.asarray(rng.normal(size=(12, K)), jnp.float32)),
        "images": jnp.asarray(rng.uniform(size=(B, 2, 2, 3)), jnp.float32),
        "targets": jnp.asarray([0, 1, 2, 1]),
        "strength": 1.0,
    } | changes
    return jax.random.split(jax.random.key(0), B), *given.values()


def test_what_is_fine_is_attacked_as_ever(attack, looking):
    np.testing.assert_array_equal(looking(*inputs()), jax.jit(attack)(*inputs()))
    soft = jax.nn.one_hot(jnp.asarray([0, 1, 2, 1]), K) * 0.9 + 0.1 / K
    assert looking(*inputs(targets=soft)).shape == (B, 2, 2, 3)
    assert looking(*inputs(strength=jnp.linspace(0, 1, B))).shape == (B, 2, 2, 3)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"targets": jnp.asarray([0, 3, 1, 1])}, r"labels = 0 to 3: must be in \[0, 3\)"),
        ({"targets": jnp.asarray([0, -1, 1, 1])}, r"labels = -1 to 1: must be in \[0, 3\)"),
        ({"targets": jnp.full((B, K), 0.5)}, "rows are up to 0.5 away from a sum of 1"),
        ({"strength": jnp.nan}, r"strength = nan to nan: must be in \[0, 1\]"),
        ({"strength": 1.5}, r"strength = 1.5 to 1.5: must be in \[0, 1\]"),
        ({"images": jnp.full((B, 2, 2, 3), 255.0)}, r"images = 255.0 to 255.0: must be in \[0, 1\]"),
        ({"images": jnp.full((B, 2, 2, 3), jnp.nan)}, r"images = nan to nan: must be in \[0, 1\]"),
        ({"logits_fn": lambda x: x[:, 0, 0] / 0}, "logits: 4 of the images have logits that are not finite"),
        ({"logits_fn": lambda x: jnp.argsort(x[:, 0, 0])}, "logits.dtype = 'int32': must be a real float"),
    ],
)
def test_what_cannot_be_attacked_stops_it(looking, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        looking(*inputs(**changes))
    assert "\n" not in str(caught.value)


def test_inside_a_program_checkify_hands_the_check_out(looking):
    program = jax.jit(checkify.checkify(lambda *arguments: looking(*arguments) + 1))
    error, _ = program(*inputs(targets=jnp.asarray([0, 9, 1, 1])))
    with pytest.raises(checkify.JaxRuntimeError, match=r"labels = 0 to 9: must be in \[0, 3\)"):
        error.throw()
    with pytest.raises(ValueError, match="checkify"):
        jax.jit(looking)(*inputs())

"""Destruction rates count what they say they count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit.evaluation import destruction, intervals


def bright(weight, images):
    """Class 1 where the mean is above 1/2."""
    value = weight * (images.mean((1, 2, 3)) - 0.5)
    return jnp.stack([-value, value], -1)


def test_what_comes_back_is_counted_among_what_was_fooled():
    means = np.array([0.20, 0.42, 0.46, 0.60, 0.48])
    images = jnp.asarray(np.broadcast_to(means[:, None, None, None], (5, 2, 2, 1)), jnp.float32)
    labels = jnp.array([0, 0, 0, 0, 0])  # the fourth is wrong from the start

    def brighter(by):
        return lambda keys, logits_fn, x, y, strength=1.0: jnp.clip(x + by, 0, 1)

    logits_fn = jax.tree_util.Partial(bright, jnp.float32(1.0))
    darken = lambda keys, x: x - 0.05  # noqa: E731
    attacks = {"little": brighter(0.1), "much": brighter(0.2), "none": brighter(0.0)}
    found = destruction.measure(attacks, logits_fn, images, labels, darken, photographs=2)
    # 0.52, 0.56 and 0.58 fool; darker by 0.05 the first comes back.
    assert found["little"] == destruction.Destruction(6, 3, 2, 4 / 5)
    assert found["little"].rate == 1 / 3 and found["little"].interval == intervals.wilson(1, 3)
    assert found["much"].rate == 0.0 and np.isnan(found["none"].rate) and found["none"].interval == (0.0, 1.0)
    with pytest.raises(ValueError, match="stochastic = 'bim': must be one of little, much, none"):
        destruction.measure(attacks, logits_fn, images, labels, darken, stochastic=("bim",))

"""GradAlign: the angle between the input gradients at the image and at a random point of the ball."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from objective_case import EPSILON, logits

from robust_vit import objectives
from robust_vit.attacks import norms
from robust_vit.objectives.adversarial import misalignment


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_its_point_is_in_the_ball_and_scales_with_the_strength(case, norm):
    seen = []

    def forward(images, statistics):
        seen.append(jax.lax.stop_gradient(images))
        return logits(case.w, images), statistics

    objective = objectives.build("adversarial", grad_align=1.0, norm=norm, epsilon=EPSILON)
    for strength in (0.5, 1.0):
        given = (case.keys(), jnp.asarray(case.x), jnp.asarray(case.y), strength)
        objective(forward, 0, None, case.attack, *given)
    half, full = seen[2], seen[5]  # after the attacked and the clean images
    for points, radius in ((half, 0.5 * EPSILON), (full, EPSILON)):
        distance = norms.get(norm).distance(points, jnp.asarray(case.x))
        assert jnp.all(distance <= radius * (1 + 1e-5)) and jnp.all(distance > 0)
        assert jnp.all((points >= 0) & (points <= 1))


def test_a_linear_loss_is_aligned_and_a_zero_gradient_counts_as_aligned(case):
    x = jnp.asarray(case.x)
    eta = jnp.clip(x + EPSILON * case.pattern, 0, 1)
    plane = jnp.arange(12.0).reshape(12, 1) * jnp.array([[1.0, -1.0, 0.0, 0.0]]) / 10

    def linear(images, statistics):
        return images.reshape(len(images), -1) @ plane, statistics

    two = jnp.asarray(np.eye(4)[[0] * 6])
    bent = misalignment(case.forward(case.w), 0, x, eta, two)
    assert bent.shape == (6,) and (bent > 1e-3).any()

    def constant(images, statistics):
        return 0.0 * linear(images, statistics)[0], statistics

    def penalty(scale):
        return misalignment(lambda i, s: (scale * linear(i, s)[0], s), 0, x, eta, two)

    np.testing.assert_allclose(misalignment(constant, 0, x, eta, two), 0.0)
    assert jnp.isfinite(jax.jacobian(penalty)(0.0)).all()


def test_without_it_nothing_is_drawn_and_one_pass_is_made(case):
    outcome = case.run("adversarial", objectives.build("adversarial", grad_align=0.0))
    with_it = case.run("adversarial", objectives.build("adversarial", grad_align=0.2, epsilon=EPSILON))
    assert outcome.statistics == with_it.statistics == 1
    assert jnp.all(with_it.loss >= outcome.loss)

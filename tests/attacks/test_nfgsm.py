"""N-FGSM: noise of twice the ball, one step, and nothing put back: its formula, and that it says where it goes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import attacks
from robust_vit.attacks import losses, norms
from robust_vit.evaluation import suites, verification


def test_is_the_papers_step(problem):
    keys, logits_fn, images, labels = problem()
    found = jax.jit(attacks.fgsm(epsilon=0.1, noise=2.0))(keys, logits_fn, images, labels)
    keys, *_ = problem()
    folded = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 0)
    uniform = np.asarray(norms.draw(folded, images, jax.random.uniform), np.float64)
    start = np.clip(np.asarray(images) + 0.2 * (2 * uniform - 1), 0.0, 1.0).astype(np.float32)
    gradient = jax.grad(lambda x: losses.cross_entropy(logits_fn(x), labels).sum())(jnp.asarray(start))
    np.testing.assert_allclose(found, np.clip(start + 0.1 * np.sign(gradient), 0.0, 1.0), atol=1e-6)


def test_leaves_the_ball_by_what_it_says_and_never_the_box(problem):
    keys, logits_fn, images, labels = problem((8, 6, 5, 3))
    attack = jax.jit(attacks.build("n_fgsm", epsilon=0.1))
    found = attack(keys, logits_fn, images, labels)
    distance = norms.get("linf").distance(found, images)
    assert jnp.all(distance > 0.2) and jnp.all(distance <= 0.3 + 1e-6)
    assert found.min() >= 0.0 and found.max() <= 1.0
    keys, *_ = problem((8, 6, 5, 3))
    np.testing.assert_array_equal(attack(keys, logits_fn, images, labels, jnp.zeros(8)), images)


def test_strength_and_noise_may_be_traced(problem):
    keys, logits_fn, images, labels = problem()

    @jax.jit
    def run(keys, noise, strength):
        return attacks.fgsm(epsilon=0.1, noise=noise)(keys, logits_fn, images, labels, strength)

    for noise, strength in ((0.5, 1.0), (2.0, 0.5)):
        distance = norms.get("linf").distance(run(jax.random.clone(keys), noise, strength), images)
        assert jnp.all(distance <= (1 + noise) * 0.1 * strength + 1e-6)


def test_no_suite_asks_for_it_and_verification_refuses_it(problem):
    """A suite's attack is made of the threat model alone; and what leaves the ball is no adversarial image."""
    keys, logits_fn, images, labels = problem()
    found = attacks.fgsm(epsilon=0.1, noise=2.0)(keys, logits_fn, images, labels)
    assert not {"noise", "attack.noise"} & {name for name in suites.OPTIONS}
    found = verification.distances("linf", np.asarray(images), np.asarray(found))
    assert np.all(found > 0.1 + verification.tolerance("linf", 0.1, images[0].size))


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"noise": -1.0}, r"noise = -1.0: must be above 0"),
        ({"noise": 2.0, "norm": "l2"}, r"norm = 'l2': must be 'linf' with noise"),
        ({"noise": 2.0, "keep": "loss"}, r"keep = 'loss': must be 'last' with noise"),
        ({"noise": 2.0, "epsilon": 3}, r"epsilon = 3: must be at most 1 for norm linf"),
        ({"noise": 2.0, "step_size": 0.0}, r"step_size = 0.0: must be above 0"),
        ({"noise": 2.0, "loss": "dlrr"}, r"loss = 'dlrr'.*did you mean 'dlr'"),
    ],
)
def test_bad_keywords_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        attacks.fgsm(**{"epsilon": 0.1, **keywords})

"""APGD to train on: few steps from the image itself, its last backward pass spared, soft targets; cost and result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import attacks
from robust_vit.attacks import losses, norms

SINGH = dict(steps=2, random_start=False, keep="loss", last_gradient=False)


def counting(logits_fn):
    """The model, and the numbers of its forward and backward passes so far."""
    passes = {"forward": 0, "backward": 0}

    def count(kind):
        jax.debug.callback(functools.partial(_count, passes, kind))

    @jax.custom_vjp
    def model(images):
        count("forward")
        return logits_fn(images)

    def forward(images):
        count("forward")
        logits, pull = jax.vjp(logits_fn, images)
        return logits, pull

    def backward(pull, cotangent):
        count("backward")
        return pull(cotangent)

    model.defvjp(forward, backward)
    return jax.tree_util.Partial(model), passes


def _count(passes, kind):
    passes[kind] += 1


@pytest.mark.parametrize(
    ("keywords", "forwards", "backwards"),
    [
        (SINGH, 3, 2),
        pytest.param(SINGH | {"last_gradient": True}, 3, 3, marks=pytest.mark.slow),
        pytest.param(SINGH | {"keep": "success"}, 4, 2, marks=pytest.mark.slow),
    ],
)
def test_passes_are_what_the_paper_counts(keywords, forwards, backwards, problem):
    """Singh et al.: n + 1 forward and n backward passes; "success" looks at the clean images first."""
    keys, logits_fn, images, labels = problem()
    model, passes = counting(logits_fn)
    jax.jit(lambda k: attacks.apgd(epsilon=1e-4, **keywords)(k, model, images, labels))(keys)
    jax.effects_barrier()
    assert passes == {"forward": forwards, "backward": backwards}


@pytest.mark.parametrize(
    ("norm", "keep"),
    [("linf", "loss"), *(pytest.param(n, k, marks=pytest.mark.slow) for n, k in (("l2", "success"), ("l1", "loss")))],
)
def test_sparing_the_last_gradient_changes_nothing(norm, keep, problem):
    found = []
    for last_gradient in (True, False):
        keys, logits_fn, images, labels = problem()
        epsilon = {"linf": 0.03, "l2": 0.2, "l1": 1.0}[norm]
        attack = attacks.apgd(norm=norm, epsilon=epsilon, steps=4, keep=keep, last_gradient=last_gradient)
        found.append(jax.jit(attack)(keys, logits_fn, images, labels))
    np.testing.assert_allclose(*found, atol=1e-6)


def test_two_steps_from_the_image_are_singhs(problem):
    """Written out: a step of 2 epsilon; then, halved and from the best point where the loss did not rise, the second
    with momentum 0.75; the best of the three points comes back.
    """
    epsilon = 0.05
    keys, logits_fn, images, labels = problem((8, 6, 5, 3))
    found = jax.jit(attacks.apgd(epsilon=epsilon, **SINGH))(keys, logits_fn, images, labels)
    loss_of = jax.jit(lambda x: losses.cross_entropy(logits_fn(x), labels))
    gradient_of = jax.jit(jax.grad(lambda x: loss_of(x).sum()))
    clean = np.asarray(images)

    def step(x, gradient, size):
        return np.clip(np.clip(x + size * np.sign(gradient), clean - epsilon, clean + epsilon), 0, 1)

    points = [clean, step(clean, gradient_of(images), 2 * epsilon)]
    values = [np.asarray(loss_of(x)) for x in points]
    assert np.all(values[1] > values[0])  # so that no step size is halved here: the loss of a smooth model rises
    ahead = step(points[1], gradient_of(points[1]), 2 * epsilon)
    last = points[1] + 0.75 * (ahead - points[1]) + 0.25 * (points[1] - clean)
    points.append(np.clip(np.clip(last, clean - epsilon, clean + epsilon), 0, 1))
    values.append(np.asarray(loss_of(points[2])))
    best = np.argmax(values, axis=0)
    np.testing.assert_allclose(found, np.stack(points)[best, np.arange(8)], atol=1e-6)


def test_without_a_random_start_keys_do_not_matter(problem):
    keys, logits_fn, images, labels = problem()
    attack = jax.jit(attacks.apgd(epsilon=0.1, **SINGH))
    others = jax.random.split(jax.random.key(99), 4)
    np.testing.assert_array_equal(*(attack(k, logits_fn, images, labels) for k in (keys, others)))


def test_soft_targets_steer(problem):
    """The ascent is on the cross-entropy to the distribution, as MixUp, TRADES and label smoothing need it."""
    keys, logits_fn, images, labels = problem()
    soft = 0.5 * jax.nn.one_hot(labels, 5) + 0.5 * jax.nn.one_hot((labels + 2) % 5, 5)
    attack = jax.jit(attacks.apgd(epsilon=0.1, steps=5, keep="loss"))
    from_soft, from_hard = (attack(jax.random.clone(keys), logits_fn, images, t) for t in (soft, labels))
    losses_of = [losses.cross_entropy(logits_fn(x), soft).mean() for x in (from_soft, from_hard)]
    assert losses_of[0] > losses_of[1] + 1e-3
    distance = norms.get("linf").distance(from_soft, images)
    assert jnp.all(distance <= 0.1 + 1e-6)


@pytest.mark.slow
def test_l1_training_starts_with_the_papers_sparsity(problem):
    keys, logits_fn, images, labels = problem()
    attack = attacks.apgd(epsilon=1.0, norm="l1", steps=1, random_start=False, keep="loss", first_fraction=0.05)
    found = jax.jit(attack)(keys, logits_fn, images, labels)
    moved = jnp.count_nonzero(jnp.abs(found - images) > 1e-6, axis=(1, 2, 3))
    assert jnp.all(moved <= 6)  # 5 % of 90 values; the threshold itself is taken too


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"rho": 1.5}, r"rho = 1.5: must be in \[0, 1\]"),
        ({"rho": -0.1}, r"rho = -0.1: must be in \[0, 1\]"),
        ({"first_fraction": 0.0}, r"first_fraction = 0.0: must be in \(0, 1\]"),
        ({"random_start": False, "restarts": 2}, r"restarts = 2: must be 1 without random_start"),
    ],
)
def test_bad_settings_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        attacks.apgd(epsilon=0.1, **keywords)

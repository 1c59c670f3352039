"""PGD: optima that are known in closed form, the keywords one by one, and the errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from robust_vit import attacks, parallel
from robust_vit.attacks import losses, norms
from robust_vit.attacks.pgd import Best, better

RANK_PROMOTION = "allow"  # of the models that are made here

SMALL = {"linf": 0.05, "l2": 0.3, "l1": 1.0}
DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


def loss_of(logits_fn, images, targets, name="cross_entropy"):
    return losses.get(name)(logits_fn(images), targets)


@pytest.mark.parametrize("norm", sorted(SMALL))
def test_reaches_the_optimum_of_a_linear_model(norm):
    """For z = (w.x, -w.x) and no active box, the largest margin is the clean one plus 2 epsilon |w|_dual."""
    w = jax.random.normal(jax.random.key(0), (60,)) / 8
    logits_fn = jax.tree_util.Partial(lambda w, x: (x.reshape(len(x), -1) @ w)[:, None] * jnp.array([1.0, -1.0]), w)
    images = jax.random.uniform(jax.random.key(1), (3, 4, 5, 3), minval=0.45, maxval=0.55)
    labels, epsilon = jnp.array([0, 1, 0]), 0.4
    attack = attacks.pgd(norm=norm, epsilon=epsilon, step_size=epsilon / 2, steps=20, loss="margin")
    adversarial = jax.jit(attack)(jax.random.split(jax.random.key(2), 3), logits_fn, images, labels)
    gain = loss_of(logits_fn, adversarial, labels, "margin") - loss_of(logits_fn, images, labels, "margin")
    np.testing.assert_allclose(gain, 2 * epsilon * np.linalg.norm(w, ord=DUAL[norm]), rtol=1e-3)


@pytest.mark.parametrize("loss", sorted(losses.LOSSES))
def test_every_loss_breaks_the_model(loss, problem):
    keys, logits_fn, images, labels = problem()
    attack = attacks.pgd(epsilon=0.3, steps=10, loss=loss)
    adversarial = jax.jit(attack)(keys, logits_fn, images, labels)
    assert jnp.all(loss_of(logits_fn, adversarial, labels, loss) > loss_of(logits_fn, images, labels, loss))
    assert jnp.all(jnp.argmax(logits_fn(adversarial), axis=-1) != labels)


def test_targeted_reaches_the_class(problem):
    keys, logits_fn, images, labels = problem()
    wanted = (labels + 1) % 5
    attack = attacks.pgd(epsilon=0.4, steps=20, targeted=True, keep="success")
    adversarial = jax.jit(attack)(keys, logits_fn, images, wanted)
    np.testing.assert_array_equal(jnp.argmax(logits_fn(adversarial), axis=-1), wanted)


def test_cross_entropy_to_a_distribution_is_the_kl_attack(problem):
    """The adversary of TRADES (KL from the clean prediction) is the same with cross-entropy to that distribution."""
    keys, logits_fn, images, _ = problem()
    clean = jax.nn.softmax(logits_fn(images))
    found = [
        jax.jit(attacks.pgd(epsilon=0.05, steps=4, loss=loss, keep="last"))(
            jax.random.clone(keys), logits_fn, images, clean
        )
        for loss in ("cross_entropy", "kl")
    ]
    np.testing.assert_allclose(*found, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_steps_are_the_papers(momentum, problem):
    """Three steps from the clean image, written out in NumPy (Dong et al.: g <- mu g + grad / |grad|_1)."""
    keys, logits_fn, images, labels = problem()
    attack = attacks.pgd(epsilon=0.1, step_size=0.06, steps=3, random_start=False, momentum=momentum, keep="last")
    found = jax.jit(attack)(keys, logits_fn, images, labels)
    gradient_of = jax.jit(jax.grad(lambda x: loss_of(logits_fn, x, labels).sum()))
    clean = x = np.asarray(images)
    g = np.zeros_like(x)
    for _ in range(3):
        gradient = np.asarray(gradient_of(x))
        g = momentum * g + gradient / np.abs(gradient).sum(axis=(1, 2, 3), keepdims=True)
        x = np.clip(np.clip(x + np.float32(0.06) * np.sign(g), clean - np.float32(0.1), clean + np.float32(0.1)), 0, 1)
    np.testing.assert_allclose(found, x, atol=1e-6)


def test_momentum_may_be_traced(problem):
    keys, logits_fn, images, labels = problem()
    found = jax.jit(lambda m, k: attacks.pgd(epsilon=0.1, steps=3, momentum=m)(k, logits_fn, images, labels))(0.9, keys)
    keys, *_ = problem()
    expected = jax.jit(attacks.pgd(epsilon=0.1, steps=3, momentum=0.9))(keys, logits_fn, images, labels)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_restarts_never_lower_the_loss(problem):
    """The first restart is the single run's, so that more restarts can only add; and somewhere they do add."""
    keys, logits_fn, images, labels = problem((8, 6, 5, 3))
    runs = [attacks.pgd(epsilon=0.2, step_size=0.2, steps=2, restarts=restarts) for restarts in (1, 4)]
    one, four = (
        loss_of(logits_fn, jax.jit(run)(jax.random.clone(keys), logits_fn, images, labels), labels) for run in runs
    )
    assert jnp.all(four >= one - 1e-6)
    assert jnp.any(four > one + 1e-4)


def test_success_comes_before_loss():
    """Three examples: a success beats a failure of higher loss; among equals the loss decides; NaN never wins."""
    old = Best(jnp.zeros((4, 1, 1, 1)), jnp.array([5.0, 1.0, 1.0, 1.0]), jnp.array([False, True, True, False]))
    new = jnp.ones((4, 1, 1, 1))
    best = better(old, new, jnp.array([1.0, 9.0, 2.0, jnp.nan]), jnp.array([True, False, True, False]))
    np.testing.assert_array_equal(best.points.ravel(), [1, 0, 1, 0])
    np.testing.assert_array_equal(best.loss, [1, 1, 2, 1])
    np.testing.assert_array_equal(best.success, [True, True, True, False])


def test_keep_success_keeps_what_loss_throws_away():
    """One pixel that walks 0.5, 0.6 .. 0.9: wrong at 0.6 only, while the cross-entropy rises all the way."""

    def apply(images):
        x, knots = images.ravel(), jnp.array([0.5, 0.57, 0.63, 0.66, 0.9])
        second = jnp.interp(x, knots, jnp.array([-1.0, 0.05, 0.05, -0.05, -0.05]))
        third = jnp.interp(x, knots, jnp.array([-5.0, -1.2, -0.9, -0.8, -0.06]))
        return jnp.stack([jnp.zeros_like(x), second, third], axis=-1)

    images, labels = jnp.full((1, 1, 1, 1), 0.5), jnp.array([0])
    for keep, expected in (("loss", 0.9), ("success", 0.6)):
        attack = attacks.pgd(epsilon=0.4, step_size=0.1, steps=4, random_start=False, keep=keep)
        found = attack(jax.random.split(jax.random.key(0), 1), jax.tree_util.Partial(apply), images, labels)
        np.testing.assert_allclose(found.item(), expected, atol=1e-6)


def test_last_spends_no_extra_forward(problem):
    keys, logits_fn, images, labels = problem()

    def model_calls(keep):
        program = jax.make_jaxpr(attacks.pgd(epsilon=0.1, steps=3, keep=keep))(keys, logits_fn, images, labels)
        return str(program).count(" tanh ")

    assert model_calls("last") == 1
    assert model_calls("loss") == 2  # in the step, and once for the last point


def test_epsilon_may_be_traced_and_differ_by_example(problem):
    keys, logits_fn, images, labels = problem()

    @jax.jit
    def run(keys, epsilon):
        return attacks.pgd(epsilon=epsilon, step_size=epsilon / 2, steps=3)(keys, logits_fn, images, labels)

    epsilon = jnp.array([0.0, 0.05, 0.1, 0.2])
    distance = norms.get("linf").distance(run(keys, epsilon), images)
    np.testing.assert_allclose(distance, epsilon, atol=1e-6)


@pytest.mark.parametrize("norm", sorted(SMALL))
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_in_the_ball(norm, dtype, problem):
    """Rounding to nearest would leave the ball by up to 2^-9; rounding towards the clean image cannot."""
    keys, logits_fn, images, labels = problem()
    images = images.astype(dtype)
    attack = attacks.pgd(norm=norm, epsilon=SMALL[norm], steps=5)
    adversarial = jax.jit(attack)(keys, logits_fn, images, labels)
    assert adversarial.dtype == images.dtype
    wide = [x.astype(jnp.float32) for x in (adversarial, images)]
    distance = norms.get(norm).distance(*wide)
    assert jnp.all(distance <= SMALL[norm] + 1e-6) and jnp.all(distance > 0.8 * SMALL[norm])
    assert jnp.all(loss_of(logits_fn, adversarial, labels) > loss_of(logits_fn, images, labels))


def test_float64_is_attacked_in_float64(problem):
    keys, logits_fn, images, labels = problem()
    with jax.enable_x64(True):
        wide = jnp.asarray(np.asarray(images), jnp.float64)
        adversarial = attacks.pgd(epsilon=0.1, steps=2)(keys, logits_fn, wide, labels)
    assert adversarial.dtype == np.float64
    assert np.abs(np.asarray(adversarial) - np.asarray(wide)).max() <= 0.1 + 1e-15


def test_training_does_not_differentiate_through_the_attack(problem):
    """The weights' gradient is that at a fixed adversarial image, and the attack's loop carries no tangents of
    weights.
    """
    keys, logits_fn, images, labels = problem()
    attack = attacks.pgd(epsilon=0.1, steps=3, keep="last")

    def training_loss(weights, keys):
        model = jax.tree_util.Partial(logits_fn.func, weights)
        return loss_of(model, attack(keys, model, images, labels), labels).mean()

    def fixed_loss(weights, adversarial):
        return loss_of(jax.tree_util.Partial(logits_fn.func, weights), adversarial, labels).mean()

    weights = logits_fn.args[0]
    found = jax.grad(training_loss)(weights, jax.random.clone(keys))
    expected = jax.grad(fixed_loss)(weights, attack(jax.random.clone(keys), logits_fn, images, labels))
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), found, expected)
    # Products with weights: 2 forward + 2 backward in the attack's step, 2 forward + 3 backward in the training loss.
    assert str(jax.make_jaxpr(jax.grad(training_loss))(weights, keys)).count("dot_general") <= 9


def test_runs_under_shard_map(problem):
    keys, logits_fn, images, labels = problem()
    attack = attacks.pgd(epsilon=0.1, steps=3, restarts=2)
    mesh, batch, whole = parallel.mesh(2), PartitionSpec(parallel.DATA), PartitionSpec()
    mapped = jax.shard_map(attack, mesh=mesh, in_specs=(batch, whole, batch, batch), out_specs=batch)
    expected = jax.jit(attack)(jax.random.clone(keys), logits_fn, images, labels)
    np.testing.assert_allclose(jax.jit(mapped)(keys, logits_fn, images, labels), expected, atol=1e-5)


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"epsilon": -0.1}, r"epsilon = -0.1: must be at least 0"),
        ({"epsilon": 8.0}, r"epsilon = 8.0: must be at most 1 for norm linf .*8/255, not 8"),
        ({"epsilon": float("nan")}, r"epsilon = nan: must be at least 0"),
        ({"epsilon": np.array([0.1, -1.0])}, r"epsilon = .*: must be at least 0"),
        ({"step_size": 0.0}, r"step_size = 0.0: must be above 0"),
        ({"steps": 0}, r"steps = 0: must be a whole number, at least 1"),
        ({"steps": 2.5}, r"steps = 2.5: must be a whole number"),
        ({"restarts": 0}, r"restarts = 0: must be a whole number"),
        ({"norm": "l_inf"}, r"norm = 'l_inf': must be one of l1, l2, linf; did you mean 'linf'\?"),
        ({"loss": "margins"}, r"loss = 'margins'.*did you mean 'margin'\?"),
        ({"keep": "best"}, r"keep = 'best': must be one of last, loss, success"),
        ({"momentum": -1.0}, r"momentum = -1.0: must be at least 0"),
        ({"restarts": 2, "random_start": False}, r"restarts = 2: must be 1 without random_start"),
        ({"restarts": 2, "keep": "last"}, r"restarts = 2: must be 1 with keep = 'last'"),
    ],
)
def test_bad_keywords_are_named_at_once(keywords, message):
    with pytest.raises(ValueError, match=message):
        attacks.pgd(**{"epsilon": 0.1, **keywords})


def test_bad_arguments_are_named(problem):
    keys, logits_fn, images, labels = problem()
    attack = attacks.pgd(epsilon=0.1)
    with pytest.raises(ValueError, match=r"keys: .*must be one typed key per example, \[4\]"):
        attack(keys[:3], logits_fn, images, labels)
    with pytest.raises(ValueError, match=r"images: uint8.*must be floats in \[0,1\]"):
        attack(keys, logits_fn, (255 * images).astype(jnp.uint8), labels)


def test_unknown_attack_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"attack = 'pdg'.*did you mean 'pgd'\?"):
        attacks.build("pdg", epsilon=0.1)


def test_the_tutorial_runs():
    """The example in the package's docstring, as it stands there."""
    lines = attacks.__doc__.splitlines()
    example = "\n".join(line[4:] for line in lines if line.startswith("    "))
    names = {}
    exec(example, names)
    distance = norms.get("linf").distance(names["adversarial"], names["images"])
    assert jnp.all((distance > 0) & (distance <= 8 / 255 + 1e-6))

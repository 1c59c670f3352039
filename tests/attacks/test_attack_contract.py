"""What every attack promises. A new attack is tested by being registered in `robust_vit.attacks.ATTACKS`.

If its defaults are expensive, or it needs keywords of its own, give it a row in `CHEAP`. `norm`, `epsilon` and, where
the factory has them, `random_start` and `keep` are set here.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from robust_vit import attacks, parallel
from robust_vit.attacks import losses, norms

# Keywords that make an attack cheap; "norms" and "measure" are read here and not passed on: the norms it knows, and the
# loss that it promises not to lower.
CHEAP = {
    "apgd": {"steps": 5},
    "boundary": {"steps": 60, "norms": ["l2"], "measure": "margin"},
    "cw": {"steps": 15, "rounds": 2, "weight": 1.0, "learning_rate": 0.05, "norms": ["l2"], "measure": "margin"},
    "ddn": {"steps": 12, "norms": ["l2"], "measure": "margin"},
    "deepfool": {"steps": 4, "candidates": 3, "norms": ["l2", "linf"], "measure": "margin"},
    "ead": {"steps": 15, "rounds": 2, "weight": 1.0, "learning_rate": 0.05, "norms": ["l1"], "measure": "margin"},
    "fab": {"steps": 5, "targets": 2},
    "fgsm": {},
    "fmn": {"steps": 12, "measure": "margin"},
    "hop_skip_jump": {"steps": 3, "evaluations": 10, "norms": ["l2", "linf"], "measure": "margin"},
    "nes": {"steps": 4, "pairs": 8, "measure": "margin"},
    "patch": {"steps": 3, "size": 3},
    "pdpgd": {"steps": 60, "measure": "margin"},
    "pgd": {"steps": 3},
    "square": {"queries": 20, "measure": "margin"},
    "transfer": {"steps": 3, "translation": 3, "nesterov": True},
}
# Attacks for evaluation, and made of parts that the others test: here each keeps its ball, any split, one program and
# its dtype; the other promises, and its other norms, are held in the slow job.
APART = {"boundary", "cw", "deepfool", "ead", "hop_skip_jump", "nes", "patch", "pdpgd", "transfer"}
EPSILON = {"linf": 0.1, "l2": 1.2, "l1": 2.0}
SHAPES = [(2, 5, 7, 3), (3, 6, 4, 1)]


def pairs(apart):
    """Every attack in every norm that it knows; of those that are `apart`, all but the first norm are slow."""
    for name in attacks.names():
        for place, norm in enumerate(CHEAP.get(name, {}).get("norms", sorted(norms.BALLS, reverse=True))):
            slow = name in APART and (place or apart)
            yield pytest.param(name, norm, marks=pytest.mark.slow if slow else ())


every_attack = pytest.mark.parametrize("name", attacks.names())
every_attack_in_full = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in APART else ()) for name in attacks.names()]
)
every_attack_and_norm = pytest.mark.parametrize("name, norm", [*pairs(apart=False)])
every_attack_and_norm_in_full = pytest.mark.parametrize("name, norm", [*pairs(apart=True)])


def build(name, norm="linf", epsilon=None, **keywords):
    """Builds an attack with its cheap keywords; says what is missing if it needs more."""
    known = inspect.signature(attacks.ATTACKS[name]).parameters
    row = {key: value for key, value in CHEAP.get(name, {}).items() if key not in ("norms", "measure")}
    given_here = {"norm": norm, "epsilon": EPSILON[norm] if epsilon is None else epsilon, **row, **keywords}
    missing = [key for key, p in known.items() if p.default is p.empty and key not in given_here]
    if missing:
        pytest.fail(f"attack {name!r} needs {', '.join(missing)}: give it a row in CHEAP of {__file__}")
    return attacks.build(name, **given_here)


def accepts(name, keyword):
    return keyword in inspect.signature(attacks.ATTACKS[name]).parameters


def first_norm(name):
    return CHEAP.get(name, {}).get("norms", ["linf"])[0]


@functools.cache
def compiled(name, norm):
    """One program for all radii: epsilon is traced."""
    return jax.jit(lambda epsilon, *arguments: build(name, norm, epsilon)(*arguments))


@functools.cache
def jitted(name, norm):
    """One program for all tests that call an attack alike."""
    return jax.jit(build(name, norm))


@every_attack_and_norm
@examples(12)
@given(
    seed=st.integers(0, 2**16), shape=st.sampled_from(SHAPES), scale=st.floats(0.0, 1.0), strength=st.floats(0.0, 1.0)
)
def test_stays_in_the_ball_and_in_the_pixel_range(name, norm, problem, seed, shape, scale, strength):
    largest = {"linf": 1.0, "l2": 4.0, "l1": 30.0}[norm]
    epsilon = np.float32(largest * scale**3)  # the cube: small radii as often as large ones
    keys, logits_fn, images, labels = problem(shape, seed=seed)
    adversarial = compiled(name, norm)(epsilon, keys, logits_fn, images, labels, np.float32(strength))
    assert adversarial.shape == images.shape
    distance = norms.get(norm).distance(np.asarray(adversarial, np.float64), np.asarray(images, np.float64))
    assert np.all(np.asarray(distance) <= epsilon * strength * (1 + 1e-6) + 1e-6)
    assert adversarial.min() >= 0.0 and adversarial.max() <= 1.0


@every_attack_and_norm_in_full
def test_never_lowers_its_loss_against_the_start_it_keeps(name, norm, problem):
    """Started at the clean image where it can be; otherwise the margin, which a success raises and a failure leaves."""
    measure = CHEAP.get(name, {}).get("measure", "cross_entropy" if accepts(name, "keep") else "margin")
    keywords = {key: value for key, value in {"keep": "loss", "random_start": False}.items() if accepts(name, key)}
    keys, logits_fn, images, labels = problem((4, 6, 5, 3))
    adversarial = jax.jit(build(name, norm, **keywords))(keys, logits_fn, images, labels)
    before, after = (losses.get(measure)(logits_fn(x), labels) for x in (images, adversarial))
    assert jnp.all(after >= before - 1e-6)
    assert jnp.any(after > before + 1e-3)


@every_attack_in_full
def test_jit_is_eager(name, problem):
    keys, logits_fn, images, labels = problem()
    attack = build(name, first_norm(name))
    eager = attack(keys, logits_fn, images, labels)
    keys, *_ = problem()
    np.testing.assert_allclose(jitted(name, first_norm(name))(keys, logits_fn, images, labels), eager, atol=1e-5)


@every_attack
def test_any_order_and_any_split_give_the_same(name, problem):
    """Bit for bit where the compiled shape is the same, to float tolerance where it is not."""
    attack = jitted(name, first_norm(name))
    keys, logits_fn, images, labels = problem()
    whole = attack(keys, logits_fn, images, labels)
    order = jnp.array([2, 0, 3, 1])
    keys, *_ = problem()
    np.testing.assert_array_equal(attack(keys[order], logits_fn, images[order], labels[order]), whole[order])
    for part in (slice(0, 2), slice(2, 4)):
        keys, *_ = problem()
        np.testing.assert_allclose(attack(keys[part], logits_fn, images[part], labels[part]), whole[part], atol=1e-5)


@every_attack_in_full
def test_vmap(name, problem):
    """Mapped over a leading axis of 2, as an ensemble of batches would."""
    attack = build(name, first_norm(name))
    keys, logits_fn, images, labels = problem()
    whole = jitted(name, first_norm(name))(keys, logits_fn, images, labels)
    keys, *_ = problem()
    mapped = jax.jit(jax.vmap(attack, in_axes=(0, None, 0, 0)))
    found = mapped(keys.reshape(2, 2), logits_fn, *parallel.split((images, labels), 2))
    np.testing.assert_allclose(found.reshape(whole.shape), whole, atol=1e-5)


@every_attack_in_full
def test_pmap_is_jit(name, problem):
    attack = build(name, first_norm(name))
    keys, logits_fn, images, labels = problem()
    whole = jitted(name, first_norm(name))(keys, logits_fn, images, labels)
    keys, *_ = problem()
    mapped = parallel.pmap(attack, devices=jax.devices()[:2])
    found = mapped(keys.reshape(2, 2), logits_fn, *parallel.split((images, labels), 2))
    np.testing.assert_allclose(found.reshape(whole.shape), whole, atol=1e-5)


@pytest.mark.slow
@every_attack_and_norm
def test_shard_map_is_jit(name, norm, problem):
    attack = build(name, norm)
    keys, logits_fn, images, labels = problem()
    whole = jitted(name, norm)(keys, logits_fn, images, labels)
    keys, *_ = problem()
    batch, everywhere = PartitionSpec(parallel.DATA), PartitionSpec()
    specs = dict(in_specs=(batch, everywhere, batch, batch), out_specs=batch)
    mapped = jax.shard_map(attack, mesh=parallel.mesh(2), **specs)
    np.testing.assert_allclose(jax.jit(mapped)(keys, logits_fn, images, labels), whole, atol=1e-5)


@every_attack_and_norm
def test_shard_map_traces(name, norm, problem):
    """Every loop carries what varies over devices as such; cheap enough for all attacks."""
    keys, logits_fn, images, labels = problem()
    batch, everywhere = PartitionSpec(parallel.DATA), PartitionSpec()
    specs = dict(in_specs=(batch, everywhere, batch, batch), out_specs=batch)
    mapped = jax.shard_map(build(name, norm), mesh=parallel.mesh(2), **specs)
    assert jax.eval_shape(mapped, keys, logits_fn, images, labels).shape == images.shape


@every_attack
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_keeps_the_dtype(name, dtype, problem):
    keys, logits_fn, images, labels = problem()
    found = jax.eval_shape(build(name, first_norm(name)), keys, logits_fn, images.astype(dtype), labels)
    assert (found.shape, found.dtype) == (images.shape, jnp.dtype(dtype))


@every_attack
def test_one_program_for_every_strength_and_weights(name, problem):
    """Strength 0 gives the images back bit for bit; a smaller strength a smaller ball; other weights no new program."""
    norm, traces = first_norm(name), []
    attack = build(name, norm)

    @jax.jit
    def run(*arguments):
        traces.append(1)
        return attack(*arguments)

    for strength in (0.0, 0.25, 1.0):
        keys, logits_fn, images, labels = problem()
        adversarial = run(keys, logits_fn, images, labels, strength)
        distance = norms.get(norm).distance(adversarial, images)
        assert jnp.all(distance <= strength * EPSILON[norm] + 1e-6)
        if strength == 0.0:
            np.testing.assert_array_equal(adversarial, images)
    assert jnp.any(adversarial != images)
    keys, other_weights, _, _ = problem(seed=7)
    assert not jnp.array_equal(run(keys, other_weights, images, labels, 1.0), adversarial)
    assert len(traces) == 1


@every_attack_in_full
def test_strength_may_differ_by_example(name, problem):
    norm = first_norm(name)
    keys, logits_fn, images, labels = problem()
    strength = jnp.array([0.0, 0.3, 0.6, 1.0])
    adversarial = jitted(name, norm)(keys, logits_fn, images, labels, strength)
    assert jnp.all(norms.get(norm).distance(adversarial, images) <= strength * EPSILON[norm] + 1e-6)
    np.testing.assert_array_equal(adversarial[0], images[0])


@every_attack_in_full
def test_one_hot_targets_mean_labels(name, problem):
    attack = jitted(name, first_norm(name))
    keys, logits_fn, images, labels = problem()
    from_labels = attack(keys, logits_fn, images, labels)
    keys, *_ = problem()
    from_distributions = attack(keys, logits_fn, images, jax.nn.one_hot(labels, 5))
    np.testing.assert_allclose(from_labels, from_distributions, atol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if name in APART else ())
        for name in attacks.names()
        if accepts(name, "steps")
    ],
)
def test_more_steps_are_not_a_larger_program(name, problem):
    """Loops are `scan`s: unrolled steps would make compile time grow with them."""
    keys, logits_fn, images, labels = problem()

    def lines(steps):
        attack = jax.jit(build(name, first_norm(name), steps=steps))
        return attack.lower(keys, logits_fn, images, labels).compile().as_text().count(" = ")

    assert lines(20) <= lines(5)

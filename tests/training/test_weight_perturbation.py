"""AWP against its formula written out, with every objective, in parts, and where it counts as nothing."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from robust_vit import models, objectives
from robust_vit.models.parts import layers, scanning
from robust_vit.training import optimizer, state, step
from robust_vit.training.weight_perturbation import uphill

SHAPE, CLASSES, SIZE, GAMMA = (4, 4, 1), 4, 8, 0.3


class Plain(nn.Module):
    """Two layers and nothing that ties the examples of a batch together."""

    drop_path: float = 0.0

    @nn.compact
    def __call__(self, images, train=False):
        x = layers.Dense(6, name="first")(images.reshape(len(images), -1))
        return layers.Dense(CLASSES, name="second")(jnp.tanh(x))


class Normalised(nn.Module):
    """The same with BatchNorm."""

    drop_path: float = 0.0

    @nn.compact
    def __call__(self, images, train=False):
        x = layers.BatchNorm()(layers.Dense(6)(images.reshape(len(images), -1)), train)
        return layers.Dense(CLASSES)(jnp.tanh(x))


def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (SIZE, *SHAPE), dtype=np.uint8),
        "label": rng.integers(0, CLASSES, SIZE, dtype=np.int32),
        "index": np.arange(SIZE, dtype=np.int32),
    }


def toward(keys, logits_fn, images, targets, strength=1.0):
    """One sign step up the loss: an attack whose images depend on the weights."""
    slope = jax.grad(lambda x: -jnp.sum(jax.nn.log_softmax(logits_fn(x)) * targets))(images)
    start = jax.vmap(lambda key: jax.random.uniform(key, SHAPE, minval=-0.01, maxval=0.01))(keys)
    return jax.lax.stop_gradient(jnp.clip(images + start + 0.1 * strength * jnp.sign(slope), 0.0, 1.0))


@functools.cache
def start(model=Plain, name="adversarial"):
    memory = functools.partial(objectives.memory, name, CLASSES)
    return state.create(model(), optimizer.build("sgd"), SHAPE, 0, False, memory)


@functools.cache
def teacher():
    params = Plain().init(jax.random.key(5), jnp.zeros((1, *SHAPE)))
    return Partial(Plain().apply, params)


def after(name="adversarial", model=Plain, attack=toward, **keywords):
    """State and metrics after a step, a primitive at a time: nothing is compiled but single operations."""
    made = step.make(
        model(), objectives.build(name), attack, optimizer.build("sgd"), num_classes=CLASSES, seed=0, **keywords
    )
    known = teacher() if name in objectives.TEACHERS else None
    with jax.disable_jit(), jax.debug_key_reuse(False):  # which takes a slice of a scan's keys for their use
        return made(start(model, name), batch(), 0.1, 1.0, known)


def close(one, other, **keywords):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **keywords), one, other)


def test_each_kernel_moves_by_gamma_of_its_own_norm_and_nothing_else_moves():
    rng = np.random.default_rng(0)
    params = start().params
    slopes = jax.tree.map(lambda w: jnp.asarray(rng.normal(size=w.shape), jnp.float32), params)
    moved = uphill(params, slopes, GAMMA)
    for name in ("first", "second"):
        w, g = (np.asarray(tree[name]["kernel"], np.float64) for tree in (params, slopes))
        expected = w + GAMMA * np.linalg.norm(w) / np.linalg.norm(g) * g
        np.testing.assert_allclose(moved[name]["kernel"], expected, atol=1e-6)
        np.testing.assert_array_equal(moved[name]["bias"], params[name]["bias"])


def test_a_kernel_without_a_gradient_stays_where_it_is():
    params = start().params
    close(uphill(params, jax.tree.map(jnp.zeros_like, params), GAMMA), params, rtol=0)


def test_blocks_that_are_scanned_move_as_those_that_are_not():
    vit = functools.partial(
        models.build, "vit", image_size=4, channels=1, patch_size=2, width=8, depth=2, heads=2, num_classes=CLASSES
    )
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(vit().init, jax.random.key(0), jnp.zeros((1, *SHAPE)))["params"]
    params, slopes = (
        jax.tree.map(lambda w: np.asarray(rng.normal(size=w.shape), np.float32), shapes) for _ in range(2)
    )
    slopes["blocks_0"] = jax.tree.map(lambda g: 100.0 * g, slopes["blocks_0"])  # one norm for both would show
    stacked = uphill(scanning.stack(params), scanning.stack(slopes), GAMMA)
    close(scanning.unstack(stacked), uphill(params, slopes, GAMMA), rtol=1e-5)


def test_the_step_is_the_gradient_at_the_moved_weights_on_the_images_attacked_at_the_old_ones():
    params, images = start().params, jnp.asarray(batch()["image"] / 255.0, jnp.float32)
    labels = jax.nn.one_hot(batch()["label"], CLASSES)
    shown = []

    def attack(keys, logits_fn, images, targets, strength=1.0):
        shown.append(toward(keys, logits_fn, images, targets, strength))
        return shown[-1]

    found, metrics = after(attack=attack, awp_gamma=GAMMA)
    assert len(shown) == 1  # at the weights as they were

    def loss(w):
        return -jnp.mean(jnp.sum(labels * jax.nn.log_softmax(Plain().apply({"params": w}, shown[0])), -1))

    v = jax.grad(loss)(params)
    moved = jax.tree.map(lambda w: w, params)
    for name in ("first", "second"):
        w, g = params[name]["kernel"], v[name]["kernel"]
        moved[name]["kernel"] = w + GAMMA * jnp.sqrt(jnp.sum(w**2) / jnp.sum(g**2)) * g
    assert loss(moved) > loss(params)
    np.testing.assert_allclose(metrics["loss"], loss(moved), rtol=1e-5)
    expected = jax.tree.map(lambda w, g: w - 0.1 * 1.9 * g, params, jax.grad(loss)(moved))  # Nesterov's first step
    close(found.params, expected, atol=1e-6)
    assert images.shape == shown[0].shape


QUICK = {"gkl", "deit_soft"}  # of two passes and a memory, of no attack and a teacher
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in objectives.names()]


@pytest.mark.parametrize("name", EVERY)
def test_with_every_objective_parts_are_the_whole_and_the_step_is_another(name):
    whole, metrics = after(name, awp_gamma=GAMMA)
    parts, same = after(name, awp_gamma=GAMMA, accumulation=2)
    close((whole.params, whole.memory), (parts.params, parts.memory), atol=2e-6)
    assert metrics.keys() == same.keys() and metrics["finite"]
    close(metrics, same, rtol=1e-4)
    without, before = after(name)
    assert metrics["loss"] > before["loss"]  # at weights that were moved up its slope
    # By more than parts may differ from the whole: the steps of distillations are short.
    assert not np.allclose(whole.params["first"]["kernel"], without.params["first"]["kernel"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["standard", "gkl"])
def test_before_its_epoch_it_changes_no_bit(name):
    early, metrics = after(name, awp_gamma=GAMMA, awp_from_epoch=1.0)
    without, same = after(name)
    close((early, metrics), (without, same), rtol=0)


def test_the_running_averages_are_those_of_the_second_pass():
    once, _ = after(model=Normalised)
    twice, _ = after(model=Normalised, awp_gamma=GAMMA)
    before = start(Normalised).batch_stats
    moved = jax.tree.map(lambda a, b: np.max(np.abs(np.asarray(a - b))), once.batch_stats, before)
    again = jax.tree.map(lambda a, b: np.max(np.abs(np.asarray(a - b))), twice.batch_stats, before)
    assert not np.allclose(jax.tree.leaves(moved), jax.tree.leaves(again), rtol=1e-3)
    assert max(jax.tree.leaves(again)) < 2.5 * max(jax.tree.leaves(moved))  # one update, not two

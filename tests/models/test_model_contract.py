"""What every registered family promises, tried on one tiny representative of each (tiny.py)."""

import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import models

TINY = runpy.run_path(str(pathlib.Path(__file__).parent / "tiny.py"))["TINY"]
CONVOLUTIONAL = ("resnet", "convnext")  # no attention maps to show
BATCH = 4


@pytest.fixture(scope="module", params=sorted(TINY))
def tiny(request):
    """(name, module, variables, images, logits, input gradient, captured logits, captures) of each family, in one
    program: most of this file's time is compilation.
    """
    module = models.build(request.param, **TINY[request.param])
    images = jax.random.uniform(jax.random.key(1), (BATCH, *models.image_shape(module)))
    variables = models.init(module, jax.random.key(0))

    @jax.jit
    def run(variables, images):
        def loss(images):
            logits = models.logits_fn(module, variables)(images)
            return -jax.nn.log_softmax(logits)[jnp.arange(BATCH), jnp.arange(BATCH) % 10].sum(), logits

        gradient, logits = jax.grad(loss, has_aux=True)(images)
        return logits, gradient, *models.capture(module, variables, images)

    return request.param, module, variables, images, *run(variables, images)


def test_every_module_class_has_a_representative():
    classes = {factory.func for factory in models.MODELS.values()}
    assert classes == {models.MODELS[name].func for name in TINY}


def test_logits_gradient_and_captures(tiny):
    name, *_, logits, gradient, captured_logits, captured = tiny
    assert logits.shape == (BATCH, 10) and logits.dtype == jnp.float32
    assert np.isfinite(logits).all() and np.isfinite(gradient).all()
    assert float(jnp.abs(gradient).reshape(BATCH, -1).max(1).min()) > 0  # every image is seen

    np.testing.assert_allclose(captured_logits, logits, atol=1e-4)
    assert captured["tokens"] and len(captured["features"]) == 1
    assert captured["features"][0].shape[0] == BATCH and captured["features"][0].ndim == 2
    assert bool(captured["attention"]) != name.startswith(CONVOLUTIONAL)


def test_bfloat16_computes_logits_in_float32(tiny):
    _, module, variables, images, exact, *_ = tiny
    narrow = jax.jit(module.clone(dtype=jnp.bfloat16).apply)(variables, images)
    assert narrow.dtype == jnp.float32
    scale = float(jnp.abs(exact).max()) + 1e-3
    assert float(jnp.abs(narrow - exact).max()) < 0.1 * scale


def test_training_step_has_gradients_and_new_statistics(tiny):
    _, module, variables, images, *_ = tiny

    @jax.jit
    def step(variables, images, key):
        def loss(params):
            logits, state = module.apply(
                {**variables, "params": params}, images, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
            )
            return jnp.square(logits - 1).mean(), state

        return jax.value_and_grad(loss, has_aux=True)(variables["params"])

    (loss, state), gradients = step(variables, images, jax.random.key(2))
    assert np.isfinite(loss) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert any(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients))
    if "batch_stats" in variables:
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), state["batch_stats"], variables["batch_stats"])
        assert all(jax.tree.leaves(moved))


def test_equal_models_are_equal_to_jit(tiny):
    name, module, variables, *_ = tiny
    again = models.logits_fn(models.build(name, **TINY[name]), jax.tree.map(lambda x: x + 0, variables))
    ours, theirs = jax.tree.structure(models.logits_fn(module, variables)), jax.tree.structure(again)
    assert ours == theirs and hash(ours) == hash(theirs)  # what `jax.jit` looks its compiled programs up by


def test_equal_models_share_one_compilation():
    traces = []

    @jax.jit
    def run(logits_fn, images):
        traces.append(None)
        return logits_fn(images)

    for seed in range(2):
        module = models.build("vit", **TINY["vit"])
        variables = models.init(module, jax.random.key(seed))
        run(models.logits_fn(module, variables), jnp.zeros((1, *models.image_shape(module))))
    assert len(traces) == 1

"""Every size of every family at 32x32: forward, input gradient and one adversarial training step, compiled and run.

Minutes a row for the large ones, so only with ROBUST_VIT_EVERY_ROW=1 (and =224 for one of each family at 224 pixels);
`tests/training/test_families.py` runs a small sibling of each family always.
"""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import pytest

from robust_vit import attacks, models, objectives
from robust_vit.training import optimizer, state, step

WANTED = os.environ.get("ROBUST_VIT_EVERY_ROW", "")
TABLE = pathlib.Path(__file__).parent.parent / "data" / "models.csv"
ONE_EACH = (
    *("vit_small_patch16_224", "deit_small_patch16_224", "vit_small_cvst", "cait_s12_224", "xcit_small_12_p16_224"),
    *("swin_tiny_patch4_window7_224", "sparse_swin_tiny_patch4_window7_224", "efficientvit_b1", "mobilevit_s"),
    *("resnet50", "resnet50_gelu", "convnext_tiny", "convnext_tiny_cvst"),
)

pytestmark = pytest.mark.slow


def rows():
    """(name, overrides at 32x32) of each distinct name in the table."""
    for name in dict.fromkeys(line.split(",")[0] for line in TABLE.read_text().splitlines()[1:]):
        overrides = {"num_classes": 10, "image_size": 32}
        if name.startswith(("vit_", "deit_", "cait_")) and not name.endswith("_cvst"):
            overrides |= {"patch_size": 4, "scan": True}
        elif name.startswith(("swin_", "sparse_swin_")):
            overrides |= {"patch_size": 2, "window_size": 4}
        yield name, overrides


def take_a_step(name, overrides, size):
    """One adversarial step on two images; returns logits, input gradient, metrics."""
    module = models.build(name, **overrides)
    tx = optimizer.build("sgd", weight_decay=0.1)  # one buffer a weight: the largest rows must fit in memory
    attack = attacks.pgd(norm="linf", epsilon=8 / 255, step_size=2 / 255, steps=2, keep="last")
    made = step.make(module, objectives.build("adversarial"), attack, tx, num_classes=10, seed=0)
    start = jax.jit(lambda: state.create(module, tx, (size, size, 3), 0, False))()
    images = jax.random.uniform(jax.random.key(1), (2, size, size, 3))
    batch = {"image": images, "label": jnp.array([1, 2]), "index": jnp.arange(2)}

    @jax.jit
    def inspect(logits_fn, images):
        return logits_fn(images), jax.grad(lambda x: logits_fn(x)[:, 1].sum())(images)

    logits, gradient = inspect(models.logits_fn(module, start.variables()), images)
    _, metrics = jax.jit(made, donate_argnums=(0,))(start, batch, jnp.float32(1e-3), jnp.float32(1.0))
    return logits, gradient, metrics


@pytest.mark.skipif(not WANTED, reason="set ROBUST_VIT_EVERY_ROW=1: minutes a row")
@pytest.mark.parametrize(("name", "overrides"), list(rows()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_row_takes_an_adversarial_step_at_32(name, overrides):
    logits, gradient, metrics = take_a_step(name, overrides, 32)
    assert logits.shape == (2, 10) and jnp.isfinite(logits).all(), json.dumps(overrides)
    assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 0
    assert metrics["finite"]


@pytest.mark.skipif(WANTED != "224", reason="set ROBUST_VIT_EVERY_ROW=224: many minutes")
@pytest.mark.parametrize("name", ONE_EACH)
def test_one_of_each_family_takes_an_adversarial_step_at_224(name):
    logits, gradient, metrics = take_a_step(name, {"num_classes": 10, "image_size": 224}, 224)
    assert jnp.isfinite(logits).all() and jnp.abs(gradient).max() > 0 and metrics["finite"]

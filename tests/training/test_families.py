"""Every family trains: each shipped configuration traces, and one of each family takes real adversarial steps."""

import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest

from robust_vit import config as config_lib
from robust_vit.training import experiment, loop, state

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "models"))
import tiny

CONFIGS = sorted(path.stem for path in pathlib.Path("configs").glob("*.py") if path.stem != "digits")
# family -> the row of tests/models/tiny.py that makes it quick
FAMILIES = {
    "vit_s": "vit",
    "deit_s": "vit",
    "vit_s_cvst": "vit_small_cvst",
    "cait_s12": "cait",
    "xcit_n12": "xcit",
    "swin_t": "swin",
    "sparse_swin_t": "sparse_swin",
    "efficientvit_b1": "efficientvit_b0",
    "mobilevit_s": "mobilevit_xxs",
    "resnet50_gelu": "resnet50_32",
    "convnext_t": "convnext_tiny",
}


def small(name):
    config = config_lib.load_file(f"configs/{name}.py:synthetic")
    config.parallel.devices = 1
    config.data.options.examples = 16
    config.data.batch_size = config.evaluation.batch_size = 4
    return config


def traced_step(config):
    """Shapes of one training step, without compiling it."""
    made = experiment.build(config)
    size, shape = config.data.batch_size, made.dataset.image_shape
    start = jax.eval_shape(lambda: state.create(made.module, made.tx, shape, 0, False))
    batch = {
        "image": jax.ShapeDtypeStruct((size, *shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        "index": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    number = jax.ShapeDtypeStruct((), jnp.float32)
    return start, jax.eval_shape(made.step, start, batch, number, number)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.slow
def test_every_configuration_makes_a_training_step(name):
    start, (after, metrics) = traced_step(small(name))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), start)
    assert metrics["loss"].shape == ()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_adversarial_steps(name, tmp_path):
    config = small(name)
    for field, value in tiny.TINY[FAMILIES[name]].items():
        if field not in ("image_size", "num_classes", "stem_width"):
            config.model[field] = value
    config.training.epochs = 0.5  # two steps
    config.attack.warmup_epochs = config.optimizer.warmup_epochs = 0.0
    config.training.log_every_steps = 1
    config.validation.examples = 4
    config.validation.steps = 1
    config.evaluation.suite = ""
    made = experiment.build(config)
    loop.claim(tmp_path, made.config)
    trainer = loop.Trainer(made, tmp_path, live=False)
    before = jax.tree.map(jnp.array, trainer.state.params)
    assert trainer.train()
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), before, trainer.state.params)
    assert trainer.step == 2 and any(jax.tree.leaves(moved))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(trainer.state.params))
    trainer.close()

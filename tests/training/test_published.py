"""Published runs: each configuration has the values of its source, says what a reader must know, and makes a step."""

import ast
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import pytest

from robust_vit import config as config_lib
from robust_vit import models
from robust_vit.training import experiment, loop, state, validate

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "models"))
sys.path.insert(0, str(pathlib.Path(__file__).parent))
import published
import tiny

SHIPPED = [name for name in config_lib.available() if "/" in name and not name.startswith("ablations/")]
# family -> the row of tests/models/tiny.py that makes it quick
SMALL = {"ViT": "vit", "XCiT": "xcit", "CaiT": "cait", "ConvNeXt": "convnext_tiny", "ResNet": "resnet50_32"}
SMALL |= {"MobileViT": "mobilevit_xxs", "MaskedAutoencoder": "masked_autoencoder"}


def load(name):
    return config_lib.load_file(f"configs/{name}.py")


def with_data(config):
    """Data that are there in place of those that have to be named or prepared."""
    config.data.name = "synthetic"
    config.data.options = config_lib.ConfigDict({"size": 32, "classes": 10, "examples": 16})
    if config.data.extra.name:
        config.data.extra.name, config.data.extra.options = (
            "synthetic",
            config.data.options.copy_and_resolve_references(),
        )
    return config


def reduced(name):
    """The run with a tiny sibling of its model, images of 32 pixels, 8 a step and 2 attack steps at most."""
    config = with_data(load(name))
    config.parallel.devices = 1
    config.data.workers = 0
    config.data.batch_size = config.evaluation.batch_size = 8
    for field in ("train_transforms", "evaluation_transforms"):
        config.data[field] = tuple(re.sub(r"\((224|256)", "(32", spec) for spec in config.data[field])
    config.attack.steps = min(config.attack.steps, 2)
    config.initial = config_lib.base().initial
    if config.stages.image_sizes:
        config.stages.image_sizes = (16, 32)
    own = models.fields(config.model.name)
    family = SMALL[models.MODELS[config.model.name].func.__name__]
    for field, value in tiny.TINY[family].items():
        if field not in ("image_size", "num_classes", "patch_size", "pooling", "drop_path"):
            config.model[field] = value
    if own.get("stem") == "conv" and family == "vit":
        config.model.stem_width = 8
    return config


def test_every_published_run_is_in_the_table_and_every_row_has_its_file():
    assert set(SHIPPED) == set(published.RUNS)


@pytest.mark.parametrize("name", published.RUNS)
def test_the_values_are_those_of_the_source(name):
    config = load(name)
    for field, value in published.RUNS[name].items():
        found = config_lib.plain(config_lib.get(config, field))
        assert found == (pytest.approx(value) if isinstance(value, float) else value), field
    validate.validate(with_data(config))


@pytest.mark.parametrize("name", SHIPPED)
def test_the_docstring_says_command_cost_and_source(name):
    text = ast.get_docstring(ast.parse(pathlib.Path(f"configs/{name}.py").read_text()))
    assert f"\n    robust-vit train --config={name} --workdir=" in text
    for word in ("\nCost: ", "\nNot run in this project.", "\nReference: "):
        assert word in text
    assert len(text.partition("\n")[0]) <= 110


@pytest.mark.parametrize(
    "model", ["deit_s", "xcit_s12", "xcit_l12", "convnext_t", "cait_s12", "resnet50_gelu", "mobilevit_s"]
)
def test_the_short_name_is_the_published_run(model):
    """`--config=xcit_s12` and the file in its folder are one run."""
    full = config_lib.load_file(f"{model}_eps4")  # by the end of its name
    assert config_lib.differences(full, config_lib.load_file(model)) == []


def traced(name):
    """Shapes before and after one training step, without compiling it."""
    made = experiment.build(reduced(name))
    size, shape = 8, made.dataset.image_shape
    start = jax.eval_shape(lambda: state.create(made.module, made.tx, shape, 0, made.config.optimizer.ema_decay > 0))
    batch = {
        "image": jax.ShapeDtypeStruct((size, *shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        "index": jax.ShapeDtypeStruct((size,), jnp.int32),
        "extra": jax.ShapeDtypeStruct((size,), bool),
    }
    number = jax.ShapeDtypeStruct((), jnp.float32)
    return start, jax.eval_shape(made.step, start, batch, number, number)


QUICK = ("cifar10/plain_vit/vit_b2", "imagenet/light_recipe/xcit_s12_eps4")
STEPS = [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in SHIPPED]


@pytest.mark.parametrize("name", STEPS)
def test_every_published_run_makes_a_step(name):
    start, (after, metrics) = traced(name)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), start)
    assert metrics["loss"].shape == ()


def two_steps(name, folder):
    config = reduced(name)
    config.training.epochs = 1.0  # two batches of 8
    for section in (config.attack, config.optimizer):
        section.warmup_epochs = 0.0
    config.optimizer.cooldown_epochs = config.optimizer.warmup_learning_rate = 0.0
    config.training.log_every_steps = config.validation.steps = 1
    config.validation.examples = 8
    config.evaluation.suite = ""
    made = experiment.build(config)
    loop.claim(folder, made.config)
    trainer = loop.Trainer(made, folder, live=False)
    before = jax.tree.map(jnp.array, trainer.state.params)
    assert trainer.train() and trainer.step == 2
    after = trainer.state.params
    trainer.close()
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(after))
    assert any(bool(jnp.any(a != b)) for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after)))


EACH = ("imagenet/light_recipe/xcit_s12_eps4", "imagenet/singh2023/convnext_t_cvst", "cifar10/mimir/vit_s2")
EACH += ("cifar10/light_recipe/xcit_s12", "imagenet/light_recipe/xcit_s12_clean", "cifar10/generated_data/rebuffi2021")
EACH += ("cifar10/plain_vit/vit_b2",)


@pytest.mark.slow
@pytest.mark.parametrize("name", EACH)
def test_one_of_each_paper_takes_two_steps(name, tmp_path):
    two_steps(name, tmp_path)

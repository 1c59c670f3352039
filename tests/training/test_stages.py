"""Training in stages: small images see the whole model's weights, and a kill at any step changes no bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_vit import models
from robust_vit.models.parts import forms, positions
from robust_vit.training import checkpoint, experiment, loop, stages

VIT = dict(image_size=16, channels=1, patch_size=4, width=16, depth=2, heads=2, num_classes=4)
MODELS = {
    "learned": ("vit", VIT | dict(positions="learned")),
    "relative": ("vit", VIT | dict(positions="relative")),
    "sinusoidal": ("vit", VIT | dict(positions="sinusoidal")),
    "swin": (
        "swin",
        dict(image_size=16, channels=1, patch_size=2, window_size=8, width=8, depths=(1, 1), heads=(1, 2)),
    ),
    "xcit": ("xcit", dict(image_size=16, channels=1, patch_size=4, width=16, depth=1, heads=2, num_classes=4)),
}  # fmt: skip
SMALL = (8, 8)


@functools.cache
def drawn(kind, scan=False):
    module = models.build(MODELS[kind][0], **MODELS[kind][1], scan=scan)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    rng = np.random.default_rng(0)
    return module, jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.1, jnp.float32), shapes)


def by_hand(path, leaf):
    """What NumPy makes of a leaf for images of half the side."""
    if path[-1].key == "pos_embed" and leaf.ndim == 3:
        return positions.resize_learned(leaf, (4, 4), (2, 2), leaf.shape[1] - 16, antialias=True)
    if path[-1].key == "relative_position_bias_table":
        window = {225: 8, 49: 4, 52: 4}[leaf.shape[0]]
        new = (window // 2, window // 2)
        return positions.resize_relative(leaf, (window, window), new, leaf.shape[0] == 52, antialias=True)
    return leaf


@pytest.mark.parametrize("kind", MODELS)
def test_small_images_see_the_weights_of_the_whole_model_at_resized_positions(kind):
    module, variables = drawn(kind)
    images = jnp.asarray(np.random.default_rng(1).uniform(size=(2, *SMALL, 1)), jnp.float32)
    small = module.clone(image_size=SMALL)
    params = jax.tree_util.tree_map_with_path(by_hand, jax.tree.map(np.asarray, variables["params"]))
    expected = jax.jit(small.apply)({**variables, "params": params}, images)
    found = jax.jit(stages.at(module, SMALL).apply)(variables, images)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert stages.at(module, (16, 16)) is module


@pytest.mark.parametrize("kind", ["learned", "relative"])
def test_scanned_blocks_are_resized_as_unrolled_ones(kind):
    module, variables = drawn(kind)
    scanned = module.clone(scan=True)
    stacked = forms.to_form_of(scanned, variables)
    small = {"params": stages.resized(scanned, SMALL, stacked["params"])}
    unrolled = forms.to_unrolled(scanned.clone(image_size=SMALL), small)["params"]
    jax.tree.map(np.testing.assert_array_equal, unrolled, stages.resized(module, SMALL, variables["params"]))


@settings(deadline=None, max_examples=12)
@given(st.sampled_from([3, 8]), st.integers(0, 2**31))
def test_resized_images_stay_in_the_box_and_keep_what_is_constant(side, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 2, (2, 16, 16, 1)).astype(np.float32)
    images[1] = value = rng.uniform()
    small = stages.resize(jnp.asarray(images), (side, side))
    assert small.shape == (2, side, side, 1) and small.min() >= 0 and small.max() <= 1
    np.testing.assert_allclose(small[1], value, atol=1e-6)


def test_a_step_belongs_to_one_stage():
    ends = stages.boundaries((1.0, 0.5, 0.5), 10.5, 21)
    assert ends == [10, 16, 21]
    parts = [stages.Stage(end, SMALL, None, None, None, "") for end in ends]
    assert [stages.number(parts, step) for step in (0, 9, 10, 15, 16, 20, 21)] == [0, 0, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(stages__epochs=(0.3, 0.2)), r"stages.epochs = \(0.3, 0.2\): must be 0.6 in all, as training.epochs"),
        (dict(stages__image_sizes=(4, 8)), r"stages.image_sizes = \(4, 8\): must be left out, or as long as stages"),
        (dict(stages__epochs=(0.3, 0.3), stages__steps=(1,)), r"stages.steps = \(1,\): must be left out, or as long"),
        (dict(stages__epochs=(0.3, 0.3), stages__image_sizes=(8, 16)), r"image_sizes = \(8, 16\): must be at most 8"),
        (
            dict(stages__epochs=(0.3, 0.3), stages__image_sizes=(3, 8)),
            r"stages: stage 1: patch_size = 2: must be",
        ),
        (dict(stages__epochs=(0.3, 0.3), stages__steps=(0, 1)), r"stages.steps = 0: must be a whole number >= 1"),
        (
            dict(stages__epochs=(0.3, 0.3), stages__steps=(1, 2), attack__name="fgsm", attack__step_size=0.1),
            r"stages: stage 2: attack.steps = 2: must be left at",
        ),
    ],
)
def test_a_bad_schedule_is_named(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        experiment.build(tiny_run.config(**changes))
    assert "\n" not in str(error.value)


STAGED = dict(
    model__positions="learned",
    stages__epochs=(0.2, 0.2),
    stages__image_sizes=(4, 8),
    stages__steps=(1, 2),
    training__epochs=0.4,
    training__validate_every_epochs=10.0,
    optimizer__ema_decay=0.9,
)


def train(workdir, said, stop=None):
    """Trains until a step, as if a signal had come, or to the end."""
    made = experiment.build(config := tiny_run.config(**STAGED))
    loop.claim(workdir, config)
    trainer = loop.Trainer(made, workdir, live=False)
    trainer.validators = {}
    trainer.progress.say = said.append
    trainer._stopping = lambda: trainer.step == stop
    trainer.train()
    trainer.close()
    return trainer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    said = []
    trainer = train(tmp_path_factory.mktemp("whole"), said)
    return trainer, said


def test_each_stage_is_compiled_once_and_named(whole):
    trainer, said = whole
    assert [compiled._cache_size() for compiled in trainer.compiled] == [1, 1]
    assert [line for line in said if line.startswith("stage")] == [
        "stage 1 of 2: images of 4x4, pgd of 1 steps",
        "stage 2 of 2: images of 8x8, pgd of 2 steps",
    ]


def test_a_kill_inside_a_stage_or_between_two_changes_no_bit(whole, tmp_path):
    seam = whole[0].experiment.stages[0].until
    for stop in (seam - 1, seam, None):
        trainer = train(tmp_path, [], stop)
        assert stop is None or trainer.step == stop
    jax.tree.map(np.testing.assert_array_equal, trainer.state, whole[0].state)
    config, module, _, _ = checkpoint.load(tmp_path, "latest")  # a whole model at any step
    assert models.image_shape(module) == (8, 8, 1) and tuple(config.stages.steps) == (1, 2)

"""Augmentation inside the compiled step: soft labels reach the attack and the loss, and no pixel crosses devices."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_run

from robust_vit import objectives, parallel, randomness
from robust_vit.data import mixing
from robust_vit.training import experiment, optimizer, state, step

SHAPE, CLASSES, SIZE = (8, 8, 1), 10, 16
HEAVY = dict(mixup=0.8, cutmix=1.0, erase=0.25)


class Linear(nn.Module):
    """The least that has weights."""

    @nn.compact
    def __call__(self, images, train=False):
        return nn.Dense(CLASSES)(images.reshape(len(images), -1))


def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (SIZE, *SHAPE), dtype=np.uint8),
        "label": np.arange(SIZE, dtype=np.int32) % CLASSES,
        "index": np.arange(SIZE, dtype=np.int32),
    }


def build(objective, attack, augment):
    tx = optimizer.build("sgd")
    made = step.make(Linear(), objectives.build(objective), attack, tx, num_classes=CLASSES, seed=3, augment=augment)
    return made, state.create(Linear(), tx, SHAPE, 0, False)


@pytest.fixture(scope="module")
def runs():
    """A step with everything on, on 1 and 2 devices: its loss, and the compiled program."""
    made, start = build("standard", None, mixing.build(**HEAVY))
    found = {}
    for devices in (1, 2):  # no attack: what it sends between devices is of other tests
        mesh = parallel.mesh(devices)
        given = parallel.replicate(mesh, start), parallel.global_batch(mesh, batch()), np.float32(0.1), np.float32(1)
        compiled = parallel.compile(made, mesh, arguments="rbrr", results="rr").lower(*given).compile()
        found[devices] = float(compiled(*given)[1]["loss"]), compiled.as_text()
    return found


def test_augmentation_sends_nothing_between_devices(runs):
    assert len(re.findall(r"= .*all-reduce(?:-start)?\(", runs[2][1])) == 1
    assert not re.search(r"all-gather|all-to-all|collective-permute|reduce-scatter", runs[2][1])


def test_augmentation_is_the_same_on_any_number_of_devices(runs):
    np.testing.assert_allclose(runs[2][0], runs[1][0], rtol=2e-5)


def test_soft_labels_reach_attack_and_loss_and_hard_ones_the_accuracy():
    def painted(keys, logits_fn, images, targets, strength=1.0):
        """In place of an attack: every image filled with the largest of its targets."""
        return jnp.zeros_like(images) + targets.max(-1)[:, None, None, None]

    augment = mixing.build(mixup=0.8)
    made, start = build("adversarial", painted, augment)
    _, metrics = jax.jit(made)(start, batch(), np.float32(0.1), np.float32(1.0))
    keys = randomness.example_keys(3, batch()["index"], randomness.MIXING, 0)
    hard = jax.nn.one_hot(batch()["label"], CLASSES)
    _, soft = jax.jit(augment)(keys, jnp.zeros((SIZE, *SHAPE)), hard)
    logits = Linear().apply({"params": start.params}, painted(None, None, jnp.zeros((SIZE, *SHAPE)), soft))
    assert 0.5 < soft.max(-1).min() < soft.max(-1).mean() < 1
    np.testing.assert_allclose(metrics["loss"], optax.softmax_cross_entropy(logits, soft).mean(), rtol=1e-5)
    assert metrics["robust_correct"] == np.mean(np.argmax(logits, -1) == batch()["label"])


def test_the_configuration_reaches_the_step():
    config = tiny_run.config(augmentation__mixup=0.8, augmentation__erase=0.5)
    config.parallel.devices = 1
    made, plain = experiment.build(config), experiment.build(tiny_run.config())
    start = jax.eval_shape(lambda: state.create(made.module, made.tx, made.dataset.image_shape, 0, False))

    def draws(one):
        program = jax.make_jaxpr(one.step)(start, batch(), 0.1, 1.0)
        return str(program).count("erf_inv")  # of the noise that erasing draws

    assert draws(made) > draws(plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(augmentation__switch_probability=0.3), "augmentation.switch_probability = 0.3: must be left at 0.5"),
        (
            dict(augmentation__mixup=0.8, augmentation__switch_probability=0.3),
            "augmentation.switch_probability = 0.3: must be left at 0.5: mixup alone does not take it",
        ),
        (dict(augmentation__erase=0.5, augmentation__mix_probability=0.5), "mix_probability = 0.5: must be left at 1"),
        (dict(augmentation__erase_fill="black"), "augmentation.erase_fill = 'black': must be left at 'pixel'"),
        (dict(augmentation__erase_fill="blank"), "augmentation.erase_fill = 'blank': must be one of"),
        (dict(augmentation__erase_area=(0.1, 1.5)), r"augmentation.erase_area = \(0.1, 1.5\): must be \(low, high\)"),
        (dict(augmentation__mixup=-1.0), "augmentation.mixup = -1.0: must be >= 0"),
        (dict(augmentation__cutmix=1.0, data__batch_size=63), "augmentation.cutmix = 1.0: must be 0 unless data.batch"),
        (
            dict(augmentation__mixup=0.8, data__batch_size=72, parallel__devices=8),
            "augmentation.mixup = 0.8: must be 0 unless data.batch_size divides over 8 devices in pairs",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as error:
        experiment.build(tiny_run.config(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        (("random_crop(9)",), "train split of digits: random_crop size = 9: must be at most the padded 8x8"),
        (("random_crop(5)",), r"image shape after data.train_transforms = \(5, 5, 1\): must be \(8, 8, 1\)"),
        (("color_jitter(saturation=0.4)",), "train split of digits: color_jitter saturation = 0.4: must be 0"),
        (("random_affine(translate=8)",), "train split of digits: random_affine translate = 8: must be below"),
        (
            ("rotaton(5)",),
            "data.train_transforms: data transform = 'rotaton': must be one of .*did you mean 'rotation'",
        ),
    ],
)
def test_what_the_images_do_not_allow_is_one_line(transforms, message):
    with pytest.raises(ValueError, match=message) as error:
        experiment.build(tiny_run.config(data__train_transforms=transforms))
    assert "\n" not in str(error.value)


def test_a_model_that_takes_any_size_may_train_on_smaller_images():
    config = tiny_run.config(data__train_transforms=("random_crop(6)",))
    config.model.positions = "none"
    assert experiment.build(config).dataset.image_shape == (8, 8, 1)

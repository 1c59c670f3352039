"""An encoder is trained before a head that stays bit for bit; its teacher is the original's features."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from robust_vit import config as config_lib
from robust_vit import models
from robust_vit.data import pipeline
from robust_vit.models.weights import converted
from robust_vit.objectives.encoders import ENCODERS, TEACHERS
from robust_vit.training import encoding, experiment, frozen, initial, state

FIELDS = dict(depth=1, width=16, heads=2, patch_size=4, image_size=8, channels=1, num_classes=10, pooling="mean")
DECODER = dict(decoder_width=16, decoder_depth=1, decoder_heads=2)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A folder of weights: a tiny ViT for the digits."""
    module = models.build("vit", initializer="lecun", **FIELDS)
    folder = tmp_path_factory.mktemp("teacher")
    converted.save(folder, "vit", module, models.init(module, jax.random.key(0)))
    return folder


def digits(name, teacher="", **changes):
    config = tiny_run.config(objective__name=name, objective__teacher=str(teacher), data__batch_size=8, **changes)
    with config.unlocked():
        config.model = config_lib.ConfigDict({**config_lib.plain(config_lib.base().model), **FIELDS})
        config.model.initializer = "lecun"
        if name == "mimir":
            config.model.update({"name": "masked_autoencoder", **DECODER})
    return config


@pytest.mark.parametrize(
    "name", [name if name == "fare" else pytest.param(name, marks=pytest.mark.slow) for name in sorted(ENCODERS)]
)
def test_two_steps_on_digits_move_the_encoder_and_leave_the_head_bit_for_bit(name, teacher):
    made = experiment.build(digits(name, teacher if name in TEACHERS else "", optimizer__weight_decay=0.5))
    original = frozen.load(str(teacher), made) if name in TEACHERS else None
    create = functools.partial(state.create, made.module, made.tx, made.dataset.image_shape, 0, False)
    start = jax.jit(create)()
    if original is not None:
        start = start.replace(params=original.args[0]["params"])
    batches, run = pipeline.train(made.dataset.train, batch_size=8, seed=0), jax.jit(made.step)
    now, losses = start, []
    for strength in (0.0, 1.0, 1.0):
        batch = {field: value for field, value in next(batches).items() if field != "mask"}
        now, metrics = run(now, batch, jnp.float32(1e-2), jnp.float32(strength), original)
        assert metrics["finite"]
        losses.append(float(metrics["loss"]))
    batches.close()
    if name == "fare":  # the original itself, at the images themselves; then neither
        assert losses[0] < 1e-9 and losses[2] > 1e-3
    same = {
        part: jax.tree.all(jax.tree.map(np.array_equal, now.params[part], start.params[part])) for part in now.params
    }
    assert same["head"] and not same["blocks_0"] and not same["patch_embed"]
    full = models.logits_fn(made.module, now.variables())
    assert jax.eval_shape(full, jnp.zeros((2, 8, 8, 1))).shape == (2, 10)


def test_the_teacher_is_asked_for_features_of_the_same_width(teacher):
    made = experiment.build(digits("fare", teacher))
    features = frozen.load(str(teacher), made)
    module, variables, _ = converted.load(teacher)
    images = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1))
    expected = models.capture(module, variables, images, ["features"])[1]["features"][0]
    np.testing.assert_allclose(features(images), expected, atol=1e-6)
    made.module = made.module.clone(width=32)
    with pytest.raises(ValueError, match="objective.teacher = .*: must be a model of 32 features, as this one"):
        frozen.load(str(teacher), made)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "fare",
            dict(teacher=""),
            "objective.teacher = '': must be a run folder or a folder of converted weights with",
        ),
        ("sim_clip", dict(teacher="runs/x"), "objective.teacher = 'runs/x': must be left out with objective.name"),
        ("fare", dict(attack__random_start=False), "attack.random_start = False: must be True for fare: its gradient"),
        ("sim_clip", dict(attack__loss="margin"), "attack.loss = 'margin': must be 'cross_entropy': sim_clip says"),
        ("mimir", dict(objective__beta=3.0), "objective.beta = 3.0: must be left at 6.0: mimir does not take it"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_compiles(name, changes, message):
    given = {"teacher": "runs/plain" if name in TEACHERS else ""} | changes
    with pytest.raises(ValueError, match=f"^{message}") as error:
        experiment.build(digits(name, **given))
    assert "\n" not in str(error.value)


def test_a_classifier_is_no_autoencoder():
    config = digits("mimir")
    config.model = digits("fare").model
    with pytest.raises(ValueError, match="^model.name = 'vit': must be a masked_autoencoder with mimir"):
        experiment.build(config)


def test_options_reach_the_objective_by_the_configuration():
    config = digits("mimir")
    config.objective.options = config_lib.ConfigDict({"mask_ratio": 1.5})
    with pytest.raises(ValueError, match=r"^objective.options.mask_ratio = 1.5: must be in \(0, 1\)"):
        experiment.build(config)


def test_other_objectives_train_the_whole_model_and_these_say_what_stays():
    made = experiment.build(digits("standard"))
    assert encoding.trained(made.module, "standard") is made.module and made.config.optimizer.freeze == ()
    config = digits("sim_clip")
    config.optimizer.freeze = ("patch_embed",)
    for _ in range(2):  # a run that is resumed says it as often
        assert tuple(experiment.build(config).config.optimizer.freeze) == ("patch_embed", "head*")


def test_a_classifier_begins_from_what_an_autoencoder_learned_and_leaves_its_decoder(tmp_path):
    module = models.build("masked_autoencoder", initializer="lecun", **FIELDS, **DECODER)
    variables = models.init(module, jax.random.key(2))
    converted.save(tmp_path, "masked_autoencoder", module, variables)
    section, vit = config_lib.base().initial, models.build("vit", **FIELDS)
    section.weights = str(tmp_path)
    found = initial.load(section, vit)
    assert any(note.startswith("the decoder stays behind: ") for note in found.content["notes"])
    images = jax.random.uniform(jax.random.key(1), (3, 8, 8, 1))
    np.testing.assert_array_equal(jax.jit(vit.apply)(found.variables, images), jax.jit(module.apply)(variables, images))
    again = initial.load(section, module)  # to go on with pre-training
    assert jax.tree.structure(again.variables) == jax.tree.structure(variables)

"""What follows from the configuration: the attack that validates, and the fields that are filled in."""

import jax
import jax.numpy as jnp
import pytest

from robust_vit import config as config_lib
from robust_vit import recipes
from robust_vit.training import chosen, experiment


def overfitted(epsilon):
    """A classifier that stands at the corners of the ball around grey, and falls half-way to one of them.

    What training with one step of 1.5 epsilon makes of a model when it overfits (Wong et al. 2020): steps of that
    length jump between the corners and over the hole.
    """

    def logits_fn(images):
        moved = (images - 0.5) / epsilon
        margin = jnp.mean((moved - 0.5) ** 2, axis=(1, 2, 3)) - 0.1
        return jnp.stack([margin, jnp.zeros_like(margin)], axis=-1)

    return jax.tree_util.Partial(logits_fn)


def broken(attack, epsilon):
    logits_fn, images = overfitted(epsilon), jnp.full((4, 8, 8, 1), 0.5)
    assert (logits_fn(images).argmax(-1) == 0).all()
    keys = jax.random.split(jax.random.key(0), 4)
    return (logits_fn(jax.jit(attack)(keys, logits_fn, images, jnp.zeros(4, int))).argmax(-1) == 1).tolist()


def test_validation_sees_what_the_steps_of_the_light_recipe_jump_over():
    config = recipes.light()
    assert broken(experiment.validation_attack(config), config.attack.epsilon) == [True] * 4
    config.validation.step_size = config.attack.step_size
    assert broken(experiment.validation_attack(config), config.attack.epsilon) == [False] * 4


def test_the_step_size_of_validation_follows_epsilon_and_steps_unless_set():
    config = config_lib.load_file("digits")
    config.attack.step_size = 0.15  # of training alone
    experiment.resolve(config, experiment.build_data(config))
    assert config.validation.step_size == pytest.approx(2.5 * 0.1 / 20)
    config = config_lib.load_file("digits")
    config.validation.step_size = 0.03
    experiment.resolve(config, experiment.build_data(config))
    assert config.validation.step_size == 0.03


def test_resolving_twice_changes_nothing():
    config = config_lib.load_file("digits")
    dataset = experiment.build_data(config)
    experiment.resolve(config, dataset)
    once = config_lib.to_json(config)
    experiment.resolve(config, dataset)
    assert config_lib.to_json(config) == once
    assert chosen.attack_keywords(config.attack)["keep"] == "last"


def test_a_ball_of_radius_0_can_be_configured():
    config = config_lib.load_file("digits")
    config.attack.epsilon = 0.0
    experiment.build(config)
    assert config.validation.step_size == 0.0
    experiment.validation_attack(config)

"""The keywords of the chosen attack, objective and optimiser: none is dropped, none is misread, each attack trains."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from robust_vit import attacks, objectives
from robust_vit import config as config_lib
from robust_vit.data import pipeline
from robust_vit.training import chosen, experiment, optimizer, schedules, state, validate


def config(**overrides):
    made = config_lib.base()
    for name, value in overrides.items():
        section, _, field = name.replace("__", ".").rpartition(".")
        config_lib.get(made, section)[field] = value
    return made


def attack_of(**overrides):
    return config(**{f"attack__{name}": value for name, value in overrides.items()}).attack


@pytest.mark.parametrize(
    ("overrides", "keywords"),
    [
        ({}, dict(steps=7, step_size=2 / 255, random_start=True, restarts=1, keep="last", momentum=0.0)),
        (dict(restarts=2), dict(restarts=2, keep="loss")),
        (dict(keep="success"), dict(keep="success")),
        (dict(name="fgsm"), dict(step_size=1.25 * 8 / 255, random_start=True, keep="last")),
        (dict(name="fgsm", step_size=0.03, steps=1), dict(step_size=0.03)),
        (dict(name="apgd", steps=3), dict(steps=3, keep="loss", loss="cross_entropy")),
        (dict(name="apgd", options=dict(rho=0.5), loss="dlr"), dict(rho=0.5, loss="dlr")),
        (dict(name="square"), dict(queries=100, rescale_schedule=True, keep="loss")),
        (dict(name="square", options=dict(queries=20)), dict(queries=20, rescale_schedule=True)),
        (dict(name="fab", options=dict(targets=3)), dict(steps=7, targets=3)),
    ],
)
def test_the_keywords_of_an_attack(overrides, keywords):
    section = attack_of(**overrides)
    found = chosen.attack_keywords(section)
    assert {name: found[name] for name in keywords} == pytest.approx(keywords)
    assert set(found) <= set(inspect.signature(attacks.ATTACKS[section.name]).parameters)
    chosen.attack(section)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            dict(attack__name="apgd", attack__step_size=0.01),
            r"attack.step_size = 0.01: must be left at .*: apgd does not",
        ),
        (dict(attack__name="apgd", attack__keep="last"), r"attack.keep = 'last': must be one of loss, success"),
        (dict(attack__name="fgsm", attack__steps=3), r"attack.steps = 3: must be left at 7: fgsm does not take it"),
        (dict(attack__name="square", attack__momentum=1.0), r"attack.momentum = 1.0: must be left at 0.0: square"),
        (dict(attack__name="fab", attack__loss="dlr"), r"attack.loss = 'dlr': must be left at 'cross_entropy': fab"),
        (dict(attack__options={"step": 3}), r"attack.options.step: pgd takes start, start_scale, update"),
        (dict(attack__options={"steps": 3}), r"attack.options.steps: must be left out; attack.steps says it"),
        (
            dict(attack__name="square", attack__options={"querys": 3}),
            r"attack.options.querys: .*did you mean 'queries'",
        ),
        (dict(attack__name="square", attack__options={"queries": 0}), r"attack.options.queries = 0: must be"),
        (
            dict(attack__name="square", attack__options={"p_init": float("nan")}),
            r"attack.options.p_init = nan: must be",
        ),
        (
            dict(attack__name="square", attack__options={"p_init": "x"}),
            r"attack.options.p_init = 'x': must be a finite",
        ),
        (dict(attack__name="apgd", attack__options={"rho": "x"}), r"attack.options.rho = 'x': must be a finite number"),
        (
            dict(attack__name="fab", attack__options={"targeted": "no"}),
            r"attack.options.targeted = 'no': must be True or",
        ),
        (dict(attack__name="apgd", attack__options={"stochastic": True}), r"attack.options.stochastic: apgd takes"),
        (dict(attack__loss="cross_entrpy"), r"attack.loss = 'cross_entrpy': .*did you mean 'cross_entropy'"),
        (dict(objective__beta=3.0), r"objective.beta = 3.0: must be left at 6.0: adversarial does not take it"),
        (
            dict(objective__name="standard", objective__statistics="clean"),
            r"objective.statistics = 'clean': must be left",
        ),
        (dict(optimizer__momentum=0.5), r"optimizer.momentum = 0.5: must be left at 0.9: adamw with schedule cosine"),
        (dict(optimizer__name="sgd", optimizer__b1=0.5), r"optimizer.b1 = 0.5: must be left at 0.9: sgd"),
        (dict(optimizer__decay_factor=0.5), r"optimizer.decay_factor = 0.5: must be left at 0.1"),
        (
            dict(optimizer__schedule="step", optimizer__final_learning_rate=1e-5),
            r"optimizer.final_learning_rate = 1e-05: must be left at 0.0: adamw with schedule step",
        ),
    ],
)
def test_what_the_chosen_one_does_not_take_is_an_error(overrides, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        validate.validate(config(**overrides))
    assert "\n" not in str(error.value)


def test_every_field_of_a_section_is_taken_by_something():
    base = config_lib.base()
    keywords = {name for factory in attacks.ATTACKS.values() for name in chosen.parameters(factory)}
    assert set(base.attack) <= keywords | set(chosen.OF_TRAINING)
    own = {"name", "options", "teacher"}
    assert set(base.objective) <= own | {n for f in objectives.OBJECTIVES.values() for n in chosen.parameters(f)}
    for name in optimizer.OPTIMIZERS:
        for schedule in schedules.LEARNING_RATES:
            chosen.optimizer_keywords(config(optimizer__name=name, optimizer__schedule=schedule).optimizer)


def test_the_stored_configuration_says_what_the_attack_was_made_with():
    for name in attacks.names():
        made = tiny_run.config(attack__name=name, attack__steps=7)
        before = chosen.attack_keywords(made.attack)
        experiment.resolve(made, experiment.build_data(made))
        stored = config_lib.from_json(config_lib.to_json(made))
        assert chosen.attack_keywords(stored.attack) == before == chosen.attack_keywords(made.attack)
        said = {**config_lib.plain(stored.attack), **config_lib.plain(stored.attack.options)}
        assert {key: said[key] for key in before} == before


NORMS = {"ead": "l1"} | dict.fromkeys(
    ("boundary", "cw", "ddn", "deepfool", "hop_skip_jump"), "l2"
)  # of attacks that do not know linf


def training_with(name):
    """A tiny run on the digits with that attack, and its state before the first step."""
    made = tiny_run.config(attack__name=name, attack__steps={"apgd": 2, "fab": 1, "fgsm": 1}.get(name, 7))
    made.data.batch_size = made.evaluation.batch_size = 8
    if name == "square":
        made.attack.options.queries = 5
    made.attack.norm = NORMS.get(name, "linf")
    parts = experiment.build(made)
    return parts, functools.partial(state.create, parts.module, parts.tx, parts.dataset.image_shape, 0, False)


@pytest.mark.parametrize("name", attacks.names())
def test_training_with_every_attack_makes_a_step(name):
    parts, create = training_with(name)
    start = jax.eval_shape(create)
    kinds = {"image": ((8, 8, 8, 1), jnp.uint8), "label": ((8,), jnp.int32), "index": ((8,), jnp.int32)}
    batch = {key: jax.ShapeDtypeStruct(*kind) for key, kind in kinds.items()}
    number = jax.ShapeDtypeStruct((), jnp.float32)
    after, metrics = jax.eval_shape(parts.step, start, batch, number, number)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, start) and metrics["loss"].shape == ()


@pytest.mark.parametrize(
    "name", ["fgsm", *(pytest.param(n, marks=pytest.mark.slow) for n in ("apgd", "fab", "square"))]
)
def test_training_with_every_attack_takes_two_steps(name):
    parts, create = training_with(name)
    start = current = create()
    batches, compiled = pipeline.train(parts.dataset.train, batch_size=8, seed=0), jax.jit(parts.step)
    for _ in range(2):
        batch = next(batches)
        batch = {key: batch[key] for key in ("image", "label", "index")}
        current, metrics = compiled(current, batch, np.float32(0.01), np.float32(1.0))
        assert metrics["finite"] and jnp.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), start.params, current.params)
    assert int(current.step) == 2 and all(jax.tree.leaves(moved))
    batches.close()

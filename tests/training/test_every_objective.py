"""Every objective trains the digits from `configs/digits.py:name`, and its options reach it by the configuration."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from robust_vit import config as config_lib
from robust_vit import models, objectives
from robust_vit.data import pipeline
from robust_vit.training import chosen, experiment, loop, state, validate

SIZE = 8


def digits(name, **overrides):
    """`configs/digits.py:name` made tiny, with a teacher named where one is needed."""
    config = config_lib.load_file(f"configs/digits.py:{name}")
    for field, value in tiny_run.OVERRIDES.items():
        section, _, key = field.rpartition(".")
        config_lib.get(config, section)[key] = value
    config.data.batch_size = config.evaluation.batch_size = SIZE
    config.objective.teacher = "runs/plain" if name in objectives.TEACHERS else ""
    for field, value in overrides.items():
        section, _, key = field.replace("__", ".").rpartition(".")
        config_lib.get(config, section)[key] = value
    return config


def parts(config):
    made, name = experiment.build(config), config.objective.name
    memory = functools.partial(objectives.memory, name, made.dataset.num_classes)
    create = functools.partial(state.create, made.module, made.tx, made.dataset.image_shape, 0, False, memory)
    return made, create


def of_model(made, create):
    """A teacher of the model's own kind."""
    return lambda: models.logits_fn(made.module, {"params": create().params})


def test_its_weight_is_that_of_its_paper_and_its_attack_climbs_what_it_minimises():
    assert {name: digits(name).objective.beta for name in ("trades", "mart", "hat", "score_trades", "gkl")} == {
        "trades": 6.0,
        "mart": 5.0,
        "hat": 2.5,
        "score_trades": 4.0,
        "gkl": 20.0,
    }
    assert {digits(name).attack.loss for name in ("score_trades", "score_adversarial")} == {"squared_error"}


@pytest.mark.parametrize("name", objectives.names())
def test_it_makes_a_training_step_of_the_digits(name):
    made, create = parts(digits(name))
    start = jax.eval_shape(create)
    kinds = {"image": ((SIZE, 8, 8, 1), jnp.uint8), "label": ((SIZE,), jnp.int32), "index": ((SIZE,), jnp.int32)}
    batch = {key: jax.ShapeDtypeStruct(*kind) for key, kind in kinds.items()}
    number = jax.ShapeDtypeStruct((), jnp.float32)
    teacher = jax.eval_shape(of_model(made, create)) if name in objectives.TEACHERS else None
    after, metrics = jax.eval_shape(made.step, start, batch, number, number, teacher)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), start)
    assert {"loss", "gradient_norm", "finite", "attacked"} <= metrics.keys()
    assert metrics.keys() & {"clean_correct", "robust_correct"}


@pytest.mark.slow
@pytest.mark.parametrize("name", objectives.names())
def test_it_takes_two_steps_of_the_digits(name):
    made, create = parts(digits(name))
    start = current = create()
    teacher = of_model(made, functools.partial(create))() if name in objectives.TEACHERS else None
    batches, compiled = pipeline.train(made.dataset.train, batch_size=SIZE, seed=0), jax.jit(made.step)
    for _ in range(2):
        batch = next(batches)
        batch = {key: batch[key] for key in ("image", "label", "index")}
        current, metrics = compiled(current, batch, np.float32(0.01), np.float32(1.0), teacher)
        assert metrics["finite"] and jnp.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), start.params, current.params)
    assert int(current.step) == 2 and all(jax.tree.leaves(moved))
    batches.close()


def test_a_model_with_a_distillation_token_learns_with_both_heads():
    config = digits("deit_hard", model__pooling="token", model__positions="learned")
    config.model.distilled = True
    made, create = parts(config)
    teacher = of_model(made, create)
    shapes = jax.eval_shape(create), jax.ShapeDtypeStruct((SIZE, 8, 8, 1), jnp.float32)

    def heads(start, images):
        forward = experiment.step.training_forward(made.module, start.params, jax.random.key(0))
        return forward(images, {}, heads=True)[0], forward(images, {})[0]

    two, mean = jax.eval_shape(heads, *shapes)
    assert two.shape == (SIZE, 2, 10) and mean.shape == (SIZE, 10) and jax.eval_shape(teacher) is not None


@pytest.mark.parametrize("name", objectives.names())
def test_every_option_reaches_it_by_the_configuration(name):
    config = digits(name)
    for option, default in objectives.options(name).items():
        if option not in config.objective and option not in chosen.OF_THREAT:
            config.objective.options[option] = default
    validate.validate(config)
    taken = set(config.objective.options) | {*config.objective, *chosen.OF_THREAT}
    assert set(inspect.signature(objectives.OBJECTIVES[name]).parameters) <= taken


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hat", dict(gama=0.5), r"objective.options.gama: hat takes gamma, h; did you mean 'gamma'\?"),
        ("hat", dict(beta=0.5), r"objective.options.beta: must be left out; objective.beta says it"),
        ("hat", dict(gamma=-1.0), r"objective.options.gamma = -1.0: must be >= 0"),
        ("hat", dict(gamma="x"), r"objective.options.gamma = 'x': must be a finite number"),
        ("gkl", dict(temperature=float("nan")), r"objective.options.temperature = nan: must be"),
        ("mixed", dict(passes=0), r"objective.options.passes = 0: must be a whole number >= 1"),
        ("mixed", dict(passes=3), r"objective.options.passes = 3: must be 1 or 2"),
        ("adversarial", dict(epsilon=0.1), r"objective.options.epsilon: adversarial takes grad_align"),
        ("standard", dict(share=0.5), r"objective.options.share: standard takes no options"),
    ],
)
def test_a_bad_option_is_one_line(name, options, message):
    config = digits(name)
    for option, value in options.items():
        config.objective.options[option] = value
    with pytest.raises(ValueError, match=f"^{message}") as error:
        validate.validate(config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(objectives.AWAY_FROM_PREDICTION))
def test_an_attack_that_starts_where_its_gradient_is_0_is_refused(name):
    config = digits(name, attack__random_start=False)
    with pytest.raises(ValueError, match=rf"^attack.random_start = False: must be True for {name}"):
        validate.validate(config)


@pytest.mark.slow
def test_a_helper_teaches_from_its_run_folder_and_a_memory_survives_a_restart(tmp_path):
    plain = digits("standard", data__batch_size=64, training__epochs=0.2)
    loop.run(plain, tmp_path / "plain", live=False)
    helped = digits("hat", data__batch_size=64, training__epochs=0.2, objective__teacher=str(tmp_path / "plain"))
    assert loop.run(helped, tmp_path / "hat", live=False)

    def trained(folder, *stops):
        for stop in stops:
            config = digits("gkl", data__batch_size=64, training__epochs=1.2, awp__gamma=0.01)
            trainer = loop.Trainer(experiment.build(config), folder, live=False)
            trainer._stopping = lambda trainer=trainer, stop=stop: trainer.step >= stop
            trainer.train()
            found = jax.device_get((trainer.state.params, trainer.state.memory))
            trainer.close()
        return found

    whole, resumed = trained(tmp_path / "whole", 30), trained(tmp_path / "resumed", 7, 22, 30)
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)
    assert whole[1].epoch == 1 and not np.allclose(whole[1].means, 0.1)

"""The training attacks of the field, said in a configuration: each takes two real steps on the digits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_run

from robust_vit.data import pipeline
from robust_vit.training import chosen, experiment, state, step, validate
from robust_vit.typing import Outcome

RECIPES = {
    "apgd": dict(name="apgd", steps=2, random_start=False),
    "n_fgsm": dict(name="n_fgsm"),
    "adam": dict(name="pgd", steps=2, options=dict(update="adam")),
    "ard_prm": dict(name="pgd", steps=2, ard_epochs=1.0, prm_epochs=1.0),
    "train": dict(name="fgsm", batch_norm="train"),
    "heavy_ball": dict(name="pgd", steps=2, momentum=0.9, options=dict(update="heavy_ball", start="normal")),
}
SLOW = ("train", "heavy_ball", "adam", "apgd")


def built(name, **overrides):
    options = RECIPES[name].get("options", {})
    fields = {f"attack__{field}": value for field, value in RECIPES[name].items() if field != "options"}
    made = tiny_run.config(**fields, model__width=8, **overrides)
    made.data.batch_size = made.evaluation.batch_size = 8
    with made.unlocked():
        made.attack.options.update(options)
    return experiment.build(made)


@pytest.mark.parametrize(
    "name", [name if name not in SLOW else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_every_recipe_takes_two_steps(name):
    parts = built(name)
    current = start = state.create(parts.module, parts.tx, parts.dataset.image_shape, 0, False)
    batches, compiled = pipeline.train(parts.dataset.train, batch_size=8, seed=0), jax.jit(parts.step)
    for _ in range(2):
        batch = next(batches)
        batch = {key: batch[key] for key in ("image", "label", "index")}
        current, metrics = compiled(current, batch, np.float32(0.01), np.float32(1.0))
        assert metrics["finite"] and jnp.isfinite(metrics["loss"])
    batches.close()
    moved = jax.tree.map(lambda a, b: not np.array_equal(a, b), start.params, current.params)
    assert int(current.step) == 2 and all(jax.tree.leaves(moved))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_traces_and_says_its_attack(name):
    parts = built(name)
    start = jax.eval_shape(functools.partial(state.create, parts.module, parts.tx, parts.dataset.image_shape, 0, False))
    kinds = {"image": ((8, 8, 8, 1), jnp.uint8), "label": ((8,), jnp.int32), "index": ((8,), jnp.int32)}
    batch = {key: jax.ShapeDtypeStruct(*kind) for key, kind in kinds.items()}
    number = jax.ShapeDtypeStruct((), jnp.float32)
    after, _ = jax.eval_shape(parts.step, start, batch, number, number)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, start)
    given = chosen.attack_keywords(parts.config.attack)
    epsilon = parts.config.attack.epsilon
    expected = {
        "apgd": dict(steps=2, random_start=False, keep="loss", last_gradient=False),
        "n_fgsm": dict(noise=2.0, step_size=epsilon, keep="last"),
        "adam": dict(update="adam", step_size=0.1, steps=2),
        "train": dict(step_size=1.25 * epsilon, random_start=True),
        "heavy_ball": dict(update="heavy_ball", momentum=0.9, start="normal"),
    }.get(name, {})
    assert {key: given[key] for key in expected} == pytest.approx(expected)


def test_the_epoch_reaches_the_attack():
    """Two steps an epoch: the attack of the steps 0, 1 and 2 is that of the epochs 0, 1/2 and 1."""
    seen, parts = [], built("ard_prm")

    def attack_at(epoch):
        jax.debug.callback(lambda e: seen.append(float(e)), epoch)
        return lambda keys, model, images, targets, strength: images

    def objective(forward, statistics, adversary, attack, keys, images, targets, strength, aside):
        attacked = attack(keys, adversary, images, targets, strength)
        return Outcome(attacked.mean((1, 2, 3)), statistics, attacked=attacked)

    made = step.make(
        parts.module, objective, None, parts.tx, num_classes=10, seed=0, steps_per_epoch=2.0, attack_at=attack_at
    )
    start = state.create(parts.module, parts.tx, parts.dataset.image_shape, 0, False)
    batch = {"image": np.zeros((8, 8, 8, 1), np.uint8), "label": np.zeros(8, np.int32), "index": np.arange(8)}
    compiled = jax.jit(made)
    for number in range(3):
        compiled(start.replace(step=jnp.int32(number)), batch, np.float32(0.0), np.float32(1.0))
    jax.effects_barrier()
    assert seen == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (dict(attack__name="fab", attack__ard_epochs=2.0), r"attack.ard_epochs = 2.0: must be 0 with attack.name"),
        (dict(attack__name="fgsm", attack__prm_epochs=2.0), r"attack.prm_epochs = 2.0: must be 0 with attack.name"),
        (
            dict(attack__name="fab", attack__steps=7, attack__batch_norm="train"),
            r"attack.batch_norm = 'train': must be 'running' or 'batch' with attack.name = 'fab'",
        ),
        (
            dict(objective__name="sim_clip", attack__ard_epochs=2.0),
            r"attack.ard_epochs = 2.0: must be 0 with objective.name = 'sim_clip'",
        ),
        (dict(attack__ard_epochs=-1.0), r"attack.ard_epochs = -1.0: must be >= 0"),
        (dict(attack__name="bin"), r"attack.name = 'bin': must be one of"),
        (dict(attack__name="autoattack"), r"attack.name = 'autoattack': is an ensemble"),
        (dict(attack__name="bim", attack__restarts=2), r"attack.restarts = 2: must be 1 without random_start"),
        (dict(attack__name="bim", objective__name="trades"), r"attack.random_start = False: must be True for trades"),
    ],
)
def test_what_cannot_be_is_one_line(overrides, message):
    with pytest.raises(ValueError, match=f"^{message}") as error:
        validate.validate(tiny_run.config(**overrides))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("ard_epochs", r"attack.ard_epochs = 2.0: must be 0: this model has no attention to drop"),
        ("prm_epochs", r"attack.prm_epochs = 2.0: must be 0: this model has no patch_size"),
    ],
)
def test_a_model_without_attention_or_patches_is_told(field, message):
    made = tiny_run.config(**{f"attack__{field}": 2.0})
    module = chosen.model("resnet50_32", dict(depths=(1,), widths=(4,), stem_width=4, image_size=8, num_classes=10))
    with pytest.raises(ValueError, match=f"^{message}"):
        chosen.attack_at(made.attack, module)


@pytest.mark.parametrize(
    ("alias", "overrides", "keywords"),
    [
        ("bim", {}, dict(random_start=False, keep="last", momentum=0.0)),
        ("MI-FGSM", {}, dict(random_start=False, momentum=1.0, keep="last")),
        ("mifgsm", dict(momentum=0.5), dict(momentum=0.5)),
        ("rs_fgsm", {}, dict(random_start=True, keep="last")),
        ("apgd_dlr", {}, dict(loss="dlr", keep="loss")),
        ("nfgsm", {}, dict(noise=2.0)),
    ],
)
def test_aliases_are_names_of_the_training_attack(alias, overrides, keywords):
    made = tiny_run.config(attack__name=alias, attack__steps=7)
    for field, value in overrides.items():
        made.attack[field] = value
    validate.validate(made)
    given = chosen.attack_keywords(made.attack)
    assert {key: given[key] for key in keywords} == keywords
    experiment.resolve(made, experiment.build_data(made))
    assert chosen.attack_keywords(made.attack) == given
    chosen.attack(made.attack)

"""What attacks are called with: seeds and keys, names that people type, threats, and one line for what does not fit."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import Threat, attacks

CHEAP = {"apgd": {"steps": 2}, "fab": {"steps": 2, "targets": 1}, "pgd": {"steps": 2}, "square": {"queries": 3}}
every_attack = pytest.mark.parametrize("name", attacks.names())


def build(name, **keywords):
    return attacks.build(name, **{"epsilon": 0.1, **CHEAP.get(name, {}), **keywords})


def test_a_seed_a_key_and_a_legacy_key_are_folded_with_the_place(problem):
    _, logits_fn, images, labels = problem()
    attack = jax.jit(build("pgd"))
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(5), jnp.arange(4))
    expected = attack(keys, logits_fn, images, labels)
    for one in (5, np.int64(5), jax.random.key(5), jax.random.PRNGKey(5)):
        np.testing.assert_array_equal(attack(one, logits_fn, images, labels), expected)
    np.testing.assert_array_equal(attack(5, logits_fn, images[:2], labels[:2]), expected[:2])
    assert jnp.any(attack(6, logits_fn, images, labels) != expected)


@every_attack
@pytest.mark.parametrize(
    "change, message",
    [
        ({"keys": jax.random.split(jax.random.key(0), 3)}, r"keys: .*one typed key per example, \[4\]"),
        ({"keys": 0.5}, "keys: float.*or a seed"),
        ({"strength": float("nan")}, r"strength = nan: must be in \[0,1\]"),
        ({"strength": float("inf")}, r"strength = inf: must be in \[0,1\]"),
        ({"strength": np.full(4, 2.0)}, r"strength = .*must be in \[0,1\]"),
        ({"targets": jnp.array([0, 1, 2, 7])}, r"targets: label 7, must be in \[0, 5\)"),
        ({"targets": np.array([0, 1, 2, -1])}, r"targets: label -1, must be in \[0, 5\)"),
        ({"targets": jnp.array([0, 1])}, "targets: 2 labels, must be one per image, 4"),
        (
            {"images": 255.0 * jnp.ones((4, 6, 5, 3))},
            r"images: values from 255 to 255, must be in \[0,1\]: divide by 255",
        ),
        ({"images": jnp.full((4, 6, 5, 3), jnp.nan)}, r"images: values from nan to nan, must be in \[0,1\]"),
        ({"images": jnp.ones((4, 6, 5, 3), jnp.uint8)}, "images: uint8.*must be floats"),
    ],
)
def test_bad_arguments_are_one_line(name, change, message, problem):
    keys, logits_fn, images, labels = problem()
    given = {"keys": keys, "logits_fn": logits_fn, "images": images, "targets": labels, **change}
    with pytest.raises(ValueError, match=message) as caught:
        build(name)(**given)
    assert "\n" not in str(caught.value)


@every_attack
@pytest.mark.parametrize(
    "change, message",
    [
        ({"epsilon": float("nan")}, "epsilon = nan: must be at least 0"),
        ({"epsilon": float("inf")}, "epsilon = inf: must be at least 0"),
        ({"epsilon": 8, "norm": "linf"}, "8/255, not 8|must be 'l\\d' for"),
        ({"epsilom": 0.1}, "'epsilom'.*did you mean 'epsilon'"),
        ({"norm": "Linf"}, "'Linf'.*did you mean 'linf'"),
    ],
)
def test_bad_keywords_are_one_line(name, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        build(name, **change)
    assert "\n" not in str(caught.value)


@every_attack
def test_epsilon_must_be_given(name):
    with pytest.raises(ValueError, match=f"attack {name}: epsilon must be given"):
        attacks.build(name)


@pytest.mark.parametrize(
    "alias, name, keywords",
    [
        ("bim", "pgd", {"random_start": False}),
        ("I-FGSM", "pgd", {"random_start": False}),
        ("mifgsm", "pgd", {"random_start": False, "momentum": 1.0, "keep": "last"}),
        ("MI-FGSM", "pgd", {"random_start": False, "momentum": 1.0, "keep": "last"}),
        ("PGD", "pgd", {}),
        ("auto-pgd", "apgd", {}),
    ],
)
def test_names_that_people_type(alias, name, keywords, problem):
    keys, logits_fn, images, labels = problem()
    found, meant = build(alias, steps=2), attacks.build(name, epsilon=0.1, **{"steps": 2, **keywords})
    np.testing.assert_array_equal(
        jax.jit(found)(keys, logits_fn, images, labels),
        jax.jit(meant)(jax.random.clone(keys), logits_fn, images, labels),
    )


@pytest.mark.parametrize("alias, loss", [("apgd-ce", "cross_entropy"), ("APGD_DLR", "dlr"), ("apgd-t", "targeted_dlr")])
def test_parts_of_autoattack_by_their_names(alias, loss):
    assert attacks.options(alias)["loss"] == loss
    assert attacks.options("fab-t")["targeted"] is True
    with pytest.raises(ValueError, match=r"evaluation\.autoattack"):
        attacks.build("AutoAttack", epsilon=0.1)


@pytest.mark.parametrize("threat", [Threat("l2", 0.5), "l2-0.5"])
def test_a_threat_in_place_of_norm_and_epsilon(threat, problem):
    keys, logits_fn, images, labels = problem()
    found = attacks.build("pgd", threat=threat, steps=2)
    meant = attacks.pgd(norm="l2", epsilon=0.5, steps=2)
    expected = jax.jit(meant)(jax.random.clone(keys), logits_fn, images, labels)
    np.testing.assert_array_equal(jax.jit(found)(keys, logits_fn, images, labels), expected)


def test_a_threat_stands_alone():
    with pytest.raises(ValueError, match="threat = 'linf-0.1': must be alone, epsilon given too"):
        attacks.build("pgd", threat="linf-0.1", epsilon=0.1)
    with pytest.raises(ValueError, match="threat = 'linf8': must be"):
        attacks.build("pgd", threat="linf8")


def test_attacks_need_no_evaluation_and_only_jax_flax_optax():
    """Imported where nothing else is installed, as far as blocking the others can tell."""
    code = """
import sys
for name in ("chex", "orbax", "grain", "ml_collections", "matplotlib", "sklearn", "absl", "safetensors", "PIL"):
    if name not in ("absl", "orbax"):  # optax needs absl, flax imports orbax
        sys.modules[name] = None
import jax, jax.numpy as jnp
from robust_vit import attacks
rooms = tuple(f"robust_vit.{room}" for room in ("evaluation", "models", "training", "data"))
found = [name for name in sys.modules if name.startswith(rooms)]
assert not found, found
f = attacks.straight_through(lambda x: jnp.round(x.reshape(len(x), -1) * 3) @ jnp.ones((4, 2)))
attacks.pgd(epsilon=0.1, steps=1)(0, f, jnp.full((1, 2, 2, 1), 0.4), jnp.zeros(1, int))
"""
    subprocess.run([sys.executable, "-c", code], check=True)

"""Each objective's loss, and one step of descent on it, against float64 NumPy and numerical derivatives."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import objective_oracle as oracle
import pytest
from objective_case import EPSILON

from robust_vit import objectives
from robust_vit.attacks import norms
from robust_vit.objectives.passes import own_keys

RATE = 0.1
# name, keywords: none at its default where there is something to get wrong
ROWS = [
    ("standard", dict(label_smoothing=0.1)),
    ("gradient_norm", dict(weight=0.7, epsilon=EPSILON)),
    ("gradient_norm", dict(weight=0.7, epsilon=EPSILON, norm="l2", label_smoothing=0.1)),
    ("gradient_norm", dict(weight=0.7, epsilon=EPSILON, norm="l1")),
    ("adversarial", dict(label_smoothing=0.1)),
    ("adversarial", dict(grad_align=0.5, epsilon=EPSILON)),
    ("mixed", dict(share=0.3)),
    ("trades", dict(beta=3.0, label_smoothing=0.1)),
    ("mart", dict(beta=3.0)),
    ("hat", dict(beta=2.0, gamma=0.7, h=1.5)),
    ("score_adversarial", dict(clip=0.2, label_smoothing=0.1)),
    ("score_trades", dict(beta=3.0, clip=0.005, label_smoothing=0.1)),
    ("ikl", dict(beta=3.0, alpha=2.0, temperature=2.0)),
    ("gkl", dict(beta=3.0, alpha=2.0, temperature=2.0, gamma=0.5)),
    ("deit_hard", dict(alpha=0.3, label_smoothing=0.1)),
    ("deit_soft", dict(alpha=0.3, temperature=2.0)),
    ("rslad", dict(alpha=0.7)),
    ("ard", dict(alpha=0.6, temperature=4.0)),
    ("ltd", dict(beta=2.0, temperature=0.5)),
]


def wide(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def known(case, y):
    """What an oracle is given, in float64."""
    images = jnp.asarray(case.x)
    eta = norms.get("linf").start(own_keys(case.keys()), images, EPSILON)  # the only draw; its ball is tested elsewhere
    given = dict(x=images, attacked=case.attack(None, None, images, None), eta=eta, y=y, means=case.means)
    return types.SimpleNamespace(**wide(given), teacher=wide(case.teacher))


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize(("name", "keywords"), ROWS, ids=[f"{name}-{i}" for i, (name, _) in enumerate(ROWS)])
def test_the_loss_and_one_step_are_the_formulas(case, name, keywords, labels):
    y = case.y if labels == "hard" else case.soft
    objective, c = objectives.build(name, **keywords), known(case, y)

    def mean(w):
        loss = case.run(name, objective, w, targets=y).loss
        return jnp.mean(loss), loss

    (_, loss), gradient = jax.value_and_grad(mean, has_aux=True)(case.w)
    w0 = wide(case.w)
    expected = getattr(oracle, name)(w0, w0, c, **keywords)
    np.testing.assert_allclose(loss, expected, rtol=2e-5, atol=1e-6)
    if labels == "soft":  # a step for each formula is enough
        return
    after = oracle.step(lambda w, w0: getattr(oracle, name)(w, w0, c, **keywords), w0, RATE)
    taken = [part - RATE * g for part, g in zip(case.w, gradient, strict=True)]
    for found, right in zip(taken, after, strict=True):
        np.testing.assert_allclose(found, right, atol=2e-6)


def test_every_objective_has_its_row():
    assert {name for name, _ in ROWS} == set(objectives.OBJECTIVES)


def test_both_branches_of_a_clipped_distance_are_in_the_rows(case):
    c = known(case, case.y)
    w = wide(case.w)
    distance = oracle.score_adversarial(w, w, c, 0.2, 0.1)
    assert (distance == 0).any() != (distance == 0).all()
    p, q = (oracle.softmax(oracle.logits(w, x)) for x in (c.x, c.attacked))
    clipped = ((q - p) ** 2).sum(-1) < 0.005
    assert clipped.any() != clipped.all()

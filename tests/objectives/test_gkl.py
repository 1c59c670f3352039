"""The class means that IKL and GKL remember, and their O(K) form."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from robust_vit import objectives
from robust_vit.objectives.gkl import class_means, weighted_squared_error

K = 4


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), shift=st.sampled_from([0.0, 100.0]))
def test_k_terms_are_k_squared(seed, shift):
    rng = np.random.default_rng(seed)
    z, moved = rng.normal(size=(2, 3, 7))
    moved = moved + shift  # which logits do not feel, and a difference of squares would
    s = rng.dirichlet(np.ones(7), size=3)
    d_n, d_a = (a[:, :, None] - a[:, None, :] for a in (z, moved))
    expected = 0.25 * (s[:, :, None] * s[:, None, :] * (d_n - d_a) ** 2).sum((1, 2))
    found = weighted_squared_error(*(jnp.asarray(a, jnp.float32) for a in (z, moved, s)))
    np.testing.assert_allclose(found, expected, rtol=1e-3 if shift else 1e-5)


def test_at_gamma_1_both_are_the_same(case):
    one, other = (case.run(name, objectives.build(name)).loss for name in ("ikl", "gkl"))
    np.testing.assert_allclose(one, other, rtol=1e-5)


def steps(case, epochs, parts=1):
    """Runs gkl on the case's batch at each of these epochs, the batch in parts; returns the memory after each."""
    objective, memory, found = objectives.build("gkl", temperature=2.0), class_means(K), []
    for epoch in epochs:
        for i in range(parts):
            part = slice(i * 6 // parts, (i + 1) * 6 // parts)
            memory = case.run("gkl", objective, part=part, memory=memory, epoch=epoch).memory
        found.append(memory)
    return found


def means_of(case, y):
    """Class by class, the mean of softmax(z / 2) in float64."""
    a, b = (np.asarray(w, np.float64) for w in case.w)
    z = np.tanh(case.x.reshape(6, -1) @ a) @ b / 2.0
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    return (y.T @ p) / y.sum(0)[:, None]


def test_it_begins_at_one_over_k_and_means_count_from_the_next_epoch_on(case):
    first, second, third, later = steps(case, [0.0, 0.9, 1.0, 3.5])
    for early in (first, second):
        np.testing.assert_array_equal(early.means, 1 / K)
    assert second.counts.tolist() == [4, 4, 2, 2] and second.epoch == 0
    for late in (third, later):
        np.testing.assert_allclose(late.means, means_of(case, case.y), rtol=1e-5)
        assert late.counts.tolist() == [2, 2, 1, 1]
    assert third.epoch == 1 and later.epoch == 3
    np.testing.assert_allclose(third.means.sum(-1), 1.0, rtol=1e-5)


def test_the_memory_does_not_feel_how_the_batch_was_cut(case):
    case.pattern = jnp.ones_like(case.pattern)
    for whole, cut in zip(steps(case, [0.0, 1.0, 2.0]), steps(case, [0.0, 1.0, 2.0], parts=2), strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), whole, cut)


def test_a_class_that_an_epoch_did_not_show_keeps_its_means(case):
    case.y = np.eye(K)[[0, 0, 1, 1, 2, 2]]
    *_, after = steps(case, [0.0, 1.0])
    np.testing.assert_array_equal(after.means[3], 1 / K)
    np.testing.assert_allclose(after.means[:3], means_of(case, case.y + 1e-30)[:3], rtol=1e-5)


def test_a_thousand_classes_need_no_square_of_them_an_example():
    shapes = [jax.ShapeDtypeStruct((8, 1000), jnp.float32)] * 3
    text = str(jax.make_jaxpr(weighted_squared_error)(*shapes))
    assert "1000,1000" not in text and "8,1000" in text

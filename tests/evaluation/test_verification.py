"""Every fault of a claimed adversarial image is found, and none is invented."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st

from robust_vit import parallel
from robust_vit.evaluation.verification import FAULTS, NONFINITE, Judge, distances, tolerance, verify

RANK_PROMOTION = "allow"  # of the models that are made here


def by_mean(bias, images):
    """Class 1 where the mean is above a half; not a number where a pixel is exactly 0.25."""
    mean = images.mean((1, 2, 3))
    logits = jnp.stack([0.5 - mean, mean - 0.5], axis=1) + bias
    return jnp.where((images == 0.25).any((1, 2, 3))[:, None], jnp.nan, logits)


LOGITS_FN = jax.tree_util.Partial(by_mean, jnp.zeros(2))
CLEAN = np.full((1, 2, 3, 1), 0.45, np.float32)  # class 0


def fault_of(adversarial, norm="linf", epsilon=0.1):
    return verify(LOGITS_FN, CLEAN, np.zeros(1, int), adversarial[None], norm=norm, epsilon=epsilon).fault[0]


def changed(value, place=None):
    image = CLEAN[0].copy()
    image[place or ...] = value
    return image


@pytest.mark.parametrize(
    "image, fault",
    [
        (changed(0.54), ""),
        (changed(0.56), "outside the ball"),
        (changed(0.44), "classified correctly"),
        (changed(np.nan), "non-finite image"),
        (changed(np.inf, (0, 0)), "non-finite image"),
        (changed(0.35) + 0.0, "classified correctly"),
    ],
)
def test_each_fault_is_named(image, fault):
    assert fault_of(image) == fault


def test_the_box_and_non_finite_logits():
    assert fault_of(changed(1.2), epsilon=1.0) == "outside [0, 1]"
    assert fault_of(changed(-0.2), epsilon=1.0) == "outside [0, 1]"
    assert fault_of(changed(0.25, (0, 1)), epsilon=1.0) == NONFINITE
    assert NONFINITE in FAULTS


@pytest.mark.parametrize("norm, distance", [("linf", 0.3), ("l2", 0.5), ("l1", 0.7)])
def test_distances(norm, distance):
    image = CLEAN.copy()
    image[0, 0, 0] += 0.3
    image[0, 1, 2] -= 0.4 if norm != "linf" else 0.1
    np.testing.assert_allclose(distances(norm, CLEAN, image), distance, atol=1e-7)


@examples(30)
@given(st.sampled_from(["linf", "l2", "l1"]), st.floats(0.001, 3), st.integers(0, 2**31))
def test_rounding_is_tolerated_and_little_more(norm, epsilon, seed):
    """An image on the sphere, as float32 stores it, passes; one three tolerances further out does not."""
    rng = np.random.default_rng(seed)
    clean = rng.uniform(0, 1, (1, 8, 8, 3)).astype(np.float32)
    delta = rng.normal(size=clean.shape)
    size = {"linf": np.abs(delta).max(), "l2": np.sqrt((delta**2).sum()), "l1": np.abs(delta).sum()}[norm]
    beyond = 1 + 3 * tolerance(norm, epsilon, 192) / epsilon
    assert beyond < 1.05
    for scale, inside in ((1.0, True), (beyond, False)):
        image = (clean + delta * (scale * epsilon / size)).astype(np.float32)
        assert (distances(norm, clean, image) <= epsilon + tolerance(norm, epsilon, 192))[0] == inside


def test_a_report_counts(capsys):
    images = np.repeat(CLEAN, 5, axis=0)
    claims = np.stack([changed(0.54), changed(0.9), changed(0.44), changed(0.54), changed(np.nan)])
    found = verify(LOGITS_FN, images, np.zeros(5, int), claims, norm="linf", epsilon=0.1, batch_size=2)
    assert list(found.confirmed) == [True, False, False, True, False]
    assert found.faults == {"outside the ball": 1, "non-finite image": 1, "classified correctly": 1}
    assert "2 of 5 adversarial images confirmed in float32" in str(found)
    assert found.largest == pytest.approx(4.5, rel=1e-3)


def test_bytes_and_radii_of_their_own():
    images = np.full((2, 2, 3, 1), 115, np.uint8)
    claims = np.full((2, 2, 3, 1), 0.53, np.float32)
    found = verify(LOGITS_FN, images, np.zeros(2, int), claims, norm="linf", epsilon=np.array([0.1, 0.01]))
    assert list(found.confirmed) == [True, False]


def test_nothing_to_verify():
    empty = np.zeros((0, 2, 3, 1), np.float32)
    found = verify(LOGITS_FN, empty, np.zeros(0, int), empty, norm="l2", epsilon=1.0)
    assert found.claimed == 0 and found.confirmed.shape == (0,)


def test_a_judge_on_several_devices_says_the_same():
    images = np.random.default_rng(0).uniform(0, 1, (13, 2, 3, 1)).astype(np.float32)
    one, many = Judge(LOGITS_FN, 8), Judge(LOGITS_FN, 8, parallel.mesh(4))
    np.testing.assert_allclose(many.logits(images), one.logits(images), atol=1e-6)
    np.testing.assert_allclose(one.logits(images), np.asarray(LOGITS_FN(images)), atol=1e-6)


def test_shapes_and_norms_are_checked():
    with pytest.raises(ValueError, match="norm"):
        verify(LOGITS_FN, CLEAN, np.zeros(1, int), CLEAN, norm="linff", epsilon=0.1)
    with pytest.raises(ValueError, match="adversarial.shape"):
        verify(LOGITS_FN, CLEAN, np.zeros(1, int), CLEAN[:, :1], norm="linf", epsilon=0.1)

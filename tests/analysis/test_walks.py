"""The walk is PGD to the bit, and tells what it passed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robust_vit import attacks, models, randomness
from robust_vit.analysis import walks

THREAT = {"norm": "linf", "epsilon": 0.03, "steps": 4, "step_size": 0.012}
COUNT = 7


@pytest.fixture(scope="module")
def case():
    """A tiny ViT, images, and labels of which most are its own predictions."""
    module = models.build(
        "vit", depth=1, width=16, heads=2, patch_size=4, image_size=8, channels=1, num_classes=4, pooling="mean"
    )
    logits_fn = models.logits_fn(module, models.init(module, jax.random.key(0)))
    images = np.asarray(jax.random.uniform(jax.random.key(1), (COUNT, 8, 8, 1)))
    labels = np.asarray(jax.jit(lambda f, x: f(x))(logits_fn, images)).argmax(1)
    labels[0] = (labels[0] + 1) % 4
    indices = np.arange(COUNT) + 30
    return logits_fn, images, labels, indices, walks.walk(logits_fn, images, labels, seed=3, indices=indices, **THREAT)


def test_the_points_are_those_of_pgd(case):
    logits_fn, images, labels, indices, walked = case
    keys = randomness.example_keys(3, indices, randomness.EVALUATION_ATTACK)
    attack = attacks.pgd(**THREAT, keep="success")
    np.testing.assert_array_equal(walked.adversarial, jax.jit(attack)(keys, logits_fn, jnp.asarray(images), labels))
    assert 0 < np.abs(walked.adversarial - images).max() <= THREAT["epsilon"] + 1e-6


def test_every_iterate_is_told(case):
    """The same walk in NumPy, from the same start, by plain gradients."""
    logits_fn, images, labels, indices, walked = case
    keys = randomness.example_keys(3, indices, randomness.EVALUATION_ATTACK)
    start = attacks.norms.get("linf").start(
        jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, 0), images, jnp.full(COUNT, THREAT["epsilon"])
    )

    @jax.jit
    def look(points):
        def total(x):
            logits = logits_fn(x)
            loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
            return loss.sum(), (loss, logits.argmax(1) != labels)

        return jax.grad(total, has_aux=True)(points)

    points = np.asarray(start, np.float64)
    for step in range(THREAT["steps"] + 1):
        slope, (loss, wrong) = look(jnp.asarray(points, jnp.float32))
        np.testing.assert_allclose(walked.loss[step], loss, rtol=2e-5, atol=1e-6)
        np.testing.assert_array_equal(walked.wrong[step], wrong)
        points = points + THREAT["step_size"] * np.sign(slope)
        points = np.clip(np.clip(points, images - THREAT["epsilon"], images + THREAT["epsilon"]), 0, 1)


def test_what_stands_and_when_it_fell(case):
    walked = case[-1]
    assert not walked.clean_right[0] and walked.clean_right[1:].all()
    assert walked.flipped_at[0] == walks.NEVER and not walked.standing[0]
    for n in range(1, COUNT):
        fell = np.flatnonzero(walked.wrong[:, n])
        assert walked.flipped_at[n] == (fell[0] if len(fell) else walks.NEVER)
        assert walked.standing[n] == (not len(fell)) == walked.standing_by_step[-1, n]
    assert (np.diff(walked.standing_by_step.astype(int), axis=0) <= 0).all()
    assert walked.standing.any() and (~walked.standing[1:]).any(), "the case tells both apart"
    clean, attacked = walked.margins()
    np.testing.assert_array_equal(clean > 0, walked.clean_right)
    np.testing.assert_array_equal((attacked > 0) & walked.clean_right, walked.standing)


def test_the_batch_changes_nothing(case):
    logits_fn, images, labels, indices, walked = case
    small = walks.walk(logits_fn, images, labels, seed=3, indices=indices, batch_size=3, **THREAT)
    np.testing.assert_array_equal(small.wrong, walked.wrong)
    np.testing.assert_allclose(small.adversarial, walked.adversarial, atol=1e-6)
    np.testing.assert_allclose(small.loss, walked.loss, rtol=1e-4)


def test_it_is_kept_in_a_file(case, tmp_path):
    walked = case[-1]
    walked.save(tmp_path / "walk.npz", classifier="abc", epsilon=0.03)
    again, identity = walks.load(tmp_path / "walk.npz")
    assert identity == {"classifier": "abc", "epsilon": 0.03}
    for name, value in vars(walked).items():
        np.testing.assert_array_equal(getattr(again, name), value)
    assert type(again.norm) is str and type(again.epsilon) is float
    for content in (b"", b"PK\x03\x04 torn", (tmp_path / "walk.npz").read_bytes()[:200]):
        (tmp_path / "bad.npz").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad.npz: holds no examples under attack .*; remove it"):
            walks.load(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"norm": "l3"}, "norm = 'l3'"),
        ({"epsilon": 0.0}, "epsilon = 0.0: must be above 0"),
        ({"steps": 0}, "steps = 0: must be at least 1"),
        ({"labels": np.zeros(3, int)}, r"labels.shape = \(3,\): must be \(7,\)"),
    ],
)
def test_bad_arguments_are_one_line(case, given, message):
    logits_fn, images, labels = case[:3]
    with pytest.raises(ValueError, match=message):
        walks.walk(logits_fn, images, **({"labels": labels} | THREAT | given))

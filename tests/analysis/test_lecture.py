"""The pictures of a lecture are of what they say: patches, attention, one step and many, targets, two runs."""

import dataclasses

import jax
import numpy as np
import pytest

from robust_vit import data, models, pixels
from robust_vit.analysis import lecture
from robust_vit.classifier import Classifier
from robust_vit.explain import Options, Subject

NAMES = tuple("0123456789")


@dataclasses.dataclass(frozen=True)
class Given(Subject):
    """A subject of a model that was never trained."""

    model: Classifier | None = None
    held: tuple | None = None
    classifier = property(lambda self: self.model)
    class_names = property(lambda self: NAMES)
    examples = property(lambda self: self.held)


@pytest.fixture(scope="module")
def subjects():
    model = models.build(
        "vit", depth=1, width=16, heads=2, patch_size=4, image_size=8, channels=1, num_classes=10, pooling="mean"
    )
    images, _ = data.build("digits").arrays("test", limit=3)
    images = pixels.as_float(images)
    found = []
    for seed in (0, 1):
        logits_fn = models.logits_fn(model, models.init(model, jax.random.key(seed)))
        classifier = Classifier(logits_fn, threat="linf-0.1")
        labels = classifier.predict(images).astype(np.int32)  # so that it is right
        found.append(
            Given(None, f"run{seed}", Options(examples=3, steps=5), classifier, (images, labels, np.arange(3)))
        )
    return found


def test_patches_put_together_are_the_image(subjects):
    drawn = lecture.patches(subjects[0])
    image, pieces = drawn.arrays["image"], drawn.arrays["patches"]
    assert pieces.shape == (2, 2, 4, 4, 1) and drawn.numbers == {"patch_size": 4, "tokens": 4}
    np.testing.assert_array_equal(np.block([[piece[..., 0] for piece in row] for row in pieces]), image[..., 0])


def test_patches_that_do_not_divide_the_image_are_refused_in_a_line():
    with pytest.raises(ValueError, match="patch_size = 3: must be a divisor of 8 and 8"):
        lecture.cut(np.zeros((8, 8, 1)), 3)


def test_the_marked_patch_is_the_brightest_and_its_attention_sums_to_one(subjects):
    drawn = lecture.heads(subjects[0])
    image = drawn.arrays["image"]
    means = [image[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].mean() for i in (0, 1) for j in (0, 1)]
    assert drawn.numbers["asking"] == int(np.argmax(means))
    for name in drawn.numbers["layers"]:
        shares = drawn.arrays[name].sum((1, 2))
        assert drawn.arrays[name].shape == (2, 2, 2) and np.all(shares <= 1 + 1e-5) and np.all(shares > 0.5)


@pytest.mark.slow
def test_attacks_of_the_lecture_stay_in_their_balls_and_climb(subjects):
    one = lecture.one_and_many(subjects[0])
    clean, epsilon = one.arrays["clean"], 0.1
    for name in ("fgsm", "pgd-20"):
        assert 0 < np.abs(one.arrays[name] - clean).max() <= epsilon + 1e-6
    assert len(one.arrays["loss"]) == lecture.STEPS + 1 and one.arrays["loss"][-1] > one.arrays["loss"][0]
    np.testing.assert_allclose(one.arrays["loss"][0], one.numbers["loss"]["clean"], rtol=1e-4)

    radii = lecture.radii(subjects[0])
    moved = np.abs(radii.arrays["images"] - radii.arrays["images"][0]).max((1, 2, 3))
    assert np.all(moved <= np.array(radii.numbers["epsilons"]) + 1e-6) and np.all(np.diff(moved) > 0)

    wanted = lecture.targeted(subjects[0])
    label, points = wanted.numbers["label"], wanted.arrays["images"]
    np.testing.assert_array_equal(points[label], clean)
    others = np.arange(10) != label
    reached = wanted.arrays["probabilities"].argmax(-1)[others] == np.arange(10)[others]
    assert wanted.numbers["reached"] == reached.mean()


@pytest.mark.slow
def test_two_runs_are_attacked_each_by_itself_on_the_same_images(subjects):
    both = lecture.before_after(subjects)
    images, labels = both.arrays["images"], both.arrays["labels"]
    for one in subjects:
        points = both.arrays[f"{one.name}/adversarial"]
        assert np.abs(points - images).max() <= 0.1 + 1e-6
        found = one.classifier.predict(points) == labels
        assert both.numbers["accuracy_of_the_picture"][one.name] == found.mean()
    assert not np.array_equal(both.arrays["run0/gradients"], both.arrays["run1/gradients"])

"""AugMix: a convex combination of the image and of chains of operations."""

import collections
import dataclasses

import numpy as np
import pytest
from PIL import Image
from scipy import optimize, stats

from robust_vit.data import host
from robust_vit.data.transforms import augmix


def picture(shape=(16, 16, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@dataclasses.dataclass(frozen=True)
class Watched(augmix.AugMix):
    """Remembers what its chains gave."""

    seen: list = dataclasses.field(default_factory=list)

    def chain(self, image, rng):
        out = super().chain(image, rng)
        self.seen.append(np.asarray(out))
        return out


def weights_of(out, parts):
    """The non-negative weights of `parts` that sum to `out`, and how far off they are at most."""
    columns = np.stack([part.ravel() for part in parts], 1).astype(np.float64)
    found, _ = optimize.nnls(columns, out.ravel().astype(np.float64))
    return found, np.abs(columns @ found - out.ravel()).max()


@pytest.mark.parametrize("shape", [(16, 16, 3), (12, 8, 1)])
def test_the_image_and_its_chains_are_mixed_with_weights_that_sum_to_one(shape):
    image = picture(shape)
    for seed in range(8):
        transform = Watched(severity=8.0)
        out = transform(image, np.random.default_rng(seed))
        assert out.shape == shape and out.dtype == np.uint8 and len(transform.seen) == 3
        found, off = weights_of(out, [image, *transform.seen])
        assert off < 1.5 and abs(found.sum() - 1) < 0.02


def test_the_share_of_the_chains_is_uniform_at_alpha_one():
    image, shares = picture(), []
    for seed in range(150):
        transform = Watched(severity=10.0, width=1, depth=3)
        out = transform(image, np.random.default_rng(seed)).astype(float)
        change = transform.seen[0].astype(float) - image
        if np.abs(change).mean() > 20:
            shares.append((change * (out - image)).sum() / (change**2).sum())
    assert len(shares) > 100 and stats.kstest(shares, stats.uniform(-0.01, 1.02).cdf).pvalue > 0.001


def test_chains_are_of_one_to_three_operations_out_of_nine():
    drawn = [augmix.AugMix().draw(np.random.default_rng(i)) for i in range(1500)]
    assert stats.chisquare(np.bincount([len(one) for one in drawn])[1:]).pvalue > 0.001
    seen = collections.Counter(apply for one in drawn for apply, _ in one)
    assert set(seen) == set(augmix.TABLE) and len(seen) == 9
    assert stats.chisquare(list(seen.values())).pvalue > 0.001
    assert {len(augmix.AugMix(depth=4).draw(np.random.default_rng(i))) for i in range(9)} == {4}


def test_levels_are_uniform_up_to_the_severity():
    drawn = [one for i in range(1500) for one in augmix.AugMix(severity=3.0).draw(np.random.default_rng(i))]
    angles = np.array([argument for apply, argument in drawn if apply.__name__ == "rotate"])
    assert stats.kstest(np.abs(angles), stats.uniform(0.3, 8.7).cdf).pvalue > 0.001
    assert 0.4 < np.mean(angles > 0) < 0.6
    shares = np.abs([argument for apply, argument in drawn if apply.__name__ == "translate_x"])
    assert shares.max() < 0.1 and shares.min() > 0.0033
    assert {argument for apply, argument in drawn if apply.__name__ == "posterize"} == {3, 4}


def test_pictures_and_arrays_are_mixed_alike():
    image, transform = picture(), host.AugMix()
    out = transform(image, np.random.default_rng(1))
    assert np.array_equal(out, np.asarray(transform(Image.fromarray(image), np.random.default_rng(1))))
    assert not np.array_equal(out, transform(image, np.random.default_rng(2)))


def test_the_grammar_is_timms():
    assert host.build(["augmix-m5-w4-d2-a0.5"]) == (host.AugMix(5.0, 4, 2, 0.5),)
    assert host.build(["augmix", "augmix-w3"]) == (host.AugMix(), host.AugMix())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("augmix-m11", r"augmix severity = 11.0: must be in \[0.1, 10\]"),
        ("augmix(depth=0)", "augmix depth = 0: must be at least 1, or -1"),
        ("augmix-w0", "augmix width = 0: must be at least 1"),
        ("augmix(alpha=0)", "augmix alpha = 0: must be > 0"),
        ("augmix-n3", "section = 'n': must be one of a, d, m, w"),
    ],
)
def test_what_cannot_be_done_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        host.build([wrong])

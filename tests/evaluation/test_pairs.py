"""Differences between two models, on the same examples and on examples that are not known one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from robust_vit.evaluation import intervals, pairs


def outcomes(both, gained, lost, neither):
    first = [True] * both + [False] * gained + [True] * lost + [False] * neither
    second = [True] * both + [True] * gained + [False] * lost + [False] * neither
    return np.array(first), np.array(second)


def test_mcnemar_exact_by_hand():
    found = pairs.paired(*outcomes(both=50, gained=9, lost=1, neither=40))
    assert found.difference == pytest.approx(0.08) and (found.gained, found.lost) == (9, 1)
    assert found.p == pytest.approx(2 * (1 + 10) / 2**10)  # both tails of Binomial(10, 1/2) at 9 and 10


def test_agresti_min_by_hand():
    found = pairs.paired(*outcomes(both=50, gained=9, lost=1, neither=40))
    b, c, n = 9.5, 1.5, 102
    half = 1.959964 * np.sqrt(b + c - (b - c) ** 2 / n) / n
    assert found.interval == pytest.approx(((b - c) / n - half, (b - c) / n + half), abs=1e-6)


def test_the_paired_interval_covers_the_true_difference():
    draws = np.random.default_rng(0)
    truth, hits, tries = 0.1, 0, 600
    for _ in range(tries):
        kind = draws.choice(4, size=200, p=[0.5, 0.2, 0.1, 0.2])  # both, only second, only first, neither
        low, high = pairs.paired((kind == 0) | (kind == 2), (kind == 0) | (kind == 1)).interval
        hits += low <= truth <= high
    assert 0.925 < hits / tries < 0.985


def test_pairing_is_sharper_than_not_pairing():
    first, second = outcomes(both=150, gained=12, lost=4, neither=34)
    entry = [{"accuracy": x.mean(), "interval": intervals.wilson(x.sum(), len(x))} for x in (first, second)]
    width = lambda found: found.interval[1] - found.interval[0]  # noqa: E731
    apart = pairs.unpaired(*entry)
    assert apart.difference == pytest.approx(pairs.paired(first, second).difference) and apart.p is None
    assert width(pairs.paired(first, second)) < width(apart)


def test_newcombes_published_example():
    """56/70 against 48/80: 0.2 with 95 % interval 0.0524 to 0.3339 (Newcombe 1998, table II, example a, method 10)."""
    made = [{"accuracy": k / n, "interval": intervals.wilson(k, n)} for k, n in ((48, 80), (56, 70))]
    assert pairs.unpaired(*made).interval == pytest.approx((0.0524, 0.3339), abs=1e-4)


@given(st.dictionaries(st.integers(0, 300), st.booleans(), min_size=0, max_size=40))
def test_outcomes_come_back_as_they_were_packed(known):
    packed = pairs.pack(np.array(list(known), int), np.array(list(known.values()), bool))
    assert pairs.unpack(packed) == known


def test_only_shared_examples_are_paired():
    first = {"outcomes": pairs.pack(np.arange(6), np.array([1, 1, 0, 0, 1, 1], bool))}
    second = {"outcomes": pairs.pack(np.array([5, 0, 2, 9]), np.array([0, 1, 1, 1], bool))}
    found = pairs.compare(first, second)
    assert (found.examples, found.gained, found.lost) == (3, 1, 1) and found.difference == 0


def test_lengths_that_differ_are_refused():
    with pytest.raises(ValueError, match="outcomes: \\[2\\] and \\[3\\]"):
        pairs.paired(np.ones(2, bool), np.ones(3, bool))

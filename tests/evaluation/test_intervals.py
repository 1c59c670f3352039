"""The Wilson interval against published and independently computed numbers."""

import numpy as np
import pytest
from drawing import examples
from hypothesis import given
from hypothesis import strategies as st

from robust_vit.evaluation import wilson


@pytest.mark.parametrize(
    "successes, examples, low, high",
    [  # statsmodels.stats.proportion.proportion_confint(k, n, method="wilson"); the first is Newcombe (1998), table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),
    ],
)
def test_published_numbers(successes, examples, low, high):
    np.testing.assert_allclose(wilson(successes, examples), (low, high), atol=5e-5)


def test_ends_are_exact():
    assert wilson(0, 1000)[0] == 0.0 and wilson(1000, 1000)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


@examples(50)
@given(st.integers(1, 100_000), st.floats(0, 1), st.floats(0.5, 0.999))
def test_bounds_solve_the_score_equation(n, fraction, confidence):
    """Each bound q is where (p - q)² = z² q (1 - q) / n, the definition that the formula solves."""
    import statistics

    k = round(fraction * n)
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    low, high = wilson(k, n, confidence)
    assert 0 <= low <= k / n <= high <= 1 and low < high
    for q in (low, high):
        assert (k / n - q) ** 2 == pytest.approx(z * z * q * (1 - q) / n, abs=1e-9)


def test_impossible_counts_are_refused():
    with pytest.raises(ValueError, match="successes = 3"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="confidence = 95"):
        wilson(1, 2, confidence=95)

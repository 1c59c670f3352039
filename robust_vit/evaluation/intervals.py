"""How sure is an accuracy: the Wilson score interval of a proportion."""

from robust_vit.errors import check


def wilson(successes: int, examples: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of `successes` out of `examples`, by SciPy.

    Unlike the textbook p ± z sqrt(p (1 - p) / n) it stays in [0, 1] and does not shrink to a point at 0 % or 100 %,
    where robust accuracies like to be.

    Args:
      successes: how many examples were right.
      examples: how many examples there were; 0 gives the interval that knows nothing, (0, 1).
      confidence: the probability that the interval covers the true accuracy, in (0, 1).

    Returns:
      (low, high), fractions in [0, 1].

    Raises:
      ValueError: if the counts or the confidence are impossible.

    Reference:
      E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    import scipy.stats  # which JAX brings; it takes half a second to import

    check("successes", successes, 0 <= successes <= examples, f"in [0, examples = {examples}]")
    check("confidence", confidence, 0 < confidence < 1, "strictly between 0 and 1")
    if examples == 0:
        return 0.0, 1.0
    interval = scipy.stats.binomtest(int(successes), int(examples)).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)

"""How sure is an accuracy: the Wilson score interval of a proportion, in float64 and without SciPy."""

import math
import statistics


def wilson(successes: int, examples: int, confidence: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of `successes` out of `examples`.

    With p = successes / n and z the two-sided normal quantile of `confidence`:

        (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n)

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
    k, n = int(successes), int(examples)
    if not 0 <= k <= n:
        raise ValueError(f"successes = {successes}: must lie in [0, examples = {examples}]")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence = {confidence}: must lie strictly between 0 and 1")
    if n == 0:
        return 0.0, 1.0
    z = statistics.NormalDist().inv_cdf(0.5 + confidence / 2)
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At the ends the bound is 0 or 1 exactly; rounding would leave 1e-17 and print as such.
    low = 0.0 if k == 0 else max(0.0, centre - half)
    high = 1.0 if k == n else min(1.0, centre + half)
    return low, high

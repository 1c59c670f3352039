"""Natural and adversarial training at once: the data augmented with adversarial examples."""

import jax
import jax.numpy as jnp
import optax

from robust_vit.attacks.losses import cross_entropy
from robust_vit.errors import check
from robust_vit.objectives.passes import check_share, check_smoothing, own_keys, two_passes, updates
from robust_vit.typing import NOTHING, Objective, Outcome


def mixed(share: float = 0.5, passes: int = 2, label_smoothing: float = 0.0, statistics: str = "both") -> Objective:
    """Minimises (1 - a) CE(f(x), y) + a CE(f(x'), y), with x' = argmax over the ball of CE(f(x'), y).

    In two passes every example is seen both ways. In one pass an example is replaced by its x' with probability a,
    which has the same mean, costs a forward and a backward less, and normalises clean and attacked images together.

    Args:
      share: a in [0, 1]; 0.5 as Goodfellow et al.
      passes: 1 or 2.
      label_smoothing: mass in [0, 1) moved to the uniform distribution; the attack sees the labels as given.
      statistics: which pass updates BatchNorm's running averages: "clean", "adversarial", or "both" in that order; with
        one pass "both".

    Reference: Goodfellow et al., Explaining and Harnessing Adversarial Examples, ICLR 2015, arXiv 1412.6572; Kurakin et
    al., Adversarial Machine Learning at Scale, ICLR 2017, arXiv 1611.01236.
    """
    check_share("share", share)
    check("objective.passes", passes, passes in (1, 2) and not isinstance(passes, bool), "1 or 2")
    check_smoothing(label_smoothing)
    moves = updates(statistics)
    check("objective.statistics", statistics, passes == 2 or all(moves), "'both' with one pass, which sees all at once")

    def objective(forward, stats, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING) -> Outcome:
        attacked = attack(keys, adversary, images, targets, strength)
        y = optax.smooth_labels(targets, label_smoothing)
        if passes == 1:
            replaced = jax.vmap(lambda key: jax.random.bernoulli(key, share))(own_keys(keys))
            logits, stats = forward(jnp.where(replaced[:, None, None, None], attacked, images), stats)
            return Outcome(cross_entropy(logits, y), stats, attacked=attacked)
        clean_logits, adversarial_logits, stats = two_passes(forward, stats, images, attacked, moves)
        loss = (1.0 - share) * cross_entropy(clean_logits, y) + share * cross_entropy(adversarial_logits, y)
        return Outcome(loss, stats, clean_logits, adversarial_logits, attacked)

    return objective

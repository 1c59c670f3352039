"""Square as a hunt: `attacks.square` with the query at which each example fell."""

import jax.numpy as jnp

from robust_vit.attacks.arguments import working
from robust_vit.attacks.autoattack.protocol import complete
from robust_vit.attacks.autoattack.square.search import square_run
from robust_vit.attacks.blackbox.hunting import Hunt, Reached, asked_once
from robust_vit.typing import Array, Keys, LogitsFn


def hunt(*, norm: str = "linf", queries: int = 1000, rescale_schedule: bool = True) -> Hunt:
    """Makes Square's hunt.

    Args:
      norm: "linf", "l2" or "l1".
      queries: proposals; the clean image and the first pattern are two more.
      rescale_schedule: stretch the schedule of window sizes to `queries`, as the original paper does.

    Raises:
      ValueError: for a bad keyword.

    Reference: Andriushchenko et al. 2020, https://arxiv.org/abs/1912.00049
    """
    search = square_run(norm, queries, rescale_schedule=rescale_schedule, skip_repeats=False)

    def run(keys: Keys, logits_fn: LogitsFn, images: Array, labels: Array, epsilon: Array) -> Reached:
        reached, _ = asked_once(logits_fn, images, labels)
        state = search.start(keys, logits_fn, images, labels, labels, epsilon)
        state = complete(lambda s: search.tick(logits_fn, s), state.replace(done=reached.queries == 0))
        fell = state.broken & (reached.queries > 0)
        queries = jnp.where(fell, 1.0 + state.tick.astype(jnp.float32), reached.queries)
        return Reached(jnp.where(fell[:, None, None, None], working(state.adversarial), working(images)), queries)

    return run

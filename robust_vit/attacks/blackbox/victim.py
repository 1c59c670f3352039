"""A classifier that one can only ask: any Python function, whose queries are counted and, if wanted, limited."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from robust_vit.errors import check
from robust_vit.host_call import host_call
from robust_vit.typing import Array, LogitsFn


class Victim:
    """Counts what is asked of a classifier, and answers no more than it may.

    Beyond its limit it answers NaN, which no attack counts as fooled: attacks end with the best that they found until
    then. Which images of a batch are still answered is decided in their order.

    Args:
      function: images float32 [B,H,W,C] in [0,1], NumPy -> logits or probabilities [B,K]; or classes [B], integers. It
        need not know JAX, and is called on the host.
      num_classes: K.
      limit: images that are answered in all; None for no limit.

    Attributes:
      queries: images answered so far.
      refused: images that were not.

    Raises:
      ValueError: for a bad argument, or where an answer has another shape.
    """

    def __init__(self, function: Callable[[np.ndarray], Any], num_classes: int, limit: int | None = None):
        check("function", type(function).__name__, callable(function), "callable, images [B,H,W,C] -> answers")
        whole = isinstance(num_classes, int | np.integer) and not isinstance(num_classes, bool)
        check("num_classes", num_classes, whole and num_classes >= 2, "a whole number, at least 2")
        bounded = limit is None or (isinstance(limit, int | np.integer) and not isinstance(limit, bool) and limit >= 1)
        check("limit", limit, bounded, "a whole number, at least 1, or None")
        self.function, self.num_classes, self.limit = function, int(num_classes), limit
        self.queries = self.refused = 0

    @property
    def logits_fn(self) -> LogitsFn:
        """The victim as attacks take it: (images [B,H,W,C]) -> [B,K], also inside compiled programs; no gradient."""
        return jax.tree_util.Partial(self._logits)

    def __call__(self, images: Array) -> Array:
        """Answers [B,K]; classes are told as 1 among zeros."""
        return self._logits(images)

    def _logits(self, images: Array) -> Array:
        shape = (images.shape[0], self.num_classes)
        return host_call(self._answer, jax.ShapeDtypeStruct(shape, np.float32), images.astype(np.float32))

    def _answer(self, images: np.ndarray) -> np.ndarray:
        """Under `jax.vmap` the images have further axes in front."""
        front, flat = images.shape[:-3], images.reshape(-1, *images.shape[-3:])
        left = len(flat) if self.limit is None else max(0, min(len(flat), self.limit - self.queries))
        answers = np.full((len(flat), self.num_classes), np.nan, np.float32)
        if left:
            answers[:left] = self._asked(flat[:left])
        self.queries += left
        self.refused += len(flat) - left
        return answers.reshape(*front, self.num_classes)

    def _asked(self, images: np.ndarray) -> np.ndarray:
        found = np.asarray(self.function(images))
        if found.shape == (len(images),) and found.dtype.kind in "iu":
            return np.eye(self.num_classes, dtype=np.float32)[found]
        fits = found.shape == (len(images), self.num_classes)
        allowed = f"({len(images)}, {self.num_classes}), or integer classes ({len(images)},)"
        check("victim's answer", found.shape, fits, allowed)
        return found.astype(np.float32)

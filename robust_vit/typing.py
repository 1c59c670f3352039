"""The shape legend and the types that every part of the package is written against.

Shapes: B batch, H W C image (NHWC), N tokens, D width, A heads, K classes. Images are floats in [0, 1];
epsilon and step sizes are fractions of that range.
"""

from typing import Any, NamedTuple, Protocol

import jax

Array = jax.Array
Keys = jax.Array  # [B] typed PRNG keys, one per example
Variables = dict[str, Any]  # {"params": ..., "batch_stats": ...}
Statistics = Any  # running averages of BatchNorm: a tree, empty where a model has none


class LogitsFn(Protocol):
    """images [B,H,W,C] in [0,1] -> logits [B,K] float32.

    A pytree (`jax.tree_util.Partial(module.apply, variables)`), so that the weights are arguments of a compiled
    program and not constants in it.
    """

    def __call__(self, images: Array) -> Array: ...


class Attack(Protocol):
    """(keys [B], logits_fn, images, targets, strength) -> adversarial images inside the ball and inside [0,1].

    `targets` are distributions [B,K] or integer labels [B]; `strength` in [0,1] is traced and scales epsilon and
    step size.
    """

    def __call__(
        self, keys: Keys, logits_fn: LogitsFn, images: Array, targets: Array, strength: Array | float = 1.0
    ) -> Array: ...


class Forward(Protocol):
    """A forward pass with gradients to the weights: (images, statistics) -> (logits [B,K], new statistics).

    With `heads` the logits are those of each head, [B,1,K], or [B,2,K] of a model with a distillation token.
    """

    def __call__(self, images: Array, statistics: Statistics, heads: bool = False) -> tuple[Array, Statistics]: ...


class Outcome(NamedTuple):
    """What an objective returns: one loss per example, and what it happened to compute on the way."""

    loss: Array  # [B]
    statistics: Statistics
    clean_logits: Array | None = None  # [B,K]; None where the objective never looks at the clean images
    adversarial_logits: Array | None = None  # [B,K]
    attacked: Array | None = None  # [B,H,W,C]: what the attack returned; None where the objective calls none
    memory: Any = ()  # what the objective wants back at the next step, of the shape it was handed


class Aside(NamedTuple):
    """What only some objectives ask for, beside the batch."""

    teacher: LogitsFn | None = None  # a frozen classifier: HAT's helper, the teacher of a distillation
    memory: Any = ()  # what the objective remembers of the steps before: `objectives.memory`
    epoch: Array | float = 0.0  # passes over the training data so far; traced


NOTHING = Aside()


class Objective(Protocol):
    """What training minimises; it is handed the attack. See `robust_vit.objectives`."""

    def __call__(
        self,
        forward: Forward,
        statistics: Statistics,
        adversary: LogitsFn,
        attack: Attack,
        keys: Keys,
        images: Array,
        targets: Array,
        strength: Array | float = 1.0,
        aside: Aside = NOTHING,
    ) -> Outcome: ...


class Source(Protocol):
    """A random-access dataset: `source[i]` is {"image": uint8 [H,W,C] or encoded bytes, "label": int}."""

    num_classes: int

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

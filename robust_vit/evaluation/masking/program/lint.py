"""The static check: names the non-differentiable and stochastic operations between the image and the logits.

    for item in lint.check(logits_fn, images):
        print(item)        # warning: rounding: round at defence.py:12 in squeeze: its derivative is zero ...

It reads the traced program and computes nothing. A first-order attack climbs the derivative of the program it is given.
Where the program rounds, draws random bits or carries a derivative written by hand, that derivative is not the one of
the defence, and a high robust accuracy says little (Athalye et al. 2018, https://arxiv.org/abs/1802.00420).
"""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from robust_vit.program import flow, tracing
from robust_vit.typing import Array, LogitsFn

ADVICE = {
    "rounding": "its derivative is zero: attack through a differentiable substitute (BPDA), such as the identity",
    "sign": "its derivative is zero: attack through a differentiable substitute (BPDA)",
    "argmax": "its derivative is zero: attack the scores it is taken from",
    "threshold": "a comparison is used as a number, its derivative is zero: attack through a smooth step (BPDA)",
    "integer_cast": "a float becomes an integer, its derivative is lost: attack through the identity (BPDA)",
    "stop_gradient": "it hides a part of the derivative: remove it from the program that is attacked",
    "custom_gradient": "a derivative written by hand: attack with the derivative of the function itself",
    "randomness": "random bits are drawn in the forward pass: average the gradient over draws (EOT, version='rand')",
    "while_loop": "no reverse-mode derivative: attack an unrolled loop of fixed length, and with black-box attacks",
    "test_time_gradient": "the forward pass contains a gradient (test-time optimisation): attack through the unrolled "
    "optimiser, and the static model",
    "loop_over_image": "a loop carries an image (purification, test-time optimisation): attack through all its steps, "
    "and the model without it",
    "callback": "the program leaves JAX, its derivative is unknown: use black-box attacks, or rewrite it in JAX",
    "dead_zone": "a threshold on something else puts a constant in a value's place: attack through the identity (BPDA)",
    "winners_take_all": "only the largest values pass, the rest become a constant: attack through the identity (BPDA)",
    "hash_gate": "rounded or integer bits of the image choose what passes: attack through the identity (BPDA), and "
    "count what falls to noise alone",
    "selection": "ranks or indices are used as numbers, their derivative is zero: attack the values that were ranked",
}
SELECTION_NOTE = "chooses among differentiable values: the derivative is exact for the chosen, zero for the others"

CALLS = ("jit", "pjit", *flow.CUSTOM)


@dataclasses.dataclass(frozen=True)
class Item:
    """One kind of operation at one place of the program.

    Attributes:
      kind: a key of `ADVICE`.
      primitive: JAX's name of the operation, or the function's name for a custom derivative.
      where: "file.py:line in function" of the caller's code, "" if unknown.
      count: how many such operations stand there.
      severity: "warning", or "note" for what is worth knowing but masks nothing.
      advice: what to do.
    """

    kind: str
    primitive: str
    where: str
    count: int
    severity: str
    advice: str

    @property
    def place(self) -> str:
        """`round at defence.py:12 in squeeze (2x)`."""
        times = f" ({self.count}x)" if self.count > 1 else ""
        return self.primitive + (f" at {self.where}" if self.where else "") + times

    def __str__(self) -> str:
        return f"{self.severity}: {self.kind}: {self.place}: {self.advice}"


def check(logits_fn: LogitsFn, images: Array | jax.ShapeDtypeStruct) -> tuple[Item, ...]:
    """Traces `logits_fn` and names what stands in the way of a gradient.

    A softmax's shift by its maximum is recognised and passed over, and so are the selections of ReLU, max and pooling.

    Args:
      logits_fn: images [B,H,W,C] -> logits [B,K].
      images: [B,H,W,C], or their shape: nothing is computed.

    Returns:
      Items, warnings first; empty for an ordinary network.

    Raises:
      ValueError: if the logits do not depend on the images.
    """
    walk = flow.Walk(images.shape)
    flows = walk.run(tracing.trace(logits_fn, images))
    if not any(flow.depends for flow in flows):
        raise ValueError("logits_fn: the logits do not depend on the images")
    taints = walk.tainted(flows)
    items = [*_items(taints, "warning"), *_items(walk.selections - taints, "note")]
    return tuple(sorted(items, key=lambda item: (item.severity != "warning", item.kind, item.where)))


def precision(logits_fn: LogitsFn, images: Array | jax.ShapeDtypeStruct) -> float:
    """Returns the machine epsilon of the coarsest floating type that the program computes in (bfloat16: 0.0078)."""
    return max(_epsilons(tracing.trace(logits_fn, images).jaxpr))


def _epsilons(jaxpr: Any) -> Iterator[float]:
    yield float(jnp.finfo(jnp.float32).eps)
    for eqn in jaxpr.eqns:
        for var in eqn.outvars:
            if jnp.issubdtype(getattr(var.aval, "dtype", jnp.int32), jnp.floating):
                yield float(jnp.finfo(var.aval.dtype).eps)
    for body in core.subjaxprs(jaxpr):
        yield from _epsilons(body)


def _items(origins: Iterable[flow.Origin], severity: str) -> list[Item]:
    groups: dict[tuple[str, str, str], int] = {}
    for origin in origins:
        key = (origin.kind, _name(origin), where(origin))
        groups[key] = groups.get(key, 0) + 1
    advice = ADVICE if severity == "warning" else dict.fromkeys(ADVICE, SELECTION_NOTE)
    return [
        # One gradient is dozens of transposed operations: their number says nothing.
        Item(kind, name, where, 1 if kind == "test_time_gradient" else count, severity, advice[kind])
        for (kind, name, where), count in groups.items()
    ]


def _name(origin: flow.Origin) -> str:
    if origin.kind == "test_time_gradient":
        return "grad"
    if origin.kind == "custom_gradient":
        body = origin.eqn.params.get("call_jaxpr") or origin.eqn.params.get("fun_jaxpr")
        return tracing.source(body).partition(" at ")[0] or origin.eqn.primitive.name
    return origin.eqn.primitive.name


def where(origin: flow.Origin) -> str:
    """The line of the caller's code. A cached inner jit (jnp.round) remembers its first caller: ask the one around."""
    eqn, around = origin.eqn, list(origin.stack)
    while around and around[-1].primitive.name in CALLS and tracing.is_library(tracing.body(around[-1])):
        eqn = around.pop()
    return tracing.line(eqn)

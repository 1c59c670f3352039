"""Attacks that see through what hides gradients: the straight-through version of any classifier.

    logits_fn = attacks.straight_through(logits_fn)      # the same logits bit for bit, and a gradient that flows
    adversarial = attacks.pgd(epsilon=8 / 255)(keys, logits_fn, images, labels)

Backward pass differentiable approximation (BPDA, Athalye et al. 2018, https://arxiv.org/abs/1802.00420) by rewriting
the traced program: nobody has to find the layer and write its substitute by hand. The forward pass stays what it is.
What passes, and how:

    round, floor, ceil, a cast to integers and back        the identity
    sign; a comparison used as a number                    the derivative of x/(1 + |x|), which is never zero
    one-hot of an argmax or top-k                          the softmax of what was ranked
    stop_gradient                                          the identity
    custom_jvp, custom_vjp (not those of JAX, Flax and     the derivative of the function itself
    Optax, nor this package's own layers)
    where or * with a mask: dead zones, winners that       the derivative of the gated value
    take all, gates by a hash of the image
    while_loop, pure_callback                              the identity, from a float operand of the result's shape

Only operations that take a derivative away on the path from the images to the logits are touched: the maximum that a
softmax subtracts, a ReLU written with `where`, or the choice of tokens by a top-k stay as they are. Randomness stays
too: average over draws (EOT) in the attack. Ranks used as numbers and tables looked up by rounded pixels pass nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from robust_vit.program import flow, gates, interpreter, shadows, tracing
from robust_vit.program.interpreter import Path, Rules, Value
from robust_vit.typing import Array, LogitsFn


def straight_through(logits_fn: LogitsFn) -> LogitsFn:
    """Returns a classifier with the same logits, bit for bit, through which gradients flow.

    Args:
      logits_fn: images [B,H,W,C] -> logits [B,K], or (images, keys [B]) -> logits of a stochastic model. A pytree's
        arrays stay arguments of the compiled program; a plain function is taken as it is.

    Returns:
      A pytree callable for every attack and evaluation; retraced for each shape, works under `jit`, `grad`, `vmap` and
      `scan`. Eagerly, each call traces the program anew.

    Example:
      >>> hidden = lambda x: jnp.round(x.reshape(len(x), -1) * 7) @ jnp.ones((16, 3))
      >>> jax.grad(lambda x: attacks.straight_through(hidden)(x).sum())(jnp.full((1, 4, 4, 1), 0.3))  # 21 everywhere
    """
    leaves = jax.tree.leaves(logits_fn)
    opaque = len(leaves) == 1 and leaves[0] is logits_fn
    return jax.tree_util.Partial(_through, jax.tree_util.Partial(logits_fn) if opaque else logits_fn)


def passes(logits_fn: LogitsFn, images: Array | jax.ShapeDtypeStruct) -> tuple[str, ...]:
    """The kinds of operations in `logits_fn` that `straight_through` gives a derivative, sorted; () where it changes
    nothing.

    Args:
      logits_fn: images [B,H,W,C] -> logits [B,K].
      images: [B,H,W,C], or their shape: nothing is computed.
    """
    treated, _ = _analysed(tracing.trace(logits_fn, images), images.shape)
    return tuple(sorted(set(treated.values())))


def _through(logits_fn: LogitsFn, images: Array, *more: Array) -> Array:
    closed, arrays, structure = tracing.trace_arguments(logits_fn, images, *more)
    rules = _rules(*_analysed(closed, images.shape))
    outputs = interpreter.evaluate(closed, [(array, None) for array in arrays], rules)
    return jax.tree.unflatten(structure, [array for array, _ in outputs])


def _analysed(closed: Any, shape: tuple[int, ...]) -> tuple[dict[Path, str], flow.Walk]:
    """The operations to be treated, by their place in the program, and the walk that found them."""
    walk = flow.Walk(shape)
    taints = walk.tainted(walk.run(closed))
    known = {origin.place: origin.kind for origin in taints if origin.kind in TREATMENTS}
    treated = {place: kind for place, kind in known.items() if kind not in gates.KINDS or place in walk.passes}
    return treated, walk


def _rules(treated: dict[Path, str], walk: flow.Walk) -> Rules:
    around = {place[:i] for place in treated for i in range(1, len(place))}
    discrete = bool(DISCRETE & set(treated.values()))

    def shadowed(inputs: list[Value]) -> bool:
        return any(shadow is not None for _, shadow in inputs)

    def equation(eqn: Any, path: Path, inputs: list[Value]) -> list[Value] | None:
        kind = treated.get(path)
        if kind == "custom_gradient":
            return interpreter.evaluate(tracing.body(eqn), inputs, rules, path)
        if kind in gates.KINDS:
            return _gate(eqn, inputs, walk.passes[path], rules, path)
        if kind is not None:
            return TREATMENTS[kind](eqn, inputs)
        if shadowed(inputs) and eqn.primitive.name not in (*interpreter.ENTER, *flow.CUSTOM, "while"):
            return shadows.follow(eqn, inputs, blends=path in walk.blends)
        return None

    def opens(eqn: Any, path: Path, inputs: list[Value]) -> bool:
        return path in around or shadowed(inputs)

    rules = Rules(equation, opens, settle=shadows.settle if discrete else lambda value: value)
    return rules


def _identity(eqn: Any, inputs: list[Value]) -> list[Value]:
    (value,), soft = _bound(eqn, inputs), inputs[0][0]
    return [(shadows.substitute(value, soft), None)]


def _sign(eqn: Any, inputs: list[Value]) -> list[Value]:
    (value,), x = _bound(eqn, inputs), inputs[0][0]
    return [(shadows.substitute(value, 2.0 * shadows.step(x) - 1.0), None)]


def _threshold(eqn: Any, inputs: list[Value]) -> list[Value]:
    shadow = shadows.compared(eqn, inputs) if eqn.primitive.name in shadows.COMPARISONS else None
    return [(*_bound(eqn, inputs), shadow)]


def _integer(eqn: Any, inputs: list[Value]) -> list[Value]:
    cast = eqn.primitive.name == "convert_element_type"
    return [(output, shadows.number(inputs[0]) if cast else None) for output in _bound(eqn, inputs)]


def _index(eqn: Any, inputs: list[Value]) -> list[Value]:
    """argmax, argmin and the indices of a top-k: the softmax of what was ranked, along the ranked axis."""
    outputs, name, scores = _bound(eqn, inputs), eqn.primitive.name, shadows.number(inputs[0])
    if name in ("argmax", "argmin"):
        (axis,) = eqn.params["axes"]
        weights = jax.nn.softmax(scores if name == "argmax" else -scores, axis=axis)
        return [(outputs[0], shadows.Scores(jnp.moveaxis(weights, axis, -1)))]
    if name != "top_k" or eqn.params.get("axis", -1) not in (-1, scores.ndim - 1):
        return [(output, None) for output in outputs]
    weights = jnp.broadcast_to(jax.nn.softmax(scores)[..., None, :], (*outputs[1].shape, scores.shape[-1]))
    return [(outputs[0], None), (outputs[1], shadows.Scores(weights))]


def _gate(eqn: Any, inputs: list[Value], passed: int, rules: Rules, path: Path) -> list[Value]:
    """A select or a product passes on the derivative of what it gates; a cond that of the branch that holds it."""
    if eqn.primitive.name == "cond":
        branch = eqn.params["branches"][passed]
        soft = [array for array, _ in interpreter.evaluate(branch, inputs[1:], rules, path)]
        outputs = _bound(eqn, [(jax.lax.stop_gradient(array), None) for array, _ in inputs])
        return [(_substitute(value, x), None) for value, x in zip(outputs, soft)]
    (value,), soft = _bound(eqn, inputs), inputs[passed][0]
    return [(shadows.substitute(value, jnp.broadcast_to(soft, value.shape)), None)]


def _opaque(eqn: Any, inputs: list[Value]) -> list[Value]:
    """What JAX cannot differentiate backwards (while_loop, callbacks): the identity from operands of the same shape.

    What a loop carries takes the derivative of its start, and of the constants of its body that look like it.
    """
    arrays = [array for array, _ in inputs]
    outputs = _bound(eqn, [(jax.lax.stop_gradient(array), None) for array in arrays])
    carried = len(outputs) if eqn.primitive.name == "while" else 0
    rest, starts = arrays[: len(arrays) - carried], arrays[len(arrays) - carried :]

    def pass_on(output: Array, own: list[Array]) -> Array:
        alike = [x for x in rest if jnp.shape(x) == output.shape and jnp.result_type(x) == output.dtype]
        return _substitute(output, sum([*own, *alike[:1]])) if own or alike else output

    return [(pass_on(output, starts[i : i + 1]), None) for i, output in enumerate(outputs)]


def _substitute(value: Array, soft: Array) -> Array:
    inexact = jnp.issubdtype(jnp.result_type(value), jnp.inexact)
    return shadows.substitute(value, soft) if inexact else value


def _bound(eqn: Any, inputs: list[Value]) -> list[Array]:
    return interpreter.bind(eqn, [array for array, _ in inputs])


# What each kind of operation becomes; the kinds are those of `program.flow`.
TREATMENTS: dict[str, Callable[..., list[Value]] | None] = {
    "rounding": _identity,
    "stop_gradient": _identity,
    "sign": _sign,
    "threshold": _threshold,
    "integer_cast": _integer,
    "argmax": _index,
    "selection": _index,
    "while_loop": _opaque,
    "callback": _opaque,
    "custom_gradient": None,  # opened
    **dict.fromkeys(gates.KINDS, None),  # by `_gate`
}
DISCRETE = {"threshold", "integer_cast", "argmax", "selection"}  # leave integers or booleans

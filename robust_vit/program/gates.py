"""Gates: selections that put a constant in the place of a value, and so take away the value's derivative there.

`where(x > c, x, 0)` and `where(n > 0, x / n, 0)` are ordinary: the value that is replaced is the one that was compared,
or the comparison guards against zero. A gate asks something else: `where(|x - mu| < t, mu, x)` is a dead zone,
`where(x >= kth largest of x, x, 0)` lets winners take all, and `where(hash(x) is even, z, 0)` hides z by a hash.
"""

import dataclasses
from typing import Any

# Operations that pass on the identity of a value, up to shape, dtype and mask.
SAME = {
    "broadcast_in_dim",
    "reshape",
    "squeeze",
    "expand_dims",
    "convert_element_type",
    "transpose",
    "copy",
    "pvary",
    "pcast",
    "sharding_constraint",
}
COMPARISONS = {"eq", "ne", "lt", "le", "gt", "ge", "eq_to", "lt_to", "le_to"}
NONNEGATIVE = {"abs", "exp", "exp2", "sqrt", "square", "logistic"}  # whatever the operand
KEEPS_SIGN = {"reduce_sum", "reduce_max", "reduce_min", "cumsum", "slice", "gather", "concatenate", "stop_gradient"}
KEEPS_RANK = {"slice", "dynamic_slice", "gather", "reduce_min", "reduce_max", "concatenate", "stop_gradient"}
RANKS = {*COMPARISONS, "select_n", "add", "sub", "concatenate"}  # of which one operand's rank is enough
ELEMENTWISE = {
    *NONNEGATIVE,
    *("log", "log1p", "expm1", "tanh", "erf", "rsqrt", "neg", "integer_pow", "sin", "cos"),
    *("add", "sub", "mul", "div", "max", "min", "pow", "clamp", "select_n", "custom_jvp_call"),
}
MONOTONE = {
    *("add", "sub", "mul", "div", "neg", "exp", "log", "tanh", "logistic", "sqrt", "max", "min", "clamp"),
    *SAME,
}
HASHED = {"rounding", "integer_cast"}
KINDS = ("dead_zone", "winners_take_all", "hash_gate")


@dataclasses.dataclass(frozen=True)
class Test:
    """What a mask has compared.

    Attributes:
      of: numbers of the value that was compared with something that does not depend on the image, and of those of which
        it is a monotone function; empty for others.
      guard: it only keeps away zero, infinity or NaN.
    """

    of: frozenset = frozenset()
    guard: bool = False


def compared(name: str, inputs: list) -> Test | None:
    """The test that an operation makes or passes on; None where the operation gives no mask."""
    tests = [flow.test for flow in inputs if flow.test is not None]
    if name == "is_finite":
        return Test(guard=True)
    if name in COMPARISONS:
        return _comparison(name, *inputs[:2])
    if name in SAME or name in ("not", "reduce_and", "reduce_or"):
        return tests[0] if tests else None
    if name in ("and", "or") and tests:
        if all(test.guard for test in tests):
            return Test(guard=True)
        varying = [flow for flow in inputs if flow.depends]
        return tests[0] if len(varying) == 1 else Test()
    return None


def _comparison(name: str, a: Any, b: Any) -> Test:
    if a.depends and b.depends:
        return Test(guard=bool(a.aliases & b.aliases))  # x != x asks for NaN
    value, limit = (a, b) if a.depends else (b, a)
    guard = name in ("eq", "ne", "eq_to") or (limit.number == 0 and value.nonnegative)
    return Test(of=value.aliases | value.monotone, guard=guard)


def kind(chooser: Any, chosen: list, own: frozenset) -> str | None:
    """Says what kind of gate it is that takes away active values, or None for an ordinary selection.

    Args:
      chooser: flow of the mask.
      chosen: flows of the active values that it lets pass.
      own: taints of the chosen values: those that the mask shares with them are not the mask's.
    """
    if not chooser.depends or not chosen:
        return None
    if HASHED & {origin.kind for origin in chooser.taints} - {origin.kind for origin in own}:
        return "hash_gate"
    test = chooser.test or Test()
    if test.guard or any(test.of & (flow.elementwise | flow.aliases) for flow in chosen):
        return None
    return "winners_take_all" if chooser.ranked else "dead_zone"


def is_nonnegative(name: str, params: dict, inputs: list) -> bool:
    """True if no element of the result can be below zero."""
    if name in NONNEGATIVE:
        return True
    if name == "integer_pow":
        return params["y"] % 2 == 0
    if name == "mul" and len(inputs) == 2 and inputs[0].aliases & inputs[1].aliases:
        return True
    if name == "max":
        return any(flow.nonnegative or (flow.number is not None and flow.number >= 0) for flow in inputs)
    passes = name in SAME or name in KEEPS_SIGN or name in ("add", "mul", "div")
    return passes and all(flow.nonnegative or (flow.number is not None and flow.number >= 0) for flow in inputs[:2])

"""Follows the image through a traced program: which values carry its derivative, and which operations took it away.

Every value has a `Flow`. A *blocker* (round, argmax, a comparison, stop_gradient, ...) makes its output inactive and
leaves a taint; a taint that reaches the logits as a value is an operation through which an attack sees nothing. A taint
that only selects among active values (the comparison inside a ReLU, the indices of a top-k, a 0/1 mask that multiplies)
is dropped there: such a program is differentiable almost everywhere, and its derivative is the true one.
"""

import dataclasses
import itertools
from typing import Any

import jax.numpy as jnp
from jax.extend import core

BLOCKERS = {
    "round": "rounding",
    "floor": "rounding",
    "ceil": "rounding",
    "nextafter": "rounding",
    "sign": "sign",
    "argmax": "argmax",
    "argmin": "argmax",
    "stop_gradient": "stop_gradient",
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge", "is_finite", "eq_to", "lt_to", "le_to"), "threshold"),
}
RANDOM = {"random_bits", "rng_uniform", "rng_bit_generator", "random_gamma", "threefry2x32"}
CALLBACKS = {"pure_callback", "io_callback"}
ORDER = {"sort", "top_k", "approx_top_k"}
# Taints that vanish where they only choose between active values, and those that vanish where they multiply one
# (a mask, or |x| = x sign(x)).
CHOOSES = {"rounding", "sign", "argmax", "threshold", "integer_cast", "selection", "stop_gradient"}
GATES = {"sign", "argmax", "threshold", "selection"}
# Operands that say where, not what.
INDEX_OPERANDS = {
    "select_n": slice(0, 1),
    "gather": slice(1, 2),
    "dynamic_slice": slice(1, None),
    "dynamic_update_slice": slice(2, None),
    "scatter": slice(1, 2),
    "scatter-add": slice(1, 2),
    "scatter_add": slice(1, 2),
}
# Operations that pass on the identity of a value, up to shape, dtype and mask: through them "x - max(x)" is recognised.
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
INLINE = {"jaxpr", "call_jaxpr", "fun_jaxpr"}


@dataclasses.dataclass(frozen=True)
class Flow:
    """What is known of one value: does it depend on the image, does it carry its derivative, what has tainted it."""

    depends: bool = False
    active: bool = False
    taints: frozenset = frozenset()
    aliases: frozenset = frozenset()  # numbers of the values that this one equals up to shape, dtype and mask
    maximum_of: frozenset = frozenset()  # aliases of the value whose maximum this one is

    @property
    def state(self) -> tuple:
        return self.depends, self.active, self.taints


@dataclasses.dataclass(frozen=True)
class Origin:
    """One operation of the program. `stack` holds the equations around it, outermost first."""

    kind: str
    eqn: Any = dataclasses.field(compare=False, hash=False)
    stack: tuple = dataclasses.field(compare=False, hash=False)
    place: tuple = ()  # identities of the equations: what makes two origins equal


class Walk:
    """One pass over a closed jaxpr.

    Args:
      image_shape: [B,H,W,C] of the input, by which loops that carry an image are found.
      is_trusted: says of the body of a custom derivative whether it is known to be honest (`jax.nn.relu`).
    """

    def __init__(self, image_shape: tuple[int, ...], is_trusted):
        self.image_shape = tuple(image_shape)
        self.is_trusted = is_trusted
        self.stabilisers: set[Origin] = set()  # stop_gradients that only shift a softmax
        self.selections: set[Origin] = set()  # argmax, sort and top-k that choose among active values
        self._numbers = itertools.count()
        self._stack: list = []

    def run(self, closed: core.ClosedJaxpr) -> list[Flow]:
        """Returns the flow of every output, the inputs being the images."""
        inputs = [Flow(True, True, aliases=self._fresh()) for _ in closed.jaxpr.invars]
        return self._jaxpr(closed.jaxpr, inputs)

    def _fresh(self) -> frozenset:
        return frozenset((next(self._numbers),))

    def _jaxpr(self, jaxpr, inputs: list[Flow]) -> list[Flow]:
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        env = {var: Flow(aliases=self._fresh()) for var in jaxpr.constvars}
        env.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom) -> Flow:
            return Flow() if isinstance(atom, core.Literal) else env[atom]

        for eqn in jaxpr.eqns:
            outputs = self._equation(eqn, [read(atom) for atom in eqn.invars])
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, eqn, inputs: list[Flow]) -> list[Flow]:
        name = eqn.primitive.name
        self._stack.append(eqn)
        try:
            if name == "scan":
                outputs = self._scan(eqn, inputs)
            elif name == "while":
                outputs = self._while(eqn, inputs)
            elif name == "cond":
                outputs = self._cond(eqn, inputs)
            else:
                outputs = self._call(eqn, inputs) or self._primitive(eqn, inputs)
        finally:
            self._stack.pop()
        if any(flow.depends for flow in inputs) and "transpose(" in str(getattr(eqn.source_info, "name_stack", "")):
            outputs = self._mark(outputs, self._origin("test_time_gradient", eqn))
        return outputs

    def _origin(self, kind: str, eqn) -> Origin:
        stack = tuple(around for around in self._stack if around is not eqn)
        return Origin(kind, eqn, stack, (*map(id, stack), id(eqn)))

    @staticmethod
    def _mark(outputs: list[Flow], origin: Origin) -> list[Flow]:
        return [
            dataclasses.replace(flow, taints=flow.taints | {origin})
            if flow.depends or origin.kind == "randomness"
            else flow
            for flow in outputs
        ]

    def _primitive(self, eqn, inputs: list[Flow]) -> list[Flow]:
        name = eqn.primitive.name
        depends = any(flow.depends for flow in inputs)
        active = any(flow.active for flow in inputs)
        taints = self._taints(eqn, inputs)
        kind = BLOCKERS.get(name)
        if kind in ("rounding", "stop_gradient"):
            blocked = depends and _is_float(eqn.invars[0])
        else:
            blocked = kind is not None and active
        if blocked:
            taints |= {self._origin(kind, eqn)}
        if name in RANDOM:
            taints |= {self._origin("randomness", eqn)}
        if name in CALLBACKS and depends:
            taints |= {self._origin("callback", eqn)}
        maximum_of, aliases = self._identity(eqn, inputs)
        outputs = []
        for var in eqn.outvars:
            here = taints
            if active and kind is None and not _is_float(var):
                here = taints | {self._origin("selection" if name in ORDER else "integer_cast", eqn)}
            alive = active and kind is None and _is_float(var) and name not in CALLBACKS
            outputs.append(Flow(depends, alive, here, aliases or self._fresh(), maximum_of))
        return outputs

    def _taints(self, eqn, inputs: list[Flow]) -> frozenset:
        name = eqn.primitive.name
        where = INDEX_OPERANDS.get(name)
        if where is not None:
            choosers = _union(inputs[where])
            chosen = [flow for i, flow in enumerate(inputs) if i not in range(len(inputs))[where]]
            if any(flow.active for flow in chosen):
                choosers = self._drop(choosers, CHOOSES)
            return choosers | _union(chosen)
        if name in ("mul", "dot_general", "and") and any(flow.active for flow in inputs):
            return frozenset().union(*(f.taints if f.active else self._drop(f.taints, GATES) for f in inputs))
        if name == "sub" and len(inputs) == 2 and inputs[0].aliases & inputs[1].maximum_of:
            shifts = {origin for origin in inputs[1].taints if origin.kind == "stop_gradient"}
            self.stabilisers |= shifts
            return _union(inputs) - shifts
        return _union(inputs)

    def _drop(self, taints: frozenset, kinds: set[str]) -> frozenset:
        self.selections |= {origin for origin in taints if origin.kind in ("argmax", "selection")}
        return frozenset(origin for origin in taints if origin.kind not in kinds)

    def _identity(self, eqn, inputs: list[Flow]) -> tuple[frozenset, frozenset]:
        """Returns (the values whose maximum this is, the values that this equals up to shape, dtype and mask)."""
        name = eqn.primitive.name
        none = frozenset()
        if name in ("reduce_max", "argmax"):
            return inputs[0].aliases, none
        if name in ("stop_gradient", "pmax"):
            return inputs[0].maximum_of, none
        if name in SAME:
            return inputs[0].maximum_of, inputs[0].aliases | self._fresh()
        if name in ("select_n", "max"):  # where(mask, x, -inf); max(-inf, max x); where(isfinite(max), max, 0)
            cases = [flow for flow in (inputs[1:] if name == "select_n" else inputs) if flow.depends]
            if len(cases) == 1:
                return cases[0].maximum_of, cases[0].aliases | self._fresh() if name == "select_n" else none
        return none, none

    def _call(self, eqn, inputs: list[Flow]) -> list[Flow] | None:
        """Walks into jit, remat, shard_map, custom derivatives: whatever holds one body with the same operands."""
        bodies = [eqn.params[key] for key in INLINE if key in eqn.params and hasattr(eqn.params[key], "eqns")]
        if len(bodies) != 1 or len(bodies[0].in_avals if hasattr(bodies[0], "in_avals") else bodies[0].invars) != len(
            inputs
        ):
            return None
        outputs = self._jaxpr(bodies[0], inputs)
        if eqn.primitive.name not in ("custom_jvp_call", "custom_vjp_call") or self.is_trusted(bodies[0]):
            return outputs
        active = any(flow.active for flow in inputs)  # the author's rule says what passes, whatever the body does
        outputs = [dataclasses.replace(flow, active=active and flow.depends) for flow in outputs]
        return self._mark(outputs, self._origin("custom_gradient", eqn))

    def _fixed_point(self, body, constants: list[Flow], carry: list[Flow], rest: list[Flow]) -> list[Flow]:
        """Walks a loop body until what its carry depends on no longer grows."""
        while True:
            outputs = self._jaxpr(body, constants + carry + rest)
            merged = [_join(before, after) for before, after in zip(carry, outputs, strict=False)]
            if [flow.state for flow in merged] == [flow.state for flow in carry]:
                return merged + outputs[len(carry) :]
            carry = merged

    def _scan(self, eqn, inputs: list[Flow]) -> list[Flow]:
        first = eqn.params["num_consts"]
        last = first + eqn.params["num_carry"]
        outputs = self._fixed_point(eqn.params["jaxpr"], inputs[:first], inputs[first:last], inputs[last:])
        return self._loop_over_image(eqn, outputs, last - first)

    def _while(self, eqn, inputs: list[Flow]) -> list[Flow]:
        condition, body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        constants, carry = inputs[condition : condition + body], inputs[condition + body :]
        outputs = self._fixed_point(eqn.params["body_jaxpr"], constants, carry, [])
        (stop,) = self._jaxpr(eqn.params["cond_jaxpr"], inputs[:condition] + outputs)
        if any(flow.depends for flow in outputs) or stop.depends:
            outputs = [dataclasses.replace(flow, depends=True) for flow in outputs]
            outputs = self._mark(outputs, self._origin("while_loop", eqn))
        return self._loop_over_image(eqn, outputs, len(outputs))

    def _loop_over_image(self, eqn, outputs: list[Flow], carried: int) -> list[Flow]:
        pairs = list(zip(eqn.outvars, outputs, strict=True))[:carried]
        if any(flow.depends and _is_float(var) and tuple(var.aval.shape) == self.image_shape for var, flow in pairs):
            return self._mark(outputs, self._origin("loop_over_image", eqn))
        return outputs

    def _cond(self, eqn, inputs: list[Flow]) -> list[Flow]:
        index, operands = inputs[0], inputs[1:]
        branches = [self._jaxpr(branch, operands) for branch in eqn.params["branches"]]
        outputs = [_join(*flows) for flows in zip(*branches, strict=True)]
        return [
            dataclasses.replace(
                flow,
                depends=flow.depends or index.depends,
                taints=flow.taints | (self._drop(index.taints, CHOOSES) if flow.active else index.taints),
            )
            for flow in outputs
        ]


def _union(flows: list[Flow]) -> frozenset:
    return frozenset().union(*(flow.taints for flow in flows))


def _join(*flows: Flow) -> Flow:
    return Flow(any(f.depends for f in flows), any(f.active for f in flows), _union(flows), flows[0].aliases)


def _is_float(atom) -> bool:
    dtype = getattr(atom.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)

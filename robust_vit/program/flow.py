"""Follows the image through a traced program: which values carry its derivative, and which operations took it away.

Every value has a `Flow`. A *blocker* (round, argmax, a comparison, stop_gradient, ...) makes its output inactive and
leaves a taint; a taint that reaches the logits as a value is an operation through which an attack sees nothing. A taint
that only selects among active values (the comparison inside a ReLU, the indices of a top-k, a 0/1 mask that multiplies)
is dropped there: such a program is differentiable almost everywhere, and its derivative is the true one. A selection
that puts a constant in a value's place where something else than that value passes a threshold is a gate (`gates`).
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from robust_vit.program import gates, tracing
from robust_vit.program.gates import SAME, Test

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
CUSTOM = ("custom_jvp_call", "custom_vjp_call")
RANDOM = {"random_bits", "rng_uniform", "rng_bit_generator", "random_gamma", "threefry2x32"}
CALLBACKS = {"pure_callback", "io_callback", "host_callback"}
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


@dataclasses.dataclass(frozen=True)
class Flow:
    """What is known of one value: does it depend on the image, does it carry its derivative, what has tainted it."""

    depends: bool = False
    active: bool = False
    taints: frozenset = frozenset()
    aliases: frozenset = frozenset()  # numbers of the values that this one equals up to shape, dtype and mask
    maximum_of: frozenset = frozenset()  # aliases of the value whose maximum this one is
    revived: bool = False  # its derivative was lost, and would be back if what took it away let it pass
    elementwise: frozenset = frozenset()  # numbers of the values of which this one is a function, element by element
    monotone: frozenset = frozenset()  # of those, the ones of which it is a monotone function
    number: float | None = None  # of a literal
    nonnegative: bool = False
    ranked: bool = False  # an order statistic
    test: Test | None = None  # of a mask: what was compared

    @property
    def state(self) -> tuple:
        return self.depends, self.active, self.taints, self.revived

    @property
    def live(self) -> bool:
        """It carries a derivative, or would: what stands after the first obstacle is found too."""
        return self.active or self.revived


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
    """

    def __init__(self, image_shape: tuple[int, ...]):
        self.image_shape = tuple(image_shape)
        self.passes: dict[tuple, int] = {}  # of a gate, by its place: which operand (or branch) it lets pass
        self.blends: set[tuple] = set()  # places of selects of which only the mask depends on the image
        self.stabilisers: set[Origin] = set()  # stop_gradients that only shift a softmax
        self.lookups: dict[Origin, frozenset] = {}  # constants looked up by rank: the taints of the ranks
        self.selections: set[Origin] = set()  # argmax, sort and top-k that choose among active values
        self._numbers = itertools.count()
        self._stack: list = []

    def run(self, closed: core.ClosedJaxpr, images: Sequence[int] = (0,)) -> list[Flow]:
        """Returns the flow of every output; `images` says which inputs are images, the others are weights."""
        count = len(closed.jaxpr.invars)
        inputs = [Flow(i in images, i in images, aliases=self._fresh()) for i in range(count)]
        return self._jaxpr(closed.jaxpr, inputs)

    def tainted(self, flows: list[Flow]) -> frozenset:
        """The operations that reach these outputs as values: those through which an attack sees nothing."""
        taints = _union(flows)
        while looked_up := [origin for origin in taints if origin.kind == "lookup"]:
            taints -= set(looked_up)
            for origin in looked_up:
                ranks = {o for o in self.lookups[origin] if o.kind in ("selection", "argmax")}
                # The ranks that choose live values may also say what is known of the chosen.
                taints |= frozenset() if ranks and ranks <= self.selections else self.lookups[origin]
        return taints - self.stabilisers

    def _fresh(self) -> frozenset:
        return frozenset((next(self._numbers),))

    def _jaxpr(self, jaxpr, inputs: list[Flow]) -> list[Flow]:
        jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
        env = {var: Flow(aliases=self._fresh()) for var in jaxpr.constvars}
        env.update(zip(jaxpr.invars, inputs, strict=True))

        def read(atom) -> Flow:
            return Flow(number=_number(atom.val)) if isinstance(atom, core.Literal) else env[atom]

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
        active, live = any(flow.active for flow in inputs), any(flow.live for flow in inputs)
        taints = self._taints(eqn, inputs)
        kind = BLOCKERS.get(name)
        if kind in ("rounding", "stop_gradient"):
            blocked = depends and _is_float(eqn.invars[0])
        else:
            blocked = kind is not None and live
        if blocked:
            taints |= {self._origin(kind, eqn)}
        if name in RANDOM:
            taints |= {self._origin("randomness", eqn)}
        if name in CALLBACKS and depends:
            taints |= {self._origin("callback", eqn)}
        taints |= self._gate(eqn, inputs)
        maximum_of, aliases = self._identity(eqn, inputs)
        traits = {
            "monotone": self._monotone(name, inputs),
            "number": inputs[0].number if name in SAME else None,
            "nonnegative": gates.is_nonnegative(name, eqn.params, inputs),
            "ranked": name in ORDER or ((name in SAME or name in gates.KEEPS_RANK) and inputs[0].ranked),
            "test": gates.compared(name, inputs),
        }
        traits["ranked"] |= name in gates.RANKS and any(flow.ranked for flow in inputs)
        kept = name in SAME or name in gates.ELEMENTWISE
        source = frozenset().union(*(f.elementwise | f.aliases for f in inputs if f.depends)) if kept else frozenset()
        outputs = []
        for var in eqn.outvars:
            here = taints
            if live and kind is None and not _is_float(var):
                here = taints | {self._origin("selection" if name in ORDER else "integer_cast", eqn)}
            alive = active and kind is None and _is_float(var) and name not in CALLBACKS
            revived = depends and _is_float(var) and not alive and (live or self._revives(eqn, inputs))
            outputs.append(Flow(depends, alive, here, aliases or self._fresh(), maximum_of, revived, source, **traits))
        return outputs

    @staticmethod
    def _monotone(name: str, inputs: list[Flow]) -> frozenset:
        """Numbers of the values of which the result is a monotone function, element by element."""
        varying = [flow for flow in inputs if flow.depends]
        alone = name in gates.MONOTONE and len(varying) == 1
        return varying[0].aliases | varying[0].monotone if alone else frozenset()

    def _revives(self, eqn, inputs: list[Flow]) -> bool:
        """True where integers and masks that hold taints become floats again."""
        casts = eqn.primitive.name in ("convert_element_type", "select_n") or eqn.primitive.name in CALLBACKS
        return casts and any(flow.taints for flow in inputs)

    def _gate(self, eqn, inputs: list[Flow]) -> set[Origin]:
        """The gate that a selection or a product with a mask is, if it is one."""
        name = eqn.primitive.name
        live = [i for i, flow in enumerate(inputs) if flow.live]
        if name == "select_n":
            if inputs[0].depends and not live:
                self.blends.add(self._origin("threshold", eqn).place)
            chooser, constant = inputs[0], not all(flow.depends for flow in inputs[1:])
        elif name == "mul" and len(inputs) == 2 and (masks := [flow for flow in inputs if flow.test is not None]):
            live = [i for i in live if inputs[i] is not masks[0]]
            chooser, constant = masks[0], True
        else:
            return set()
        return self._judge(eqn, chooser, {i: inputs[i] for i in live}, constant)

    def _judge(self, eqn, chooser: Flow, chosen: dict[int, Flow], constant: bool) -> set[Origin]:
        kind = gates.kind(chooser, list(chosen.values()), _union(list(chosen.values())))
        if kind is None or not (constant or kind == "hash_gate"):
            return set()
        origin = self._origin(kind, eqn)
        if constant and len(chosen) == 1:
            self.passes[origin.place] = next(iter(chosen))
        return {origin}

    def _taints(self, eqn, inputs: list[Flow]) -> frozenset:
        name = eqn.primitive.name
        where = INDEX_OPERANDS.get(name)
        if where is not None:
            choosers = _union(inputs[where])
            chosen = [flow for i, flow in enumerate(inputs) if i not in range(len(inputs))[where]]
            if any(flow.live for flow in chosen):
                choosers = self._drop(choosers, CHOOSES)
            elif name == "gather" and all(flow.ranked for flow in inputs[where] if flow.depends) and choosers:
                choosers = self._looked_up(eqn, choosers)
            return choosers | _union(chosen)
        if name in ("mul", "dot_general", "and") and len(inputs) == 2:
            # What has tainted both is no mask of either: x / std(x) of a sign(x), as in a layer norm.
            both = inputs[0].taints & inputs[1].taints
            pairs = zip(inputs, reversed(inputs))
            return both.union(
                *(f.taints if f.active or not other.live else self._drop(f.taints - both, GATES) for f, other in pairs)
            )
        if name == "sub" and len(inputs) == 2 and inputs[0].aliases & inputs[1].maximum_of:
            # Only what stops the maximum itself: a stop_gradient in front of the softmax also taints what is shifted.
            shifts = {origin for origin in inputs[1].taints - inputs[0].taints if origin.kind == "stop_gradient"}
            self.stabilisers |= shifts
            return _union(inputs) - shifts
        return _union(inputs)

    def _looked_up(self, eqn, choosers: frozenset) -> frozenset:
        """A constant of what was chosen (its position, its mask): judged when all is known that the ranks choose."""
        marker = self._origin("lookup", eqn)
        self.lookups[marker] = choosers
        return frozenset((marker,))

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
        body = tracing.body(eqn)
        if body is None:
            return None
        outputs = self._jaxpr(body, inputs)
        if eqn.primitive.name not in CUSTOM:
            return outputs
        if tracing.is_trusted_rule(eqn):
            return [self._trusted(flow, inputs) for flow in outputs]
        active = any(flow.live for flow in inputs)  # the author's rule says what passes, whatever the body does
        outputs = [dataclasses.replace(flow, active=active and flow.depends) for flow in outputs]
        return self._mark(outputs, self._origin("custom_gradient", eqn))

    def _trusted(self, flow: Flow, inputs: list[Flow]) -> Flow:
        """The result of a custom derivative that is known to be honest: its rule passes what its body might not."""
        active = any(f.active for f in inputs) and flow.depends
        source = frozenset().union(*(f.elementwise | f.aliases for f in inputs if f.depends))
        before = _union(inputs)
        taints = frozenset(o for o in flow.taints if o in before or o.kind == "randomness")
        revived = flow.depends and not active and any(f.live for f in inputs)
        return dataclasses.replace(flow, active=active, taints=taints, revived=revived, elementwise=source)

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
            outputs = [dataclasses.replace(flow, depends=True, revived=not flow.active) for flow in outputs]
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
        outputs = []
        for flows in zip(*branches, strict=True):
            flow, active = _join(*flows), {i: flow for i, flow in enumerate(flows) if flow.live}
            taints = self._drop(index.taints, CHOOSES) if flow.live else index.taints
            taints |= self._judge(eqn, index, active, constant=not all(flow.depends for flow in flows))
            outputs.append(
                dataclasses.replace(flow, depends=flow.depends or index.depends, taints=flow.taints | taints)
            )
        return outputs


def _union(flows: list[Flow]) -> frozenset:
    return frozenset().union(*(flow.taints for flow in flows))


def _join(*flows: Flow) -> Flow:
    depends, active, revived = (any(getattr(f, name) for f in flows) for name in ("depends", "active", "revived"))
    return Flow(depends, active, _union(flows), flows[0].aliases, revived=revived and not active)


def _is_float(atom) -> bool:
    dtype = getattr(atom.aval, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.inexact)


def _number(literal: Any) -> float | None:
    return float(literal) if np.size(literal) == 1 and np.issubdtype(np.asarray(literal).dtype, np.number) else None

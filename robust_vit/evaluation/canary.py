"""Does the compiler compute what the model says? Asked before every evaluation, on a few of its own points.

    canary = check(logits_fn, images, slots=32)     # raises Miscompiled, or tells how far apart the two are

The compiled program, at the shape that the evaluation uses, is compared with the same operations run one by one
(`plain`) at the shape of the few points: logits, and the gradient of a random mixture of them to the images. Known
faults of XLA's fusions are wrong in the first digit, and only from some size on; rounding is not. What rounding may do
is measured where it matters: on images that differ by less than the precision shows.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from robust_vit import parallel
from robust_vit.evaluation import plain
from robust_vit.evaluation.callables import as_logits_fn
from robust_vit.evaluation.scheduling import programs
from robust_vit.pixels import as_float
from robust_vit.typing import Array, Keys, LogitsFn

POINTS = 2
# Differences are told relative to the logits and to the gradient. What rounding explains without a look at the model:
# families differ by less than 12 roundings, sums of n terms by some sqrt(n); what is sought errs in the first digit.
ROUNDINGS, OF_SUMS, MOST = 1024, 4.0, 0.25
# Otherwise the images are moved by so many roundings, and the logits and gradients that this changes set the scale.
MOVES = (4, 16, 64)
MARGIN = 8.0
TINY = 1e-20  # a gradient below means nothing
# Bits that a float32 matrix product rounds its factors to, where no higher precision is asked for.
PRODUCT = {"tpu": 2.0**-8, "gpu": 2.0**-11, "cuda": 2.0**-11}


class Miscompiled(ValueError):
    """A compiled program that computes something else than its operations one by one."""


@dataclasses.dataclass(frozen=True)
class Canary:
    """How far the compiled program is from its operations one by one.

    Attributes:
      points: images compared.
      shape: of the batch that the compiled program saw.
      rounding: relative rounding of the coarsest arithmetic in the program.
      forward_difference: largest difference of a logit, over the largest logit.
      gradient_difference: largest length of a difference of gradients, over the longer of the two; None for a
        classifier without a gradient.
      forward_allowed, gradient_allowed: what rounding explains.
    """

    points: int
    shape: tuple[int, ...]
    rounding: float
    forward_difference: float
    gradient_difference: float | None
    forward_allowed: float
    gradient_allowed: float | None

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; what is not finite, as it is with models that draw, becomes None."""
        told = dataclasses.asdict(self) | {"shape": list(self.shape)}
        return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in told.items()}


def check(
    logits_fn: LogitsFn,
    images: np.ndarray,
    *,
    slots: int,
    keys: Keys | None = None,
    mesh: Mesh | None = None,
    effort: int | None = None,
) -> Canary:
    """Compares the compiled forward pass and input gradient of a classifier with its operations one by one.

    Args:
      logits_fn: any callable classifier.
      images: [N,H,W,C] floats in [0,1] or uint8; the first few are used.
      slots: images in the compiled program's batch; a multiple of the devices.
      keys: [N] keys, for a classifier that is called as logits_fn(images, keys).
      mesh: devices that share the batch; one device if None.
      effort: of the compiler (`programs.over`), as the evaluation has it: other efforts fuse otherwise. None is JAX's.

    Returns:
      A Canary.

    Raises:
      Miscompiled: if the two differ by more than rounding explains; one line that names the shape.
    """
    count = min(POINTS, len(images), slots)
    model = as_logits_fn(logits_fn)
    inputs = (np.asarray(as_float(np.asarray(images[:count]))), *(() if keys is None else (keys[:count],)))
    program = jax.make_jaxpr(lambda model, *inputs: model(*inputs))(model, *inputs)  # a deep model is slow to trace
    mixture = np.random.default_rng(0).standard_normal((count, program.out_avals[0].shape[1])).astype(np.float32)
    both, traced = _traced(model, mixture, *inputs)
    reference = plain.evaluate(traced, model, mixture, *inputs)
    logits = programs.forward(mesh, len(inputs), effort)
    found = [_apart(_compiled(logits, model, slots, mesh, inputs)[0], reference[0])]
    if both:  # another program: fused otherwise, as much is kept for the gradient
        pairs = zip(_compiled(_program(mesh, effort, len(inputs)), model, slots, mesh, (mixture, *inputs)), reference)
        logits_apart, gradient_apart = (_apart(a, b) for a, b in pairs)
        found = [max(found[0], logits_apart), gradient_apart]
    operations = list(_operations(program.jaxpr))
    rounding = _rounding(operations)
    allowed = [_explained(rounding, operations)] * len(found)
    if any(difference > limit for difference, limit in zip(found, allowed)):
        spread = _spread(traced, model, reference, rounding, mixture, *inputs)
        allowed = [max(limit, MARGIN * scale) for limit, scale in zip(allowed, spread)]
    if not both:
        found, allowed = [*found, None], [*allowed, None]
    canary = Canary(count, (slots, *inputs[0].shape[1:]), rounding, *found, *allowed)
    if any(limit is not None and difference > limit for difference, limit in zip(found, allowed)):
        raise Miscompiled(_complaint(canary))
    return canary


def _both(model: LogitsFn, mixture: Array, images: Array, *more: Array) -> tuple[Array, Array]:
    """Logits [B,K], and the gradient [B,H,W,C] of their mixture."""
    logits, pull_back = jax.vjp(lambda images: model(images, *more).astype(jnp.float32), images)
    return logits, pull_back(mixture)[0]


def _traced(*arguments: Any) -> tuple[bool, Any]:
    """Whether there is a gradient to compare, and the program: of a classifier without one, the forward pass alone."""
    try:
        return True, jax.make_jaxpr(_both)(*arguments)
    except (TypeError, ValueError, NotImplementedError):  # a host callback, or another custom operation
        return False, jax.make_jaxpr(lambda model, mixture, *inputs: (model(*inputs).astype(jnp.float32),))(*arguments)


def _compiled(
    program: programs.Program, model: LogitsFn, slots: int, mesh: Mesh | None, inputs: tuple[Any, ...]
) -> list[np.ndarray]:
    """The results of the compiled program for a batch filled with the points, again and again: [slots,...]."""
    rows = np.arange(slots) % len(inputs[0])
    batch = tuple(value[rows] for value in inputs)
    if mesh is not None:
        model, batch = parallel.replicate(mesh, model), jax.device_put(batch, parallel.batched(mesh))
    compiled, _ = program.compiled((model, *batch))
    # Other values first, of which memory then remembers: what a program leaves unwritten must not look right.
    jax.block_until_ready(compiled(model, *(jax.tree.map(_other, value) for value in batch)))
    return [np.asarray(value) for value in jax.tree.leaves(compiled(model, *batch))]


def _other(value: Any) -> Any:
    """Values of the same kind and place that are not these; keys are taken as they are."""
    return 1 - value if jnp.issubdtype(value.dtype, jnp.floating) else value


@functools.lru_cache(maxsize=8)
def _program(mesh: Mesh | None, effort: int | None, inputs: int) -> programs.Program:
    return programs.over(_both, mesh, "ws" + "s" * inputs, "ss", effort)


def _apart(batch: np.ndarray, points: np.ndarray) -> float:
    """The largest difference of a row of the batch from its point, relative to the larger; infinite where only one of
    the two is finite. A point of zeros is nothing to compare with: what rounding leaves of a blocked gradient is noise.
    """
    points = points[np.arange(len(batch)) % len(points)].reshape(len(batch), -1).astype(np.float64)
    batch = batch.reshape(len(batch), -1).astype(np.float64)
    known = np.isfinite(batch)
    if not np.array_equal(known, np.isfinite(points)):
        return float("inf")
    batch, points = np.where(known, batch, 0.0), np.where(known, points, 0.0)
    length = np.maximum(np.linalg.norm(batch, axis=1), np.linalg.norm(points, axis=1))
    apart = np.linalg.norm(batch - points, axis=1) / np.maximum(length, TINY)
    return float(apart[points.any(axis=1)].max(initial=0.0))


def _spread(
    traced: Any, model: LogitsFn, reference: list[np.ndarray], rounding: float, mixture: Any, points: Any, *more: Any
) -> list[float]:
    """How far the plain program's own results move with its images."""
    draws = np.random.default_rng(1)
    spread = [0.0] * len(reference)
    for move in MOVES:
        moved = points + move * rounding * draws.uniform(-1, 1, points.shape).astype(np.float32)
        found = plain.evaluate(traced, model, mixture, np.clip(moved, 0, 1), *more)
        spread = [max(known, _apart(value, before)) for known, value, before in zip(spread, found, reference)]
    return spread


def _rounding(operations: list[Any]) -> float:
    """The relative rounding of the coarsest arithmetic in the program."""
    coarsest = max(map(_coarseness, operations), default=0.0)
    return max(coarsest, float(jnp.finfo(jnp.float32).eps) / 2)


def _explained(rounding: float, operations: list[Any]) -> float:
    """The difference that rounding may make in any program of these sums."""
    longest = max(map(_terms, operations), default=1.0)
    return min(MOST, rounding * (ROUNDINGS + OF_SUMS * math.sqrt(longest)))


def _operations(jaxpr: Any) -> Iterator[Any]:
    """Every operation of a program, those of the programs inside it too."""
    for operation in jaxpr.eqns:
        yield operation
        for inner in jax.tree.leaves(list(operation.params.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from _operations(getattr(inner, "jaxpr", inner))


def _coarseness(operation: Any) -> float:
    kinds = [getattr(variable.aval, "dtype", jnp.int32) for variable in operation.outvars]
    found = [float(jnp.finfo(kind).eps) / 2 for kind in kinds if jnp.issubdtype(kind, jnp.floating)]
    is_product = operation.primitive.name in ("dot_general", "conv_general_dilated")
    precision = operation.params.get("precision")
    asked = precision[0] if isinstance(precision, tuple) else precision
    if is_product and asked in (None, jax.lax.Precision.DEFAULT):
        found.append(PRODUCT.get(jax.default_backend(), 0.0))
    return max(found, default=0.0)


def _terms(operation: Any) -> float:
    """How many terms a sum has."""
    first = operation.invars[0].aval if operation.invars else None
    if operation.primitive.name == "reduce_sum":
        return first.size / max(1, operation.outvars[0].aval.size)
    if operation.primitive.name == "dot_general":
        return math.prod(first.shape[axis] for axis in operation.params["dimension_numbers"][0][0])
    return 1.0


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def _complaint(canary: Canary) -> str:
    parts = [f"logits by {canary.forward_difference:.1e} (rounding explains {canary.forward_allowed:.1e})"]
    if canary.gradient_difference is not None:
        parts.append(f"gradient by {canary.gradient_difference:.1e} (rounding explains {canary.gradient_allowed:.1e})")
    return (
        f"canary: the program compiled for images {list(canary.shape)} on {jax.default_backend()} differs from the same"
        f" operations one by one, {' and '.join(parts)}: its figures would be wrong; see python -m robust_vit.doctor"
    )

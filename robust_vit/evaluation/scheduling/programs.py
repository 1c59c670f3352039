"""Compiled programs that are kept: compiled explicitly, so that the seconds are known, and once a shape."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from robust_vit import parallel
from robust_vit.typing import Array, LogitsFn

# LLVM's effort on CPU. Level 1 compiles a fifth faster than the default 3, and the programs run as fast: their time is
# in matrix products, which are not compiled here. What runs once a slot and not once a step gets no effort at all.
STEADY, RARE = 1, 0


class Program:
    """A jitted function and its compiled forms, by the shapes and places of the arguments."""

    KEPT = 16

    def __init__(self, jitted: Any, effort: int | None = STEADY):
        self.jitted, self.effort = jitted, effort
        self.forms: dict[Any, Any] = {}

    def compiled(self, arguments: tuple[Any, ...]) -> tuple[Callable[..., Any], float]:
        """Returns the compiled form for these arguments and the seconds it took now (0 when it was there)."""
        leaves, structure = jax.tree.flatten(arguments)
        signature = tuple((jnp.shape(x), jnp.result_type(x), getattr(x, "sharding", None)) for x in leaves)
        form = structure, signature
        if form in self.forms:
            return self.forms[form], 0.0
        while len(self.forms) >= self.KEPT:  # a model that is gone should not live on here
            self.forms.pop(next(iter(self.forms)))
        began = time.perf_counter()
        self.forms[form] = self.jitted.lower(*arguments).compile(self._options())
        return self.forms[form], time.perf_counter() - began

    def _options(self) -> dict[str, Any] | None:
        given = self.effort is not None and jax.default_backend() == "cpu"
        return {"xla_backend_optimization_level": self.effort} if given else None


def over(
    body: Callable[..., Any],
    mesh: Mesh | None,
    arguments: str,
    results: str,
    effort: int | None = STEADY,
    donate: tuple[int, ...] = (),
) -> Program:
    """A program over the devices of a mesh, or over one device.

    Args:
      body: a pure function; under a mesh it sees one device's part.
      mesh: the devices; one device if None.
      arguments, results: a letter each: split over the devices by the first axis (s), or whole on each (w).
      effort: `STEADY` or `RARE`; None is JAX's own.
      donate: positions of arguments that are given up.
    """
    if mesh is not None:
        specs = {"s": PartitionSpec(parallel.DATA), "w": PartitionSpec()}
        ins, outs = (tuple(specs[letter] for letter in letters) for letters in (arguments, results))
        outs = outs[0] if len(outs) == 1 else outs
        body = jax.shard_map(body, mesh=mesh, in_specs=ins, out_specs=outs, check_vma=False)
    return Program(jax.jit(body, donate_argnums=donate), effort)


@functools.lru_cache(maxsize=8)
def forward(mesh: Mesh | None, inputs: int, effort: int | None = STEADY) -> Program:
    """The forward pass in float32: (logits_fn, images [B,H,W,C], and keys [B] where `inputs` is 2) -> logits [B,K].

    The canary examines the very program that judges claims.
    """
    return over(_forward, mesh, "w" + "s" * inputs, "s", effort)


def _forward(logits_fn: LogitsFn, *inputs: Array) -> Array:
    return logits_fn(*inputs).astype(jnp.float32)

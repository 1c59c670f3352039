"""What a model costs: parameters, multiply-adds, tokens, and the memory of an input gradient; nothing is run.

Multiply-adds (MACs) are counted from the traced program: convolutions and matrix products, attention included, one
count for each multiply-add pair, biases, norms and activations not at all. Papers of this field mostly print this
number as "FLOPs"; it is half of what `torch.utils.flop_counter` prints.
"""

import dataclasses
import functools
import json
import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from robust_vit import models
from robust_vit.models.parts import layers

FIGURES = pathlib.Path(__file__).parent / "figures.json"  # what `python -m robust_vit.models --write` counted


@dataclasses.dataclass(frozen=True)
class Summary:
    """One row of the table; see `summarize`."""

    name: str
    image_size: str  # HxW pixels
    parameters: int
    macs: int  # multiply-adds of one image
    tokens: int | None  # of the first block; None where no block records tokens
    gradient_bytes: int | None  # peak memory of an input gradient beside the weights; None when not asked for


def summarize(name: str, batch: int = 8, memory: bool = False, **overrides: Any) -> Summary:
    """Builds a model by name, traces it and counts.

    Args:
      name: one of `models.names()`.
      batch: images in the input gradient whose memory is measured.
      memory: whether to measure it; this compiles the gradient (seconds to minutes), the rest only traces.
      **overrides: fields of the model.

    Returns:
      The counts, for one image.

    Raises:
      ValueError: as `models.build`.
    """
    module = models.build(name, **overrides)
    height, width, _ = models.image_shape(module)
    brief = _brief(module)
    return Summary(
        name,
        f"{height}x{width}",
        count_parameters(brief),
        count_macs(brief),
        count_tokens(brief),
        gradient_memory(module, batch) if memory else None,
    )


def _brief(module: nn.Module) -> nn.Module:
    """The model with its equal blocks scanned, where its family can: one block to trace in place of all."""
    other = module.clone(scan=True)
    try:
        other.validate()
    except ValueError:
        return module
    return other


def figures() -> dict[str, Summary]:
    """Every model at its defaults, as counted before; nothing is traced."""
    return {row["name"]: Summary(**row, gradient_bytes=None) for row in json.loads(FIGURES.read_text())}


def write_figures(rows: Iterable[Summary]) -> None:
    """Puts rows into the table that `figures` reads; rows of models that no longer exist are dropped."""
    known = figures() if FIGURES.exists() else {}
    known |= {row.name: row for row in rows}
    kept = [dataclasses.asdict(known[name]) for name in models.names() if name in known]
    for row in kept:
        del row["gradient_bytes"]  # of this machine's compiler
    FIGURES.write_text("[\n" + ",\n".join(json.dumps(row) for row in kept) + "\n]\n")


def shapes(module: nn.Module) -> Any:
    """The variables' shapes and types, nothing computed."""
    images = jax.ShapeDtypeStruct((1, *models.image_shape(module)), layers.wide(module.dtype))
    return jax.eval_shape(module.init, jax.random.key(0), images)


def count_parameters(module: nn.Module) -> int:
    """Trainable numbers; running statistics of BatchNorm are not among them."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes(module)["params"]))


def count_macs(module: nn.Module) -> int:
    """Multiply-adds of the forward pass of one image."""
    images = jax.ShapeDtypeStruct((1, *models.image_shape(module)), layers.wide(module.dtype))
    return traced_macs(jax.make_jaxpr(module.apply)(shapes(module), images).jaxpr)


def count_tokens(module: nn.Module) -> int | None:
    """Tokens (or positions) of the first block's output."""
    images = jax.ShapeDtypeStruct((1, *models.image_shape(module)), layers.wide(module.dtype))
    run = functools.partial(models.capture, module, names=["tokens"])
    tokens = jax.eval_shape(run, shapes(module), images)[1]["tokens"]
    return math.prod(tokens[0].shape[1:-1]) if tokens else None


def gradient_memory(module: nn.Module, batch: int) -> int:
    """Bytes that the gradient of the loss by the images needs beside the weights, as the compiler plans it.

    This is what an attack step costs; a training step keeps more.
    """

    def loss(variables: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = module.apply(variables, images)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).sum()

    images = jax.ShapeDtypeStruct((batch, *models.image_shape(module)), layers.wide(module.dtype))
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32)
    compiled = jax.jit(jax.grad(loss, argnums=1)).lower(shapes(module), images, labels).compile()
    plan = compiled.memory_analysis()
    return plan.temp_size_in_bytes + plan.output_size_in_bytes + math.prod(images.shape) * images.dtype.itemsize


def traced_macs(jaxpr: core.Jaxpr) -> int:
    """Sums multiply-adds over the equations of a traced program; a loop counts as often as it runs, a branch at its
    dearest.
    """
    return sum(_equation_macs(equation) for equation in jaxpr.eqns)


def _equation_macs(equation: core.JaxprEqn) -> int:
    primitive, params = equation.primitive.name, equation.params
    if primitive == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        inner = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
        return math.prod(equation.outvars[0].aval.shape) * inner
    if primitive == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        features = kernel[params["dimension_numbers"].rhs_spec[0]]
        return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // features
    if params.get("name") == "depthwise":  # a convolution written as shifted sums, see convolution.py
        if not equation.invars:  # what Flax's scan hoists out of its loop: on which platform it runs
            return 0
        kernel = equation.invars[1].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * kernel[0] * kernel[1]
    inner = [traced_macs(jaxpr) for jaxpr in _inner_jaxprs(params)]
    if primitive == "cond":
        return max(inner)
    if primitive == "shard_map":  # the program of one device
        return sum(inner) * params["mesh"].size
    return sum(inner) * (params["length"] if primitive == "scan" else 1)


def _inner_jaxprs(params: dict[str, Any]) -> Iterable[core.Jaxpr]:
    for key, value in params.items():
        if key in ("jvp_jaxpr_fun", "jvp_jaxpr_thunk", "fwd_jaxpr_thunk"):  # derivatives, not part of the forward pass
            continue
        for one in value if isinstance(value, tuple | list) else [value]:
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one


def lines(rows: Iterable[Summary], batch: int = 8, memory: bool = False) -> Iterator[str]:
    """Lays summaries out as text, a line as soon as its row is there, with the conventions below.

    Args:
      rows: may be counted while this is read.
      batch, memory: as for `summarize`; whether there is a column of gradient memory.
    """
    width = max(map(len, models.names()))
    heads = ("model".ljust(width), "    image", "  parameters", "   GMACs", " tokens")
    heads += (" gradient MiB",) if memory else ()
    yield "  ".join(heads)
    yield "  ".join("-" * len(head) for head in heads)
    for row in rows:
        cells = [row.name, row.image_size, f"{row.parameters:,}", f"{row.macs / 1e9:.3f}", str(row.tokens or "")]
        cells += [f"{(row.gradient_bytes or 0) / 2**20:,.1f}"] if memory else []
        padded = [cell.rjust(len(head)) for cell, head in zip(cells[1:], heads[1:])]
        yield "  ".join([row.name.ljust(width), *padded])
    yield "GMACs: 1e9 multiply-adds an image (convolutions, matrix products), counted from the traced program"
    if memory:
        yield f"gradient MiB: peak memory of the input gradient of {batch} images beside the weights, as compiled"

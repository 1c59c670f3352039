"""What a model costs: parameters, multiply-adds, tokens, and the memory of an input gradient; nothing is run.

Multiply-adds (MACs) are counted from the traced program: convolutions and matrix products, attention included, one
count for each multiply-add pair, biases, norms and activations not at all. Papers of this field mostly print this
number as "FLOPs"; it is half of what `torch.utils.flop_counter` prints.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend import core

from robust_vit import models
from robust_vit.models.parts import layers


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
    return Summary(
        name,
        f"{height}x{width}",
        count_parameters(module),
        count_macs(module),
        count_tokens(module),
        gradient_memory(module, batch) if memory else None,
    )


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
        kernel = equation.invars[1].aval.shape
        return math.prod(equation.outvars[0].aval.shape) * kernel[0] * kernel[1]
    inner = [traced_macs(jaxpr) for jaxpr in _inner_jaxprs(params)]
    if primitive == "cond":
        return max(inner)
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


def table(rows: Iterable[Summary], batch: int) -> str:
    """Lays summaries out as aligned text, with the conventions below it."""
    rows = list(rows)
    columns = {
        "model": [row.name for row in rows],
        "image": [row.image_size for row in rows],
        "parameters": [f"{row.parameters:,}" for row in rows],
        "GMACs": [f"{row.macs / 1e9:.3f}" for row in rows],
        "tokens": [str(row.tokens or "") for row in rows],
    }
    notes = ["GMACs: 1e9 multiply-adds an image (convolutions, matrix products), counted from the traced program"]
    if any(row.gradient_bytes is not None for row in rows):
        columns["gradient MiB"] = [f"{(row.gradient_bytes or 0) / 2**20:,.1f}" for row in rows]
        notes.append(
            f"gradient MiB: peak memory of the input gradient of {batch} images beside the weights, as compiled"
        )
    padded = []
    for i, (head, cells) in enumerate(columns.items()):
        width = max(map(len, [head, *cells]))
        padded.append([cell.ljust(width) if i == 0 else cell.rjust(width) for cell in [head, "-" * width, *cells]])
    return "\n".join(["  ".join(line) for line in zip(*padded)] + notes)

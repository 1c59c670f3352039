"""Every architecture, by name: `build`, `names`, `fields`, `init`, `logits_fn`, `capture`, `describe`.

```python
model = models.build("vit_small_patch16_224", image_size=32, patch_size=4, num_classes=10)
variables = models.init(model, jax.random.key(0))
logits = models.logits_fn(model, variables)(images)  # [B,H,W,C] in [0,1] -> [B,K]
logits, maps = models.capture(model, variables, images, ["attention"])
```

To add a model: write `models/families/my_family.py` with a Flax module whose fields have defaults and include
`num_classes`, `image_size`, `channels`, `mean`, `std`, `dtype`, `param_dtype`, `drop_path`, `remat` and `scan`; call
`captures.record` for "attention", "tokens" and "features"; end the file with a dict `MODELS` from names to
`functools.partial(MyFamily, field=value, ...)`; merge it below; and give it a row in `tests/models/tiny.py`. A method
`validate(self)`, if there is one, is called by `build` and raises ValueError where the fields do not make a model.
Name submodules as the PyTorch state dict does, and weights convert too (`weights/`).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from robust_vit.errors import lookup
from robust_vit.models import ranges
from robust_vit.models.families import (
    cait,
    convnext,
    efficientvit,
    masked_autoencoder,
    mobilevit,
    resnet,
    sparsevit,
    swin,
    vit,
    xcit,
)
from robust_vit.models.parts import captures, layers, scanning
from robust_vit.typing import Array, LogitsFn, Variables

MODELS: dict[str, functools.partial] = {
    **cait.MODELS,
    **convnext.MODELS,
    **efficientvit.MODELS,
    **masked_autoencoder.MODELS,
    **mobilevit.MODELS,
    **resnet.MODELS,
    **sparsevit.MODELS,
    **swin.MODELS,
    **vit.MODELS,
    **xcit.MODELS,
}

CAPTURE_NAMES = ("attention", "tokens", "features")


def names() -> list[str]:
    """Returns the names that `build` knows, sorted."""
    return sorted(MODELS)


def build(name: str, **overrides: Any) -> nn.Module:
    """Builds a model from its name.

    Args:
      name: one of `names()`.
      **overrides: any field of the module (see the class: `models.MODELS[name].func`).

    Returns:
      An unbound Flax module: module.apply(variables, images [B,H,W,C] in [0,1], train=False) -> logits [B,K], at least
      float32.

    Raises:
      ValueError: unknown name or field (the nearest is suggested), or fields that do not make a model.
    """
    known = fields(name)
    for key in overrides:
        lookup(f"field of model {name}", key, known)
    module = MODELS[name](**{key: _frozen(value) for key, value in overrides.items()})
    ranges.validate(module)
    if hasattr(module, "validate"):
        module.validate()
    return module


def fields(name: str) -> dict[str, Any]:
    """Returns {field: default} of what `build(name, ...)` takes.

    Raises:
      ValueError: unknown name.
    """
    factory = lookup("model.name", name, MODELS)
    known = {f.name: f.default for f in dataclasses.fields(factory.func) if f.name not in ("parent", "name")}
    return known | factory.keywords


def _frozen(value: Any) -> Any:
    """Lists, as configuration files have them, as the tuples that make a module hashable."""
    return tuple(_frozen(one) for one in value) if isinstance(value, list | tuple) else value


def init(module: nn.Module, key: Array, batch: int = 1) -> Variables:
    """Draws the initial variables.

    Args:
      module: from `build`.
      key: a typed key.
      batch: size of the batch of zeros that shapes are traced with.

    Returns:
      {"params": ..., and "batch_stats" where the model has batch normalisation}.
    """
    images = jnp.zeros((batch, *image_shape(module)), layers.wide(module.dtype))
    return jax.jit(module.init)(key, images)


def image_shape(module: nn.Module) -> tuple[int, int, int]:
    """Returns (H, W, C) of the images that the model was built for."""
    size = module.image_size
    return (*(size if isinstance(size, tuple) else (size, size)), module.channels)


def describe(module: nn.Module, variables: Variables | None = None) -> str:
    """Returns one line for a repr, "ViT, 201k weights"; counted from the variables where they are given."""
    if variables is None:
        images = jax.ShapeDtypeStruct((1, *image_shape(module)), layers.wide(module.dtype))
        variables = jax.eval_shape(module.init, jax.random.key(0), images)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    return f"{type(module).__name__}, {short(count)} weights"


def short(count: int) -> str:
    """Three digits at most: 201384 -> 201k, 5717416 -> 5.72M."""
    for power, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * power:  # what three digits round to the next letter
            return f"{count / power:.3g}{letter}"
    return str(count)


def logits_fn(module: nn.Module, variables: Variables) -> LogitsFn:
    """Returns images -> logits in evaluation mode, as a pytree whose leaves are the weights.

    Passed through `jax.jit`, the weights are arguments of the compiled program; equal modules with weights of equal
    shapes share one compilation.
    """
    return jax.tree_util.Partial(_Apply(module), variables)


@dataclasses.dataclass(frozen=True)
class _Apply:
    """`module.apply` that compares by the module's fields: bound methods compare by identity and would compile anew."""

    module: nn.Module

    def __call__(self, variables: Variables, images: Array) -> Array:
        return self.module.apply(variables, images)


def capture(
    module: nn.Module, variables: Variables, images: Array, names: Sequence[str] = CAPTURE_NAMES, **keywords: Any
) -> tuple[Array, dict[str, list[Array]]]:
    """Runs the model and returns intermediate values too; differentiable, jittable.

    Args:
      module, variables: the model.
      images: [B,H,W,C] in [0,1].
      names: any of "attention" (maps [B,A,Q,K] after the softmax), "tokens" (each block's output, [B,N,D] or [B,H,W,D])
        and "features" (input of the head, [B,D]).
      **keywords: of the module's call (`train=True`, `rngs=...`).

    Returns:
      logits [B,K] and {name: one array a block, in the order they run}; a list is empty where the family has no such
      value.

    Raises:
      ValueError: an unknown name.
    """
    for name in names:
        lookup("capture name", name, dict.fromkeys(CAPTURE_NAMES))
    logits, state = module.apply(variables, images, mutable=[captures.COLLECTION], **keywords)
    found: dict[str, list[Array]] = {name: [] for name in names}
    for name, value, stacked in _walk(state.get(captures.COLLECTION, {}), ()):
        if name in found:
            found[name].extend(list(value) if stacked else [value])
    return logits, found


def _walk(tree: Any, path: tuple[str, ...]):
    """Yields (name, value, whether the value has a leading layer axis) in the order of execution."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _walk(value, (*path, key))
        else:
            for one in value:
                # a scanned stack of blocks is a module with the bare name; unrolled blocks carry a number
                yield key, one, any(name in scanning.STACKS for name in path)

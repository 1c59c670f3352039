"""What the fields of any model may hold: checked by `models.build` for every family, before its own `validate`."""

import dataclasses
import math
import numbers
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from robust_vit.errors import check

MAY_BE_ZERO = ("num_classes",)  # no head


def validate(module: nn.Module) -> None:
    """Checks kinds and ranges by what the class has as defaults: sizes are positive, numbers finite, pixels in [0,1].

    Raises:
      ValueError: one line that names the field.
    """
    for field in dataclasses.fields(module):
        value, default = getattr(module, field.name), field.default
        if field.name in ("parent", "name", "image_size", "mean", "std", "dtype", "param_dtype"):
            continue
        if isinstance(default, bool):
            check(field.name, value, isinstance(value, bool), "True or False")
        elif isinstance(default, int):
            least = 0 if field.name in MAY_BE_ZERO else 1
            allowed = "positive, or 0 for no head" if least == 0 else "a positive integer"
            check(field.name, value, _is_integer(value) and value >= least, allowed)
        elif isinstance(default, float):
            _number(field.name, value)
        elif isinstance(default, tuple) and default:
            right = isinstance(value, tuple) and all(_is_integer(one) and one > 0 for one in value)
            allowed = "a list of positive integers"
            check(field.name, value, right, allowed + ": at least 1 block a stage" * (field.name == "depths"))
    _image_size(module)
    _normalization(module)
    for name in ("dtype", "param_dtype"):
        check(name, getattr(module, name), _is_floating(getattr(module, name)), "a floating-point type")


def _number(name: str, value: Any) -> None:
    if value is None and name == "layer_scale":
        return
    right = isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
    check(name, value, right, "a finite number")
    if name == "drop_path":
        check(name, value, 0 <= value < 1, "a rate in [0, 1)")
    elif name != "layer_scale":  # ratios of widths, and what is added to a variance
        check(name, value, value > 0, "positive")


def _image_size(module: nn.Module) -> None:
    size = module.image_size if isinstance(module.image_size, tuple) else (module.image_size,) * 2
    sides = len(size) == 2 and all(_is_integer(side) and side > 0 for side in size)
    check("image_size", module.image_size, sides, "a positive integer or (height, width)")


def _normalization(module: nn.Module) -> None:
    for name, least in (("mean", "0 or more"), ("std", "positive")):
        values = getattr(module, name)
        right = isinstance(values, tuple) and all(isinstance(v, numbers.Real) and math.isfinite(v) for v in values)
        check(name, values, right, "a list of finite numbers, one a channel")
        check(name, values, all(v >= 0 if name == "mean" else v > 0 for v in values), least)
        cause = "in [0, 1], like the pixels; on the 0..255 scale, divide by 255"
        check(name, values, all(v <= 1 for v in values), cause)
    channels = module.channels
    check("mean", module.mean, len(module.mean) in (0, 1, channels), f"empty, one value or {channels} values")
    check("std", module.std, len(module.std) == len(module.mean), f"as long as mean = {module.mean}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_floating(value: Any) -> bool:
    try:
        return bool(jnp.issubdtype(jnp.dtype(value), jnp.floating))
    except TypeError:
        return False

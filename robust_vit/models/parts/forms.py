"""A model in its two forms, unrolled and scanned (see `scanning`): the same function, other programs, other trees."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from robust_vit.models import summary
from robust_vit.models.parts import scanning
from robust_vit.typing import Variables


def unrolled(module: nn.Module) -> nn.Module:
    """The same model with a subtree for each block."""
    return module.clone(scan=False) if module.scan else module


def scanned_names(module: nn.Module) -> tuple[str, ...]:
    """Names of the stacks of blocks that this module scans; () where it does not."""
    if not module.scan:
        return ()
    plain, scanned = summary.shapes(unrolled(module)), summary.shapes(module)
    found: set[str] = set()

    def compare(plain: Any, scanned: Any) -> None:
        for key, value in scanned.items() if isinstance(scanned, Mapping) else ():
            if key in plain:
                compare(plain[key], value)
            elif f"{key}_0" in plain:
                found.add(key)

    compare(plain, scanned)
    return tuple(sorted(found))


def to_unrolled(module: nn.Module, variables: Variables) -> Variables:
    """The variables of a module in the form of its unrolled sibling."""
    names = scanned_names(module)
    return scanning.unstack(variables, names) if names else variables


def to_form_of(module: nn.Module, variables: Variables) -> Variables:
    """Unrolled variables in the form that the module wants."""
    names = scanned_names(module)
    stacked = scanning.stack(variables, names) if names else variables
    return jax.tree.map(jnp.asarray, stacked)


def scanned(module: nn.Module, variables: Variables) -> tuple[nn.Module, Variables]:
    """The same model with its equal blocks scanned, as far as its family can: every program made of it compiles in the
    time of one block. Worth it where much is compiled and each program runs shortly.

    Args:
      module: any model.
      variables: its weights.

    Returns:
      (module, variables), both as they were where nothing can be scanned.
    """
    if module.scan:
        return module, variables
    try:
        other = module.clone(scan=True)
        names = scanned_names(other)
    except ValueError:  # a family whose blocks are not equal says so
        return module, variables
    return (other, scanning.stack(variables, names)) if names else (module, variables)

"""Intermediate values, handed to whoever asks `models.capture` for them; they cost nothing where nobody does."""

import flax.linen as nn

from robust_vit.typing import Array

COLLECTION = "captures"  # what `record` writes into and `models.capture` reads


def record(module: nn.Module, name: str, value: Array) -> None:
    """Hands an intermediate value to `models.capture`; costs nothing when nobody asked.

    Args:
      module: the module that computed it (its path tells the blocks apart).
      name: "attention" [B,A,Q,K], "tokens" (output of a block) or "features" (input of the head).
      value: the array.
    """
    if recording(module):
        module.sow(COLLECTION, name, value)


def recording(module: nn.Module) -> bool:
    """Whether somebody asked for captures: lets a fused attention fall back to the form that has a map to show."""
    return module.is_mutable_collection(COLLECTION) and not module.is_initializing()

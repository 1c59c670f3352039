"""What a pass of the model keeps for its gradient; the rest is computed again, which costs time and saves memory.

`model.remat` does that block by block and keeps nothing of a block. A policy here goes by the kind of operation, over
the whole model, in training passes and in those of the attack.
"""

import dataclasses
from typing import Any

import jax

from robust_vit.errors import lookup
from robust_vit.typing import Array, Variables

POLICIES = {
    "": None,  # everything
    "dots": jax.checkpoint_policies.dots_saveable,
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class Kept:
    """A model whose passes keep what a policy says.

    Fields:
      module: the model.
      policy: a name in POLICIES.
    """

    module: Any
    policy: str

    def apply(self, variables: Variables, images: Array, *, rngs: Any = None, **static: Any) -> Any:
        """`module.apply`: the same numbers."""

        def run(variables: Variables, images: Array, rngs: Any) -> Any:
            return self.module.apply(variables, images, rngs=rngs, **static)

        return jax.checkpoint(run, policy=POLICIES[self.policy])(variables, images, rngs)

    def clone(self, **fields: Any) -> "Kept":
        """The same with other fields of the model."""
        return Kept(self.module.clone(**fields), self.policy)


def kept(module: Any, policy: str) -> Any:
    """The model under a policy; the model itself where it keeps everything."""
    lookup("training.remat_policy", policy, POLICIES)
    return Kept(module, policy) if policy else module

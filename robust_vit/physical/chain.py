"""Stages one after the other, each with draws of its own; and the everyday chain."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robust_vit.errors import check
from robust_vit.physical.geometry import lens, perspective, resampled
from robust_vit.physical.jpeg import jpeg
from robust_vit.physical.light import blur, gamut, ink, lighting, sensor
from robust_vit.typing import Array, Keys

Stage = Callable[[Keys, Array], Array]  # (keys [B], images [B,H,W,C] in [0,1]) -> images, likewise


def chain(*stages: Stage) -> Stage:
    """Stages in the order given."""
    check("stages", len(stages), len(stages) > 0, "one at least")
    return _Chain(stages)


def camera(strength: float = 1.0) -> Stage:
    """An office printer, daylight, a telephone held by hand: every stage, at settings for images of any size.

    Args:
      strength: multiplies every disturbance; 0 leaves the printer's range and the file format.
    """
    check("strength", strength, 0 <= strength <= 2, "in [0, 2]")
    s = strength
    return chain(
        gamut(),
        ink(0.02 * s),
        perspective(0.05 * s),
        lens(0.03 * s),
        blur(0.5 * s),
        lighting(0.15 * s, 0.05 * s, 0.1 * s),
        sensor(0.01 * s, 0.01 * s),
        resampled(1.0 - 0.25 * min(s, 1.0)),
        jpeg(85),
    )


class _Chain:
    """Compares by its stages, so that equal ones share a compilation."""

    def __init__(self, stages: tuple[Stage, ...]):
        self.stages = stages

    def __call__(self, keys: Keys, images: Array) -> Array:
        for number, stage in enumerate(self.stages):
            own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
            images = jnp.clip(stage(own, images), 0.0, 1.0)
        return images

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.stages == self.stages

    def __hash__(self) -> int:
        return hash(self.stages)

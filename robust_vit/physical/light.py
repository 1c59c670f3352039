"""What changes values and leaves places: the printer's range, ink and paper, focus, light, the sensor."""

import jax
import jax.numpy as jnp

from robust_vit.errors import check
from robust_vit.typing import Array, Keys

WEIGHTS = (0.299, 0.587, 0.114)  # of red, green and blue in brightness, ITU-R BT.601


def gamut(black: float = 0.06, white: float = 0.90, saturation: float = 0.85):
    """What a printer can mix: black is not 0 nor paper 1, and colours are paler.

    Args:
      black, white: values of the darkest ink and the bare paper.
      saturation: of what colours differ from grey.
    """
    check("black", black, 0 <= black < white <= 1, "at least 0 and below white, which is at most 1")
    check("saturation", saturation, 0 <= saturation <= 1, "in [0, 1]")

    def stage(keys: Keys, images: Array) -> Array:
        del keys
        return black + (white - black) * saturated(images, saturation)

    return stage


def saturated(images: Array, factor: Array | float) -> Array:
    """Grey plus `factor` times what differs from it; grey images stay."""
    if images.shape[-1] == 1:
        return images
    grey = jnp.sum(images * jnp.asarray(WEIGHTS, images.dtype).reshape(1, 1, 1, 3), -1, keepdims=True)
    return grey + factor * (images - grey)


def ink(deviation: float):
    """Grain: normal noise that is as strong where there is more ink, and half as strong on bare paper."""
    check("deviation", deviation, 0 <= deviation <= 1, "in [0, 1]")

    def stage(keys: Keys, images: Array) -> Array:
        return images + deviation * (1.0 - 0.5 * images) * normal(keys, images)

    return stage


def blur(most: float):
    """Out of focus: a Gaussian of a deviation drawn from [0, most] pixels for each image."""
    check("most", most, 0 <= most <= 20, "in [0, 20] pixels")

    def stage(keys: Keys, images: Array) -> Array:
        if most == 0:
            return images
        return blurred(images, uniform(keys, 0.0, most, images), most)

    return stage


def blurred(images: Array, deviation: Array, most: float) -> Array:
    """[B,H,W,C] convolved with Gaussians of `deviation` [B] pixels, cut off at four times `most`; edges mirrored."""
    radius = int(4 * most + 0.5)
    places = jnp.arange(-radius, radius + 1, dtype=images.dtype)
    kernels = jnp.exp(-0.5 * (places[None] / jnp.maximum(deviation, 1e-3)[:, None]) ** 2)
    kernels = kernels / kernels.sum(-1, keepdims=True)  # [B,2r+1]
    for axis in (1, 2):
        images = along(images, kernels, axis, radius)
    return images


def along(images: Array, kernels: Array, axis: int, radius: int) -> Array:
    """[B,H,W,C] convolved along one axis with a kernel [B,2r+1] an image; edges are mirrored."""
    rows = jnp.moveaxis(images, axis, -1)  # [B,...,n]
    front = rows.shape
    rows = mirrored(rows.reshape(front[0], -1, front[-1]), radius)
    one = jax.vmap(jax.vmap(lambda row, kernel: jnp.convolve(row, kernel, mode="valid"), (0, None)))
    return jnp.moveaxis(one(rows, kernels).reshape(front), -1, axis)


def mirrored(rows: Array, radius: int) -> Array:
    """[...,n] -> [...,n+2r], reflected at the edges as often as it takes: d c b a | a b c d | d c b a."""
    n = rows.shape[-1]
    place = jnp.arange(-radius, n + radius) % (2 * n)
    return rows[..., jnp.where(place < n, place, 2 * n - 1 - place)]


def lighting(gain: float, offset: float, slope: float):
    """Light: values times a factor, plus a change, brighter to one side of the image.

    Args:
      gain: the factor is drawn from [1 - gain, 1 + gain].
      offset: the change is drawn from [-offset, offset].
      slope: the change from edge to edge, in a drawn direction, from [0, slope].
    """
    for field, value in {"gain": gain, "offset": offset, "slope": slope}.items():
        check(field, value, 0 <= value < 1, "in [0, 1)")

    def stage(keys: Keys, images: Array) -> Array:
        height, width = images.shape[1:3]
        own = jax.vmap(lambda key: jax.random.split(key, 4))(keys)
        factor = uniform(own[:, 0], 1 - gain, 1 + gain, images)
        change = uniform(own[:, 1], -offset, offset, images)
        steep, angle = uniform(own[:, 2], 0.0, slope, images), uniform(own[:, 3], 0.0, 2 * jnp.pi, images)
        down, across = jnp.linspace(-0.5, 0.5, height), jnp.linspace(-0.5, 0.5, width)
        ramp = (
            jnp.sin(angle)[:, None, None] * down.astype(images.dtype)[None, :, None]
            + jnp.cos(angle)[:, None, None] * across.astype(images.dtype)[None, None, :]
        )
        ramp = (steep[:, None, None] * ramp)[..., None]
        return images * factor[:, None, None, None] + change[:, None, None, None] + ramp

    return stage


def sensor(shot: float, read: float):
    """The camera's sensor: normal noise of variance shot^2 x + read^2, as counted photons and its electronics make."""
    for field, value in {"shot": shot, "read": read}.items():
        check(field, value, 0 <= value <= 1, "in [0, 1]")

    def stage(keys: Keys, images: Array) -> Array:
        deviation = jnp.sqrt(shot**2 * jnp.maximum(images, 0.0) + read**2 + 1e-12)
        return images + deviation * normal(keys, images)

    return stage


def normal(keys: Keys, images: Array) -> Array:
    """Standard normal values like the images, from each example's key."""
    draw = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], jnp.float32))
    return draw(keys).astype(images.dtype)


def uniform(keys: Keys, low: float, high: float, images: Array) -> Array:
    """[B] uniform numbers, from each example's key."""
    draw = jax.vmap(lambda key: jax.random.uniform(key, (), jnp.float32, low, high))
    return draw(keys).astype(images.dtype)

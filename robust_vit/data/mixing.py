"""MixUp, CutMix and random erasing, on the device, on batches of images in [0,1] and target distributions.

    augment = mixing.build(mixup=0.8, cutmix=1.0, erase=0.25)       # the heavy augmentation of ImageNet recipes
    images, targets = augment(keys, images, targets)                # of `training.step`, before the attack

Every draw comes from the example's own key, without rejection: XLA gathers a sharded batch for a loop over it. The
partner of an example is its neighbour within a block of the batch; `build` mixes pairs, so that no pixel crosses
devices and the result is the same on any number of them. Mixed images stay in [0,1] and mixed targets stay
distributions, so that an attack takes both as they are.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from robust_vit.errors import check, check_choice
from robust_vit.typing import Array, Keys

Augment = Callable[[Keys, Array, Array], tuple[Array, Array]]  # (keys, images, targets) -> (images, targets)
PAIR = 2
AREA, ASPECT = (0.02, 1 / 3), (0.3, 3.3)  # of random erasing, as in recipe after recipe (Zhong et al. 2020; timm)
FILLS = ("pixel", "colour", "black")


def build(
    *,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    switch_probability: float = 0.5,
    mix_probability: float = 1.0,
    erase: float = 0.0,
    erase_area: tuple[float, float] = AREA,
    erase_aspect: tuple[float, float] = ASPECT,
    erase_fill: str = "pixel",
) -> Augment | None:
    """Makes what happens to a batch before the attack: first mixing, then erasing; None where neither is asked for.

    Args:
      mixup, cutmix: alpha of the two Beta distributions; 0 for none of that kind.
      switch_probability: of CutMix, where both are on.
      mix_probability: of mixing an example at all.
      erase: probability of erasing a box of an example.
      erase_area, erase_aspect, erase_fill: see `erase`.

    Returns:
      augment(keys [B], images [B,H,W,C], targets [B,K]) -> (images, targets); where it mixes, B is even, and the
      examples 2i and 2i + 1 are each other's partners.

    Raises:
      ValueError: for a value outside its range.
    """
    for name, value in (("mixup", mixup), ("cutmix", cutmix)):
        check(name, value, value >= 0, ">= 0: alpha of a Beta distribution, 0 for none")
    rates = {"switch_probability": switch_probability, "mix_probability": mix_probability, "erase": erase}
    for name, value in rates.items():
        check(name, value, 0 <= value <= 1, "a probability, in [0, 1]")
    check("erase_area", erase_area, 0 < erase_area[0] <= erase_area[1] <= 1, "0 < low <= high <= 1")
    check("erase_aspect", erase_aspect, 0 < erase_aspect[0] <= erase_aspect[1], "0 < low <= high")
    check_choice("erase_fill", erase_fill, FILLS)
    switch = switch_probability if mixup and cutmix else float(cutmix > 0)
    alphas = {"mixup_alpha": mixup, "cutmix_alpha": cutmix}
    mixing = alphas | {"switch_probability": switch, "probability": mix_probability} if mixup or cutmix else None
    box = {"area": erase_area, "aspect": erase_aspect, "fill": erase_fill}
    erasing = {"probability": erase} | box if erase else None
    return functools.partial(augmented, mixing=mixing, erasing=erasing) if mixing or erasing else None


def augmented(
    keys: Keys, images: Array, targets: Array, mixing: dict[str, Any] | None, erasing: dict[str, Any] | None
) -> tuple[Array, Array]:
    """Mixes pairs and erases boxes, with the keywords of `mix` and of `erase`; None leaves one out."""
    mixing_keys, erasing_keys = derive(keys, 2)
    if mixing is not None:
        count = images.shape[0]
        check("examples to mix", count, count % PAIR == 0, "an even number, so that each has a partner")
        images, targets = mix(mixing_keys, images, targets, blocks=count // PAIR, **mixing)
    if erasing is not None:
        images = erase(erasing_keys, images, **erasing)
    return images, targets


def partner(values: Array, blocks: int = 1) -> Array:
    """Returns each example's partner: the one before it in its block, and the block's last for its first.

    Args:
      values: [B, ...].
      blocks: equal consecutive parts of the batch that do not mix; the number of devices keeps mixing on the device.
    """
    batch = values.shape[0]
    check("mixing blocks", blocks, blocks >= 1 and batch % blocks == 0, f"a divisor of the batch, {batch}")
    parts = values.reshape(blocks, batch // blocks, *values.shape[1:])
    return jnp.roll(parts, 1, axis=1).reshape(values.shape)


def mixup(keys: Keys, images: Array, targets: Array, alpha: Array | float, blocks: int = 1) -> tuple[Array, Array]:
    """Blends every example with its partner, lambda x + (1 - lambda) x', targets alike; lambda ~ Beta(alpha, alpha).

    Args:
      keys: [B].
      images: [B,H,W,C] in [0,1].
      targets: [B,K] distributions.
      alpha: of the Beta distribution; may be traced; 0 leaves the batch as it is.
      blocks: see `partner`.

    Returns:
      (images, targets), shapes and dtypes kept.

    Reference: Zhang et al. 2018, arXiv:1710.09412.
    """
    lam = draw_lambda(keys, alpha)
    blended = jnp.clip(blend(images, lam, blocks), 0, 1)  # lambda + (1 - lambda) may round above 1
    return blended, blend(targets, lam, blocks)


def cutmix(keys: Keys, images: Array, targets: Array, alpha: Array | float, blocks: int = 1) -> tuple[Array, Array]:
    """Pastes a box of the partner into every example; the targets mix by the area actually pasted.

    The box has sides H sqrt(1 - lambda) and W sqrt(1 - lambda), lambda ~ Beta(alpha, alpha), a uniform centre, and is
    cut at the border.

    Args, Returns: as `mixup`.

    Reference: Yun et al. 2019, arXiv:1905.04899.
    """
    lambda_keys, box_keys = derive(keys, 2)
    side = jnp.sqrt(1 - draw_lambda(lambda_keys, alpha))
    height, width = images.shape[1:3]
    inside = boxes(box_keys, height, width, jnp.floor(side * height), jnp.floor(side * width))  # [B,H,W]
    mixed = jnp.where(inside[..., None], partner(images, blocks), images)
    return mixed, blend(targets, 1 - inside.mean((1, 2)), blocks)


def mix(
    keys: Keys,
    images: Array,
    targets: Array,
    *,
    mixup_alpha: Array | float = 0.8,
    cutmix_alpha: Array | float = 1.0,
    switch_probability: Array | float = 0.5,
    probability: Array | float = 1.0,
    blocks: int = 1,
) -> tuple[Array, Array]:
    """MixUp or CutMix, chosen for every example by itself.

    Args:
      keys: [B].
      images: [B,H,W,C] in [0,1].
      targets: [B,K] distributions.
      mixup_alpha, cutmix_alpha: of the two Beta distributions.
      switch_probability: of CutMix, among the mixed.
      probability: of mixing an example at all.
      blocks: see `partner`.

    Returns:
      (images, targets), shapes and dtypes kept.
    """
    choice_keys, switch_keys, mixup_keys, cutmix_keys = derive(keys, 4)
    mixed = jax.vmap(jax.random.uniform)(choice_keys) < probability
    cut = jax.vmap(jax.random.uniform)(switch_keys) < switch_probability
    blended = mixup(mixup_keys, images, targets, mixup_alpha, blocks)
    pasted = cutmix(cutmix_keys, images, targets, cutmix_alpha, blocks)

    def choose(original: Array, up: Array, cm: Array) -> Array:
        return where(mixed, where(cut, cm, up), original)

    return choose(images, blended[0], pasted[0]), choose(targets, blended[1], pasted[1])


def erase(
    keys: Keys,
    images: Array,
    probability: Array | float = 0.25,
    area: tuple[float, float] = AREA,
    aspect: tuple[float, float] = ASPECT,
    mean: float = 0.5,
    deviation: float = 0.25,
    fill: str = "pixel",
) -> Array:
    """Overwrites a box of some images with noise.

    The box has area A H W with A uniform and aspect height / width log-uniform, sides at most the image's, and lies
    inside. The noise is normal, truncated to [0,1], so that the images stay images. Cutout (DeVries & Taylor 2017) is
    a black box of one area and aspect 1 in every image.

    Args:
      keys: [B].
      images: [B,H,W,C] in [0,1].
      probability: of erasing in an image.
      area: range of A.
      aspect: range of height / width.
      mean, deviation: of the noise, in pixel units of [0,1].
      fill: "pixel" draws every value of the box, "colour" one value a channel of the box, "black" none: it is 0.

    Returns:
      images, shape and dtype kept.

    Reference: Zhong et al. 2020, arXiv:1708.04896; figures of the noise for [0,1] images from robust training recipes.
    """
    check("erase deviation", deviation, deviation > 0, "positive")
    check_choice("erase fill", fill, FILLS)
    height, width, channels = images.shape[1:]
    choice, size, place, noise = derive(keys, 4)
    erased = jax.vmap(jax.random.uniform)(choice) < probability
    u = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(size)  # [B,2]
    pixels = height * width * (area[0] + (area[1] - area[0]) * u[:, 0])
    ratio = jnp.exp(jnp.log(aspect[0]) + (jnp.log(aspect[1]) - jnp.log(aspect[0])) * u[:, 1])
    h = jnp.clip(jnp.round(jnp.sqrt(pixels * ratio)), 1, height)
    w = jnp.clip(jnp.round(jnp.sqrt(pixels / ratio)), 1, width)
    inside = boxes(place, height, width, h, w, contained=True)
    low, high = (0 - mean) / deviation, (1 - mean) / deviation
    shape = (1, 1, channels) if fill == "colour" else (height, width, channels)
    normal = jax.vmap(lambda key: jax.random.truncated_normal(key, low, high, shape))(noise)
    drawn = jnp.clip(mean + deviation * normal, 0, 1).astype(images.dtype) if fill != "black" else 0
    return jnp.where((inside & erased[:, None, None])[..., None], drawn, images)


def derive(keys: Keys, count: int) -> tuple[Keys, ...]:
    """Returns `count` independent sets of keys [B], the given ones being used up."""
    return jax.vmap(lambda key: tuple(jax.random.split(key, count)))(keys)


def draw_lambda(keys: Keys, alpha: Array | float) -> Array:
    """Returns lambda [B] ~ Beta(alpha, alpha), float32; 1 where alpha is 0.

    With u, v uniform, c = cos(2 pi v) and p = u^(1 / alpha), t^2 = 2 alpha (1/p - 1) c^2 has Student's t of 2 alpha
    degrees of freedom (Bailey 1994), and lambda = (1 + t / sqrt(2 alpha + t^2)) / 2 the Beta distribution wanted
    (Devroye 1996, Random variate generation in one line of code). `jax.random.beta` rejects in a loop.
    """
    alpha = jnp.asarray(alpha, jnp.float32)
    u = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)  # [B,2]
    log_p = jnp.log(u[:, 0]) / jnp.where(alpha > 0, alpha, 1.0)
    c = jnp.cos(2 * jnp.pi * u[:, 1])
    share = -jnp.expm1(log_p) * c**2
    share = share / jnp.maximum(share + jnp.exp(log_p), jnp.finfo(jnp.float32).tiny)  # t^2 / (2 alpha + t^2)
    return jnp.where(alpha > 0, (1 + jnp.sign(c) * jnp.sqrt(share)) / 2, 1.0)


def boxes(keys: Keys, height: int, width: int, h: Array, w: Array, contained: bool = False) -> Array:
    """Returns [B,H,W] bool: True inside a box of h x w pixels (both [B]) at a random place of each image.

    `contained` places the box inside the image; otherwise its centre is any pixel, and what sticks out is cut off.
    """
    u = jax.vmap(lambda key: jax.random.uniform(key, (2,)))(keys)  # [B,2]

    def interval(size: int, length: Array, u: Array) -> Array:
        start = jnp.floor(u * (size - length + 1)) if contained else jnp.floor(u * size) - jnp.floor(length / 2)
        at = jnp.arange(size)[None]
        return (at >= start[:, None]) & (at < (start + length)[:, None])  # [B,size]

    return interval(height, h, u[:, 0])[:, :, None] & interval(width, w, u[:, 1])[:, None, :]


def blend(values: Array, weight: Array, blocks: int) -> Array:
    """weight [B] of each example and the rest of its partner, computed in float32."""
    weight = weight.reshape(-1, *[1] * (values.ndim - 1))
    mixed = weight * values.astype(jnp.float32) + (1 - weight) * partner(values, blocks).astype(jnp.float32)
    return mixed.astype(values.dtype)


def where(condition: Array, yes: Array, no: Array) -> Array:
    """`jnp.where` by example: condition [B]."""
    return jnp.where(condition.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)

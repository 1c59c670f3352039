"""MIMIR: a masked autoencoder that reads attacked images and paints the clean ones; no labels."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from robust_vit.attacks.losses import in_float32
from robust_vit.errors import check
from robust_vit.models.families.masked_autoencoder import Masked, Reconstruction, patchify
from robust_vit.objectives.encoders.features import climb
from robust_vit.typing import NOTHING, Array, Keys, LogitsFn, Objective, Outcome

RIDGE = 1e-5  # of the kernel matrices before they are inverted, times B
OWN = 2**32 - 1  # folded into an example's key, which the attack is handed: the masks are not its draws
HIGHEST = jax.lax.Precision.HIGHEST


def visible_patches(keys: Keys, count: int, kept: int) -> Array:
    """Draws which patches the encoder sees, [B,kept] of [0, count), each example by its own key."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)
    return jnp.argsort(noise, axis=1)[:, :kept]


def reconstruction_error(found: Reconstruction, images: Array, visible: Array, size: int, normalise: bool) -> Array:
    """Returns the mean squared error [B] of the pixels of the patches that were not seen.

    Args:
      found: of the autoencoder.
      images: [B,H,W,C], what it should have painted.
      visible: [B,V].
      size: side of a patch.
      normalise: whether each target patch is standardised by its own mean and (unbiased) variance.
    """
    target = in_float32(patchify(images, size))  # [B,N,P]
    if normalise:
        variance = jnp.var(target, axis=-1, ddof=1, keepdims=True)
        target = (target - jnp.mean(target, axis=-1, keepdims=True)) / jnp.sqrt(variance + 1e-6)
    error = jnp.mean(jnp.square(in_float32(found.patches) - target), axis=-1)  # [B,N]
    hidden = jnp.ones_like(error).at[jnp.arange(len(error))[:, None], visible].set(0.0)
    return jnp.sum(hidden * error, axis=-1) / jnp.sum(hidden, axis=-1)


def hsic(x: Array, y: Array, sigma: float) -> Array:
    """The normalised Hilbert-Schmidt independence criterion tr(R_x R_y) of samples [B,..] and [B,..], a scalar.

    R = K H (K H + 1e-5 B I)^-1 with K the Gaussian kernel exp(-|a - b|^2 / (2 sigma^2 D)) of the flattened samples and
    H = I - 1/B, which centres it.

    Reference: Fukumizu et al., Kernel Measures of Conditional Dependence, NeurIPS 2008; Ma et al., The HSIC Bottleneck,
    AAAI 2020, arXiv 1908.01580.
    """

    def projection(samples: Array) -> Array:
        a = in_float32(samples).reshape(len(samples), -1)
        norms = jnp.sum(jnp.square(a), axis=1)
        squared = norms[:, None] + norms[None, :] - 2 * jnp.matmul(a, a.T, precision=HIGHEST)
        kernel = jnp.exp(-jnp.abs(squared) / (2 * sigma**2 * a.shape[1]))
        centred = kernel - jnp.mean(kernel, axis=1, keepdims=True)  # K H
        ridge = RIDGE * len(a) * jnp.eye(len(a), dtype=a.dtype)
        return jnp.linalg.solve((centred + ridge).T, centred.T).T

    return jnp.sum(projection(x) * projection(y).T)


def mimir(mask_ratio: float = 0.75, hsic_weight: float = 1e-5, sigma: float = 5.0, normalise: bool = True) -> Objective:
    """Minimises E(g(x'), x) + hsic_weight HSIC(z(x'), x'), with x' = argmax over the ball of E(g(x'), x').

    g reconstructs an image from the patches that its mask leaves, z are the encoder's tokens, and E is the error on
    the patches that are hidden: see `reconstruction_error`. The attack and the training pass draw masks of their own.
    The model is a `masked_autoencoder`. HSIC is of the batch, or of each of its parts where those are accumulated.

    Args:
      mask_ratio: share of the patches that are hidden, in (0, 1).
      hsic_weight: of the dependence between what the encoder makes and what it was shown, >= 0.
      sigma: width of its Gaussian kernels, > 0.
      normalise: whether target patches are standardised.

    Reference: Xu et al., MIMIR: Masked Image Modeling for Mutual Information-based Adversarial Robustness, 2023,
    arXiv 2312.04960; github.com/xiaoyunxxy/MIMIR (one step of 10/255, epsilon 8/255, random start; 800 epochs, AdamW
    0.9, 0.95, learning rate 1.5e-4 batch / 256, weight decay 0.05, warm-up 40).
    """
    check("objective.options.mask_ratio", mask_ratio, 0 < mask_ratio < 1, "in (0, 1)")
    check("objective.options.hsic_weight", hsic_weight, hsic_weight >= 0, ">= 0")
    check("objective.options.sigma", sigma, sigma > 0, "> 0")

    def objective(
        forward, statistics, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING
    ) -> Outcome:
        count, size = _patches(adversary, images)
        kept = int(count * (1 - mask_ratio))
        check("objective.options.mask_ratio", mask_ratio, 0 < kept < count, f"such that some of {count} patches stay")
        own = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, OWN)
        first, second = jax.vmap(lambda key: tuple(jax.random.split(key)))(own)
        error = functools.partial(reconstruction_error, size=size, normalise=normalise)
        climbed = Partial(functools.partial(_error_of_itself, error), adversary, visible_patches(first, count, kept))
        attacked = climb(attack, keys, climbed, images, strength)
        visible = visible_patches(second, count, kept)
        found, statistics = forward(Masked(attacked, visible), statistics)
        loss = error(found, images, visible)
        if hsic_weight:
            loss = loss + hsic_weight * hsic(found.latent, attacked, sigma)
        return Outcome(loss, statistics, attacked=attacked)

    return objective


def _error_of_itself(error, adversary: LogitsFn, visible: Array, images: Array) -> Array:
    """How badly an image is painted from its own visible patches: nobody knows the clean one."""
    return error(adversary(Masked(images, visible)), images, visible)


def _patches(adversary: LogitsFn, images: Array) -> tuple[int, int]:
    """How many patches an image has, and their side; nothing is computed."""
    one = Masked(images, jnp.zeros((len(images), 1), jnp.int32))
    _, count, pixels = jax.eval_shape(adversary, one).patches.shape
    return count, math.isqrt(pixels // images.shape[-1])

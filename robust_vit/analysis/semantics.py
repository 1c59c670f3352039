"""What perturbations mean: are the gradients of a robust model pictures of the classes, and a natural model's noise?

Figures of this project's own, each with its interval:

* the accuracy of an independent classifier that sees perturbations alone, (x - x_adv + epsilon) / (2 epsilon), beside
  that on random signs: where pixels are 0 or 1 the range alone gives the image away;
* the share of the gradients' energy on the figure of an image, not on its ground;
* cosines of gradients with the image, and with what parts its class from the mean of all;
* the accuracy of that classifier on images which a model has made of noise, or of other classes, to look like a class.

After the experiments of Debenedetti et al., A Light Recipe to Train Robust Vision Transformers, SaTML 2023, which
states no figures; classes by targeted attacks: Santurkar et al., Image Synthesis with a Single (Robust) Classifier,
2019.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit import attacks
from robust_vit.analysis import batches
from robust_vit.analysis.trajectory import trajectory
from robust_vit.attacks import losses
from robust_vit.errors import check
from robust_vit.typing import Array, LogitsFn

Judge = Callable[[np.ndarray], np.ndarray]  # images [N,H,W,C] in [0,1] -> classes [N]

STEP = 0.225  # of synthesis, by sign: that of the Light Recipe's experiment
RADIUS = 1.0  # of synthesis in Linf: every image of [0,1] is inside


def accumulated_gradients(logits_fn: LogitsFn, images: Any, labels: Any, **attack: Any) -> np.ndarray:
    """The input gradients of the cross-entropy added up along PGD, sum_k grad_x CE(f(x_k), y) over its K steps.

    Args:
      logits_fn: the model.
      images: [N,H,W,C] floats in [0,1].
      labels: [N] integers.
      **attack: of `trajectory`: norm, epsilon, steps.

    Returns:
      [N,H,W,C], signed: where brighter pixels cost the class probability.
    """

    def summed(images: Array, labels: Array) -> Array:
        return trajectory(logits_fn, images, labels, **attack).gradients[:-1].sum(0)

    return batches.mapped(summed, jnp.asarray(images), jnp.asarray(labels))


def magnitude(gradients: Any) -> np.ndarray:
    """Gradients [N,H,W,C] as pictures [N,H,W] in [0,1]: the mean of |G| over channels, over its 99th percentile."""
    mean = np.abs(np.asarray(gradients, np.float64)).mean(-1)
    top = np.percentile(mean, 99, axis=(1, 2), keepdims=True)
    return np.clip(mean / np.where(top > 0, top, 1), 0, 1)


def alignment(logits_fn: LogitsFn, images: Any, labels: Any) -> np.ndarray:
    """cos(x, grad_x (z_y - max_{i != y} z_i)): does what speaks for the class look like the image?

    Args:
      logits_fn: the model.
      images: [N,H,W,C] floats in [0,1].
      labels: [N] integers.

    Returns:
      [N] in [-1,1]; 0 where the gradient is 0.
    """

    def slopes(images: Array, labels: Array) -> Array:
        return _margin_gradient(logits_fn, images, labels)

    gradients = batches.mapped(slopes, jnp.asarray(images), jnp.asarray(labels))
    return cosine(images, gradients)


@jax.jit
def _margin_gradient(logits_fn: LogitsFn, images: Array, labels: Array) -> Array:
    return jax.grad(lambda x: -losses.margin(logits_fn(x), labels).sum())(images)


def cosine(a: Any, b: Any) -> np.ndarray:
    """[N] cosines of arrays [N,...]; 0 where one of the two is 0."""
    a, b = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (a, b))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.where(lengths > 0, (a * b).sum(1) / np.where(lengths > 0, lengths, 1), 0.0)


def on_figure(images: Any, gradients: Any) -> np.ndarray:
    """The share of the gradients' energy, mean over channels of G^2, on the figure of each image: [N] in [0,1].

    For figures on a plain ground, as digits: see `figure_mask`. 0 where the gradient is 0.
    """
    energy = (np.asarray(gradients, np.float64) ** 2).mean(-1)  # [N,H,W]
    inside, total = (energy * figure_mask(images)).sum((1, 2)), energy.sum((1, 2))
    return np.where(total > 0, inside / np.where(total > 0, total, 1), 0.0)


def figure_mask(images: Any) -> np.ndarray:
    """[N,H,W] booleans: the pixels of which some channel differs by more than 0.1 from the ground, the commonest value
    of the image in 256 levels.
    """
    levels = np.round(255 * np.asarray(images, np.float64)).astype(int)
    ground = np.array([np.bincount(one.reshape(-1), minlength=256).argmax() for one in levels])
    return (np.abs(levels - ground[:, None, None, None]) > 0.1 * 255).any(-1)


def prototypes(images: Any, labels: Any) -> np.ndarray:
    """What parts each class from all: [K,H,W,C], its mean image less the mean of the classes."""
    images, labels = np.asarray(images, np.float64), np.asarray(labels)
    means = np.stack([images[labels == k].mean(0) for k in range(int(labels.max()) + 1)])
    return means - means.mean(0)


def random_signs(images: Any, epsilon: float, seed: int, indices: Any) -> np.ndarray:
    """Images [N,H,W,C] changed by epsilon up or down at random, put into [0,1]; every example has its own draw."""
    images = np.asarray(images)
    draws = [np.random.default_rng([seed, int(index)]).choice((-1.0, 1.0), images.shape[1:]) for index in indices]
    return np.clip(images + epsilon * np.stack(draws), 0, 1).astype(images.dtype)


def synthesize(
    logits_fn: LogitsFn,
    starts: Any,
    classes: Any,
    *,
    norm: str = "linf",
    epsilon: float = RADIUS,
    step_size: float = STEP,
    steps: int = 100,
) -> np.ndarray:
    """Images of classes, as a model imagines them: targeted PGD from any start, in a ball that holds every image.

    Args:
      logits_fn: the model.
      starts: [N,H,W,C] floats in [0,1]: noise (`noise`), or images.
      classes: [N] integers to reach.
      norm, epsilon, step_size, steps: of PGD.

    Returns:
      [N,H,W,C] in [0,1]: the last point.
    """
    attack = attacks.pgd(
        norm=norm,
        epsilon=epsilon,
        step_size=step_size,
        steps=steps,
        targeted=True,
        random_start=False,
        keep="last",
    )
    run = jax.jit(lambda f, x, y: attack(0, f, x, y))
    return batches.mapped(lambda x, y: run(logits_fn, x, y), jnp.asarray(starts), jnp.asarray(classes))


def noise(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform noise in [0,1] of shape [N,H,W,C], float32."""
    return np.random.default_rng(seed).random(shape, np.float32)


def alone(images: Any, adversarial: Any, epsilon: float) -> np.ndarray:
    """Perturbations without their images: (x - x_adv + epsilon) / (2 epsilon) in [0,1], where what an attack has taken
    away is bright.
    """
    check("epsilon", epsilon, epsilon > 0, "above 0")
    return np.clip((np.asarray(images) - np.asarray(adversarial) + epsilon) / (2 * epsilon), 0, 1)


def fitted_judge(images: Any, labels: Any) -> Judge:
    """A classifier that shares nothing with any network: a support vector machine (RBF) on images of mean 0 and
    variance 1 each, so that neither contrast nor brightness says anything.

    Args:
      images: [N,H,W,C] to fit it to, uint8 or floats.
      labels: [N] integers.

    Returns:
      images -> classes.
    """
    from sklearn.svm import SVC

    machine = SVC().fit(standardized(images), np.asarray(labels))
    return lambda x: machine.predict(standardized(x))


def standardized(images: Any) -> np.ndarray:
    """[N,H*W*C]: every image with mean 0 and variance 1; a constant one is 0."""
    flat = np.asarray(images, np.float64).reshape(len(images), -1)
    spread = flat.std(1, keepdims=True)
    return (flat - flat.mean(1, keepdims=True)) / np.where(spread > 0, spread, 1)

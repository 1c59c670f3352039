"""A patch of its own for every image, as PGD on the pixels that it covers."""

import jax.numpy as jnp
import numpy as np

from robust_vit.attacks import norms, updates
from robust_vit.attacks.arguments import check_count, check_epsilon, check_inputs, check_positive, is_zero
from robust_vit.attacks.patches import masks
from robust_vit.attacks.pgd import KEEP, check_targeted, inside
from robust_vit.errors import check, check_choice
from robust_vit.typing import Array, Attack, Keys, LogitsFn

PLACES = ("center", "random")


def patch(
    *,
    epsilon: float | Array,
    norm: str = "linf",
    size: int | None = None,
    mask: np.ndarray | None = None,
    place: str | tuple[int, int] = "random",
    step_size: float | Array | None = None,
    steps: int = 100,
    random_start: bool = True,
    loss: str = "cross_entropy",
    targeted: bool | str = False,
    keep: str = "success",
    stochastic: bool = False,
    eot: int = 1,
) -> Attack:
    """Makes an attack that changes only the pixels under a patch, up to epsilon.

    Args:
      epsilon: radius of the ball, in units of the [0,1] pixel range; 1 in linf allows any patch.
      norm: "linf", "l2" or "l1".
      size: side of a square patch in pixels; a quarter of the image's shorter side by default.
      mask: [h,w] booleans, in place of `size`; as large as the image it says itself where it lies.
      place: of the patch: "random", drawn for each image, "center", or (row, column) of its upper left corner.
      step_size: 2.5 epsilon / steps by default.
      steps: gradient evaluations.
      random_start: start with noise under the patch; otherwise at the clean image.
      loss, targeted, keep, stochastic, eot: as in `pgd`.

    Raises:
      ValueError: for a bad keyword; when called, for a patch larger than the images or outside of them.

    Reference: Gu et al. 2022, https://arxiv.org/abs/2111.10659 (patches of single images against transformers)
    """
    whole_ball = norms.get(norm)
    check_epsilon(epsilon, norm)
    check_count("steps", steps)
    check_choice("keep", keep, KEEP)
    check_targeted(targeted)
    check("size", size, size is None or mask is None, "left out with a mask")
    if size is not None:
        check_count("size", size)
    if isinstance(place, str):
        check_choice("place", place, PLACES)
    if step_size is not None and not is_zero(epsilon):
        check_positive("step_size", step_size)
    check("eot", eot, eot == 1 or stochastic, "1 without stochastic: every evaluation would be the same")
    given = dict(steps=steps, loss=loss, targeted=targeted, keep=keep, stochastic=stochastic, eot=eot)
    given |= dict(epsilon=epsilon, step_size=2.5 * epsilon / steps if step_size is None else step_size)

    def attack(keys: Keys, logits_fn: LogitsFn, images: Array, targets: Array, strength: Array | float = 1.0) -> Array:
        keys = check_inputs(keys, logits_fn, images, targets, strength, stochastic)
        own, walking = norms.split(keys)
        shape = jnp.shape(images)[1:]
        form = masks.rectangle(max(1, min(shape[:2]) // 4) if size is None else size) if mask is None else mask
        whole = np.shape(form) == shape[:2]
        if place == "random" and not whole:
            covered = masks.anywhere(own, form, shape)
        else:
            covered = jnp.asarray(masks.where(form, shape, "center" if place == "random" else place))[None]
        ball = _under(whole_ball, covered[..., None], random_start)
        return inside(ball, rule=updates.steepest(ball, steps, 0.0), **given)(
            walking, logits_fn, images, targets, strength
        )

    return attack


def _under(ball: norms.Ball, covered: Array, random_start: bool) -> norms.Ball:
    """The ball of changes under a mask [B or 1,H,W,1]."""

    def start(keys: Keys, images: Array, epsilon: Array) -> Array:
        return jnp.where(covered, ball.start(keys, images, epsilon), images) if random_start else images

    def steepest(gradient: Array, points: Array) -> Array:
        return jnp.where(covered, ball.steepest(jnp.where(covered, gradient, 0.0), points), 0.0)

    def project(points: Array, images: Array, epsilon: Array) -> Array:
        return ball.project(jnp.where(covered, points, images), images, epsilon)

    return ball._replace(start=start, steepest=steepest, project=project)

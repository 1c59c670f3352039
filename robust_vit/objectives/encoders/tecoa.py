"""TeCoA: an encoder whose features under attack point to the fixed embedding of their class."""

import jax
import optax
from jax.tree_util import Partial

from robust_vit.attacks.losses import cross_entropy
from robust_vit.errors import check
from robust_vit.objectives.encoders.features import normalised
from robust_vit.typing import NOTHING, Array, LogitsFn, Objective, Outcome


def class_embeddings(teacher: LogitsFn) -> Array:
    """Returns the columns of a frozen classifier's head as embeddings [K,D], one a class.

    Of a CLIP whose head holds its zero-shot weights these are the text embeddings of the class names.

    Args:
      teacher: `models.logits_fn(module, variables)`.

    Raises:
      ValueError: if the weights have no head of one kernel [D,K].
    """
    head = teacher.args[0]["params"].get("head", {})
    kernels = [
        leaf for path, leaf in jax.tree_util.tree_leaves_with_path(head) if path[-1].key == "kernel" and leaf.ndim == 2
    ]
    check("objective.teacher", f"{len(kernels)} kernels in its head", len(kernels) == 1, "a model of one linear head")
    return jax.lax.stop_gradient(kernels[0].T)


def tecoa(scale: float = 100.0, label_smoothing: float = 0.0) -> Objective:
    """Minimises CE(z(x'), y) with z_k(x) = scale cos(f(x), e_k), and x' = argmax over the ball of CE(z(x'), y).

    e_k are the class embeddings of `aside.teacher`, see `class_embeddings`.

    Args:
      scale: inverse temperature of the softmax, > 0; 100 is CLIP's.
      label_smoothing: mass in [0, 1) moved to the uniform distribution; the attack sees the labels as given.

    Reference: Mao et al., Understanding Zero-Shot Adversarial Robustness for Large-Scale Models, ICLR 2023,
    arXiv 2212.07016.
    """
    check("objective.options.scale", scale, scale > 0, "> 0")
    check("objective.label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "in [0, 1)")

    def objective(
        forward, statistics, adversary, attack, keys, images, targets, strength=1.0, aside=NOTHING
    ) -> Outcome:
        directions = scale * normalised(class_embeddings(aside.teacher)).T  # [D,K]
        attacked = attack(keys, Partial(_logits, adversary, directions), images, targets, strength)
        features, statistics = forward(attacked, statistics)
        logits = normalised(features) @ directions
        loss = cross_entropy(logits, optax.smooth_labels(targets, label_smoothing))
        return Outcome(loss, statistics, adversarial_logits=logits, attacked=attacked)

    return objective


def _logits(encoder: LogitsFn, directions: Array, images: Array) -> Array:
    return normalised(encoder(images)) @ directions

"""What an attack adds to images, for one model or several side by side: signed, scaled, and with the decisions.

adversarial = classifier.attack("pgd", images, labels, steps=50, keep="success")
seen = rv.analysis.perturbed("robust", classifier, images, adversarial)
rv.analysis.plot_perturbations(images, labels, [seen], class_names, epsilon=0.1)
"""

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit.analysis import batches, estimates, saving, spectra
from robust_vit.attacks import losses
from robust_vit.errors import check
from robust_vit.typing import Array, LogitsFn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robust_vit.explain import Subject


class Perturbed(NamedTuple):
    """Images under attack, as one model sees them.

    Attributes:
      name: of the model.
      adversarial: [N,H,W,C] in [0,1].
      clean_probabilities, adversarial_probabilities: [N,K].
    """

    name: str
    adversarial: np.ndarray
    clean_probabilities: np.ndarray
    adversarial_probabilities: np.ndarray


def perturbed(name: str, logits_fn: LogitsFn, images: Any, adversarial: Any) -> Perturbed:
    """Asks a model for its predictions on images [N,H,W,C] and on their adversarial counterparts."""
    images, adversarial = np.asarray(images), np.asarray(adversarial)
    check("adversarial.shape", adversarial.shape, adversarial.shape == images.shape, f"{images.shape}, the images'")
    both = batches.mapped(lambda x: probabilities(logits_fn, jnp.asarray(x)), np.concatenate([images, adversarial]))
    return Perturbed(name, adversarial, *np.split(both, 2))


@jax.jit
def probabilities(logits_fn: LogitsFn, images: Array) -> Array:
    """softmax of the logits, [B,K]."""
    return jax.nn.softmax(losses.in_float32(logits_fn(images)))


def scaled(delta: Any, epsilon: float) -> np.ndarray:
    """(delta + epsilon) / (2 epsilon), clipped to [0,1]: an Linf perturbation as an image, grey where nothing changed.

    Args:
      delta: [N,H,W,C].
      epsilon: of the ball; of another norm the largest change that is shown in full.
    """
    check("epsilon", epsilon, epsilon > 0, "above 0")
    return np.clip((np.asarray(delta) + epsilon) / (2 * epsilon), 0, 1)


def plot_perturbations(
    images: Any,
    labels: Any,
    seen: Sequence[Perturbed],
    class_names: Sequence[str],
    epsilon: float,
    title: str = "",
) -> "Figure":
    """Draws, for each model on the same images: clean, the perturbation signed, as a grey image, and adversarial.

    Predictions stand under the images with their confidence, blue where right and vermilion where wrong; the head of a
    column is the true class.

    Args:
      images: [N,H,W,C] in [0,1]; eight make a good picture.
      labels: [N].
      seen: of `perturbed`, one a model.
      class_names: [K] words.
      epsilon: largest change, which the colours end at.
      title: of the picture.

    Returns:
      The figure.
    """
    import matplotlib as mpl

    from robust_vit.analysis import plots

    images = np.asarray(images, np.float64)
    count, rows = len(images), 4 * len(seen)
    with mpl.rc_context(plots.STYLE | {"axes.grid": False}):
        height = 0.9 + rows * 1.2 * images.shape[1] / images.shape[2]
        figure, grid = plots._figure(1.25 * count + 1.3, height, rows, count, squeeze=False)
        figure.get_layout_engine().set(w_pad=0.04, h_pad=0.03, hspace=0.01)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        for block, one in enumerate(seen):
            part = grid[4 * block : 4 * block + 4]
            words = (f"{one.name}\nclean", f"perturbation\n±{plots.pixels(epsilon)}", "as grey image", "adversarial")
            for axes, word in zip(part[:, 0], words):
                axes.set_ylabel(word, fontsize=8.5, color=plots.INK, labelpad=6, linespacing=1.4)
            _block(part, images, labels, one, class_names, epsilon)
        for axes, label in zip(grid[0], labels):
            axes.set_title(plots._short(class_names[int(label)]), loc="center", pad=6)
    return figure


def _block(
    part: np.ndarray, images: np.ndarray, labels: Any, one: Perturbed, class_names: Sequence[str], epsilon: float
) -> None:
    from robust_vit.analysis import plots

    delta = one.adversarial - images
    grey = scaled(delta, epsilon).mean(-1)
    for i, label in enumerate(labels):
        plots._picture(part[0, i], images[i])
        plots._verdict(part[0, i], one.clean_probabilities[i], int(label), class_names)
        plots._signed(part[1, i], delta[i], epsilon)
        plots._bare(part[2, i])
        part[2, i].imshow(grey[i], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        plots._picture(part[3, i], one.adversarial[i])
        plots._verdict(part[3, i], one.adversarial_probabilities[i], int(label), class_names)


def explain(subjects: Sequence["Subject"], out: pathlib.Path) -> list[pathlib.Path]:
    """Draws `perturbations` and `spectra`: of all subjects, each attacked by itself on the same images."""

    first = subjects[0]
    images, labels, indices = first.examples
    seen = [perturbed(one.name, one.classifier, images, one.attack(images, labels, indices)) for one in subjects]
    shown = slice(first.options.examples)
    width = _largest(seen, images, first.threat)
    attack = f"PGD-{first.options.steps}, {first.threat.label}"
    part = [Perturbed(one.name, *(array[shown] for array in one[1:])) for one in seen]
    figure = plot_perturbations(images[shown], labels[shown], part, first.class_names, width, attack)
    numbers = {
        "attack": attack,
        "split": first.options.split,
        "runs": {one.name: _figures(one, labels) for one in seen},
    }
    arrays = {"images": images, "labels": labels, "indices": indices}
    for one in seen:
        arrays |= {f"{one.name}/{field}": getattr(one, field) for field in Perturbed._fields[1:]}
    files = saving.save(out, "perturbations", figure, numbers, arrays)
    deltas = {one.name: one.adversarial - images for one in seen}
    figure = spectra.plot_spectra(deltas, title=f"perturbations of {attack}, {len(images)} images")
    numbers = {"attack": attack, "radius": spectra.RADIUS, "energy_below": spectra.measured(deltas)}
    numbers["differences"] = spectra.differences(deltas)
    arrays = {f"{name}/amplitude": spectra.amplitude(delta) for name, delta in deltas.items()}
    return files + saving.save(out, "spectra", figure, numbers, arrays)


def _largest(seen: Sequence[Perturbed], images: np.ndarray, threat: Any) -> float:
    """Where the colours end: epsilon in Linf, the largest change in other norms."""
    return threat.epsilon if threat.norm == "linf" else max(float(np.abs(o.adversarial - images).max()) for o in seen)


def _figures(one: Perturbed, labels: np.ndarray) -> dict[str, Any]:
    clean, attacked = (p.argmax(-1) == labels for p in (one.clean_probabilities, one.adversarial_probabilities))
    return {
        "clean_accuracy": estimates.share(clean).as_json(),
        "robust_accuracy": estimates.share(attacked).as_json(),
        "clean_confidence": estimates.mean(one.clean_probabilities.max(-1)).as_json(),
        "adversarial_confidence": estimates.mean(one.adversarial_probabilities.max(-1)).as_json(),
    }

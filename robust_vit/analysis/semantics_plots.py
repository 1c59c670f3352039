"""Semantics drawn and measured: gradients added up along PGD, images of classes, what perturbations alone say."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robust_vit.analysis import estimates, saving, semantics
from robust_vit.analysis.estimates import Estimate
from robust_vit.errors import check

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robust_vit.explain import Subject

SYNTHESIZED = 40  # images of every class that are made of noise, for the figure
MOST = 20000  # images that a support vector machine is fitted to in minutes
# "Accumulated gradients" are those of the log probability of the class, added up along PGD.
FIGURES = {
    "figure": "share of the energy of accumulated gradients on the figure",
    "prototype": "cosine of accumulated gradients and the class's mean image less that of all",
    "accumulated": "cosine of accumulated gradients and the image",
    "alignment": "cosine of the gradient of the margin and the image",
    "perturbation": "accuracy of the judge on perturbations of PGD alone",
    "fgsm": "accuracy of the judge on perturbations of FGSM alone",
    "control": "accuracy of the judge on random signs: what the pixel range gives away",
    "from_noise": "accuracy of the judge on classes made of noise by targeted PGD",
    "from_image": "accuracy of the judge on classes made of other images by targeted PGD",
}


def plot_gradients(
    images: Any, gradients: Mapping[str, Any], labels: Any, class_names: Sequence[str], title: str = ""
) -> "Figure":
    """Draws images, and for each model below them its gradients added up along PGD: with their sign, and |G|.

    Args:
      images: [N,H,W,C] in [0,1].
      gradients: {model: [N,H,W,C]}, of `accumulated_gradients`.
      labels: [N].
      class_names: [K] words.
      title: of the picture.

    Returns:
      The figure.
    """
    import matplotlib as mpl

    from robust_vit.analysis import plots

    count, rows = len(images), 1 + 2 * len(gradients)
    with mpl.rc_context(plots.STYLE | {"axes.grid": False}):
        figure, grid = plots._figure(1.15 * count + 1.5, 0.9 + 1.15 * rows, rows, count, squeeze=False)
        figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
        figure.suptitle(title or "gradients added up", x=0.01, ha="left", fontsize=11, fontweight="bold")
        for axes, image, label in zip(grid[0], images, labels):
            plots._picture(axes, np.asarray(image))
            axes.set_title(plots._short(class_names[int(label)]), loc="center", pad=6)
        for place, (name, gradient) in enumerate(gradients.items()):
            sizes = semantics.magnitude(gradient)
            lines = grid[1 + 2 * place : 3 + 2 * place]
            for axes, one in zip(lines[0], np.asarray(gradient)):
                plots._bare(axes)
                mean = one.mean(-1)
                limit = np.percentile(np.abs(mean), 99) or 1.0
                axes.imshow(mean, cmap=plots.SIGNED, vmin=-limit, vmax=limit, interpolation="nearest")
            for axes, one in zip(lines[1], sizes):
                plots._bare(axes)
                axes.imshow(one, cmap="cividis", vmin=0, vmax=1, interpolation="nearest")
            for axes, words in zip(lines[:, 0], (f"{name}\nsigned", f"{name}\nsize")):
                axes.set_ylabel(words, fontsize=8.5, color=plots.INK, labelpad=6, linespacing=1.4)
        for axes, words in zip(grid[:1, 0], ("image",)):
            axes.set_ylabel(words, fontsize=8.5, color=plots.INK, labelpad=6)
    return figure


def plot_synthesis(rows: Mapping[str, Any], classes: Sequence[str], title: str = "") -> "Figure":
    """Draws what models make of the same starts, one column a class.

    Args:
      rows: {words: [N,H,W,C] in [0,1]}, the starts first.
      classes: [N] words: what each was made to look like.
      title: of the picture.

    Returns:
      The figure.
    """
    import matplotlib as mpl

    from robust_vit.analysis import plots

    with mpl.rc_context(plots.STYLE | {"axes.grid": False}):
        size = (1.05 * len(classes) + 1.5, 0.8 + 1.1 * len(rows))
        figure, grid = plots._figure(*size, len(rows), len(classes), squeeze=False)
        figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
        figure.suptitle(title or "images of classes", x=0.01, ha="left", fontsize=11, fontweight="bold")
        for line, (words, images) in zip(grid, rows.items()):
            for axes, image in zip(line, np.asarray(images)):
                plots._picture(axes, image)
            line[0].set_ylabel(words, fontsize=8.5, color=plots.INK, labelpad=6, linespacing=1.4)
        for axes, word in zip(grid[0], classes):
            axes.set_title(plots._short(word, 10), loc="center", pad=6)
    return figure


def plot_scores(scores: Mapping[str, Mapping[str, Estimate]], chance: float, title: str = "") -> "Figure":
    """Draws the figures with their 95 % intervals: a row each, a colour a model.

    Args:
      scores: {model: {name of FIGURES: Estimate}}.
      chance: accuracy of a judge that guesses, marked beside accuracies.
      title: of the picture.

    Returns:
      The figure.
    """
    import matplotlib as mpl
    from matplotlib.lines import Line2D

    from robust_vit.analysis import comparison, plots

    names = [name for name in FIGURES if all(name in one for one in scores.values())]
    with mpl.rc_context(plots.STYLE):
        figure, axes = plots._figure(8.6, 1.3 + 0.62 * len(names), 1, 1)
        figure.suptitle(title or "what perturbations mean", x=0.01, ha="left", fontsize=11, fontweight="bold")
        for place, one in enumerate(scores.values()):
            colour = comparison.COLOURS[place % len(comparison.COLOURS)]
            for row, name in enumerate(names):
                estimate, y = one[name], row + 0.24 * (place - (len(scores) - 1) / 2)
                error = [[estimate.value - estimate.interval[0]], [estimate.interval[1] - estimate.value]]
                marker = "osD^v"[place % 5]
                axes.errorbar(estimate.value, y, xerr=error, fmt=marker, color=colour, capsize=3, markersize=5)
                if FIGURES[name].startswith("accuracy"):
                    axes.plot([chance] * 2, [row - 0.4, row + 0.4], color=plots.FAINT, lw=1, ls=(0, (3, 3)), zorder=1)
        words = [_wrapped(FIGURES[name]) for name in names]
        axes.set_yticks(range(len(names)), words, fontsize=8, color=plots.INK)
        axes.invert_yaxis()
        low = min(one[name].interval[0] for one in scores.values() for name in names)
        axes.set_xlim(min(-0.02, low - 0.02), 1.02)
        axes.grid(axis="y", visible=False)
        drawn = [
            Line2D([], [], color=comparison.COLOURS[i % 7], marker="osD^v"[i % 5], ls="", label=word)
            for i, word in enumerate(scores)
        ]
        drawn.append(Line2D([], [], color=plots.FAINT, lw=1, ls=(0, (3, 3)), label=f"guessing, {chance:.0%}"))
        figure.legend(handles=drawn, loc="outside lower right", ncols=len(drawn))
    return figure


def _wrapped(words: str, width: int = 46) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(words, width))


def judge_of(subject: "Subject") -> tuple[semantics.Judge, str]:
    """Who judges: the run that --judge names, else a support vector machine fitted to the training split; and what to
    call it.

    Raises:
      ValueError: if the run is no run or of other data, or the split is too large for such a machine.
    """
    if subject.options.judge is not None:
        other = subject.beside(subject.options.judge)
        return other.classifier.predict, f"the run {other.name}"
    count = len(subject.dataset.train)
    many = f"of at most {MOST} images, to fit a judge to; or --judge=RUN, a run that judges"
    check("training split", count, count <= MOST, many)
    images, labels = subject.dataset.arrays("train")
    return semantics.fitted_judge(images, labels), f"a support vector machine fitted to {count} training images"


def measure(subject: "Subject", judge: semantics.Judge) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Every figure of FIGURES, example by example, and the arrays that pictures are drawn of.

    The cosine with the mean of the class needs the training split, and is left out where that is large.

    Returns:
      {name: [N] booleans or numbers}, {name: array}.
    """
    images, labels, indices = subject.examples
    threat, options = subject.threat, subject.options
    found, arrays = {}, {}
    for name in ("pgd", "fgsm"):
        adversarial = subject.attack(images, labels, indices, name)
        limit = threat.epsilon if threat.norm == "linf" else float(np.abs(adversarial - images).max())
        arrays[name] = semantics.alone(images, adversarial, limit)
        found["perturbation" if name == "pgd" else name] = judge(arrays[name]) == labels
    signs = semantics.random_signs(images, limit, options.seed, indices)
    found["control"] = judge(semantics.alone(images, signs, limit)) == labels
    found["alignment"] = semantics.alignment(subject.classifier, images, labels)
    gradients = semantics.accumulated_gradients(
        subject.classifier, images, labels, **threat.keywords, steps=options.steps
    )
    arrays["gradients"] = gradients
    found["accumulated"] = semantics.cosine(images, -gradients)
    found["figure"] = semantics.on_figure(images, gradients)
    if len(subject.dataset.train) <= MOST:
        stored, known = subject.dataset.arrays("train")
        found["prototype"] = semantics.cosine(semantics.prototypes(stored, known)[labels], -gradients)
    _synthesized(subject, judge, found, arrays)
    return found, arrays


def _synthesized(subject: "Subject", judge: semantics.Judge, found: dict[str, Any], arrays: dict[str, Any]) -> None:
    """Adds what the model makes of noise and of images of other classes."""
    images, labels, indices = subject.examples
    count, seed = len(subject.class_names), subject.options.seed
    classes = np.tile(np.arange(count, dtype=np.int32), SYNTHESIZED)
    arrays["noise"] = semantics.noise(seed, (len(classes), *images.shape[1:]))
    arrays["from_noise"] = semantics.synthesize(subject.classifier, arrays["noise"], classes)
    found["from_noise"] = judge(arrays["from_noise"]) == classes
    arrays["targets"] = other_classes(labels, count, seed, indices)
    arrays["from_image"] = semantics.synthesize(subject.classifier, images, arrays["targets"])
    found["from_image"] = judge(arrays["from_image"]) == arrays["targets"]


def other_classes(labels: Any, count: int, seed: int, indices: Any) -> np.ndarray:
    """A class for every example that is not its own, [N] int32; each example has its own draw."""
    draws = [np.random.default_rng([seed, int(index)]).integers(1, count) for index in indices]
    return ((np.asarray(labels) + draws) % count).astype(np.int32)


def estimated(values: Any) -> Estimate:
    """A share of booleans, a mean of numbers."""
    return estimates.share(values) if np.asarray(values).dtype == bool else estimates.mean(values)


def explain(subjects: Sequence["Subject"], out: pathlib.Path) -> list[pathlib.Path]:
    """Draws `gradients`, `synthesis` and `semantics`, the figures, with the difference of each run to the first."""
    first = subjects[0]
    judge, who = judge_of(first)
    images, labels, _ = first.examples
    found, arrays = {}, {}
    for one in subjects:
        found[one.name], arrays[one.name] = measure(one, judge)
    attack = f"PGD-{first.options.steps}, {first.threat.label}"
    shown = slice(first.options.examples)
    gradients = {name: of["gradients"][shown] for name, of in arrays.items()}
    figure = plot_gradients(images[shown], gradients, labels[shown], first.class_names, f"gradients along {attack}")
    kept = {f"{name}/{field}": of[field] for name, of in arrays.items() for field in ("gradients", "pgd", "fgsm")}
    files = saving.save(out, "gradients", figure, None, {"images": images, "labels": labels, **kept})
    files += _synthesis(subjects, arrays, out)
    scores = {name: {key: estimated(values) for key, values in of.items()} for name, of in found.items()}
    chance = 1 / len(first.class_names)
    figure = plot_scores(scores, chance, f"what perturbations mean: {attack}, {len(images)} images")
    numbers = {
        "attack": attack,
        "judge": who,
        "judge_accuracy": estimates.share(judge(images) == labels).as_json(),
        "chance": chance,
        "figures": FIGURES,
        "area": estimates.mean(semantics.figure_mask(images).mean((1, 2))).as_json(),
        "runs": {name: {key: one.as_json() for key, one in of.items()} for name, of in scores.items()},
        "differences": {
            f"{first.name} - {name}": {
                key: estimates.difference(found[name][key], found[first.name][key]).as_json() for key in found[name]
            }
            for name in list(found)[1:]
        },
    }
    values = {f"{name}/{key}": one for name, of in found.items() for key, one in of.items()}
    return files + saving.save(out, "semantics", figure, numbers, values)


def _synthesis(
    subjects: Sequence["Subject"], arrays: Mapping[str, Mapping[str, np.ndarray]], out: pathlib.Path
) -> list[pathlib.Path]:
    """One picture of classes made of noise, one of classes made of images."""
    first = subjects[0]
    images, labels, _ = first.examples
    count = min(len(first.class_names), 10)
    of = arrays[first.name]
    rows = {"noise": of["noise"][:count]} | {name: one["from_noise"][:count] for name, one in arrays.items()}
    steps = "targeted PGD-100, steps of 0.225 by sign"
    figure = plot_synthesis(rows, first.class_names[:count], f"classes made of noise: {steps}")
    files = saving.save(out, "synthesis-noise", figure, None, rows)
    shown = slice(first.options.examples)
    rows = {"image": images[shown]} | {name: one["from_image"][shown] for name, one in arrays.items()}
    names = first.class_names
    words = [f"{names[a]} → {names[b]}" for a, b in zip(labels[shown], of["targets"][shown])]
    figure = plot_synthesis(rows, words, f"classes made of images: {steps}")
    return files + saving.save(out, "synthesis-image", figure, None, {**rows, "targets": of["targets"][shown]})

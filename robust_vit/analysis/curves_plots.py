"""Pictures of a model under attack: of the numbers of `curves`, each a function that returns a Matplotlib figure."""

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robust_vit.analysis import saving, walks
from robust_vit.analysis.curves import BINS, by_class, by_step, calibration, confusion, loss_by_step, surface
from robust_vit.analysis.walks import Walk
from robust_vit.errors import check
from robust_vit.evaluation import record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#D55E00", "#0072B2", "#009E73", "#AA4499", "#E69F00", "#56B4E9", "#333333")  # Okabe and Ito's
DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (5, 1.5, 1.5, 1.5)))  # so that no line is told by colour alone

Walks = Mapping[str, Walk]


def plot_epsilon(results: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """Accuracy against epsilon of one or more runs, each with the band of its 95 % interval.

    Args:
      results: {name: the suite "sweep" of a result}.

    Raises:
      ValueError: if there is none, or they are of different norms.
    """
    check("sweeps", len(results), len(results) > 0, "at least one: robust-vit evaluate --suite=sweep makes it")
    norms = sorted({entry.get("norm", "linf") for entry in results.values()})
    check("norm", norms, len(norms) == 1, "the same in all runs")
    figure, axes, style = _axes(6.4, 4.0)
    with style():
        for n, (name, entry) in enumerate(results.items()):
            rows = sorted(entry["curve"], key=lambda row: row["epsilon"])
            low, high = np.array([row["interval"] for row in rows]).T
            _band(axes, n, name, [r["epsilon"] for r in rows], [r["accuracy"] for r in rows], low, high, marker="o")
        axes.set(xlim=(0, None), xlabel="epsilon, fraction of the pixel range")
        axes.set_title(f"accuracy against epsilon ({norms[0].capitalize()})")
        return _finished(figure, axes, share=True)


def plot_steps(walked: Walks) -> "Figure":
    """Share of the examples that still stand after each step, one line a model, with the 95 % band."""
    figure, axes, style = _axes(6.4, 4.0)
    with style():
        for n, (name, walk) in enumerate(walked.items()):
            found = by_step(walk)
            _band(axes, n, name, found["step"], found["accuracy"], found["low"], found["high"])
        _by_steps(axes, walked)
        axes.set_title(f"accuracy against attack steps ({_threat(walked)})")
        return _finished(figure, axes, share=True)


def plot_loss(walked: Walks) -> "Figure":
    """Median loss at each step, with the band of the middle 80 % of the examples."""
    figure, axes, style = _axes(6.4, 4.0)
    with style():
        for n, (name, walk) in enumerate(walked.items()):
            found = loss_by_step(walk)
            _band(axes, n, name, found["step"], found["median"], found["low"], found["high"])
        _by_steps(axes, walked)
        axes.set_ylabel("cross-entropy, nats")
        axes.set_title(f"loss along the attack: median, middle 80 % ({_threat(walked)})")
        return _finished(figure, axes)


def plot_calibration(walk: Walk, bins: int = BINS) -> "Figure":
    """Accuracy against confidence, clean and attacked, with 95 % intervals; on the diagonal a confidence is kept."""
    figure, axes, style = _axes(5.6, 4.9)
    with style():
        axes.plot([0, 1], [0, 1], color="#6B6B6B", linewidth=1, linestyle=(0, (1, 2)), label="as often right as said")
        both = (("clean", walk.clean_logits, 1, "o"), ("attacked", walk.adversarial_logits, 0, "s"))
        for name, logits, colour, marker in both:
            found = calibration(logits, walk.labels, bins)
            rows = found["bins"]
            x, y = ([row[key] for row in rows] for key in ("confidence", "accuracy"))
            errors = [[row["accuracy"] - row["low"] for row in rows], [row["high"] - row["accuracy"] for row in rows]]
            label = f"{name}: error {100 * found['error']:.1f} points"
            style_of = {"color": COLOURS[colour], "marker": marker, "markersize": 5, "capsize": 2.5, "elinewidth": 1}
            axes.errorbar(x, y, yerr=errors, label=label, clip_on=False, zorder=3, **style_of)
        axes.set(xlim=(0, 1), xlabel="confidence of the prediction", ylabel="share right")
        axes.set_title(f"calibration ({_threat({'': walk})})")
        return _finished(figure, axes, share=True, x_share=True)


def plot_confusion(walk: Walk, names: Sequence[str], most: int = 12) -> "Figure":
    """What attacked examples are taken for: rows sum to 100 %; of many classes those that are confused most.

    Args:
      names: K class names.
      most: classes shown.
    """
    counts = confusion(walk.adversarial_logits, walk.labels)
    off = counts - np.diag(np.diag(counts))
    chosen = np.sort(np.argsort(-(off.sum(axis=0) + off.sum(axis=1)), kind="stable")[: min(most, len(counts))])
    part = counts[np.ix_(chosen, chosen)]
    totals = counts.sum(axis=1)[chosen]
    shares = part / np.maximum(totals, 1)[:, None]
    size = 2.6 + 0.42 * len(chosen)
    figure, axes, style = _axes(size + 0.6, size)
    with style():
        axes.grid(False)
        drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(*part.shape):
            if part[i, j]:
                colour = "white" if shares[i, j] > 0.55 else "#222222"
                axes.text(j, i, f"{part[i, j]}", ha="center", va="center", color=colour, fontsize=8)
        words = [_short(names[k]) for k in chosen]
        axes.set_xticks(range(len(chosen)), words, rotation=45 if max(map(len, words)) > 2 else 0, ha="center")
        axes.set_yticks(range(len(chosen)), words)
        axes.set(xlabel="taken for", ylabel="label")
        few = f", the {len(chosen)} most confused of {len(counts)}" if len(chosen) < len(counts) else ""
        axes.set_title(f"under attack ({_threat({'': walk})}{few})")
        bar = figure.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02, format=lambda v, _: f"{100 * v:.0f}%")
        bar.outline.set_visible(False)
        return figure


def plot_classes(walk: Walk, names: Sequence[str], most: int = 20) -> "Figure":
    """Clean and robust accuracy of each class, the weakest first, robust ones with 95 % intervals."""
    rows = sorted(by_class(walk), key=lambda row: (row["robust"], row["class"]))
    shown = rows[:most]
    figure, axes, style = _axes(6.4, 1.3 + 0.27 * len(shown))
    with style():
        y = np.arange(len(shown))
        robust = np.array([row["robust"] for row in shown])
        errors = [robust - [row["low"] for row in shown], [row["high"] for row in shown] - robust]
        point = {"fmt": "s", "color": COLOURS[0], "markersize": 5, "capsize": 2.5, "elinewidth": 1}
        axes.errorbar(robust, y, xerr=errors, label=f"under {walk.attack}", clip_on=False, zorder=3, **point)
        axes.plot([row["clean"] for row in shown], y, "o", color=COLOURS[1], label="clean", clip_on=False, zorder=2)
        axes.set_yticks(y, [f"{_short(names[row['class']])} ({row['examples']})" for row in shown])
        axes.tick_params(axis="y", pad=9)  # marks at 0 % reach over the axis
        axes.set_ylim(len(shown) - 0.5, -0.5)
        weakest = f", the {most} weakest of {len(rows)}" if len(rows) > most else ""
        axes.set_title(f"by class ({_threat({'': walk})}{weakest})")
        return _finished(figure, axes, x_share=True)


def plot_surface(found: Mapping[str, Any], epsilon: float, title: str = "") -> "Figure":
    """The loss around an image: inside of the dashed square both directions are within epsilon, and where it is
    misclassified it is hatched.

    Args:
      found: of `surface`.
    """
    figure, axes, style = _axes(5.4, 4.4)
    with style():
        axes.grid(False)
        drawn = axes.contourf(found["along"], found["along"], found["loss"], levels=16, cmap="viridis")
        if found["wrong"].any():
            wrong = found["wrong"].astype(float)
            axes.contourf(found["along"], found["along"], wrong, levels=[0.5, 1.5], colors="none", hatches=["///"])
        axes.plot(0, 0, "o", color="white", markeredgecolor="#222222", markersize=6)
        square = [-epsilon, epsilon, epsilon, -epsilon, -epsilon], [-epsilon, -epsilon, epsilon, epsilon, -epsilon]
        axes.plot(*square, color="white", linewidth=1.2, linestyle=(0, (4, 2)))
        axes.set(xlabel="along the gradient's steepest direction", ylabel="along a random direction")
        axes.set_title(title or "loss around an image")
        bar = figure.colorbar(drawn, ax=axes, fraction=0.05, pad=0.02, label="cross-entropy, nats")
        bar.outline.set_visible(False)
    return figure


def _axes(width: float, height: float) -> tuple[Any, Any, Any]:
    """A figure with its own canvas, its axes, and the style to draw in."""
    import matplotlib as mpl

    from robust_vit.analysis import plots

    style = functools.partial(mpl.rc_context, plots.STYLE)
    with style():
        figure, axes = plots._figure(width, height, 1, 1)
    return figure, axes, style


def _by_steps(axes: Any, walked: Walks) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(xlim=(0, max(walk.steps for walk in walked.values())), xlabel="steps of PGD from a random start")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _band(axes: Any, n: int, name: str, x: Any, y: Any, low: Any, high: Any, **more: Any) -> None:
    """A line with its band, told apart by colour and dashes."""
    colour = COLOURS[n % len(COLOURS)]
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, y, color=colour, linestyle=DASHES[n % len(DASHES)], label=name or None, markersize=4, **more)


def _finished(figure: Any, axes: Any, share: bool = False, x_share: bool = False) -> "Figure":
    """Percent on the axes that are shares; the legend below the panel, where no line can be."""
    from matplotlib.ticker import PercentFormatter

    if share:
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if x_share:
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    if axes.get_legend_handles_labels()[1]:
        figure.legend(loc="outside lower left", ncols=2)
    return figure


def _threat(walked: Walks) -> str:
    """`PGD, Linf 0.1` of walks that share it."""
    from robust_vit.evaluation.record import pixels

    told = {f"{walk.norm.capitalize()} {pixels(walk.epsilon)}" for walk in walked.values()}
    check("threat", sorted(told), len(told) == 1, "the same for all models")
    return f"PGD, {told.pop()}"


def _short(name: str, length: int = 14) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


def explain(subjects: Sequence[Any], out: Any) -> list[Any]:
    """Draws the curves of runs: those that compare on one picture, the others one a run.

    Args:
      subjects: of `robust_vit.explain`.
      out: the folder.
    """
    walked = {subject.name: _walk_of(subject) for subject in subjects}
    files = saving.save(out, "steps", plot_steps(walked), {name: by_step(walk) for name, walk in walked.items()})
    files += saving.save(out, "loss", plot_loss(walked), {name: loss_by_step(walk) for name, walk in walked.items()})
    sweeps = {subject.name: _sweep_of(subject) for subject in subjects}
    if sweeps := {name: entry for name, entry in sweeps.items() if entry is not None}:
        files += saving.save(
            out, "epsilon", plot_epsilon(sweeps), {name: {"curve": entry["curve"]} for name, entry in sweeps.items()}
        )
    for subject in subjects:
        files += _of_one(subject, walked[subject.name], out, f"_{subject.name}" if len(subjects) > 1 else "")
    return files


def _walk_of(subject: Any) -> Walk:
    images, labels, indices = subject.examples
    return walks.walk(
        subject.classifier,
        images,
        labels,
        norm=subject.threat.norm,
        epsilon=subject.threat.epsilon,
        steps=subject.options.steps,
        seed=subject.options.seed,
        indices=indices,
    )


def _sweep_of(subject: Any) -> Any:
    path = subject.folder / record.RESULT
    return record.read(path).get("sweep") if path.is_file() else None


def _of_one(subject: Any, walked: Walk, out: Any, ending: str) -> list[Any]:
    """Calibration, confusion, classes, and the loss around the first example."""
    names = subject.class_names
    both = {"clean": walked.clean_logits, "attacked": walked.adversarial_logits}
    numbers = {name: calibration(logits, walked.labels) for name, logits in both.items()}
    counts = {"counts": confusion(walked.adversarial_logits, walked.labels).tolist(), "classes": list(names)}
    plane = surface(
        subject.classifier,
        walked.images[0],
        int(walked.labels[0]),
        norm=walked.norm,
        epsilon=walked.epsilon,
        seed=subject.options.seed,
    )
    title = f"{subject.name}: loss around example {walked.indices[0]}"
    files = saving.save(out, f"calibration{ending}", plot_calibration(walked), numbers)
    files += saving.save(out, f"confusion{ending}", plot_confusion(walked, names), counts)
    files += saving.save(out, f"classes{ending}", plot_classes(walked, names), {"rows": by_class(walked)})
    return files + saving.save(out, f"surface{ending}", plot_surface(plane, walked.epsilon, title), None, plane)

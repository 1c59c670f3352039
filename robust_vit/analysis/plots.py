"""Pictures of a run: training curves, adversarial examples, accuracy against epsilon.

matplotlib only, drawn on figures of their own: no window, no pyplot, no global state, so that any thread may draw.
"""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from robust_vit import provenance
from robust_vit.evaluation.record import pixels

# One colour a meaning, in every picture (Okabe and Ito's, which colour-blind readers can tell apart).
CLEAN, ROBUST, LOSS, EPSILON, RATE = "#0072B2", "#D55E00", "#333333", "#009E73", "#AA4499"
RIGHT, WRONG = "#00709A", "#C2410C"  # blue and vermilion: far apart for the colour-blind too
INK, FAINT = "#222222", "#6B6B6B"
# Blue for darker, red for brighter; the map's near-black ends are cut off, where an Linf attack puts most pixels.
SIGNED = ListedColormap(mpl.colormaps["RdBu_r"](np.linspace(0.12, 0.88, 256)))
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": FAINT,
    "axes.edgecolor": "#BBBBBB",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ECECEC",
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.labelcolor": INK,
}
DPI = 160

Path = str | os.PathLike[str]


def curves(
    metrics: Path,
    out: Path | None = None,
    *,
    selected: int | None = None,
    select: str = "",
    training_attack: str = "",
    validation_attack: str = "",
) -> Figure:
    """Draws a training run: loss, accuracies, epsilon (where it trained on an attack) and learning rate over epochs.

    Args:
      metrics: metrics.jsonl, rows {"kind": "train" or "validation", "step", "epoch", ...}; a torn last line is skipped.
      out: the PNG to write; None writes none.
      selected: the step of the checkpoint that is reported; it is circled.
      select: the metric by which it was selected, a figure of the validation rows.
      training_attack, validation_attack: in words, for the titles.

    Returns:
      The figure.

    Raises:
      ValueError: if the file has no training row.
    """
    rows = provenance.read_lines(metrics)
    train = [row for row in rows if row.get("kind") == "train"]
    validation = [row for row in rows if row.get("kind") == "validation"]
    if not train:
        raise ValueError(f"{metrics}: has no row of kind 'train' to draw")
    attacked = any(row.get("epsilon") is not None for row in train)
    with mpl.rc_context(STYLE):
        figure = _canvas(10.4, 7.0)
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1, wspace=0.04, hspace=0.03)
        below = ["epsilon", "rate"] if attacked else ["rate", "rate"]
        axes = figure.subplot_mosaic([["loss", "accuracy"], below], height_ratios=(1.9, 1))
        _line(axes["loss"], train, "loss", LOSS)
        axes["loss"].set_title("training loss")
        _accuracies(axes["accuracy"], train, validation, selected, select)
        axes["accuracy"].set_title(_titled("accuracy", "robust in validation", validation_attack), pad=26)
        if attacked:
            _line(axes["epsilon"], train, "epsilon", EPSILON, fill=True)
            axes["epsilon"].set_title(_titled("epsilon in training", "", training_attack))
            axes["epsilon"].yaxis.set_major_formatter(FuncFormatter(lambda value, _: pixels(value)))
        _line(axes["rate"], train, "learning_rate", RATE, fill=True)
        axes["rate"].set_title("learning rate")
        axes["rate"].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        right = max(_epoch(row) for row in train + validation)
        for name, panel in axes.items():
            panel.set_xlim(0, right)
            if name in below:
                panel.set_ylim(bottom=0)
                panel.set_xlabel("epoch" if "epoch" in train[0] else "step")
        return _save(figure, out)


def _titled(title: str, before: str, attack: str) -> str:
    words = f"{before}: {attack}" if before else attack
    return f"{title} ({words})" if attack else title


def _accuracies(axes: Axes, train: list[dict], validation: list[dict], selected: int | None, select: str) -> None:
    """Training accuracies as faint lines, validation as points joined; averaged weights dashed; the selected circled.

    Words stand above and below the panel, where no line can be.
    """
    for name, colour, word in (("clean_accuracy", CLEAN, "clean"), ("robust_accuracy", ROBUST, "robust")):
        _line(axes, train, name, colour, alpha=0.3, linewidth=1.2, label=f"{word}, training")
        points = {"marker": "o", "markersize": 4, "clip_on": False, "zorder": 3}
        _line(axes, validation, name, colour, label=f"{word}, validation", **points)
        averaged = f"{word}, averaged weights"
        _line(axes, validation, f"ema_{name}", colour, linestyle=(0, (4, 2)), linewidth=1.4, label=averaged)
    entries = axes.get_legend_handles_labels()
    axes.set_ylim(0, 1)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for row in validation:
        if row["step"] == selected and row.get(select) is not None:
            colour = CLEAN if "clean" in select else ROBUST
            ring = {"markersize": 11, "markerfacecolor": "none", "markeredgecolor": colour, "clip_on": False}
            (drawn,) = axes.plot(_epoch(row), row[select], "o", **ring)
            words = f"selected by {metric_words(select)}: {row[select]:.1%} at step {selected}"
            above = {"loc": "lower left", "bbox_to_anchor": (-0.025, 1.0), "borderaxespad": 0.1}
            axes.add_artist(axes.legend([drawn], [words], handlelength=1, fontsize=8, **above))
    if entries[1]:
        below = {"loc": "upper left", "bbox_to_anchor": (-0.025, -0.07), "borderaxespad": 0.2}
        axes.legend(*entries, ncols=2, handlelength=2.2, labelspacing=0.35, columnspacing=1.2, **below)


def metric_words(name: str) -> str:
    """`robust accuracy of the averaged weights` for "ema_robust_accuracy"."""
    words = name.removeprefix("ema_").replace("_", " ")
    return f"{words} of the averaged weights" if name.startswith("ema_") else words


def _line(axes: Axes, rows: list[dict], name: str, colour: str, fill: bool = False, **style: Any) -> None:
    points = [(_epoch(row), row[name]) for row in rows if row.get(name) is not None]
    if not points:
        return
    x, y = np.asarray(points, np.float64).T
    axes.plot(x, y, color=colour, **style)
    if fill:
        axes.fill_between(x, y, color=colour, alpha=0.12, linewidth=0)


def _epoch(row: Mapping[str, Any]) -> float:
    return row["epoch"] if "epoch" in row else row["step"]


def examples(
    images: np.ndarray,
    adversarial: np.ndarray,
    labels: np.ndarray,
    clean_probabilities: np.ndarray,
    adversarial_probabilities: np.ndarray,
    class_names: Sequence[str],
    epsilon: float,
    out: Path | None = None,
    attack: str = "",
) -> Figure:
    """Draws images, what the attack added, and the sum, with predictions in blue where right and vermilion where wrong.

    Args:
      images, adversarial: [B,H,W,C] in [0,1], C 1 or 3; eight make a good picture.
      labels: [B].
      clean_probabilities, adversarial_probabilities: [B,K].
      class_names: [K] words.
      epsilon: of the attack, for the title.
      out: the PNG to write; None writes none.
      attack: in words, for the title.

    Returns:
      The figure.
    """
    images, adversarial = np.asarray(images, np.float64), np.asarray(adversarial, np.float64)
    change = adversarial - images
    limit = max(float(np.abs(change).max()), 1e-8)
    count = len(images)
    with mpl.rc_context(STYLE | {"axes.grid": False}):
        height = (1.2 if attack else 0.95) + 3 * 1.27 * images.shape[1] / images.shape[2]
        figure, grid = _figure(1.32 * count + 0.85, height, 3, count, squeeze=False)
        figure.get_layout_engine().set(w_pad=0.04, h_pad=0.03, hspace=0.01)
        if attack:
            figure.suptitle(attack, x=0.01, ha="left", fontsize=11, fontweight="bold")
        for column in range(count):
            name = class_names[int(labels[column])]
            _picture(grid[0, column], images[column])
            _verdict(grid[0, column], clean_probabilities[column], int(labels[column]), class_names)
            signed = _signed(grid[1, column], change[column], limit)
            _picture(grid[2, column], adversarial[column])
            _verdict(grid[2, column], adversarial_probabilities[column], int(labels[column]), class_names)
            grid[0, column].set_title(_short(name), loc="center", pad=6)
        words = ("clean", f"perturbation\nepsilon {pixels(epsilon)}", "adversarial")
        for axes, word in zip(grid[:, 0], words):
            axes.set_ylabel(word, fontsize=10, color=INK, labelpad=8, linespacing=1.5)
        if signed is not None:
            bar = figure.colorbar(signed, ax=grid[1, :].tolist(), fraction=0.02, pad=0.012, aspect=14)
            bar.set_ticks([-limit, 0, limit], labels=[f"−{pixels(limit)}", "0", f"+{pixels(limit)}"])
            bar.outline.set_visible(False)
        else:
            text = f"colours: change × {0.5 / limit:.3g} around grey"
            grid[1, -1].set_xlabel(text, ha="right", x=1.0, fontsize=8)
        return _save(figure, out)


def _picture(axes: Axes, image: np.ndarray) -> None:
    _bare(axes)
    if image.shape[-1] == 1:
        axes.imshow(image[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    else:
        axes.imshow(np.clip(image[..., :3], 0, 1), interpolation="nearest")


def _signed(axes: Axes, change: np.ndarray, limit: float) -> Any:
    """One channel: a diverging map, whose scale the caller states. Colour images: the change itself, around grey."""
    _bare(axes)
    if change.shape[-1] == 1:
        return axes.imshow(change[..., 0], cmap=SIGNED, vmin=-limit, vmax=limit, interpolation="nearest")
    axes.imshow(np.clip(0.5 + 0.5 * change[..., :3] / limit, 0, 1), interpolation="nearest")
    return None


def _verdict(axes: Axes, probabilities: np.ndarray, label: int, class_names: Sequence[str]) -> None:
    """Writes the prediction under a picture and frames the picture in the colour of right or wrong."""
    predicted = int(np.argmax(probabilities))
    colour = RIGHT if predicted == label else WRONG
    text = f"{_short(class_names[predicted])}  {probabilities[predicted]:.0%}"
    axes.set_xlabel(text, color=colour, fontsize=9.5 if len(text) < 16 else 8, labelpad=5)
    for spine in axes.spines.values():
        spine.set(visible=True, color=colour, linewidth=2.2)


def _short(name: str, length: int = 14) -> str:
    """A class name that fits over a picture."""
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _bare(axes: Axes) -> None:
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def sweep(result: Mapping[str, Any], out: Path | None = None) -> Figure:
    """Draws accuracy against epsilon with its 95 % interval.

    Args:
      result: of the suite "sweep": "curve", rows of "epsilon", "accuracy", "interval"; "norm", "steps", and
        "threat_epsilon", which is marked.
      out: the PNG to write; None writes none.

    Returns:
      The figure.
    """
    curve = sorted(result["curve"], key=lambda row: row["epsilon"])
    epsilon, accuracy = (np.array([row[name] for row in curve]) for name in ("epsilon", "accuracy"))
    low, high = np.array([row["interval"] for row in curve]).T
    with mpl.rc_context(STYLE):
        figure, axes = _figure(6.2, 3.9, 1, 1)
        axes.fill_between(epsilon, low, high, color=ROBUST, alpha=0.15, linewidth=0, label="95 % interval")
        axes.plot(
            epsilon, accuracy, color=ROBUST, marker="o", markersize=4.5, clip_on=False, zorder=3, label="accuracy"
        )
        axes.plot(epsilon[0], accuracy[0], "o", color=CLEAN, markersize=6.5, clip_on=False, zorder=4)
        if epsilon[0] == 0:
            text = f"clean {accuracy[0]:.1%}"
            axes.annotate(text, (0, accuracy[0]), (8, 6), textcoords="offset points", color=CLEAN)
        for row in curve:
            if row["epsilon"] > 0 and np.isclose(row["epsilon"], result.get("threat_epsilon", -1)):
                text, point = f"{row['accuracy']:.1%} at {pixels(row['epsilon'])}", (row["epsilon"], row["accuracy"])
                axes.plot([point[0]] * 2, [0, point[1]], color=FAINT, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
                axes.annotate(text, point, (8, 4), textcoords="offset points", color=ROBUST)
        steps = f", PGD-{result['steps']}" if "steps" in result else ""
        axes.set_title(f"accuracy against epsilon ({result.get('norm', 'linf').capitalize()}{steps})", pad=16)
        axes.set(xlim=(0, epsilon[-1]), ylim=(0, 1.0), xlabel="epsilon, fraction of the pixel range")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        figure.legend(loc="outside lower left", ncols=2)
        return _save(figure, out)


def _canvas(width: float, height: float) -> Figure:
    """An empty figure with its own canvas."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _figure(width: float, height: float, rows: int, columns: int, *, squeeze: bool = True, **grid: Any) -> tuple:
    """A figure with its own canvas and a grid of axes that share nothing."""
    figure = _canvas(width, height)
    return figure, figure.subplots(rows, columns, squeeze=squeeze, gridspec_kw=grid or None)


def _save(figure: Figure, out: Path | None) -> Figure:
    """Writes the PNG in one step, so that a page that shows it never sees half a picture."""
    if out is not None:
        picture = io.BytesIO()
        figure.savefig(picture, format="png")
        provenance.write_atomically(out, picture.getvalue())
    return figure

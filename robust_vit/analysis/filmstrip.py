"""An image as PGD moves it, with the decision at every step: as a strip (PNG) and animated (GIF).

strip = rv.analysis.film(classifier, images[:1], labels[:1], norm="linf", epsilon=0.1, steps=10)
rv.analysis.plot_filmstrip(strip, labels[0], class_names)
"""

import io
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from robust_vit import provenance
from robust_vit.analysis import saving
from robust_vit.analysis.trajectory import trajectory
from robust_vit.typing import LogitsFn

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robust_vit.explain import Subject

STEPS = 10  # of PGD: as many pictures, and the image itself
FRAME_SECONDS = 0.6
END_SECONDS = 2.0  # the last picture stays


class Film(NamedTuple):
    """An image on its way.

    Attributes:
      points: [S+1,H,W,C] in [0,1], the image itself first.
      probabilities: [S+1,K] at each point.
    """

    points: np.ndarray
    probabilities: np.ndarray


def film(logits_fn: LogitsFn, image: Any, label: int, **attack: Any) -> Film:
    """Walks from one image [H,W,C] as PGD does; keywords are those of `trajectory`.

    Raises:
      ValueError: for a keyword that does not fit.
    """
    way = trajectory(logits_fn, np.asarray(image)[None], np.array([label], np.int32), **({"steps": STEPS} | attack))
    logits = np.asarray(way.logits[:, 0], np.float64)
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    return Film(np.asarray(way.points[:, 0]), powers / powers.sum(-1, keepdims=True))


def flip(strip: Film, label: int) -> int | None:
    """The first step at which the decision is wrong; None where it stands to the end."""
    wrong = np.flatnonzero(strip.probabilities.argmax(-1) != label)
    return int(wrong[0]) if len(wrong) else None


def plot_filmstrip(
    films: dict[str, Film], label: int, class_names: Sequence[str], title: str = "", most: int = 11
) -> "Figure":
    """Draws the image at its steps, the decision under each; a row a model.

    Args:
      films: {name: of `film`}, all of one image and equally long.
      label: of the image.
      class_names: [K] words.
      title: of the picture.
      most: pictures in a row; of longer films some steps are left out, never the first or the last.

    Returns:
      The figure.
    """
    import matplotlib as mpl

    from robust_vit.analysis import plots

    length, shape = next((len(one.points), one.points.shape) for one in films.values())
    at = np.unique(np.linspace(0, length - 1, min(most, length)).round().astype(int))
    with mpl.rc_context(plots.STYLE | {"axes.grid": False}):
        height = 0.75 + len(films) * (0.45 + 1.05 * shape[1] / shape[2])
        figure, grid = plots._figure(1.12 * len(at) + 1.0, height, len(films), len(at), squeeze=False)
        figure.get_layout_engine().set(w_pad=0.03, h_pad=0.04)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        for row, (name, one) in zip(grid, films.items()):
            for axes, step in zip(row, at):
                plots._picture(axes, one.points[step])
                plots._verdict(axes, one.probabilities[step], label, class_names)
            row[0].set_ylabel(name, fontsize=9, color=plots.INK, labelpad=6)
        for axes, step in zip(grid[0], at):
            axes.set_title(f"step {step}" if step else "image", loc="center", fontsize=9, pad=5, fontweight="normal")
    return figure


def animate(films: dict[str, Film], label: int, class_names: Sequence[str], title: str = "") -> bytes:
    """The films as an animated GIF, side by side: the image, what has been added so far, and the probabilities.

    Args: as for `plot_filmstrip`.

    Returns:
      The file's content.
    """
    from PIL import Image

    frames = []
    for step in range(len(next(iter(films.values())).points)):
        canvas = plot_frame(films, step, label, class_names, title).canvas
        canvas.draw()
        frames.append(Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    sheet = np.concatenate([np.asarray(frame) for frame in frames])
    palette = Image.fromarray(sheet).quantize(256)  # of all frames: GIF has 256 colours, and each must be there
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    seconds = [FRAME_SECONDS] * (len(frames) - 1) + [END_SECONDS]
    packed = io.BytesIO()
    shown = [round(1000 * second) for second in seconds]
    frames[0].save(packed, "GIF", save_all=True, append_images=frames[1:], duration=shown, loop=0, disposal=1)
    return packed.getvalue()


def plot_frame(films: dict[str, Film], step: int, label: int, class_names: Sequence[str], title: str = "") -> "Figure":
    """One picture of the animation."""
    import matplotlib as mpl
    from matplotlib.ticker import PercentFormatter

    from robust_vit.analysis import plots

    limit = max(float(np.abs(one.points - one.points[:1]).max()) for one in films.values()) or 1.0
    with mpl.rc_context(plots.STYLE | {"axes.grid": False}):
        figure, grid = plots._figure(
            7.4, 0.6 + 2.3 * len(films), len(films), 3, squeeze=False, width_ratios=(1, 1, 1.5)
        )
        figure.set_dpi(80)
        figure.suptitle(f"{title}   step {step}", x=0.01, ha="left", fontsize=11, fontweight="bold")
        for row, (name, one) in zip(grid, films.items()):
            plots._picture(row[0], one.points[step])
            plots._verdict(row[0], one.probabilities[step], label, class_names)
            row[0].set_ylabel(name, fontsize=9.5, color=plots.INK, labelpad=6)
            plots._signed(row[1], one.points[step] - one.points[0], limit)
            row[1].set_xlabel(f"added, ±{plots.pixels(limit)}", fontsize=9, labelpad=5)
            top = np.argsort(-one.probabilities.mean(0), kind="stable")[:10]
            top = np.sort(np.union1d(top, [label]))  # places that stay from picture to picture
            colours = [plots.RIGHT if k == label else plots.WRONG for k in top]
            row[2].barh(range(len(top)), one.probabilities[step, top], color=colours)
            row[2].set_yticks(range(len(top)), [plots._short(class_names[k]) for k in top], fontsize=8)
            row[2].invert_yaxis()
            row[2].set_xlim(0, 1)
            row[2].xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    return figure


def explain(subjects: Sequence["Subject"], out: pathlib.Path) -> list[pathlib.Path]:
    """Draws `filmstrip` (PNG and GIF): of the first image that the first subject has right and some subject loses, or
    of the first image where there is none.
    """
    first = subjects[0]
    images, labels, _ = first.shown()
    keywords = first.threat.keywords | {"steps": STEPS}
    found = [{one.name: film(one.classifier, x, y, **keywords) for one in subjects} for x, y in zip(images, labels)]
    flips = [{name: flip(one, y) for name, one in films.items()} for films, y in zip(found, labels)]
    lost = [i for i, steps in enumerate(flips) if any(step not in (None, 0) for step in steps.values())]
    chosen = lost[0] if lost else 0
    films, label = found[chosen], int(labels[chosen])
    title = f"PGD-{STEPS}, {first.threat.label}, a {first.class_names[label]}"
    numbers = {
        "attack": f"PGD-{STEPS}, {first.threat.label}, from the image, steps of 2.5 epsilon / {STEPS}",
        "label": label,
        "chosen": chosen,
        "first_wrong_step": {name: [steps[name] for steps in flips] for name in films},
        "probabilities": {name: one.probabilities.tolist() for name, one in films.items()},
    }
    arrays = {f"{name}/{field}": getattr(one, field) for name, one in films.items() for field in Film._fields}
    figure = plot_filmstrip(films, label, first.class_names, title)
    files = saving.save(out, "filmstrip", figure, numbers, arrays)
    provenance.write_atomically(out / "filmstrip.gif", animate(films, label, first.class_names, title))
    return [*files, out / "filmstrip.gif"]

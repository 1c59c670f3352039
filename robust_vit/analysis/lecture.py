"""The pictures of a lecture on vision transformers and adversarial examples, each with its numbers.

    robust-vit explain --workdir=runs/plain --workdir=runs/digits --what=lecture --out=docs/pictures

The first run is the one that is attacked; where there is a second, trained against attacks, both are put side by side.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit.analysis import perturbations, positions, saving
from robust_vit.analysis.attention import Layer, attention_maps, parts
from robust_vit.analysis.trajectory import trajectory
from robust_vit.attacks import losses
from robust_vit.errors import check

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robust_vit.explain import Subject

MULTIPLES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)  # of epsilon
STEPS = 20  # of PGD
HEADS = 4  # of one block, at most


class Drawn(NamedTuple):
    """A picture, its figures, and the arrays that it is drawn of."""

    figure: "Figure"
    numbers: dict[str, Any]
    arrays: dict[str, Any]


def cut(image: Any, size: int) -> np.ndarray:
    """The patches of an image, row by row: [H,W,C] -> [H/p,W/p,p,p,C].

    Raises:
      ValueError: if the patches do not divide the image.
    """
    image = np.asarray(image)
    height, width, channels = image.shape
    divides = size > 0 and height % size == 0 and width % size == 0
    check("patch_size", size, divides, f"a divisor of {height} and {width}, the image's sides")
    return image.reshape(height // size, size, width // size, size, channels).swapaxes(1, 2)


def patches(subject: "Subject") -> Drawn:
    """An image, the patches that it is cut into, and the sequence of tokens that the transformer reads."""
    from robust_vit.analysis import plots

    image, size = subject.shown()[0][0], parts(subject.classifier)[0].patch_size
    pieces = cut(image, size)
    rows, columns = pieces.shape[:2]
    with _style():
        figure = plots._canvas(8.4, 3.9)
        above, below = figure.subfigures(2, 1, height_ratios=(3.0, 1.0))
        left, right = above.subfigures(1, 2)
        plots._picture(panel := left.subplots(), image)
        panel.set_title(f"an image of {image.shape[0]}x{image.shape[1]} pixels", loc="center")
        right.suptitle(f"{rows * columns} patches of {size}x{size}", fontsize=11, fontweight="bold")
        for panel, piece in zip(
            right.subplots(rows, columns, squeeze=False).flat, pieces.reshape(rows * columns, size, size, -1)
        ):
            _framed(panel, piece)
        below.suptitle("the same as a sequence: one token each", fontsize=11, fontweight="bold")
        line = below.subplots(1, rows * columns, squeeze=False)[0]
        for number, (panel, piece) in enumerate(zip(line, pieces.reshape(rows * columns, size, size, -1))):
            _framed(panel, piece)
            panel.set_xlabel(number + 1, fontsize=7.5, labelpad=2)
    return Drawn(figure, {"patch_size": size, "tokens": rows * columns}, {"image": image, "patches": pieces})


def _framed(panel: Any, piece: np.ndarray) -> None:
    """A patch with a frame, so that white ones are seen on white paper."""
    from robust_vit.analysis import plots

    plots._picture(panel, piece)
    for spine in panel.spines.values():
        spine.set(visible=True, color=plots.FAINT, linewidth=0.8)


def similarity(subject: "Subject") -> Drawn:
    """How alike the position embeddings are: each place against all others."""
    embeddings = positions.position_embeddings(subject.classifier)
    figure = positions.plot_similarity(embeddings, "position embeddings: cosine with all others")
    return Drawn(
        figure, {"width": embeddings.shape[-1]}, {"embeddings": embeddings, "cosine": positions.similarity(embeddings)}
    )


def heads(subject: "Subject") -> Drawn:
    """What one patch attends to in each head of the first and of the last block: of the brightest patch of an image."""
    from robust_vit.analysis import plots

    image = subject.shown()[0][0]
    layers = [one for one in attention_maps(subject.classifier, image[None]) if one.kind == "tokens"]
    check("attention", subject.name, bool(layers), "asked of a model whose tokens attend to each other")
    first, last = layers[0], layers[-1]
    pieces = cut(image, image.shape[0] // first.grid[0])
    asking = int(pieces.mean((2, 3, 4)).argmax())
    shown = {one.name: _row(one, asking) for one in (first, last)}
    count = max(map(len, shown.values()))
    with _style():
        figure, grid = plots._figure(1.5 * (count + 1) + 0.6, 3.7, 2, count + 1, squeeze=False)
        figure.suptitle("what the marked patch attends to", x=0.01, ha="left", fontsize=11, fontweight="bold")
        for line, words, maps in zip(grid, ("first block", "last block"), shown.values()):
            plots._picture(line[0], image)
            line[0].add_patch(_box(asking, first.grid, image.shape))
            line[0].set_ylabel(words, fontsize=9, color=plots.INK)
            for head, panel in enumerate(line[1:]):
                plots._bare(panel)
                panel.imshow(maps[head], cmap="viridis", vmin=0, vmax=max(map(np.max, shown.values())))
                panel.set_xlabel(f"head {head + 1}", fontsize=8.5)
    return Drawn(figure, {"asking": asking, "layers": list(shown)}, {"image": image, **shown})


def _row(layer: Layer, asking: int) -> np.ndarray:
    """[heads,h,w]: what a patch attends to, the class token left out."""
    place = layer.prefix + asking
    return layer.maps[0, :HEADS, place, layer.prefix :].reshape(-1, *layer.grid)


def _box(place: int, grid: tuple[int, int], shape: tuple[int, ...]) -> Any:
    """A frame around a patch."""
    from matplotlib.patches import Rectangle

    from robust_vit.analysis import plots

    height, width = shape[0] / grid[0], shape[1] / grid[1]
    corner = (place % grid[1] * width - 0.5, place // grid[1] * height - 0.5)
    return Rectangle(corner, width, height, fill=False, edgecolor=plots.ROBUST, linewidth=2.5)


def one_and_many(subject: "Subject") -> Drawn:
    """FGSM and PGD on one image: what each changes, and the loss along the way."""
    from robust_vit.analysis import plots

    image, label, index = _telling(subject)
    threat = subject.threat.keywords
    walk = trajectory(subject.classifier, image[None], np.array([label], np.int32), **threat, steps=STEPS)
    fgsm = subject.attack(image[None], np.array([label]), np.array([index]), "fgsm")[0]
    points = {"clean": image, "FGSM": fgsm, f"PGD-{STEPS}": np.asarray(walk.points[-1, 0])}
    logits = subject.classifier(np.stack(list(points.values())))
    loss = {name: float(value) for name, value in zip(points, losses.cross_entropy(logits, _same(label, 3)))}
    along = np.asarray(losses.cross_entropy(walk.logits[:, 0], _same(label, STEPS + 1)))
    with _style():
        figure = plots._canvas(9.0, 3.9)
        left, right = figure.subfigures(1, 2, width_ratios=(1.1, 1))
        _changes(left.subplots(2, 3), points, label, np.asarray(jax.nn.softmax(logits)), subject)
        panel = right.subplots()
        panel.plot(along, "o-", color=plots.ROBUST, markersize=3.5, label=f"PGD, {STEPS} steps")
        panel.axhline(loss["FGSM"], color=plots.CLEAN, linestyle=(0, (4, 2)), label="FGSM, one step")
        panel.set(xlabel="step", ylim=(0, None), title="cross-entropy on the way")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(True)
        panel.legend(loc="lower right")
    numbers = {"threat": subject.threat.label, "label": int(label), "index": int(index), "loss": loss}
    return Drawn(figure, numbers, {"loss": along, **{name.lower(): one for name, one in points.items()}})


def _changes(grid: Any, points: dict[str, np.ndarray], label: int, p: np.ndarray, subject: "Subject") -> None:
    from robust_vit.analysis import plots

    clean, limit = points["clean"], max(float(np.abs(one - points["clean"]).max()) for one in points.values())
    for i, (name, one) in enumerate(points.items()):
        plots._picture(grid[0, i], one)
        plots._verdict(grid[0, i], p[i], label, subject.class_names)
        grid[0, i].set_title(name, loc="center")
        plots._signed(grid[1, i], one - clean, limit)
    grid[1, 0].set_ylabel("change", fontsize=9, color=plots.INK)


def radii(subject: "Subject") -> Drawn:
    """What epsilon looks like: one image, attacked in balls of growing radius."""
    from robust_vit.analysis import plots

    image, label, index = _telling(subject)
    norm, epsilon = subject.threat.norm, subject.threat.epsilon
    found = []
    for multiple in MULTIPLES:
        given = {"norm": norm, "epsilon": max(multiple, 1e-6) * epsilon, "steps": STEPS, "keep": "loss"}
        point = subject.attack(image[None], np.array([label]), np.array([index]), **given)[0]
        found.append(point if multiple else image)
    p = np.asarray(perturbations.probabilities(subject.classifier, jnp.asarray(np.stack(found))))
    with _style():
        figure, grid = plots._figure(1.5 * len(found) + 0.3, 2.3, 1, len(found), squeeze=False)
        figure.suptitle(f"what epsilon looks like, {norm.capitalize()}", x=0.01, ha="left", fontweight="bold")
        for i, panel in enumerate(grid[0]):
            plots._picture(panel, found[i])
            plots._verdict(panel, p[i], label, subject.class_names)
            panel.set_title(plots.pixels(MULTIPLES[i] * epsilon), loc="center", fontsize=10)
    epsilons = [multiple * epsilon for multiple in MULTIPLES]
    return Drawn(figure, {"norm": norm, "epsilons": epsilons}, {"images": np.stack(found), "probabilities": p})


def targeted(subject: "Subject") -> Drawn:
    """One image, made to be read as each of the first classes, in a ball of twice the radius."""
    from robust_vit.analysis import plots

    image, label, _ = _telling(subject)
    count = min(10, len(subject.class_names))
    wanted = np.arange(count, dtype=np.int32)
    norm, epsilon = subject.threat.norm, 2 * subject.threat.epsilon
    given = {"norm": norm, "epsilon": epsilon, "steps": 2 * STEPS, "targeted": True}
    points = subject.attack(np.repeat(image[None], count, 0), wanted, wanted, **given)
    points = np.where((wanted == label)[:, None, None, None], image, points)
    p = np.asarray(perturbations.probabilities(subject.classifier, jnp.asarray(points)))
    columns, rows = min(5, count), -(-count // 5)
    with _style():
        figure, grid = plots._figure(1.5 * columns + 0.3, 2.15 * rows + 0.4, rows, columns)
        title = f"one image, to be read as anything: targeted PGD, {norm.capitalize()} {plots.pixels(epsilon)}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        for i, panel in enumerate(np.atleast_1d(grid).flat):
            if i >= count:
                panel.set_axis_off()
                continue
            plots._picture(panel, points[i])
            plots._verdict(panel, p[i], int(wanted[i]), subject.class_names)
            panel.set_title(f"wanted: {plots._short(subject.class_names[i])}", loc="center", fontsize=9)
    reached = float(np.mean(p.argmax(-1)[wanted != label] == wanted[wanted != label]))
    numbers = {"norm": norm, "epsilon": epsilon, "label": int(label), "reached": reached}
    return Drawn(figure, numbers, {"images": points, "probabilities": p, "wanted": wanted})


def before_after(subjects: Sequence["Subject"]) -> Drawn:
    """The same images attacked on every run: gradient by the image, change, and decision."""
    from robust_vit.analysis import plots

    images, labels, indices = (array[:5] for array in subjects[0].shown())
    arrays: dict[str, Any] = {"images": images, "labels": labels}
    width = len(images)
    with _style():
        figure, grid = plots._figure(1.35 * width + 1.3, 1.55 * 3 * len(subjects) + 0.6, 3 * len(subjects), width)
        names = " and on ".join(one.name for one in subjects)
        title = f"the same images, attacked on {names}: {subjects[0].threat.label}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        for block, one in enumerate(subjects):
            slope = np.asarray(_slope(one.classifier, jnp.asarray(images), jnp.asarray(labels)))
            points = one.attack(images, labels, indices)
            p = np.asarray(perturbations.probabilities(one.classifier, jnp.asarray(points)))
            arrays |= {f"{one.name}/gradients": slope, f"{one.name}/adversarial": points, f"{one.name}/p": p}
            lines = grid[3 * block : 3 * block + 3]
            for i in range(width):
                plots._signed(lines[0, i], slope[i], max(float(np.abs(slope[i]).max()), 1e-12))
                plots._signed(lines[1, i], points[i] - images[i], subjects[0].threat.epsilon)
                plots._picture(lines[2, i], points[i])
                plots._verdict(lines[2, i], p[i], int(labels[i]), one.class_names)
            for line, word in zip(lines[:, 0], ("gradient", "change", "attacked")):
                line.set_ylabel(f"{one.name}\n{word}", fontsize=8.5, color=plots.INK, linespacing=1.4)
    right = {one.name: float(np.mean(arrays[f"{one.name}/p"].argmax(-1) == labels)) for one in subjects}
    return Drawn(figure, {"threat": subjects[0].threat.label, "accuracy_of_the_picture": right}, arrays)


@jax.jit
def _slope(model: Any, images: Any, labels: Any) -> Any:
    return jax.grad(lambda x: losses.cross_entropy(model(x), labels).sum())(images)


def _same(label: int, count: int) -> Any:
    return jnp.full(count, label, jnp.int32)


def _telling(subject: "Subject") -> tuple[np.ndarray, int, int]:
    """(image, label, dataset index) of the first example that is right and that PGD fools; the first one where none."""
    images, labels, indices = subject.shown()
    points = subject.attack(images, labels, indices)
    told = (subject.classifier.predict(images) == labels) & (subject.classifier.predict(points) != labels)
    i = int(np.argmax(told))
    return images[i], int(labels[i]), int(indices[i])


def _style() -> Any:
    import matplotlib as mpl

    from robust_vit.analysis import plots

    return mpl.rc_context(plots.STYLE | {"axes.grid": False})


PICTURES: dict[str, Callable[["Subject"], Drawn]] = {
    "patches": patches,
    "positions": similarity,
    "heads": heads,
    "fgsm_pgd": one_and_many,
    "epsilon": radii,
    "targeted": targeted,
}


def explain(subjects: Sequence["Subject"], out: pathlib.Path) -> list[pathlib.Path]:
    """Draws `PICTURES` of the first run, and `before_after` where there are several."""
    files = [file for name, draw in PICTURES.items() for file in saving.save(out, name, *draw(subjects[0]))]
    return files + (saving.save(out, "before_after", *before_after(subjects)) if len(subjects) > 1 else [])

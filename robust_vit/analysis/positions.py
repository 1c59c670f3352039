"""Does a model know where its patches are? Position embeddings and their similarity, and patches that are shuffled.

Without position embeddings a plain transformer sees a set of patches: shuffled, they give the same decision. The
lecture's experiment shuffles the patches of images, with the embeddings and with the same weights without them.
"""

import functools
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from robust_vit import models
from robust_vit.analysis import batches, estimates, perturbations, saving
from robust_vit.analysis.attention import parts
from robust_vit.errors import check
from robust_vit.models.parts import collecting, taps
from robust_vit.typing import Array, LogitsFn, Variables

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robust_vit.explain import Subject

DRAWN = 8  # places along a side, at most, whose similarity is drawn


def position_embeddings(model: LogitsFn) -> np.ndarray:
    """What a model adds to its patches for their places, without that of class tokens: [h,w,D].

    Args:
      model: a `Classifier` of a model of `robust_vit.models`, or what `models.logits_fn` returns.

    Raises:
      ValueError: if it adds none: Swin and relative positions are in the attention, convolutions need none.
    """
    module, variables = parts(model)
    shape = models.image_shape(module)
    added = _added(module, variables, jnp.zeros((1, *shape), jnp.float32))
    what = "asked of a model that adds position embeddings to its patches"
    check("positions", type(module).__name__, added is not None, what)
    if added.ndim == 3:
        patches = added[:, getattr(module, "prefix", 0) :]
        height = round((patches.shape[1] * shape[0] / shape[1]) ** 0.5)
        added = patches.reshape(1, height, -1, patches.shape[-1])
    return np.asarray(added[0], np.float64)


@functools.partial(jax.jit, static_argnums=0)
def _added(module: Any, variables: Variables, images: Array) -> Array | None:
    _, seen = collecting.collected(module, variables, images, ("positions",))
    return seen[0].value if seen else None


def similarity(embeddings: Any) -> np.ndarray:
    """Cosines between all pairs of places: [h,w,D] -> [h,w,h,w]; 1 on the diagonal."""
    embeddings = np.asarray(embeddings, np.float64)
    lengths = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    unit = embeddings / np.where(lengths > 0, lengths, 1)
    return np.einsum("hwd,yxd->hwyx", unit, unit)


def without_positions(model: LogitsFn) -> LogitsFn:
    """The same weights, with nothing added for places."""
    module, variables = parts(model)
    return jax.tree_util.Partial(functools.partial(_blind, module), variables)


def _blind(module: Any, variables: Variables, images: Array) -> Array:
    with taps.handled(lambda owner, point, value: jnp.zeros_like(value), ("positions",)):
        return module.apply(variables, images)


def shuffle_patches(images: Any, patch_size: int, seed: int = 0, indices: Any = None) -> np.ndarray:
    """Patches in another order, one for each image: [N,H,W,C] -> [N,H,W,C], the same pixels.

    Args:
      images: [N,H,W,C].
      patch_size: side of a patch in pixels; must divide H and W.
      seed: of the draws.
      indices: [N] integers that name the images in the draws; 0 .. N-1 by default.
    """
    images = np.asarray(images)
    count, height, width, channels = images.shape
    divides = patch_size > 0 and height % patch_size == 0 and width % patch_size == 0
    check("patch_size", patch_size, divides, f"a divisor of {height} and {width}, the images' sides")
    rows, columns = height // patch_size, width // patch_size
    patches = images.reshape(count, rows, patch_size, columns, patch_size, channels).swapaxes(2, 3)
    patches = patches.reshape(count, rows * columns, patch_size, patch_size, channels)
    names = np.arange(count) if indices is None else np.asarray(indices)
    orders = np.stack([np.random.default_rng([seed, int(name)]).permutation(rows * columns) for name in names])
    mixed = np.take_along_axis(patches, orders[:, :, None, None, None], 1)
    mixed = mixed.reshape(count, rows, columns, patch_size, patch_size, channels).swapaxes(2, 3)
    return mixed.reshape(images.shape)


def plot_similarity(embeddings: Any, title: str = "") -> "Figure":
    """Draws for each place (of at most 8 x 8, evenly spread) the cosine of its embedding with all others'."""
    import matplotlib as mpl

    from robust_vit.analysis import plots

    cosines = similarity(embeddings)
    rows, columns = (np.unique(np.linspace(0, n - 1, min(n, DRAWN)).round().astype(int)) for n in cosines.shape[:2])
    with mpl.rc_context(plots.STYLE | {"axes.grid": False}):
        figure, grid = plots._figure(
            0.85 * len(columns) + 1.6, 0.85 * len(rows) + 0.8, len(rows), len(columns), squeeze=False
        )
        figure.get_layout_engine().set(w_pad=0.05, h_pad=0.03)
        figure.suptitle(title or "similarity of position embeddings", x=0.01, ha="left", fontsize=11, fontweight="bold")
        for place, row in zip(rows, grid):
            for other, axes in zip(columns, row):
                plots._bare(axes)
                shown = axes.imshow(cosines[place, other], cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
        for place, axes in zip(columns, grid[-1]):
            axes.set_xlabel(place, fontsize=8)
        for place, axes in zip(rows, grid[:, 0]):
            axes.set_ylabel(place, fontsize=8, rotation=0, ha="right", va="center")
        bar = figure.colorbar(shown, ax=grid.ravel().tolist(), fraction=0.03, pad=0.02)
        bar.set_label("cosine", fontsize=8.5)
        bar.outline.set_visible(False)
    return figure


def shuffled_accuracy(
    model: LogitsFn, images: Any, labels: Any, patch_size: int, seed: int = 0, indices: Any = None
) -> dict[str, Any]:
    """The lecture's experiment in figures.

    Returns:
      {"as trained" and, of a model that adds position embeddings, "without positions": {"intact", "shuffled":
      accuracies; "same": share of images whose decision shuffling leaves; each an `Estimate`; "largest_change": of a
      logit}}.
    """
    images, labels = np.asarray(images), np.asarray(labels)
    mixed = shuffle_patches(images, patch_size, seed, indices)
    found = {}
    for name, one in _forms(model).items():
        run = jax.jit(lambda f, x: f(x))
        both = batches.mapped(lambda x, run=run, one=one: run(one, x), np.concatenate([images, mixed]))
        intact, shuffled = np.split(both, 2)
        found[name] = {
            "intact": estimates.share(intact.argmax(-1) == labels),
            "shuffled": estimates.share(shuffled.argmax(-1) == labels),
            "same": estimates.share(intact.argmax(-1) == shuffled.argmax(-1)),
            "largest_change": float(np.abs(intact - shuffled).max()),
        }
    return found


def _forms(model: LogitsFn) -> dict[str, LogitsFn]:
    module, variables = parts(model)
    images = jnp.zeros((1, *models.image_shape(module)), jnp.float32)
    adds = _added(module, variables, images) is not None
    return {"as trained": model} | ({"without positions": without_positions(model)} if adds else {})


def plot_shuffled(
    images: Any, mixed: Any, labels: Any, seen: dict[str, tuple[Any, Any]], class_names: Sequence[str], title: str = ""
) -> "Figure":
    """Draws images and their shuffled patches, with the decisions of each form of the model.

    Args:
      images, mixed: [N,H,W,C].
      labels: [N].
      seen: {words: (probabilities [N,K] of the images, of the shuffled ones)}.
      class_names: [K] words.
      title: of the picture.

    Returns:
      The figure.
    """
    import matplotlib as mpl

    from robust_vit.analysis import plots

    count, rows = len(images), 2 * len(seen)
    with mpl.rc_context(plots.STYLE | {"axes.grid": False}):
        figure, grid = plots._figure(1.2 * count + 1.4, 0.7 + 1.35 * rows, rows, count, squeeze=False)
        figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
        figure.suptitle(title or "patches shuffled", x=0.01, ha="left", fontsize=11, fontweight="bold")
        for block, (name, probabilities) in enumerate(seen.items()):
            for part, (word, shown) in enumerate((("intact", images), ("shuffled", mixed))):
                line = grid[2 * block + part]
                for i, axes in enumerate(line):
                    plots._picture(axes, np.asarray(shown)[i])
                    plots._verdict(axes, np.asarray(probabilities[part])[i], int(labels[i]), class_names)
                line[0].set_ylabel(f"{name}\n{word}", fontsize=8.5, color=plots.INK, labelpad=6, linespacing=1.4)
        for axes, label in zip(grid[0], labels):
            axes.set_title(plots._short(class_names[int(label)]), loc="center", pad=6)
    return figure


def explain(subjects: Sequence["Subject"], out: pathlib.Path) -> list[pathlib.Path]:
    """Draws `positions-RUN` where a run adds embeddings, and `shuffled-RUN` where it cuts patches."""
    files = []
    for one in subjects:
        module, _ = parts(one.classifier)
        forms = _forms(one.classifier)
        if len(forms) > 1:
            embeddings = position_embeddings(one.classifier)
            figure = plot_similarity(embeddings, f"{one.name}: similarity of position embeddings")
            arrays = {"embeddings": embeddings, "similarity": similarity(embeddings)}
            files += saving.save(out, f"positions-{one.name}", figure, None, arrays)
        patch = getattr(module, "patch_size", None)
        check("positions", one.name, patch is not None, "asked of a model that cuts images into patches, such as ViT")
        files += _shuffled(one, forms, patch, out)
    return files


def _shuffled(one: "Subject", forms: dict[str, LogitsFn], patch: int, out: pathlib.Path) -> list[pathlib.Path]:
    images, labels, indices = one.examples
    found = shuffled_accuracy(one.classifier, images, labels, patch, one.options.seed, indices)
    shown = [array[: one.options.examples] for array in (images, labels, indices)]
    mixed = shuffle_patches(shown[0], patch, one.options.seed, shown[2])
    seen = {
        name: tuple(np.asarray(perturbations.probabilities(form, jnp.asarray(x))) for x in (shown[0], mixed))
        for name, form in forms.items()
    }
    title = f"{one.name}: {patch}x{patch} patches shuffled"
    figure = plot_shuffled(shown[0], mixed, shown[1], seen, one.class_names, title)
    numbers = {
        name: {key: value.as_json() if isinstance(value, estimates.Estimate) else value for key, value in of.items()}
        for name, of in found.items()
    }
    arrays = {"images": shown[0], "shuffled": mixed, "labels": shown[1]}
    return saving.save(out, f"shuffled-{one.name}", figure, {"patch_size": patch, "accuracy": numbers}, arrays)

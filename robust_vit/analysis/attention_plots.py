"""Attention drawn: per layer and head, rolled out, clean beside adversarial, the shift, the windows that were kept."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from robust_vit.analysis import attention, batches, estimates, saving
from robust_vit.analysis.attention import Layer
from robust_vit.errors import check

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robust_vit.explain import Subject

HEAT = "cividis"  # even steps of lightness, and the same for the colour-blind
SKIPPED = (0.34, 0.71, 0.91)  # Okabe and Ito's sky blue
BATCH = 16  # images whose maps are held at once
SHIFT = "total variation between clean and adversarial rows of attention, in [0,1], mean over queries"


def head_map(layer: Layer, example: int) -> np.ndarray:
    """What is drawn of a layer, [A,h,w]: what each head looks at; of channels the map [A,d,d] itself."""
    if layer.kind == "channels":
        return layer.maps[example]
    return attention.looked_at(layer._replace(**_one(layer, example)))[0]


def _one(layer: Layer, example: int) -> dict[str, Any]:
    part = slice(example, example + 1)
    return {"maps": layer.maps[part], "slots": None if layer.slots is None else layer.slots[part]}


def plot_attention(
    pictures: Mapping[str, Any], layers: Mapping[str, Sequence[Layer]], example: int = 0, title: str = ""
) -> "Figure":
    """Draws what every head of every layer looks at, a row a layer, for an image and beside it for another.

    Every map has its own scale, from 0 (dark) to its largest value (bright).

    Args:
      pictures: {words: image [H,W,C]}: {"clean": ..., "adversarial": ...}.
      layers: {the same words: of `attention_maps`, of a batch}.
      example: which of the batch.
      title: of the picture.

    Returns:
      The figure.
    """
    import matplotlib as mpl

    from robust_vit.analysis import plots

    maps = {word: [head_map(one, example) for one in of] for word, of in layers.items()}
    rows, heads = len(next(iter(maps.values()))), max(len(one) for of in maps.values() for one in of)
    side = 0.72 if heads * len(maps) <= 12 else 0.5
    with mpl.rc_context(plots.STYLE | {"axes.grid": False}):
        width, height = len(maps) * heads * side + 1.7 + 1.3 * len(maps), max(rows * side + 1.0, 2.4)
        figure = plots._canvas(width, height)
        figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, wspace=0.02)
        figure.suptitle(title or "attention by layer and head", x=0.01, ha="left", fontsize=11, fontweight="bold")
        sides = figure.subfigures(1, len(maps))
        for panel, (word, of) in zip(np.atleast_1d(sides), maps.items()):
            grid = panel.subplots(rows, heads + 2, squeeze=False, width_ratios=(1.6, 0.15, *[1] * heads))
            plots._picture(grid[0, 0], np.asarray(pictures[word]))
            grid[0, 0].set_title(word, loc="center", fontsize=9.5, pad=4)
            _heads(grid, of, next(iter(layers.values())))
    return figure


def _heads(grid: np.ndarray, of: Sequence[np.ndarray], layers: Sequence[Layer]) -> None:
    from robust_vit.analysis import plots

    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
        plots._bare(axes)
    for axes in grid[1:, 0].tolist() + grid[:, 1].tolist():
        axes.set_visible(False)
    for row, heads, layer in zip(grid[:, 2:], of, layers):
        for head, axes in enumerate(row):
            if head >= len(heads):
                axes.set_visible(False)
                continue
            axes.imshow(heads[head], cmap=HEAT, vmin=0, interpolation="nearest")
            if row is grid[0, 2:] or layer is layers[0]:
                axes.set_title(f"{head}", loc="center", fontsize=8, pad=3, fontweight="normal")
        row[0].set_ylabel(short(layer), fontsize=7.5, labelpad=3, rotation=0, ha="right", va="center")


def short(layer: Layer) -> str:
    """A layer in few letters: `blocks_3.attn` is `3`, of a later stage `1.3`, a class block `class 0`."""
    numbers = [part.rpartition("_")[2] for part in layer.name.split(".") if part.rpartition("_")[2].isdigit()]
    return " ".join(([] if layer.kind != "class" else ["class"]) + [".".join(numbers) or layer.name])


def plot_rollout(rows: Mapping[str, tuple[Any, Any]], title: str = "", head: Sequence[str] | None = None) -> "Figure":
    """Draws images and under each what the decision is rolled out to, laid over its image.

    Args:
      rows: {words: (images [N,H,W,C], shares [N,h,w])}.
      title: of the picture.
      head: [N] words over the columns.

    Returns:
      The figure.
    """
    import matplotlib as mpl

    from robust_vit.analysis import plots

    count = len(next(iter(rows.values()))[0])
    with mpl.rc_context(plots.STYLE | {"axes.grid": False}):
        figure, grid = plots._figure(1.15 * count + 1.6, 0.6 + 2.3 * len(rows), 2 * len(rows), count, squeeze=False)
        figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        top = max(float(np.max(shares)) for _, shares in rows.values())
        for place, (word, (images, shares)) in enumerate(rows.items()):
            for column in range(count):
                plots._picture(grid[2 * place, column], np.asarray(images)[column])
                plots._bare(grid[2 * place + 1, column])
                shown = grid[2 * place + 1, column].imshow(
                    shares[column], cmap=HEAT, vmin=0, vmax=top, interpolation="nearest"
                )
            grid[2 * place, 0].set_ylabel(word, fontsize=8.5, color=plots.INK, labelpad=6)
            grid[2 * place + 1, 0].set_ylabel("rollout", fontsize=8.5, color=plots.FAINT, labelpad=6)
        for axes, word in zip(grid[0], head or []):
            axes.set_title(word, loc="center", fontsize=9, pad=5)
        bar = figure.colorbar(shown, ax=grid.ravel().tolist(), fraction=0.02, pad=0.012, aspect=30)
        bar.outline.set_visible(False)
        bar.set_label("share of a patch in what is read", fontsize=8.5)
    return figure


def plot_shift(shifts: Mapping[str, Sequence[np.ndarray]], names: Sequence[str], title: str = "") -> "Figure":
    """Draws the shift of attention by layer and head, in figures, one panel a model.

    Args:
      shifts: {model: of `attention_shift`, [N,A] a layer}.
      names: of the layers.
      title: of the picture.

    Returns:
      The figure.
    """
    import matplotlib as mpl

    from robust_vit.analysis import plots

    means = {word: [one.mean(0) for one in of] for word, of in shifts.items()}
    heads, rows = max(len(one) for of in means.values() for one in of), len(names)
    top = max(float(one.max()) for of in means.values() for one in of) or 1.0
    with mpl.rc_context(plots.STYLE | {"axes.grid": False}):
        width = len(means) * (0.52 * heads + 0.9) + 1.2
        figure, grid = plots._figure(max(width, 5.2), 0.34 * rows + 1.6, 1, len(means), squeeze=False)
        figure.suptitle(title or "shift of attention", x=0.01, ha="left", fontsize=11, fontweight="bold")
        for axes, (word, of) in zip(grid[0], means.items()):
            table = np.full((rows, heads), np.nan)
            for row, one in enumerate(of):
                table[row, : len(one)] = one
            shown = axes.imshow(table, cmap=HEAT, vmin=0, vmax=top, aspect="auto")
            for (row, head), value in np.ndenumerate(table):
                if np.isfinite(value):
                    colour = "white" if value < 0.6 * top else "black"
                    axes.text(head, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
            whole = estimates.mean(np.mean([one.mean(1) for one in shifts[word]], axis=0))
            axes.set_title(f"{word}: {whole.text()}", fontsize=9.5, loc="left")
            axes.set(xlabel="head", xticks=range(heads), yticks=range(rows), yticklabels=names)
            axes.spines[:].set_visible(False)
        grid[0, 0].set_ylabel("layer")
        bar = figure.colorbar(shown, ax=grid[0].tolist(), fraction=0.03, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label("total variation", fontsize=8.5)
    return figure


def plot_kept(images: Any, layers: Sequence[Layer], title: str = "") -> "Figure":
    """Draws on each image [N,H,W,C] the tokens that every layer ran on: those of skipped windows lie under blue."""
    import matplotlib as mpl

    from robust_vit.analysis import plots

    images = np.asarray(images)
    with mpl.rc_context(plots.STYLE | {"axes.grid": False}):
        size = (1.15 * len(images) + 1.2, 0.6 + 1.15 * len(layers))
        figure, grid = plots._figure(*size, len(layers), len(images), squeeze=False)
        figure.suptitle(title or "windows that were kept", x=0.01, ha="left", fontsize=11, fontweight="bold")
        for row, layer in zip(grid, layers):
            mask = attention.kept(layer)
            for axes, image, inside in zip(row, images, mask):
                rows, columns = (np.arange(side) * grid // side for side, grid in zip(image.shape[:2], inside.shape))
                pixels = inside[rows[:, None], columns[None, :], None]
                image = np.broadcast_to(image, (*image.shape[:2], 3)) if image.shape[2] == 1 else image
                plots._picture(axes, np.where(pixels, image, 0.25 * image + 0.75 * np.array(SKIPPED)))
            label = f"{short(layer)}\n{mask.mean():.0%}"
            row[0].set_ylabel(label, fontsize=8, rotation=0, ha="right", va="center", labelpad=6)
    return figure


def explain(subjects: Sequence["Subject"], out: pathlib.Path) -> list[pathlib.Path]:
    """Draws `attention-RUN`, `rollout`, `kept-RUN` where windows are skipped, and `shift`."""
    first = subjects[0]
    images, labels, indices = first.examples
    for one in subjects:  # said before an attack is run
        attention.attention_maps(one.classifier, images[:1])
    moved = {one.name: one.attack(images, labels, indices) for one in subjects}
    attack = f"PGD-{first.options.steps}, {first.threat.label}"
    files, rows, shares = [], {}, {}
    for one in subjects:
        pair = images[: first.options.examples], moved[one.name][: first.options.examples]
        layers = [attention.attention_maps(one.classifier, x) for x in pair]
        files += _of_one(one, pair, layers, labels, attack, out)
        if _rolls(layers[0]):
            pooling = getattr(attention.parts(one.classifier)[0], "pooling", "token")
            for word, x, of in zip(("clean", "adversarial"), pair, layers):
                rows[f"{one.name}\n{word}"] = x, attention.rolled(of, pooling)
                shares[f"{one.name}/{word}"] = rows[f"{one.name}\n{word}"][1]
    if rows:
        words = [first.class_names[y] for y in labels[: first.options.examples]]
        files += saving.save(out, "rollout", plot_rollout(rows, f"rollout under {attack}", words), None, shares)
    return files + _shifts(subjects, images, moved, attack, out)


def _of_one(
    one: "Subject", pair: tuple[Any, Any], layers: list[list[Layer]], labels: Any, attack: str, out: pathlib.Path
) -> list[pathlib.Path]:
    """The maps of one model: drawn for the first image whose decision the attack turns."""
    decisions = [one.classifier.predict(x) for x in pair]
    turned = np.flatnonzero((decisions[0] == labels[: len(pair[0])]) & (decisions[1] != decisions[0]))
    example = int(turned[0]) if len(turned) else 0
    words = dict(zip(("clean", "adversarial"), pair))
    taken = {word: f"{word}: {one.class_names[d[example]]}" for word, d in zip(words, decisions)}
    title = f"{one.name}: what each head (columns) of each layer (rows) looks at, under {attack}"
    figure = plot_attention(
        {taken[word]: x[example] for word, x in words.items()},
        {taken[word]: of for word, of in zip(words, layers)},
        example,
        title,
    )
    arrays = {f"{word}/{layer.name}": layer.maps for word, of in zip(words, layers) for layer in of}
    arrays |= {
        f"{word}/{layer.name}/slots": layer.slots
        for word, of in zip(words, layers)
        for layer in of
        if layer.slots is not None
    }
    numbers = {
        "example": example,
        "layers": [{"name": one.name, "kind": one.kind, "grid": one.grid} for one in layers[0]],
    }
    files = saving.save(out, f"attention-{one.name}", figure, numbers, arrays)
    skipping = [layer for layer in layers[0] if layer.slots is not None and (layer.slots < 0).any()]
    if skipping:
        figure = plot_kept(pair[0], skipping, f"{one.name}: windows that were kept")
        share = {layer.name: float(attention.kept(layer).mean()) for layer in skipping}
        files += saving.save(out, f"kept-{one.name}", figure, {"kept": share})
    return files


def _rolls(layers: Sequence[Layer]) -> bool:
    try:
        attention.rolled(layers)
    except ValueError:
        return False
    return True


def _shifts(
    subjects: Sequence["Subject"], images: np.ndarray, moved: Mapping[str, np.ndarray], attack: str, out: pathlib.Path
) -> list[pathlib.Path]:
    """The shift of every model, of all images."""
    shifts = {one.name: shift_of(one.classifier, images, moved[one.name]) for one in subjects}
    layers = {one.name: attention.attention_maps(one.classifier, images[:1]) for one in subjects}
    names = [[short(layer) for layer in of] for of in layers.values()]
    numbers = {"attack": attack, "shift": SHIFT, "runs": {}}
    for name, of in shifts.items():
        whole = np.mean([one.mean(1) for one in of], axis=0)
        by_layer = {layer.name: estimates.mean(one.mean(1)).as_json() for layer, one in zip(layers[name], of)}
        numbers["runs"][name] = {"all": estimates.mean(whole).as_json(), "layers": by_layer}
    arrays = {f"{name}/{layer.name}": one for name, of in shifts.items() for layer, one in zip(layers[name], of)}
    same = {tuple(one) for one in names}
    drawn = shifts if len(same) == 1 else {subjects[0].name: shifts[subjects[0].name]}
    figure = plot_shift(drawn, names[0], f"shift of attention under {attack}: total variation, {len(images)} images")
    return saving.save(out, "shift", figure, numbers, arrays)


def shift_of(model: Any, images: Any, adversarial: Any) -> list[np.ndarray]:
    """`attention_shift` of many images, some at a time: [N,A] for every block."""
    check("adversarial.shape", np.shape(adversarial), np.shape(adversarial) == np.shape(images), "the images'")

    def some(a: Any, b: Any) -> list[np.ndarray]:
        return attention.attention_shift(attention.attention_maps(model, a), attention.attention_maps(model, b))

    return batches.mapped(some, np.asarray(images), np.asarray(adversarial), size=BATCH)

"""What augmentation makes of images: a sheet with one row a step, the same images in each."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from robust_vit import pixels, randomness
from robust_vit.data import catalogue, host, loading, mixing
from robust_vit.typing import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from robust_vit.data import Dataset

SHOWN = 8  # images a row
# Every transform of images of a side of `size` pixels, and what else an image must have for it.
TRANSFORMS = (
    ("random_resized_crop({size})", 1),
    ("random_crop({size}, padding={eighth})", 1),
    ("resize_centre_crop({size})", 1),
    ("flip(1.0)", 1),
    ("color_jitter(0.4, 0.4, 0.4)", 3),
    ("rotation(15)", 1),
    ("random_affine(10, translate={eighth}, scale=(0.9, 1.1))", 1),
    ("rand-m9-mstd0.5-inc1", 1),
    ("augmix-m3-w3", 1),
)
ON_DEVICE: dict[str, dict[str, Any]] = {
    "mixup, alpha 0.8": {"mixup": 0.8},
    "cutmix, alpha 1": {"cutmix": 1.0},
    "erase, pixel": {"erase": 1.0},
    "erase, colour": {"erase": 1.0, "erase_fill": "colour"},
    "cutout": {"erase": 1.0, "erase_area": (0.25, 0.25), "erase_aspect": (1.0, 1.0), "erase_fill": "black"},
}


class Row(NamedTuple):
    """One row of the sheet."""

    name: str
    images: Sequence[np.ndarray]  # [H,W,C] in [0,1], not necessarily of one size
    captions: Sequence[str]  # one an image, "" for none


class Examples:
    """Images of the training split and their labels, the same at every step.

    Args:
      dataset: any; its first classes are shown by their names where it has some.
      seed: of the augmentation.
      count: how many images; even, so that each has a partner.
    """

    def __init__(self, dataset: "Dataset", seed: int = 0, count: int = SHOWN):
        source = dataset.train
        self.source, self.seed, self.num_classes = source, seed, dataset.num_classes
        self.names = catalogue.class_names(source)
        self.indices = np.linspace(0, len(source) - 1, count).astype(np.int32)
        self.labels = np.array([source[int(index)]["label"] for index in self.indices])

    def transformed(self, transforms: Sequence[host.Transform] = ()) -> list[np.ndarray]:
        """The images in uint8, after transforms that draw what they would in training."""
        load = loading.Loader(self.source, tuple(transforms))
        return [load(int(index), loading.generator(self.seed, int(index)))[0] for index in self.indices]

    def augmented(self, images: Array, **keywords: Any) -> tuple[Array, np.ndarray]:
        """Images [B,H,W,C] in [0,1] and targets [B,K] after `mixing.build(**keywords)`."""
        keys = randomness.example_keys(self.seed, self.indices, randomness.MIXING)
        mixed, targets = jax.jit(mixing.build(**keywords))(keys, images, jax.nn.one_hot(self.labels, self.num_classes))
        return mixed, np.asarray(targets)

    def words(self, targets: np.ndarray) -> list[str]:
        """The classes of each example, a line each, with their shares where there are several."""
        names = self.names or [str(k) for k in range(self.num_classes)]
        found = [[(names[k], row[k]) for k in np.argsort(-row) if row[k] > 5e-3] for row in targets]
        return ["\n".join(f"{share:.2f} {name}" if len(one) > 1 else name for name, share in one) for one in found]


def configured(
    dataset: "Dataset", specifications: Sequence[Any], augmentation: Mapping[str, Any], seed: int = 0
) -> list[Row]:
    """The rows of a configuration: the images as stored, after each transform in turn, after mixing, after erasing.

    Args:
      dataset: with its training transforms.
      specifications: of those transforms, as the configuration writes them.
      augmentation: keywords of `mixing.build`.
      seed: of the configuration.
    """
    examples, transforms = Examples(dataset, seed), dataset.train_transforms
    stored = examples.transformed()
    rows = [_row("as stored", stored, examples.words(np.eye(examples.num_classes)[examples.labels]))]
    for count, name in enumerate(specifications, 1):
        rows.append(_row(f"+ {name}", examples.transformed(transforms[:count])))
    mixes, erases = augmentation.get("mixup") or augmentation.get("cutmix"), augmentation.get("erase")
    images = as_batch(examples.transformed(transforms)) if mixes or erases else None
    if mixes:
        images, targets = examples.augmented(images, **{**augmentation, "erase": 0.0})
        kinds = " / ".join(f"{kind} {augmentation[kind]:g}" for kind in ("mixup", "cutmix") if augmentation.get(kind))
        rows.append(Row(f"+ {kinds}", np.asarray(images), examples.words(targets)))
    if erases:  # each of the two has keys of its own, whether the other is there or not
        images, _ = examples.augmented(images, **{**augmentation, "mixup": 0.0, "cutmix": 0.0})
        rows.append(Row(f"+ erase {erases:g}", np.asarray(images), [""] * len(images)))
    return rows


def every(dataset: "Dataset", seed: int = 0) -> list[Row]:
    """A row for each augmentation there is, by itself, on the images as the evaluation sees them."""
    examples = Examples(dataset, seed)
    before = dataset.evaluation_transforms
    plain = examples.transformed(before)
    rows = [_row("untouched", plain, examples.words(np.eye(examples.num_classes)[examples.labels]))]
    size, channels = min(plain[0].shape[:2]), plain[0].shape[2]
    for pattern, least in TRANSFORMS:
        if channels >= least:
            name = pattern.format(size=size, eighth=max(1, size // 8))
            rows.append(_row(name, examples.transformed((*before, *host.build([name])))))
    for name, keywords in ON_DEVICE.items():
        images, targets = examples.augmented(as_batch(plain), **keywords)
        captions = examples.words(targets) if "erase" not in keywords else [""] * len(images)
        rows.append(Row(name, np.asarray(images), captions))
    return rows


def as_batch(images: Sequence[np.ndarray]) -> Array:
    """uint8 images as floats [B,H,W,C] in [0,1], as the step makes them."""
    return pixels.as_float(loading.stack(images))


def _row(name: str, images: Sequence[np.ndarray], captions: Sequence[str] = ()) -> Row:
    return Row(name, [image / np.float32(255) for image in images], captions or [""] * len(images))


def sheet(rows: Sequence[Row], out: Any = None, title: str = "") -> "Figure":
    """Draws rows of images, each with its name, and under an image what it is taken for.

    Args:
      rows: each of equally many images.
      out: the PNG to write; None writes none.
      title: of the picture.

    Returns:
      The figure.
    """
    import matplotlib as mpl

    from robust_vit.analysis import plots

    with mpl.rc_context(plots.STYLE | {"axes.grid": False}):
        captions = sum(max(caption.count("\n") + bool(caption) for caption in row.captions) for row in rows)
        height = 0.5 + 1.05 * len(rows) + 0.15 * captions
        figure, grid = plots._figure(11.4, height, len(rows), len(rows[0].images), squeeze=False)
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        for row, line in zip(rows, grid):
            for axes, image, caption in zip(line, row.images, row.captions, strict=True):
                plots._picture(axes, image)
                axes.set_xlabel(caption, fontsize=7.5, labelpad=3)
            line[0].set_ylabel(_wrapped(row.name), rotation=0, ha="right", va="center", fontsize=8, labelpad=8)
        return plots._save(figure, out)


def _wrapped(name: str, width: int = 30) -> str:
    """A name on as many lines as it needs, broken after commas and brackets."""
    lines = [""]
    for part in name.replace("(", "( ").split(" "):
        if len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part if lines[-1].endswith("(") else f" {part}"
    return "\n".join(line.strip() for line in lines)

"""Whether the three splits of a data set fit each other, found out before anything is compiled."""

import contextlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from robust_vit.data import catalogue, decoding, host, loading, splits
from robust_vit.errors import check
from robust_vit.typing import Source

if TYPE_CHECKING:
    from robust_vit.data import Dataset

SAMPLES = 5  # images of a split whose shapes are compared


def check_splits(dataset: "Dataset", names: Iterable[str] = splits.SPLITS) -> None:
    """Opens splits and compares each with the training split. Reads a few images of each, and the labels where they
    are stored apart from the images.

    Args:
      dataset: any.
      names: of the splits to check.

    Raises:
      ValueError: one line that names the split, if one is missing, damaged or empty, its images are of another shape
        than those of train, or its labels or classes are not those of train.
    """
    for name in names:
        try:
            source = dataset.split(name)
            check("examples", len(source), len(source) > 0, "at least 1")
            _check_labels(source, dataset.train)
            _check_images(source, dataset)
        except (ValueError, OSError, decoding.BadImage) as error:
            raise ValueError(f"{name} split of {dataset.name}: {' '.join(str(error).split())}") from error


def check_extra(dataset: "Dataset") -> None:
    """Opens the second source and compares it with train: its images as the training's transforms make them, its
    labels and classes.

    Raises:
      ValueError: one line that names it.
    """
    try:
        source = dataset.extra.source
        check("examples", len(source), len(source) > 0, "at least 1")
        _check_labels(source, dataset.train)
        expected = loading.image_shape(dataset.train, dataset.train_transforms)
        for shape in _shapes(source, dataset.train_transforms):
            check("image shape", shape, shape == expected, f"{expected}, as in train: see data.train_transforms")
    except (ValueError, OSError, decoding.BadImage) as error:
        raise ValueError(f"data.extra, {dataset.extra.name}: {' '.join(str(error).split())}") from error


def _check_images(source: Source, dataset: "Dataset") -> None:
    """Images that the evaluation's transforms make equal, within the split and to those of train; where the training's
    transforms make them equal too, they keep their channels.
    """
    expected = dataset.image_shape
    for shape in _shapes(source, dataset.evaluation_transforms):
        allowed = f"{expected}, as in train: see data.evaluation_transforms"
        if source is dataset.train:
            allowed = f"equal to {expected}, the first: data.evaluation_transforms=('resize_centre_crop(32)',) for one"
        check("image shape", shape, shape == expected, allowed)
    if source is dataset.train:
        first, *others = _shapes(source, dataset.train_transforms)
        for shape in others:
            allowed = f"equal to {first}, the first: data.train_transforms=('random_resized_crop(32)',) for one"
            check("image shape in training", shape, shape == first, allowed)
        allowed = f"{expected[-1]}, as data.evaluation_transforms make them"
        check("channels in training", first[-1], first[-1] == expected[-1], allowed)


def _shapes(source: Source, transforms: Sequence[host.Transform]) -> list[tuple[int, ...]]:
    """The shapes of a few images spread over a split: of the first good one, and of others that are good."""
    found, load = [loading.image_shape(source, transforms)], loading.Loader(source, tuple(transforms))
    for index in np.unique(np.linspace(0, len(source) - 1, SAMPLES).astype(int))[1:]:
        with contextlib.suppress(decoding.BadImage):  # what becomes of it is for data.on_bad_image to say
            found.append(load(int(index), loading.generator(0, int(index)))[0].shape)
    return found


def _check_labels(source: Source, train: Source) -> None:
    """Labels inside the classes of train, and no class that train has no example of."""
    names, expected = catalogue.class_names(source), catalogue.class_names(train)
    if names is not None and expected is not None and names != expected:
        strange = sorted(set(names) - set(expected)) or list(names)
        check("classes", strange[:3], False, f"those of train, in its order: {', '.join(expected[:5])}, ...")
    labels, known = catalogue.labels(source), catalogue.labels(train)
    if labels is None:
        labels = np.array([source[0]["label"]])
    low, high = int(labels.min()), int(labels.max())
    allowed = f"in [0, {train.num_classes}), the classes of train; -1 mostly means a split without labels"
    check("labels", [low, high], 0 <= low and high < train.num_classes, allowed)
    if known is None or _same_origin(source, train):
        return  # a split that was carved out of train: a rare class may well have gone there whole
    unseen = np.setdiff1d(labels, known)
    named = [expected[k] if expected else int(k) for k in unseen[:3]]
    check("classes", named, unseen.size == 0, f"classes that train has examples of; {unseen.size} are not")


def _same_origin(source: Source, train: Source) -> bool:
    """Whether both are parts of one stored set: the same name for the same example."""
    subsets = isinstance(source, splits.Subset) and isinstance(train, splits.Subset)
    return source is train or (subsets and catalogue.identify(source.source, 0) == catalogue.identify(train.source, 0))

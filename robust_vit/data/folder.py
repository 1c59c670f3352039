"""Images in class folders, the layout of ImageNet: `path/train/n01440764/n01440764_10026.JPEG`."""

import hashlib
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from robust_vit.data import catalogue, decoding, splits
from robust_vit.errors import check
from robust_vit.typing import Source

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
TREE = "<class>/*.jpg in train/ and in test/ or val/; or <class>/*.jpg right in it, to be split"
TEST_FRACTION = 0.1  # of a tree that is not split yet
MOST_SIZES = 20_000  # files of a split that are asked for their size: a million questions to a bucket take hours


def folder(split: str, *, path: str, background: str = "white", orientation: bool = True, **parts: Any) -> Source:
    """Opens a folder of `train/`, `val/`, `test/` (those there are), each with one sub-folder of images a class.

    Classes are the sub-folders of `train/` in sorted order, whatever part is opened, so that a label means the same
    class in every part. A folder that has class folders but none of these parts is split here, the same way on every
    machine: in each class the images, in the order of the SHA-256 of `<class>/<file>`, are first test, then
    validation, then train.

    Args:
      split: "train", "validation" or "test".
      path: the folder.
      background, orientation: see `robust_vit.data.decoding.decode`.
      **parts: see `robust_vit.data.splits.open_split`; `test_fraction` of a folder without parts is 0.1 by default.
    """
    root = pathlib.Path(path)
    check("data.options.path", path, root.is_dir(), f"a folder with {TREE}")
    stored = _folders(root)
    usual = {name for names in splits.ALIASES.values() for name in names}
    options = {"background": background, "orientation": orientation}
    if stored and not usual & set(stored) and not any(parts.get(f"{part}_split") for part in splits.SPLITS):
        return _split(split, FolderSource(root, stored, **options), **parts)
    training = parts.get("train_split") or next((name for name in splits.ALIASES["train"] if name in stored), None)

    def load(part: str) -> FolderSource:
        return FolderSource(root / part, _folders(root / (training or part)), complete=part == training, **options)

    return splits.open_split(split, stored, load, f"; {path} should hold {TREE}", **parts)


def _split(
    split: str,
    source: "FolderSource",
    *,
    validation_fraction: float = splits.VALIDATION_FRACTION,
    validation_examples: int | None = None,
    test_fraction: float | None = None,
    **_: Any,
) -> Source:
    """One part of a tree that is not split yet."""
    deep = [source.identify(i) for i, name in enumerate(source.files) if name.count(b"/") > 1]
    check("data.options.path", source.root, not deep, f"{TREE}; {deep[:1]} lies deeper")
    check("data.options.path", source.root, source.num_classes > 1, f"{TREE}; it has one class folder")
    fraction = TEST_FRACTION if test_fraction is None else test_fraction
    test, validation = splits.shares(len(source), validation_fraction, validation_examples, fraction)
    names = (hashlib.sha256(name).digest()[:8] for name in source.files.tolist())
    hashes = np.frombuffer(b"".join(names), ">u8")
    indices = splits.stratified(source.labels, test, validation, hashes)[split]
    origin = f"{split} of a tree without parts, split class by class by the SHA-256 of <class>/<file>: {test} test and"
    return splits.Subset(source, indices, f"{origin} {validation} validation examples of {len(source)}")


def _folders(path: pathlib.Path) -> list[str]:
    """The sub-folders, sorted; hidden ones are none."""
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


class FolderSource:
    """Encoded image files under `root`, sorted by class and name.

    Args:
      root: the part.
      classes: names of the class folders, in the order of their labels.
      complete: whether every class must have an image, as in a part that is trained on.
      background, orientation: see `robust_vit.data.decoding.decode`.
    """

    channels = 3

    def __init__(
        self,
        root: pathlib.Path,
        classes: list[str],
        complete: bool = True,
        background: str = "white",
        orientation: bool = True,
    ):
        present = _folders(root)
        unknown = sorted(set(present) - set(classes))
        check(f"class folders of {root}", unknown[:3], not unknown, "class folders of the training part too")
        found = {name: _images(root / name) if name in present else [] for name in classes}
        total = sum(map(len, found.values()))
        check(f"images in {root}", total, total > 0, f"at least one <class>/*{{{','.join(EXTENSIONS)}}}")
        empty = [name for name in classes if not found[name]]
        check(f"class folders of {root}", empty[:3], not (complete and empty), "of at least one image each")
        self.root, self.class_names, self.num_classes = str(root), tuple(classes), len(classes)
        self.shown = decoding.keywords(background, orientation)
        # One array of bytes: a million names cost their letters and nothing else, here and in every worker.
        self.files = np.array([os.fsencode(f"{name}/{file}") for name in classes for file in found[name]])
        self.labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(found[name]) for name in classes])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with open(self.identify(index), "rb") as file:
            return {"image": file.read(), "label": int(self.labels[index])}

    def identify(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.files[index]))

    def index_digest(self, indices: np.ndarray | None = None) -> str:
        which = np.arange(len(self)) if indices is None else np.asarray(indices)
        asked = which[splits.select(len(which), MOST_SIZES)]
        with ThreadPoolExecutor(16) as pool:  # one question a file: on a network drive the answers overlap
            sizes = list(pool.map(lambda index: os.stat(self.identify(index)).st_size, asked))
        return catalogue.sha256(self.num_classes, self.files[which].tolist(), np.array(sizes), self.labels[which])


def _images(path: pathlib.Path) -> list[str]:
    """The image files under one class folder, by their relative names, sorted; what is hidden is left out."""
    names: list[str] = []
    for entry in os.scandir(path):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            names += [f"{entry.name}/{name}" for name in _images(pathlib.Path(entry.path))]
        elif entry.name.lower().endswith(EXTENSIONS):
            names.append(entry.name)
    return sorted(names)

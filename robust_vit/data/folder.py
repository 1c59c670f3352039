"""Images in class folders, the layout of ImageNet: `path/train/n01440764/n01440764_10026.JPEG`."""

import os
import pathlib
from typing import Any

import numpy as np

from robust_vit.data import splits
from robust_vit.errors import check
from robust_vit.typing import Source

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


def folder(split: str, *, path: str, **parts: Any) -> Source:
    """Opens a folder of `train/`, `val/`, `test/` (those there are), each with one sub-folder of images a class.

    Classes are the sub-folders of `train/` in sorted order, whatever part is opened, so that a label means the same
    class in every part.

    Args:
      split: "train", "validation" or "test".
      path: the folder.
      **parts: see `robust_vit.data.splits.open_split`.
    """
    root = pathlib.Path(path)
    check("data.options.path", path, root.is_dir(), "a folder with train/, val/ or test/")
    stored = [entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith(".")]
    training = parts.get("train_split") or next((name for name in splits.ALIASES["train"] if name in stored), None)
    return splits.open_split(
        split, stored, lambda part: FolderSource(root / part, _classes(root / (training or part))), **parts
    )


def _classes(path: pathlib.Path) -> list[str]:
    """The class folders of one part, sorted."""
    return sorted(entry.name for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))


class FolderSource:
    """Encoded image files under `root`, sorted by class and name."""

    channels = 3

    def __init__(self, root: pathlib.Path, classes: list[str]):
        present = _classes(root)
        unknown = sorted(set(present) - set(classes))
        check(f"class folders of {root}", unknown[:3], not unknown, "class folders of the training part too")
        files, labels = [], []
        for label, name in enumerate(classes):
            found = _images(root / name) if name in present else []
            files += [os.path.join(name, file) for file in found]
            labels += [label] * len(found)
        check(f"images in {root}", 0, len(files) > 0, f"at least one <class>/*{{{','.join(EXTENSIONS)}}}")
        self.root, self.classes, self.num_classes = str(root), classes, len(classes)
        # One array of bytes: a million names cost their letters and nothing else, here and in every worker.
        self.files = np.array([os.fsencode(file) for file in files])
        self.labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        with open(self.identify(index), "rb") as file:
            return {"image": file.read(), "label": int(self.labels[index])}

    def identify(self, index: int) -> str:
        return os.path.join(self.root, os.fsdecode(self.files[index]))


def _images(path: pathlib.Path) -> list[str]:
    """The image files of one class folder, sorted; hidden files are no images."""
    names = (entry.name for entry in os.scandir(path) if not entry.name.startswith("."))
    return sorted(name for name in names if name.lower().endswith(EXTENSIONS))

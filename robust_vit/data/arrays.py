"""Sources that are arrays: the handwritten digits of scikit-learn, and memory-mapped .npz files."""

import functools
import pathlib
import zipfile
from typing import Any

import numpy as np

from robust_vit.data import splits
from robust_vit.errors import check
from robust_vit.typing import Source

DIGITS_TEST, DIGITS_VALIDATION = 360, 180  # of 1797; 1257 remain for training


class ArraySource:
    """Images [n,H,W,C] uint8 and integer labels [n], in memory or mapped."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, num_classes: int, name: str):
        self.images, self.labels, self.num_classes, self.name = images, labels, num_classes, name
        self.channels = images.shape[-1]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": np.array(self.images[index]), "label": int(self.labels[index])}

    def identify(self, index: int) -> str:
        return f"{self.name}[{index}]"


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    bunch = load_digits()  # 16 grey levels 0..16
    return np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None], bunch.target.astype(np.int32)


def digits(split: str) -> Source:
    """Opens the UCI handwritten digits that ship in scikit-learn: 1797 real images of 8x8x1, ten classes, no network.

    The split is fixed and stratified: 360 test, 180 validation, 1257 train. Each class gives test and validation its
      share by largest remainder;
    within a class the images, ordered by the SplitMix64 hash of their number in `load_digits`, go first to test, then
    to validation, then to train. No random generator is involved, so the split is the same everywhere and for ever.
    Grey level v of 0..16 becomes round(v * 255 / 16).

    Args:
      split: "train", "validation" or "test".
    """
    check("split", split, split in splits.SPLITS, f"one of {', '.join(splits.SPLITS)}")
    images, labels = _digits()
    indices = splits.stratified(labels, DIGITS_TEST, DIGITS_VALIDATION)[split]
    return splits.Subset(ArraySource(images, labels, 10, "digits"), indices)


def npz(split: str, *, path: str, image_key: str = "image", label_key: str = "label", **parts: Any) -> Source:
    """Opens `train.npz`, `validation.npz`, `test.npz` (those there are) in a folder; images are mapped, not read whole.

    Written with `np.savez(folder / "train.npz", image=images, label=labels)`, uncompressed: uint8 [n,H,W,C] or [n,H,W],
    and integers [n].

    Args:
      split: "train", "validation" or "test".
      path: the folder.
      image_key, label_key: names of the arrays.
      **parts: see `robust_vit.data.splits.open_split`.
    """
    folder = pathlib.Path(path)
    check("data.options.path", path, folder.is_dir(), "a folder with train.npz, ...")
    stored = sorted(file.stem for file in folder.glob("*.npz"))
    return splits.open_split(
        split, stored, lambda part: MappedSource(folder / f"{part}.npz", image_key, label_key), **parts
    )


class MappedSource(ArraySource):
    """One uncompressed .npz file, mapped; pickles as its path."""

    def __init__(self, path: pathlib.Path, image_key: str, label_key: str):
        self.path, self.keys = pathlib.Path(path), (image_key, label_key)
        images, labels = mapped(self.path, image_key), np.array(mapped(self.path, label_key))
        check(f"{path}:{image_key}", images.dtype.name, images.dtype == np.uint8, "uint8")
        check(f"{path}:{image_key}", images.shape, images.ndim in (3, 4), "of shape [n,H,W,C] or [n,H,W]")
        check(f"{path}:{label_key}", labels.dtype.name, labels.dtype.kind in "iu", "integers")
        check(f"{path}:{label_key}", labels.shape, labels.shape == images.shape[:1], f"[{len(images)}], one an image")
        check(f"{path}:{label_key}", int(labels.min(initial=0)), labels.min(initial=0) >= 0, "at least 0")
        images = images[..., None] if images.ndim == 3 else images
        super().__init__(images, labels, int(labels.max(initial=0)) + 1, str(path))

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedSource, (self.path, *self.keys)


def mapped(path: pathlib.Path, key: str) -> np.ndarray:
    """Maps array `key` of an uncompressed .npz read-only, at its offset in the file.

    Raises:
      ValueError: no such array, or a compressed file.
    """
    with zipfile.ZipFile(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist()]
        check(f"array in {path}", key, key in names, f"one of {', '.join(names)}")
        entry = archive.getinfo(f"{key}.npy")
        stored = entry.compress_type == zipfile.ZIP_STORED
        check(str(path), "compressed", stored, "uncompressed to be mapped: write it with np.savez")
    with open(path, "rb") as file:
        # A zip member starts with a 30-byte local header, then its name and an extra field whose lengths stand at bytes
        # 26 and 28.
        file.seek(entry.header_offset + 26)
        lengths = np.frombuffer(file.read(4), "<u2")
        file.seek(entry.header_offset + 30 + int(lengths.sum()))
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
        return np.memmap(file, dtype, "r", file.tell(), shape, "F" if fortran else "C")

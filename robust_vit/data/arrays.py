"""Sources that are arrays: the handwritten digits of scikit-learn, and memory-mapped .npz files."""

import functools
import importlib.util
import math
import os
import pathlib
import struct
import zipfile
from typing import Any, BinaryIO

import numpy as np

from robust_vit.data import catalogue, decoding, splits
from robust_vit.errors import check
from robust_vit.typing import Source

DIGITS_TEST, DIGITS_VALIDATION = 360, 180  # of 1797; 1257 remain for training
# What zipfile raises of a file that is none or is damaged: OSError for a place before its start, RuntimeError for a
# member that claims to be encrypted, or something else that is not implemented.
DAMAGE = (zipfile.BadZipFile, RuntimeError, EOFError, OSError, OverflowError, UnicodeDecodeError, struct.error)


class ArraySource:
    """Images [n,H,W,C] uint8 and integer labels [n], in memory or mapped."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, num_classes: int, name: str):
        self.images, self.labels, self.num_classes, self.name = images, labels, num_classes, name
        self.channels = images.shape[-1]
        self.origin = name

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": np.array(self.images[index]), "label": int(self.labels[index])}

    def identify(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def index_digest(self, indices: np.ndarray | None = None) -> str:
        return catalogue.sha256(self.num_classes, self.images.shape, self.images.dtype.str, self.labels, indices)


@functools.cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """What `sklearn.datasets.load_digits` returns, from its file alone: importing scikit-learn takes seconds, here and
    in every process that reads.
    """
    package = importlib.util.find_spec("sklearn")
    check("data.name", "digits", package is not None, "installed with its images: pip install scikit-learn")
    path = pathlib.Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(path, np.int64, delimiter=",")  # [1797,65]: 64 grey levels 0..16 and the label
    images = np.round(table[:, :-1] * (255 / 16)).astype(np.uint8)
    return images.reshape(-1, 8, 8, 1), table[:, -1].astype(np.int32)


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
    source = ArraySource(images, labels, 10, "digits")
    source.class_names = tuple("0123456789")
    return splits.Subset(source, indices, f"{split} of the fixed split of the digits")


def npz(
    split: str,
    *,
    path: str,
    image_key: str = "image",
    label_key: str = "label",
    float_max: float | None = None,
    **parts: Any,
) -> Source:
    """Opens `train.npz`, `validation.npz`, `test.npz` (those there are) in a folder, or one file, which is train as a
    whole and has no other split; images are mapped, not read whole.

    Written with `np.savez(folder / "train.npz", image=images, label=labels)`, uncompressed: uint8 [n,H,W,C] or [n,H,W],
    and integers [n]. Floats need `float_max` and are rounded to 256 levels.

    Args:
      split: "train", "validation" or "test".
      path: the folder, or the file.
      image_key, label_key: names of the arrays; a label_key of "" stands for images without labels, all 0 then.
      float_max: of float images, the value of white: 1.0 or 255.0.
      **parts: see `robust_vit.data.splits.open_split`.
    """
    folder = pathlib.Path(path)
    if folder.is_file():
        check("data.options.path", path, split == "train", f"a folder with train.npz, ...: a file has no {split} split")
        check("data.options", sorted(parts), not parts, "left out: one file is read as a whole")
        return MappedSource(folder, image_key, label_key, float_max)
    check("data.options.path", path, folder.is_dir(), "a folder with train.npz, ..., or one .npz file")
    stored = sorted(file.stem for file in folder.glob("*.npz"))

    def load(part: str) -> Source:
        return MappedSource(folder / f"{part}.npz", image_key, label_key, float_max)

    return splits.open_split(split, stored, load, f"; {path} should hold train.npz and test.npz", **parts)


class MappedSource(ArraySource):
    """One uncompressed .npz file, mapped; pickles as its path."""

    def __init__(self, path: pathlib.Path, image_key: str, label_key: str, float_max: float | None = None):
        self.path, self.keys, self.float_max = pathlib.Path(path), (image_key, label_key), float_max
        images = mapped(self.path, image_key)
        labels = np.array(mapped(self.path, label_key, verify=True)) if label_key else np.zeros(images.shape[:1], int)
        decoding.check_pixel_type(f"{path}:{image_key}", images.dtype, float_max)
        check(f"{path}:{image_key}", images.shape, images.ndim in (3, 4), "of shape [n,H,W,C] or [n,H,W]")
        check(f"{path}:{label_key}", labels.dtype.name, labels.dtype.kind in "iu", "integers")
        check(f"{path}:{label_key}", labels.shape, labels.shape == images.shape[:1], f"[{len(images)}], one an image")
        check(f"{path}:{label_key}", int(labels.min(initial=0)), labels.min(initial=0) >= 0, "at least 0")
        images = images[..., None] if images.ndim == 3 else images
        first, last = images.shape[1], images.shape[-1]
        turned = last not in (1, 3) and first in (1, 3)
        check(f"{path}:{image_key}", images.shape, not turned, "[n,H,W,C], channels last: transpose(0, 2, 3, 1)")
        super().__init__(images, labels, int(labels.max(initial=0)) + 1, str(path))

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedSource, (self.path, *self.keys, self.float_max)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = decoding.as_pixels(self.images[index], self.float_max, self.identify(index))
        return {"image": image, "label": int(self.labels[index])}

    def index_digest(self, indices: np.ndarray | None = None) -> str:
        with zipfile.ZipFile(self.path) as archive:
            checksums = [archive.getinfo(f"{key}.npy").CRC for key in self.keys if key]
        return catalogue.sha256(self.images.shape, self.images.dtype.str, self.float_max, checksums, indices)


def mapped(path: pathlib.Path, key: str, verify: bool = False) -> np.ndarray:
    """Maps array `key` of an uncompressed .npz read-only, at its offset in the file.

    Everything that the file claims is checked before anything is mapped: a map of Python objects, or one past the end
    of a truncated file, would end the process and not raise.

    Args:
      path: the file.
      key: name of the array.
      verify: whether to read the array once and compare its checksum.

    Raises:
      ValueError: no .npz file or a damaged one, no such array, a compressed one, or one that is not plain numbers.
    """
    with open(path, "rb") as file:
        try:
            entry = _member(file, path, key, verify)
            return _map(file, entry, f"{path}:{key}")
        except DAMAGE as error:
            said = " ".join(str(error).split())
            raise ValueError(f"{path}: damaged, or no .npz file ({said}); write it again with np.savez") from None


def _member(file: BinaryIO, path: pathlib.Path, key: str, verify: bool) -> zipfile.ZipInfo:
    """What the directory of a zip says of array `key`, as far as it can be true."""
    with zipfile.ZipFile(file) as archive:
        members = {name.removesuffix(".npy"): name for name in archive.namelist() if name.endswith(".npy")}
        known = ", ".join(repr(name)[1:-1] for name in members)  # whose names may hold anything where it is damaged
        check(f"array in {path}", key, key in members, f"one of {known}")
        entry = archive.getinfo(members[key])
        stored = entry.compress_type == zipfile.ZIP_STORED
        check(f"{path}:{key}", "compressed", stored, "uncompressed to be mapped: write it with np.savez")
        place, size = entry.header_offset, file.seek(0, os.SEEK_END)
        inside = 0 <= place <= size - entry.compress_size
        check(f"{path}:{key}", place, inside, f"at a place within the file of {size} bytes: it is damaged")
        if verify:
            archive.read(entry)  # compares the CRC-32
        return entry


def _map(file: BinaryIO, entry: zipfile.ZipInfo, field: str) -> np.ndarray:
    """Maps one stored member of a zip, whose first bytes describe the array."""
    # A member starts with a 30-byte local header, then its name and an extra field whose lengths stand at bytes 26, 28.
    file.seek(entry.header_offset)
    header = file.read(30)
    check(field, header[:4], header[:4] == b"PK\x03\x04" and len(header) == 30, "where the zip says: it is damaged")
    start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    file.seek(start)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception as error:  # NumPy reads it as a Python literal: ValueError, SyntaxError, TokenError, ...
        raise ValueError(f"{field}: no array header ({' '.join(str(error).split())}); the file is damaged") from None
    check(field, str(dtype), dtype.kind in "biufc", "plain numbers: uint8 images, integer labels")
    held = entry.file_size - (file.tell() - start)
    fits = math.prod(shape) * dtype.itemsize == held and min(shape, default=1) >= 0
    check(field, shape, fits, f"a shape of {held} bytes of {dtype}, as the file holds: it is damaged")
    offset = file.tell()
    size = file.seek(0, os.SEEK_END)
    check(field, shape, offset + held <= size, f"complete: the file ends {offset + held - size} bytes too early")
    if not held:
        return np.empty(shape, dtype)
    return np.memmap(file, dtype, "r", offset, shape, "F" if fortran else "C")

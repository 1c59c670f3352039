"""What a source knows of its examples without reading an image: labels, class names, where they come from, a digest.

A source may have, besides what `robust_vit.typing.Source` asks for:
  channels: of its images, 3 where it does not say.
  shown: keywords of `robust_vit.data.decoding.decode` for its encoded images.
  labels: integers [n].
  class_names: one a class.
  origin: which examples these are, in words.
  index_digest(indices): hexadecimal SHA-256 of the names, sizes and labels of its examples `indices` (None: of all).
  identify(i): what messages call example i.
The functions here ask for them, of sources that have them and of those that do not.
"""

import hashlib
from typing import Any

import numpy as np

from robust_vit.typing import Source


def labels(source: Source) -> np.ndarray | None:
    """Returns the labels [n], or None where only reading every example would tell."""
    found = getattr(source, "labels", None)
    return None if found is None else np.asarray(found)


def class_names(source: Source) -> tuple[str, ...] | None:
    """Returns one name a class, or None where the source has none."""
    found = getattr(source, "class_names", None)
    return None if found is None else tuple(found)


def origin(source: Source) -> str:
    """Returns in words which examples these are, such as "part 'train' without the 5% carved out for validation"."""
    return getattr(source, "origin", "") or type(source).__name__


def shown(source: Source) -> dict[str, Any]:
    """Returns the keywords of `robust_vit.data.decoding.decode` that say how a source's images are shown."""
    return getattr(source, "shown", {})


def identify(source: Source, index: int) -> str:
    """Returns what an error message calls example `index`: its file where the source knows it, else its number."""
    return source.identify(index) if hasattr(source, "identify") else f"example {index}"


def digest(source: Source, indices: np.ndarray | None = None) -> str:
    """Returns a hexadecimal SHA-256 that changes when an example is added, removed, renamed, relabelled or resized.

    No image is decoded. It does not depend on the machine, the order of files on the disk, or where the data lie, so
    that a run may move. What goes in, besides the number of classes:
      folder: names relative to the part, labels, file sizes (of 20,000 files chosen by hash where there are more);
      npz: shape, type, and the CRC-32 of both arrays as the zip directory holds them;
      tfds: name and version of the set, number of examples and bytes of every shard, names of the classes;
      huggingface: labels, and the byte length of every encoded image (the type where images are arrays);
      digits, synthetic: their options.
    A source without `index_digest` is known by its length and its labels (if it has `labels`) alone.

    Args:
      source: any source.
      indices: the examples meant, in order; None for all.
    """
    if hasattr(source, "index_digest"):
        return source.index_digest(indices)
    known = labels(source)
    which = np.arange(len(source)) if indices is None else np.asarray(indices)
    return sha256(source.num_classes, which, None if known is None else known[which])


def sha256(*parts: Any) -> str:
    """Returns the hexadecimal SHA-256 of values: arrays by type, shape and little-endian bytes, others by `repr`."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            part = part.astype(np.int64) if part.dtype.kind in "iu" else part
            part = np.ascontiguousarray(part, part.dtype.newbyteorder("<"))
            header, content = f"{part.dtype.str}{part.shape}", part.tobytes()
        else:
            header, content = "value", repr(part).encode("utf-8", "surrogateescape")
        total.update(f"{header}:{len(content)}:".encode() + content)
    return total.hexdigest()

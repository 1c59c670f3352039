"""Images many at once: functions of arrays in batches of one size, and the batches of whatever `evaluate` is given."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from robust_vit.errors import check
from robust_vit.evaluation import fingerprint
from robust_vit.typing import Array

SIZE = 256  # images a compiled call; changes no result


def in_batches(function: Callable[..., Array], size: int, shared: tuple[Any, ...], arrays: tuple[Array, ...]) -> Array:
    """function(*shared, *arrays) for at most `size` rows at once; a short last batch repeats row 0, so that all batches
    share one program.
    """
    count = len(arrays[0])
    check("images", count, count > 0, "at least one image")
    check("batch_size", size, size >= 1, "at least 1")
    if count <= size:
        return function(*shared, *arrays)
    found = []
    for start in range(0, count, size):
        rows = np.arange(start, start + size)
        rows[rows >= count] = 0
        found.append(function(*shared, *(array[rows] for array in arrays)))
    return jnp.concatenate(found)[:count]


def of(data: Any, config: Any, batch_size: int | None, limit: int | None) -> Any:
    """Masked batches of examples, re-iterable.

    Args:
      data: "train", "validation" or "test" of the configuration's data; a `data.Dataset` (its test split); a source; or
        (images [N,H,W,C], labels [N]).
      config: of the run, if there is one.
      batch_size: examples at once; by default the configuration's, or 256.
      limit: at most so many examples, always the same ones.

    Raises:
      ValueError: a split without a run, or arrays that do not fit together.
    """
    from robust_vit import subject
    from robust_vit.data import Dataset, pipeline

    check("batch_size", batch_size, batch_size is None or batch_size >= 1, "at least 1")
    if isinstance(data, str):
        check("data", data, config is not None, "(images, labels), a Dataset or a source: this is no run's model")
        return subject.split_batches(config, data, batch_size, limit)[0]
    reading = {"batch_size": batch_size or SIZE, "limit": limit}
    if isinstance(data, tuple | list):
        check("data", f"{len(data)} arrays", len(data) == 2, "(images, labels)")
        return of_arrays(*data, **reading)
    if isinstance(data, Dataset):
        return pipeline.evaluate(data.test, transforms=data.evaluation_transforms, **reading)
    known = all(hasattr(data, name) for name in ("__len__", "__getitem__", "num_classes"))
    check("data", data, known, "the name of a split, (images, labels), a data.Dataset or a source")
    return pipeline.evaluate(data, **reading)


def of_arrays(images: Any, labels: Any, batch_size: int, limit: int | None) -> list[dict[str, np.ndarray]]:
    """Arrays as batches, in order."""
    from robust_vit.data import splits

    images, labels = np.asarray(images), np.asarray(labels)
    check("labels.shape", labels.shape, labels.shape == images.shape[:1], f"[{len(images)}], one an image")
    check("labels", labels.dtype.name, labels.dtype.kind in "iu", "integers")
    check("limit", limit, limit is None or limit > 0, "at least 1")
    index = np.arange(len(labels)) if limit is None else splits.select(len(labels), limit)
    parts = [index[start : start + batch_size] for start in range(0, len(index), batch_size)]
    check("images", len(labels), bool(parts), "at least one image")
    return [{"image": images[part], "label": labels[part], "index": part} for part in parts]


def name_of(examples: tuple[np.ndarray, np.ndarray, np.ndarray]) -> str:
    """What tells a set of examples from others in a result file."""
    return f"{len(examples[1])} examples {fingerprint.data(*examples)[:8]}"

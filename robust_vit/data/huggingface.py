"""Hugging Face `datasets`: a folder written by `save_to_disk`, parquet files, or a name on the hub.

Needs the extra `robust-vit[huggingface]`.
"""

import pathlib
from typing import Any

import numpy as np

from robust_vit.data import splits
from robust_vit.errors import check
from robust_vit.typing import Source

IMAGE_KEYS, LABEL_KEYS = ("image", "img"), ("label", "labels", "fine_label")


def huggingface(
    split: str,
    *,
    path: str,
    configuration: str | None = None,
    revision: str | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    cache_dir: str | None = None,
    **parts: Any,
) -> Source:
    """Opens a set of the `datasets` library.

    Args:
      split: "train", "validation" or "test".
      path: a folder written by `save_to_disk`; a folder with parquet files named after their parts
        (`train-00000-of-00001.parquet`), or one parquet file (which is the training part); or a name on the hub
        ("ILSVRC/imagenet-1k").
      configuration, revision: of a set on the hub.
      image_key, label_key: columns; default the first of image, img and of label, labels, fine_label that there is.
      cache_dir: where `datasets` keeps what it converted or downloaded.
      **parts: see `robust_vit.data.splits.open_split`.

    Raises:
      ImportError: `datasets` is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("data.name = 'huggingface' needs `pip install robust-vit[huggingface]`") from error
    stored = _open(datasets, path, configuration, revision, cache_dir)
    return splits.open_split(
        split,
        sorted(stored),
        lambda part: HuggingfaceSource(stored[part], f"{path}:{part}", image_key, label_key),
        **parts,
    )


def _open(datasets: Any, path: str, configuration: str | None, revision: str | None, cache_dir: str | None) -> Any:
    """Returns the stored parts as a mapping name -> Dataset."""
    local = pathlib.Path(path)
    if (local / "dataset_dict.json").exists() or (local / "state.json").exists():
        stored = datasets.load_from_disk(path)
    elif local.is_file():
        stored = datasets.load_dataset("parquet", data_files={"train": path}, cache_dir=cache_dir)
    elif local.is_dir():
        stored = datasets.load_dataset("parquet", data_dir=path, cache_dir=cache_dir)
    else:
        stored = datasets.load_dataset(path, configuration, revision=revision, cache_dir=cache_dir)
    return stored if isinstance(stored, dict) else {"train": stored}


class HuggingfaceSource:
    """One stored part; images stay encoded until the transforms ask for them."""

    channels = 3

    def __init__(self, table: Any, name: str, image_key: str | None, label_key: str | None):
        import datasets

        self.image_key = _column("data.options.image_key", image_key, IMAGE_KEYS, table.column_names)
        self.label_key = _column("data.options.label_key", label_key, LABEL_KEYS, table.column_names)
        table = table.select_columns([self.image_key, self.label_key])
        if isinstance(table.features[self.image_key], datasets.Image):
            table = table.cast_column(self.image_key, datasets.Image(decode=False))
        self.table, self.name = table, name
        feature = table.features[self.label_key]
        if isinstance(feature, datasets.ClassLabel):
            self.num_classes = feature.num_classes
        else:
            labels = np.asarray(table[self.label_key])
            check(f"{name}:{self.label_key}", labels.dtype.name, labels.dtype.kind in "iu", "integers or a ClassLabel")
            self.num_classes = int(labels.max()) + 1

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.table[int(index)]
        image = row[self.image_key]
        if isinstance(
            image, dict
        ):  # an encoded image is stored as {"bytes", "path"}, with one of them possibly missing
            image = image["bytes"] if image["bytes"] is not None else pathlib.Path(image["path"]).read_bytes()
        elif not isinstance(image, bytes):
            image = np.asarray(image, np.uint8)
        return {"image": image, "label": int(row[self.label_key])}

    def identify(self, index: int) -> str:
        return f"{self.name}[{index}]"


def _column(field: str, given: str | None, usual: tuple[str, ...], columns: list[str]) -> str:
    """The column given, or the first usual one that is there."""
    name = given or next((key for key in usual if key in columns), None)
    check(field, name, name in columns, f"one of {', '.join(columns)}")
    return name

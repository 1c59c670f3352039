"""Hugging Face `datasets`: a folder written by `save_to_disk`, parquet files, or a name on the hub.

Needs the extra `robust-vit[huggingface]`.
"""

import pathlib
from typing import Any

import numpy as np

from robust_vit.data import catalogue, decoding, splits
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
    float_max: float | None = None,
    background: str = "white",
    orientation: bool = True,
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
      float_max: of images stored as float arrays, the value of white: 1.0 or 255.0; they are rounded to 256 levels.
      background, orientation: of encoded images, see `robust_vit.data.decoding.decode`.
      **parts: see `robust_vit.data.splits.open_split`.

    Raises:
      ImportError: `datasets` is not installed.
      ValueError: there is no such set, or it is damaged.
    """
    try:
        import datasets
    except ImportError as error:
        raise ImportError("data.name = 'huggingface' needs `pip install robust-vit[huggingface]`") from error
    stored = _open(datasets, path, configuration, revision, cache_dir)
    shown = decoding.keywords(background, orientation)

    def load(part: str) -> Source:
        return HuggingfaceSource(stored[part], f"{path}:{part}", image_key, label_key, float_max, shown)

    return splits.open_split(split, sorted(stored), load, **parts)


def _open(datasets: Any, path: str, configuration: str | None, revision: str | None, cache_dir: str | None) -> Any:
    """Returns the stored parts as a mapping name -> Dataset."""
    local = pathlib.Path(path)
    here = local.exists() or local.is_absolute() or path.startswith((".", "~")) or path.count("/") > 1
    what = "a folder of save_to_disk or of parquet files, a parquet file, or a name on the hub such as owner/name"
    check("data.options.path", path, local.exists() or not here, f"{what}; there is no such file or folder")
    try:
        if (local / "dataset_dict.json").exists() or (local / "state.json").exists():
            stored = datasets.load_from_disk(path)
        elif local.is_file():
            stored = datasets.load_dataset("parquet", data_files={"train": path}, cache_dir=cache_dir)
        elif local.is_dir():
            stored = datasets.load_dataset("parquet", data_dir=path, cache_dir=cache_dir)
        else:
            stored = datasets.load_dataset(path, configuration, revision=revision, cache_dir=cache_dir)
    except Exception as error:  # of datasets, its hub client, pyarrow and fsspec, which share no base class
        cause = " ".join(str(error.__cause__ or error).split())[:300]
        raise ValueError(f"data.options.path = {path!r}: must be {what} ({type(error).__name__}: {cause})") from error
    return stored if isinstance(stored, dict) else {"train": stored}


class HuggingfaceSource:
    """One stored part; images stay encoded until the transforms ask for them."""

    channels = 3

    def __init__(
        self,
        table: Any,
        name: str,
        image_key: str | None = None,
        label_key: str | None = None,
        float_max: float | None = None,
        shown: dict[str, Any] | None = None,
    ):
        import datasets

        self.image_key = _column("data.options.image_key", image_key, IMAGE_KEYS, table.column_names)
        self.label_key = _column("data.options.label_key", label_key, LABEL_KEYS, table.column_names)
        table = table.select_columns([self.image_key, self.label_key])
        if isinstance(table.features[self.image_key], datasets.Image):
            table = table.cast_column(self.image_key, datasets.Image(decode=False))
        self.table, self.name, self.float_max, self.shown = table, name, float_max, shown or {}
        feature, labels = table.features[self.label_key], self.labels
        allowed = "integers or a ClassLabel, none missing; class_encode_column makes one of words"
        check(f"{name}:{self.label_key}", labels.dtype.name, labels.dtype.kind in "iu", allowed)
        encoded = isinstance(feature, datasets.ClassLabel)
        self.num_classes = feature.num_classes if encoded else int(labels.max(initial=0)) + 1
        self.class_names = tuple(feature.names) if encoded else None
        if len(table):
            self[0]  # images of a type or shape that cannot be read are refused now

    @property
    def labels(self) -> np.ndarray:
        return self._rows(self.table.data.column(self.label_key).to_numpy())

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.table[int(index)]
        image = row[self.image_key]
        if isinstance(image, dict):  # an encoded image is {"bytes", "path"}, with one of them possibly missing
            image = image["bytes"] if image["bytes"] is not None else pathlib.Path(image["path"]).read_bytes()
        elif not isinstance(image, bytes):
            image = decoding.as_pixels(image, self.float_max, self.identify(index))
        return {"image": image, "label": int(row[self.label_key])}

    def identify(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def index_digest(self, indices: np.ndarray | None = None) -> str:
        which = np.arange(len(self)) if indices is None else np.asarray(indices)
        sizes = self._sizes()
        sizes = sizes[which] if isinstance(sizes, np.ndarray) else sizes
        return catalogue.sha256(self.num_classes, self.class_names, self.float_max, self.labels[which], sizes)

    def _sizes(self) -> np.ndarray | str:
        """Bytes of every encoded image, from the offsets of the table; the type where images are arrays."""
        import pyarrow
        import pyarrow.compute as compute

        column = self.table.data.column(self.image_key)
        if pyarrow.types.is_struct(column.type):
            column = compute.struct_field(column, "bytes")
        if not (pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type)):
            return str(column.type)
        return self._rows(compute.fill_null(compute.binary_length(column), -1).to_numpy())

    def _rows(self, column: np.ndarray) -> np.ndarray:
        """A stored column in the order of the examples: a table that was shuffled is read through a list of rows."""
        rows = getattr(self.table, "_indices", None)
        return column if rows is None else column[rows.column(0).to_numpy()]


def _column(field: str, given: str | None, usual: tuple[str, ...], columns: list[str]) -> str:
    """The column given, or the first usual one that is there."""
    name = given or next((key for key in usual if key in columns), None)
    check(field, name, name in columns, f"one of {', '.join(columns)}")
    return name

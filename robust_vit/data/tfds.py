"""TensorFlow Datasets stored as array_record, read without TensorFlow."""

import pathlib
from typing import Any

import numpy as np

from robust_vit.data import catalogue, decoding, splits
from robust_vit.errors import check
from robust_vit.typing import Source


def tfds(
    split: str,
    *,
    dataset: str,
    data_dir: str | None = None,
    image_key: str | None = None,
    label_key: str | None = None,
    background: str = "white",
    orientation: bool = True,
    **parts: Any,
) -> Source:
    """Opens a prepared TFDS set by random access.

    The set must be stored as array_record (`tfds build --file_format=array_record`, or `download_and_prepare` with
    that format): TFRecord files have no random access. Nothing is downloaded here.

    Args:
      split: "train", "validation" or "test".
      dataset: name, with a version if wanted: "imagenet2012", "imagenet2012:5.1.0", "my_set/config:1.0.0".
      data_dir: where the sets are stored; default TFDS's own (`~/tensorflow_datasets`, or the environment variable
        TFDS_DATA_DIR).
      image_key, label_key: names of the features; default those that the set declares as supervised, else "image" and
        "label".
      background, orientation: see `robust_vit.data.decoding.decode`.
      **parts: see `robust_vit.data.splits.open_split`.
    """
    import tensorflow_datasets

    try:
        builder = tensorflow_datasets.core.load.read_only_builder.builder_from_files(dataset, data_dir=data_dir)
    except tensorflow_datasets.core.registered.DatasetNotFoundError as error:
        where, option = data_dir or "the TFDS folder", f" --data_dir={data_dir}" if data_dir else ""
        raise ValueError(
            f"data.options.dataset = {dataset!r}: must be prepared as array_record in {where}:"
            f" run `python launch/prepare_data.py {dataset}{option}`; this project's experiments run without data too,"
            " on rendered shapes: `--config=FILE.py:synthetic`"
        ) from error
    supervised = builder.info.supervised_keys or ("image", "label")
    keys = image_key or supervised[0], label_key or supervised[1]
    for field, key in zip(("data.options.image_key", "data.options.label_key"), keys):
        check(field, key, key in builder.info.features, f"one of {', '.join(sorted(builder.info.features))}")
    stored = {name for name, info in builder.info.splits.items() if info.num_examples}
    shown = decoding.keywords(background, orientation)
    return splits.open_split(split, sorted(stored), lambda part: TfdsSource(builder, part, *keys, shown), **parts)


class TfdsSource:
    """One stored part; images stay encoded until the transforms ask for them."""

    def __init__(self, builder: Any, part: str, image_key: str, label_key: str, shown: dict[str, Any]):
        import tensorflow_datasets

        form = builder.info.file_format.value
        check(f"file format of {builder.info.full_name}", form, form == "array_record", "array_record")
        decoders = {image_key: tensorflow_datasets.decode.SkipDecoding()}
        self.records = builder.as_data_source(part, decoders=decoders)
        self.image_key, self.label_key = image_key, label_key
        self.name = f"{pathlib.Path(builder.info.data_dir)}:{part}"
        label, image = builder.info.features[label_key], builder.info.features[image_key]
        self.num_classes, self.class_names = label.num_classes, tuple(label.names)
        self.channels, self.shown = 1 if image.shape[-1] == 1 else 3, shown
        stored = builder.info.splits[part]
        self.stored = (builder.info.full_name, part, tuple(stored.shard_lengths), stored.num_bytes)
        if int(self.records[0][label_key]) < 0:
            raise ValueError(
                f"data: part {part!r} of {builder.info.full_name} has no labels;"
                " name another part, such as data.options.test_split='validation'"
            )

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        return {"image": record[self.image_key], "label": int(record[self.label_key])}

    def identify(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def index_digest(self, indices: np.ndarray | None = None) -> str:
        return catalogue.sha256(self.stored, self.class_names, indices)

"""From files to batches: sources of examples, transforms of images, and the pipeline that orders, shares and resumes.

    dataset = data.build("digits")
    batches = data.pipeline.train(dataset.train, batch_size=128, seed=0)
    batch = next(batches)  # {"image": uint8 [B,H,W,C], "label": int32 [B], "index": int32 [B], "mask": bool [B]}

`sources` names the data sets and reads where they are, `splits` decides who is train, validation and test, `extra` is a
second source to train on, `catalogue` says what a split holds, `checks` whether the splits fit each other; `decoding`
reads pixels, `host` builds what `transforms` holds by name (crops, colours, affine maps, RandAugment, AugMix),
`pipeline` makes the batches out of `loading`'s examples. `mixing` (MixUp, CutMix, random erasing) runs on the device.
"""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from robust_vit.data import catalogue, checks, decoding, host, mixing, pipeline, sources, splits
from robust_vit.data.extra import Extra
from robust_vit.data.pipeline import evaluate, train
from robust_vit.data.sources import REQUIRED, names, option_types, options, parse_location
from robust_vit.errors import check
from robust_vit.typing import Source

__all__ = [
    "Dataset",
    "Extra",
    "REQUIRED",
    "build",
    "catalogue",
    "checks",
    "decoding",
    "evaluate",
    "host",
    "mixing",
    "names",
    "option_types",
    "options",
    "parse_location",
    "pipeline",
    "sources",
    "splits",
    "train",
]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The splits of a data set, opened when first asked for, and the transforms that make their images equal in shape.

    Attributes:
      name: of the source.
      options: of the source.
      train_transforms: for `pipeline.train`.
      evaluation_transforms: for `pipeline.evaluate`.
      extra: a second source to train on, if there is one; it gets the training's transforms.
    """

    name: str
    options: dict[str, Any]
    train_transforms: tuple[host.Transform, ...] = ()
    evaluation_transforms: tuple[host.Transform, ...] = ()
    extra: Extra | None = None

    def split(self, name: str) -> Source:
        """Returns the source of "train", "validation" or "test"."""
        check("split", name, name in splits.SPLITS, f"one of {', '.join(splits.SPLITS)}")
        return getattr(self, name)

    @functools.cached_property
    def train(self) -> Source:
        return sources.build(self.name, "train", **self.options)

    @functools.cached_property
    def validation(self) -> Source:
        return sources.build(self.name, "validation", **self.options)

    @functools.cached_property
    def test(self) -> Source:
        return sources.build(self.name, "test", **self.options)

    @functools.cached_property
    def num_classes(self) -> int:
        return self.train.num_classes

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """One a class, as folders, Hugging Face and TFDS name them; None where the source has none."""
        return catalogue.class_names(self.train)

    def check(self, *names: str) -> None:
        """Opens splits, all three by default, and compares them with train: shape of the images, classes, labels; then
        the second source, if there is one.

        Nothing is compiled, and a few images of each are read.

        Raises:
          ValueError: one line that names the split which is missing, damaged, empty or does not fit.
        """
        checks.check_splits(self, names or splits.SPLITS)
        if self.extra is not None:
            checks.check_extra(self)

    def digests(self) -> dict[str, str]:
        """Returns {"train", "validation", "test"} -> a SHA-256 of the split's names, sizes and labels; with "extra"
        where there is a second source.

        Store it with a run, and refuse to resume where it differs: the key names the split that changed. Cheap (no
        image is decoded) and the same on every machine; see `catalogue.digest` for what goes in.
        """
        return {split: catalogue.digest(source) for split, source in self._opened().items()}

    def _opened(self) -> dict[str, Source]:
        """The three splits, and the second source under the name "extra"."""
        opened = {split: self.split(split) for split in splits.SPLITS}
        return opened | ({} if self.extra is None else {"extra": self.extra.source})

    def description(self) -> dict[str, Any]:
        """Returns what a run should write down of its data, as JSON values: name, options, class names, and for each
        split "examples", "origin" (which these are, in words) and "digest".
        """
        described = {
            split: {"examples": len(source), "origin": catalogue.origin(source), "digest": catalogue.digest(source)}
            for split, source in self._opened().items()
        }
        names = None if self.class_names is None else list(self.class_names)
        options = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in self.options.items()}
        return {"name": self.name, "options": options, "class_names": names, "splits": described}

    @functools.cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) after the evaluation transforms."""
        return pipeline.image_shape(self.train, self.evaluation_transforms)

    def arrays(self, split: str = "test", limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Reads a split into memory, after the evaluation transforms.

        Args:
          split: "train", "validation" or "test".
          limit: at most so many examples, always the same ones.

        Returns:
          images [N,H,W,C] uint8, labels [N] int32.
        """
        batches = pipeline.evaluate(
            self.split(split), batch_size=256, transforms=self.evaluation_transforms, limit=limit
        )
        parts = [(batch["image"][batch["mask"]], batch["label"][batch["mask"]]) for batch in batches]
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts))
        return images, labels


def build(
    name: str,
    *,
    train_transforms: Sequence[str | host.Transform] = (),
    evaluation_transforms: Sequence[str | host.Transform] = (),
    extra: Extra | None = None,
    **options: Any,
) -> Dataset:
    """Describes a data set; nothing is read before a split is asked for.

    Args:
      name: digits, synthetic, tfds, huggingface, folder or npz.
      train_transforms, evaluation_transforms: names as `host.build` takes them, such as ["random_resized_crop(224)",
        "flip"] and ["resize_centre_crop(224)"]; none for images that are stored in the size wanted.
      extra: a second source to train on.
      **options: of the source, such as `path="/data/imagenet"`, `validation_examples=10000`.

    Raises:
      ValueError: unknown name, option or transform, with the nearest that exists.
    """
    sources.check_options(name, options)
    return Dataset(name, options, host.build(train_transforms), host.build(evaluation_transforms), extra)

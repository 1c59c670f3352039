"""From files to batches: sources of examples, transforms of images, and the pipeline that orders, shares and resumes.

    dataset = data.build("digits")
    batches = data.pipeline.train(dataset.train, batch_size=128, seed=0)
    batch = next(batches)  # {"image": uint8 [B,H,W,C], "label": int32 [B], "index": int32 [B], "mask": bool [B]}

`sources` names the data sets, `splits` decides who is train, validation and test, `host` crops and flips, `pipeline`
makes the batches out of `loading`'s examples. `mixing` (MixUp, CutMix, random erasing) runs on the device.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from robust_vit.data import host, mixing, pipeline, sources, splits
from robust_vit.data.pipeline import evaluate, train
from robust_vit.data.sources import names
from robust_vit.errors import check
from robust_vit.typing import Source

__all__ = ["Dataset", "build", "evaluate", "host", "mixing", "names", "pipeline", "sources", "splits", "train"]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """The splits of a data set, opened when first asked for, and the transforms that make their images equal in shape.

    Attributes:
      name: of the source.
      options: of the source.
      train_transforms: for `pipeline.train`.
      evaluation_transforms: for `pipeline.evaluate`.
    """

    name: str
    options: dict[str, Any]
    train_transforms: tuple[host.Transform, ...] = ()
    evaluation_transforms: tuple[host.Transform, ...] = ()

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

    @functools.cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) after the evaluation transforms."""
        return pipeline.image_shape(self.train, self.evaluation_transforms)


def build(
    name: str,
    *,
    train_transforms: Sequence[str | host.Transform] = (),
    evaluation_transforms: Sequence[str | host.Transform] = (),
    **options: Any,
) -> Dataset:
    """Describes a data set; nothing is read before a split is asked for.

    Args:
      name: digits, synthetic, tfds, huggingface, folder or npz.
      train_transforms, evaluation_transforms: names as `host.build` takes them, such as ["random_resized_crop(224)",
        "flip"] and ["resize_centre_crop(224)"]; none for images that are stored in the size wanted.
      **options: of the source, such as `path="/data/imagenet"`, `validation_examples=10000`.

    Raises:
      ValueError: unknown name, option or transform, with the nearest that exists.
    """
    sources.check_options(name, options)
    return Dataset(name, options, host.build(train_transforms), host.build(evaluation_transforms))

"""The data of a run that is planned where they are not: how many images of which shape and how many classes will do."""

import dataclasses
from typing import Any

from robust_vit import config as config_lib
from robust_vit import data
from robust_vit.config import ConfigDict
from robust_vit.data import host, pipeline
from robust_vit.errors import check
from robust_vit.training import experiment

# name of the set -> (training examples, test examples, classes, side in pixels of what the transforms are shown)
KNOWN = {
    "imagenet2012": (1_281_167, 50_000, 1000, 256),
    "cifar10": (50_000, 10_000, 10, 32),
    "cifar100": (50_000, 10_000, 100, 32),
}
ELSE = (None, 10_000, None, 256)


class Images:
    """So many rendered images: what has a length and a shape."""

    def __init__(self, examples: int, classes: int, size: int):
        self.examples, self.num_classes = examples, classes
        self._shown = data.sources.build("synthetic", "train", size=size, examples=10)

    def __len__(self) -> int:
        return self.examples

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._shown[index % len(self._shown)]


@dataclasses.dataclass(frozen=True)
class Described:
    """What `experiment.build` asks of a `data.Dataset`."""

    train: Images
    validation: Images
    test: Images
    train_transforms: Any
    evaluation_transforms: Any
    extra: Any = None

    @property
    def num_classes(self) -> int:
        return self.train.num_classes

    @property
    def image_shape(self) -> tuple[int, ...]:
        return pipeline.image_shape(self.train, self.evaluation_transforms)


def dataset(config: ConfigDict, examples: int | None = None, classes: int | None = None) -> tuple[Any, str]:
    """The data of a configuration; where they are not here, images in their number and shape.

    Args:
      config: of the run; of data that are described, their source becomes rendered images.
      examples, classes: of the training split, for data that are neither here nor known by name; they take the place
        of data that are here.

    Returns:
      (dataset, what is described and not read: "" for nothing).

    Raises:
      ValueError: if the data are not here and their number is not known.
    """
    missing = ""
    if examples is None:
        try:
            made = experiment.build_data(config)
            made.check()
            return made, ""
        except ValueError as error:
            missing = str(error)
    options = config_lib.plain(config.data.options)
    name = str(options.get("dataset", config.data.name)).partition(":")[0]
    known = KNOWN.get(name, ELSE)
    count = classes or known[2] or config_lib.plain(config.model).get("num_classes")
    given = bool(examples or known[0]) and bool(count)
    check("examples", examples, given, f"given, with --classes, for a plan without the data: {missing or 'no classes'}")
    check("examples", examples, examples is None or examples > 0, "at least 1")
    kept = options.get("validation_examples") or (examples or known[0]) // 10
    numbers = (examples or known[0] - kept, kept, known[1])
    splits = [Images(number, count, known[3]) for number in numbers]
    config.data.name, config.data.options = "synthetic", ConfigDict()
    transforms = (host.build(config_lib.plain(config.data[f"{use}_transforms"])) for use in ("train", "evaluation"))
    extra = config.data.extra.name or None
    said = f"{name} is not read: planned for {numbers[0]:,} training images of {count} classes"
    return Described(*splits, *transforms, extra), said

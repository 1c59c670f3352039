"""What `evaluate` measures: a classifier from a run, converted weights, a function or PyTorch, and the data it sees."""

import dataclasses
import importlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from robust_vit import config as config_lib
from robust_vit import data, models
from robust_vit.config import ConfigDict
from robust_vit.data import catalogue, pipeline
from robust_vit.errors import check, lookup
from robust_vit.training import checkpoint, experiment
from robust_vit.typing import LogitsFn


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is measured: a classifier, and the configuration that its data and threat model are taken from."""

    config: ConfigDict
    logits_fn: LogitsFn
    weights: dict[str, Any]  # what result.json says of them, besides their hash
    module: Any = None
    variables: Any = None

    def on_data(self, location: str) -> "Subject":
        """The same classifier on other data; see the function `on_data`."""
        other = on_data(self.config, location, getattr(self.module, "image_size", None))
        return dataclasses.replace(self, config=other)


def from_run(workdir: str | pathlib.Path, step: str | int = "best", weights: str = "") -> Subject:
    """The classifier in a run folder; see `checkpoint.load` for the arguments and errors."""
    config, module, variables, found = checkpoint.load(workdir, step, weights)
    said = {"step": int(found)} | ({"kind": weights} if weights else {})
    return Subject(config, models.logits_fn(module, variables), said, module, variables)


def from_function(name: str, config: ConfigDict) -> Subject:
    """The classifier that `module:function` returns.

    Raises:
      ValueError: if there is no such module or function.
    """
    return Subject(config, imported("logits_fn", name)(), {"step": None, "function": name})


def from_torch(name: str, config: ConfigDict) -> Subject:
    """The PyTorch module, or (module, mean, std), that `module:function` returns.

    Raises:
      ValueError: if there is no such module or function, or it returns something else.
    """
    from robust_vit import foreign

    made = imported("torch", name)()
    module, mean, std = made if isinstance(made, tuple) and len(made) == 3 else (made, None, None)
    normalization = {} if mean is None and std is None else {"mean": mean, "std": std}
    return Subject(config, foreign.from_torch(module, **normalization), {"step": None, "torch": name})


def from_converted(directory: str | pathlib.Path, config: ConfigDict, location: str | None = None) -> Subject:
    """The classifier in a folder of converted weights, on the data (or those at `location`) and threat model of a
    configuration.

    Raises:
      ValueError: if the folder holds none, is damaged, or its classes are not those of the data.
    """
    from robust_vit.models.weights import converted

    module, variables, description = converted.load(directory)
    config = config if location is None else on_data(config, location, module.image_size)
    classes = experiment.build_data(config).num_classes
    check("num_classes", module.num_classes, module.num_classes == classes, f"{classes}, as in {config.data.name}")
    source = description["source"] or {}
    said = {"step": None, "model": description["model"], "source": source.get("sha256") or source}
    return Subject(config, models.logits_fn(module, variables), said, module, variables)


def imported(flag: str, name: str) -> Callable[[], Any]:
    """The function that `module:function` names.

    Raises:
      ValueError: if there is none.
    """
    module_name, _, function_name = name.partition(":")
    check(flag, name, bool(module_name and function_name), "module:function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{flag} = {name!r}: {error}; must be importable from here") from None
    callables = {k: v for k, v in vars(module).items() if callable(v) and not k.startswith("_")}
    return lookup(flag, function_name, callables)


def on_data(config: ConfigDict, location: str, image_size: Any = None) -> ConfigDict:
    """A configuration with other data, as `data.parse_location` reads them.

    Args:
      config: names the transforms, if it has any.
      location: such as "folder:/pictures".
      image_size: of the model; images are resized and cut to it where the configuration has no transforms for them.
    """
    name, options = data.parse_location(location)
    other = config_lib.ConfigDict(config.to_dict())
    if not config.data.evaluation_transforms and image_size and name not in ("digits", "synthetic", "npz"):
        size = image_size if isinstance(image_size, int) else image_size[0]
        other.data.evaluation_transforms = (f"resize_centre_crop({size})",)
    other.data.name = name
    other.data.options = config_lib.ConfigDict(options)
    return other


def split_batches(
    config: ConfigDict, split: str, batch_size: int | None = None, limit: int | None = None
) -> tuple[pipeline.Evaluation, Any]:
    """Opens a split of a configuration's data: this host's masked batches, re-iterable, and their source."""
    dataset = experiment.build_data(config)
    source = dataset.split(split)
    return _batches(config, source, dataset.evaluation_transforms, batch_size, limit), source


def robustbench_batches(
    config: ConfigDict, names: str, preprocessing: str, batch_size: int | None = None, limit: int | None = None
) -> tuple[pipeline.Evaluation, Any]:
    """`split_batches` for the ImageNet images that RobustBench's list file names, preprocessed as it does.

    Raises:
      ValueError: if the data are no folder, or as `robustbench.Subset`.
    """
    from robust_vit.evaluation import robustbench

    check("data", config.data.name, config.data.name == "folder", "folder:/path, with ImageNet's validation images")
    folder = config.data.options["path"]
    source = robustbench.Subset(names, folder, preprocessing, sha256=robustbench.LIST_SHA256)
    return _batches(config, source, (), batch_size, limit), source


def _batches(
    config: ConfigDict, source: Any, transforms: Any, batch_size: int | None, limit: int | None
) -> pipeline.Evaluation:
    return pipeline.evaluate(
        source,
        batch_size=batch_size or config.evaluation.batch_size,
        transforms=transforms,
        host_index=jax.process_index(),
        host_count=jax.process_count(),
        limit=limit,
        workers=config.data.workers,
        on_bad_image=config.data.on_bad_image,
    )


def check_fit(subject: Subject, batches: Any, source: Any) -> None:
    """Holds the first images and the labels against the model, before anything compiles.

    Raises:
      ValueError: for other channels, or classes that the model does not know.
    """
    module = subject.module
    shape = np.shape(next(iter(batches))["image"])[1:]
    if module is None or not hasattr(module, "channels"):
        return
    channels, classes = module.channels, source.num_classes
    check("images", shape, shape[-1] == channels, f"of {channels} channels, as the model takes")
    known = classes <= module.num_classes
    check("num_classes", classes, known, f"at most {module.num_classes}, the classes that the model knows")
    labels = catalogue.labels(source)
    top = -1 if labels is None or not len(labels) else int(labels.max())
    check("label", top, top < module.num_classes, f"in [0, {module.num_classes}), the classes that the model knows")

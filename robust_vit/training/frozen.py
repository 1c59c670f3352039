"""The frozen classifier that some objectives learn from: HAT's helper, the teacher of a distillation."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from robust_vit import models
from robust_vit.errors import check
from robust_vit.models.weights import converted
from robust_vit.objectives import encoders
from robust_vit.training import checkpoint, encoding
from robust_vit.training.experiment import Experiment
from robust_vit.typing import LogitsFn

KINDS = "a run folder or a folder of converted weights"


def of(experiment: Experiment) -> LogitsFn | None:
    """The teacher that the configuration of an experiment names, None where it names none."""
    path = experiment.config.objective.teacher
    return load(path, experiment) if path else None


def load(path: str, experiment: Experiment) -> LogitsFn:
    """Reads a classifier of the same images and classes; nothing is compiled.

    Args:
      path: a run folder, whose best checkpoint is taken, or a folder of converted weights.
      experiment: the run that learns from it.

    Raises:
      ValueError: if there is none, or it has other classes or takes other images.
    """
    field, dataset = "objective.teacher", experiment.dataset
    module, variables = _read(field, path)
    takes = models.image_shape(module)
    for stage in experiment.stages:
        shows = (*stage.size, dataset.image_shape[2])
        check(field, path, takes == shows, f"a classifier of images {shows}, as training shows; this one takes {takes}")
    logits_fn = models.logits_fn(module, variables)
    classes = jax.eval_shape(logits_fn, jax.ShapeDtypeStruct((1, *takes), jnp.float32)).shape[-1]
    allowed = f"a classifier of {dataset.num_classes} classes, as the data; this one has {classes}"
    check(field, path, classes == dataset.num_classes, allowed)
    if experiment.config.objective.name in encoders.ENCODERS:
        return encoding.features(path, module, variables, experiment.module)
    return logits_fn


def _read(field: str, path: str) -> tuple[Any, Any]:
    """The module and the variables of a folder; what is wrong with it is said of the field."""
    folder = pathlib.Path(path)
    run = (folder / "config.json").is_file()
    check(field, path, run or (folder / "model.json").is_file(), KINDS)
    try:
        return checkpoint.load(folder, "best")[1:3] if run else converted.load(folder)[:2]
    except ValueError as error:
        raise ValueError(f"{field} = {path!r}: {error}") from None

"""The frozen classifier that some objectives learn from: HAT's helper, the teacher of a distillation."""

import pathlib

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


def load(path: str, experiment: Experiment) -> LogitsFn:
    """Reads a classifier of the same images and classes; nothing is compiled.

    Args:
      path: a run folder, whose best checkpoint is taken, or a folder of converted weights.
      experiment: the run that learns from it.

    Raises:
      ValueError: if there is none, or it has other classes or takes other images.
    """
    field, folder, dataset = "objective.teacher", pathlib.Path(path), experiment.dataset
    if (folder / "config.json").is_file():
        _, module, variables, _ = checkpoint.load(folder, "best")
    else:
        check(field, path, (folder / "model.json").is_file(), KINDS)
        module, variables, _ = converted.load(folder)
    logits_fn = models.logits_fn(module, variables)
    image = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
    try:
        classes = jax.eval_shape(logits_fn, image).shape[-1]
    except Exception as error:
        said = str(error).partition("\n")[0]
        raise ValueError(f"{field} = {path!r}: does not take images {tuple(dataset.image_shape)} ({said})") from None
    allowed = f"a classifier of {dataset.num_classes} classes, as the data; this one has {classes}"
    check(field, path, classes == dataset.num_classes, allowed)
    if experiment.config.objective.name in encoders.ENCODERS:
        return encoding.features(path, module, variables, experiment.module)
    return logits_fn

"""What training costs, in forward passes of one image: counted in the program of a step, not read off its description.

A forward pass of an image is 1, a backward pass to the image 1, one to image and weights 2. PGD-7 and a step on what it
found are 7 (1 + 1) + 1 + 2 = 17 an image. The dense layers are counted, each of which is multiplied once in a forward
pass, once more for the gradient of its input, once more for that of its weights; what nobody reads is not computed.
"""

import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.interpreters import partial_eval
from jax.tree_util import Partial

from robust_vit import config as config_lib
from robust_vit import models, objectives
from robust_vit.config import ConfigDict
from robust_vit.errors import check
from robust_vit.objectives import encoders
from robust_vit.training import experiment, state
from robust_vit.training.experiment import Experiment
from robust_vit.training.stages import Stage

COUNTED = ("pgd", "fgsm", "apgd")  # attacks of a known number of passes
# What stands for any other architecture: how often a model is called is not the model's affair. It is so wide that its
# first layer, whose input needs no gradient but the attack's, is less than the third decimal.
VIT = dict(name="vit", patch_size=2, depth=2, width=512, heads=2, pooling="mean")


def forwards(config: ConfigDict) -> float:
    """Forward passes that training spends on one image of the training split, over all epochs; validation is left out.

    A teacher's passes are counted, and its own training is not.

    Args:
      config: a complete configuration; what it begins from and learns from need not be there.

    Raises:
      ValueError: for an attack whose passes are not counted here.
    """
    name = config.attack.name
    check("attack.name", name, name in COUNTED, f"one of {', '.join(COUNTED)}")
    e = experiment.build(_counted(config), resumed=True)
    unit, total, before = _unit(e), 0.0, 0
    for stage in e.stages:
        per_image = _dense(_program(e, stage)) / e.config.data.batch_size / unit
        total += (stage.until - before) * round(per_image, 2)
        before = stage.until
    return total * config.training.epochs / e.total_steps


def _counted(config: ConfigDict) -> ConfigDict:
    """The configuration with the model that stands for all of its kind."""
    copy = config_lib.from_json(config_lib.to_json(config))
    if copy.model.name != "masked_autoencoder":
        normalised = {field: copy.model[field] for field in ("mean", "std")}
        copy.model = config_lib.base().model
        for field, value in (VIT | normalised).items():
            copy.model[field] = value
    return copy


def _unit(e: Experiment) -> float:
    """Multiplications in the dense layers of one forward pass of one whole image."""
    fields = {name: e.config.model[name] for name in VIT if name not in ("name", "pooling")}
    shape = tuple(e.dataset.image_shape)
    classifier = dict(num_classes=e.dataset.num_classes, image_size=shape[:2], channels=shape[2], pooling="mean")
    module = models.build("vit", **fields, **classifier)
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return _dense(jax.make_jaxpr(module.apply)(variables, image).jaxpr)


def _program(e: Experiment, stage: Stage) -> Any:
    """The program of a stage's step, without what nobody reads."""
    c, shape = e.config, tuple(e.dataset.image_shape)
    memory = functools.partial(objectives.memory, c.objective.name, e.dataset.num_classes)
    create = functools.partial(state.create, e.module, e.tx, shape, 0, c.optimizer.ema_decay > 0, memory)
    now = jax.eval_shape(create)
    rows = c.data.batch_size
    batch = {
        "image": jax.ShapeDtypeStruct((rows, *shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
        "index": jax.ShapeDtypeStruct((rows,), jnp.int32),
        "extra": jax.ShapeDtypeStruct((rows,), jnp.bool_),
    }
    number = jax.ShapeDtypeStruct((), jnp.float32)
    teacher = _teacher(e, now) if c.objective.teacher else None
    jaxpr = jax.make_jaxpr(stage.step)(now, batch, number, number, teacher).jaxpr
    return partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


def _teacher(e: Experiment, now: state.TrainState) -> Any:
    """A teacher as large as the model itself."""
    encodes = e.config.objective.name in encoders.ENCODERS
    module = e.module.clone(num_classes=0) if encodes else e.module
    return Partial(module.apply, now.variables())


def _dense(jaxpr: Any) -> float:
    """Multiplications of the dense layers of a program: products of matrices that no batch has of its own.

    Raises:
      ValueError: for a loop whose length nobody knows.
    """
    total = 0.0
    for eqn in jaxpr.eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (summed, _), (batched, _) = params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += 0.0 if batched else math.prod(eqn.outvars[0].aval.shape) * math.prod(left[i] for i in summed)
        elif name == "while":
            raise ValueError("training step: must have no loop of unknown length for its passes to be counted")
        elif name == "cond":
            total += max(_dense(branch.jaxpr) for branch in params["branches"])
        else:
            times = params["mesh"].size if name == "shard_map" else params.get("length", 1)  # devices; turns
            total += times * sum(map(_dense, _inner(params)))
    return total


def _inner(params: dict[str, Any]) -> Iterator[Any]:
    """The programs within an equation."""
    for value in params.values():
        value = getattr(value, "jaxpr", value)
        if hasattr(value, "eqns"):
            yield value
